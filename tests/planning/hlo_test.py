"""Programs taken apart: products, collectives and traffic against what is known of them."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from alignjax.planning import collectives, hlo, hlo_costs
from alignjax.runtime.sharding import make_mesh

LOOP = """HloModule looped, num_partitions=4

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%all-reduce-scatter.1 (input: bf16[8,16]) -> bf16[4,16] {
  %input = bf16[8,16]{1,0} parameter(0)
  %all-reduce.3 = bf16[8,16]{1,0} all-reduce(%input), @PAIRS
  ROOT %mine = bf16[4,16]{1,0} slice(%all-reduce.3), slice={[0:4], [0:16]}
}

%start (x: bf16[2,16]) -> bf16[8,16] {
  %x = bf16[2,16]{1,0} parameter(0)
  ROOT %all-gather.1 = bf16[8,16]{1,0} all-gather(%x), @CHAIN
}

%go-on (y: bf16[2,16]) -> bf16[8,16] {
  %y = bf16[2,16]{1,0} parameter(0)
  ROOT %all-gather.2 = bf16[8,16]{1,0} all-gather(%y), @CHAIN
}

%body (state: (s32[], bf16[2,16], bf16[4,16])) -> (s32[], bf16[2,16], bf16[4,16]) {
  %state = (s32[], bf16[2,16]{1,0}, /*index=2*/bf16[4,16]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %part = bf16[2,16]{1,0} get-tuple-element(%state), index=1
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  %f1 = bf16[8,16]{1,0} fusion(%part), kind=kCustom, calls=%start
  %f2 = bf16[8,16]{1,0} fusion(%part), kind=kCustom, calls=%go-on
  %f3 = bf16[4,16]{1,0} fusion(%f2), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %out = (s32[], bf16[2,16]{1,0}, bf16[4,16]{1,0}) tuple(%next, %part, %f3)
}

%condition (state.1: (s32[], bf16[2,16], bf16[4,16])) -> pred[] {
  %state.1 = (s32[], bf16[2,16]{1,0}, bf16[4,16]{1,0}) parameter(0)
  %bound = s32[] constant(6)
  %j = s32[] get-tuple-element(%state.1), index=0
  ROOT %less = pred[] compare(%j, %bound), direction=LT
}

ENTRY %main (given: (s32[], bf16[2,16], bf16[4,16])) -> (s32[], bf16[2,16], bf16[4,16]) {
  %given = (s32[], bf16[2,16]{1,0}, bf16[4,16]{1,0}) parameter(0)
  ROOT %loop = (s32[], bf16[2,16]{1,0}, bf16[4,16]{1,0}) while(%given), @LOOP
}
"""
for short, long in {
    "@PAIRS": "channel_id=3, replica_groups={{0,2},{1,3}}, to_apply=%add",
    "@CHAIN": 'channel_id=1, replica_groups=[1,4]<=[4], frontend_attributes={chain_id="0"}',
    "@LOOP": "condition=%condition, body=%body",
}.items():
    LOOP = LOOP.replace(short, long)

# A kernel's call, as TPUs' programs have it: what it says of itself takes lines of its own.
KERNEL = """HloModule kernel

ENTRY %main (t: s8[1,2,2], q: bf16[1,2,256,8], k: bf16[1,1,256,8]) -> (bf16[1,2,256,8], f32[4]) {
  %t = s8[1,2,2] parameter(2)
  %q = bf16[1,2,256,8] parameter(0)
  %k = bf16[1,1,256,8] parameter(1)
  ROOT %call = (bf16[1,2,256,8], f32[4]) custom-call(%t, %t, %t, %q, %k, %k), @CALLED={
"xprof_metadata":"{\\"block_q\\": 128}"
}}, metadata={op_name="jit(f)/jvp(splash_3_128)/shard_map/splash_mha_@PHASE_segmented/call"}
}
""".replace(
    "@CALLED", 'custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata='
)


def told(program):
    return [
        (c.kind, c.times, c.size, c.group, c.wire) for c in collectives.find_collectives(program)
    ]


def test_collectives_of_a_loop_count_by_its_turns():
    # The counter rises by 2 up to 6; the gather is spread over two fusions.
    gather, scatter = 8 * 16 * 2, 4 * 16 * 2
    assert told(hlo.parse(LOOP)) == [
        ("all-gather", 3, gather, 4, gather * 3 / 4),
        ("reduce-scatter", 3, scatter, 2, scatter),
    ]
    apart = LOOP.replace('chain_id="0"', 'x="0"')
    assert [c[0] for c in told(hlo.parse(apart))].count("all-gather") == 2
    once = LOOP.replace("constant(6)", "constant(2)")
    assert {c[1] for c in told(hlo.parse(once))} == {1}
    known = LOOP.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"7"}}')
    assert {c[1] for c in told(hlo.parse(known))} == {7}


def test_a_collective_that_goes_on_in_a_loop_inside_counts_once():
    inside = """%turn (given.1: (s32[], bf16[2,16])) -> (s32[], bf16[2,16]) {
  %given.1 = (s32[], bf16[2,16]{1,0}) parameter(0)
  %k = s32[] get-tuple-element(%given.1), index=0
  %mine.1 = bf16[2,16]{1,0} get-tuple-element(%given.1), index=1
  %f4 = bf16[8,16]{1,0} fusion(%mine.1), kind=kCustom, calls=%go-on
  ROOT %out.1 = (s32[], bf16[2,16]{1,0}) tuple(%k, %mine.1)
}

%until (given.2: (s32[], bf16[2,16])) -> pred[] {
  %given.2 = (s32[], bf16[2,16]{1,0}) parameter(0)
  ROOT %no = pred[] constant(false)
}

%body ("""
    fusion = "%f2 = bf16[8,16]{1,0} fusion(%part), kind=kCustom, calls=%go-on"
    loop = """%f2 = (s32[], bf16[2,16]{1,0}) while(%state), condition=%until, body=%turn, \
backend_config={"known_trip_count":{"n":"5"}}"""
    nested = LOOP.replace("%body (", inside, 1).replace(fusion, loop)
    assert told(hlo.parse(nested)) == told(hlo.parse(LOOP))
    apart = nested.replace('chain_id="0"', 'x="0"')
    assert sorted(c[1] for c in told(hlo.parse(apart))) == [3, 3, 3 * 5]


def test_traffic_is_that_of_kept_buffers():
    part, whole, mine = 2 * 16 * 2, 8 * 16 * 2, 4 * 16 * 2
    add, compare = 3 * 4, 2 * 4 + 1
    turn = 2 * (part + whole) + whole + mine + add + compare
    assert hlo_costs.bytes_moved(hlo.parse(LOOP)) == 3 * turn


HANDED = """HloModule step, num_partitions=8

%go-on (y: bf16[2,16], z: bf16[8,16], w: bf16[4,16]) -> (bf16[4,16], bf16[8,16]) {
  %y = bf16[2,16]{1,0} parameter(0)
  %z = bf16[8,16]{1,0} parameter(1)
  %w = bf16[4,16]{1,0} parameter(2)
  %sum = bf16[4,16]{1,0} add(%w, %w)
  %all-gather.2 = bf16[8,16]{1,0} all-gather(%y), @CHAIN
  ROOT %both = (bf16[4,16]{1,0}, bf16[8,16]{1,0}) tuple(%sum, %z)
}

ENTRY %main (a: bf16[2,16], b: bf16[8,16], c: bf16[4,16]) -> (bf16[4,16], bf16[8,16]) {
  %a = bf16[2,16]{1,0} parameter(0)
  %b = bf16[8,16]{1,0} parameter(1)
  %c = bf16[4,16]{1,0} parameter(2)
  ROOT %f = (bf16[4,16]{1,0}, bf16[8,16]{1,0}) fusion(%a, %b, %c), kind=kOutput, @HANDED
}
""".replace("@HANDED", "output_to_operand_aliasing={{1}: (1, {})}, calls=%go-on")


def test_what_a_collective_under_way_hands_on_is_not_moved():
    part, whole, own = 2 * 16 * 2, 8 * 16 * 2, 4 * 16 * 2
    assert hlo_costs.bytes_moved(hlo.parse(HANDED)) == part + own + own
    computing = HANDED.replace("all-gather(%y)", "broadcast(%y)")
    assert hlo_costs.bytes_moved(hlo.parse(computing)) == part + own + own + 2 * whole


SLICED = """HloModule step, num_partitions=1

%inner (p.0: bf16[8,16], i.0: s32[]) -> bf16[1,16] {
  %p.0 = bf16[8,16]{1,0} parameter(0)
  %i.0 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %cut = bf16[1,16]{1,0} dynamic-slice(%p.0, %i.0, %zero), dynamic_slice_sizes={1,16}
}

%outer (p.1: bf16[8,16], i.1: s32[]) -> bf16[1,16] {
  %p.1 = bf16[8,16]{1,0} parameter(0)
  %i.1 = s32[] parameter(1)
  ROOT %f.1 = bf16[1,16]{1,0} fusion(%p.1, %i.1), kind=kLoop, calls=%inner
}

ENTRY %main (a: bf16[8,16], i: s32[]) -> bf16[1,16] {
  %a = bf16[8,16]{1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %f.2 = bf16[1,16]{1,0} fusion(%a, %i), kind=kOutput, calls=%outer
}
"""


def test_of_what_a_fusion_inside_a_fusion_slices_the_slice_is_read():
    row, number = 16 * 2, 4
    assert hlo_costs.bytes_moved(hlo.parse(SLICED)) == row + number + row
    product = SLICED.replace("dynamic-slice(%p.0, %i.0, %zero)", "custom(%p.0, %i.0)")
    assert hlo_costs.bytes_moved(hlo.parse(product)) == 8 * row + number + row


@pytest.mark.parametrize(
    ("window", "labels", "shapes", "wanted"),
    [
        ("", "bf_io->bf", ("4,8", "8,16", "4,16"), 2 * 4 * 8 * 16),
        ("window={size=1}, ", "0bf_io0->0bf", ("3,4,8", "8,16,1", "3,4,16"), 2 * 3 * 4 * 8 * 16),
        # A batch axis of 5 as a window over a dilated axis: each place meets its own element.
        (
            "window={size=5 stride=4 pad=0_0 lhs_dilate=5}, ",
            *("0bf_0io->0bf", ("5,4,8", "5,8,16", "5,4,16"), 2 * 5 * 4 * 8 * 16),
        ),
        # A contracted axis of 3 and of 8.
        ("window={size=3}, ", "0bf_0io->0bf", ("3,4,8", "3,8,16", "1,4,16"), 2 * 3 * 4 * 8 * 16),
    ],
)
def test_products_of_tpus_are_convolutions(window, labels, shapes, wanted):
    left, right, out = shapes
    text = (
        "HloModule one\n\nENTRY %main (a: f32[1], b: f32[1]) -> f32[1] {\n"
        f"  %a = f32[{left}]{{0}} parameter(0)\n  %b = f32[{right}]{{0}} parameter(1)\n"
        f"  ROOT %c = f32[{out}]{{0}} convolution(%a, %b), {window}dim_labels={labels}\n}}\n"
    )
    assert hlo_costs.flops(hlo.parse(text)) == wanted


@functools.cache
def compiled():
    """Four layers of x @ w, and a sum over rows that four devices hold."""
    mesh = make_mesh(1, 4, 1)

    def shape(*dims, spec):
        return jax.ShapeDtypeStruct(dims, jnp.float32, sharding=NamedSharding(mesh, spec))

    def run(x, w):
        x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)
        return x.sum(0)

    made = jax.jit(run).lower(shape(8, 16, spec=P("fsdp")), shape(4, 16, 16, spec=P())).compile()
    return hlo.parse(made.as_text())


def test_a_compiled_loop_counts_in_full():
    assert hlo_costs.flops(compiled()) == 4 * 2 * (8 / 4) * 16 * 16
    assert [
        (c.kind, c.times, c.size, c.group) for c in collectives.find_collectives(compiled())
    ] == [("all-reduce", 1, 16 * 4, 4)]


def test_kept_arrays_are_those_outside_of_fusions():
    found = hlo_costs.buffers(hlo.parse(LOOP))
    assert hlo.Shape("bf16", (8, 16)) in found
    assert hlo.Shape("f32", ()) not in found


@pytest.mark.parametrize(("phase", "products"), [("fwd", 2), ("dq", 3), ("dkv", 4)])
def test_a_kernel_says_what_it_computes_and_how_often_it_reads(phase, products):
    program = hlo.parse(KERNEL.replace("@PHASE", phase))
    one = 2 * 2 * 8 * 3 * 128 * 128  # two heads of 8, of 2 x 2 blocks of 128 those not above
    assert hlo_costs.flops(program) == products * one
    assert hlo_costs.uncounted(program) == []
    whole = 2 * (2 * 256 * 8 * 2) + 2 * (256 * 8 * 2) + 3 * 4 + 4 * 4
    blocks = 2 * 3 * (2 * 128 * 8 * 2)  # for each head, of keys and values, two bytes a number
    assert hlo_costs.bytes_moved(program) == whole + blocks


def test_a_kernel_that_says_nothing_is_named():
    program = hlo.parse(KERNEL.replace("splash_3_128", "other"))
    assert hlo_costs.uncounted(program) == ["call"]
    assert hlo_costs.flops(program) == 0
