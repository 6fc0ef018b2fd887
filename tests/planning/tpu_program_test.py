"""Small steps compiled for TPUs: no batch on every device, no vocabulary in full, no stray traffic.

Needs libtpu (`pip install -c requirements.txt -e ".[tpu]"`), and no TPU. Sizes are such that each
dimension tells what it is.
"""

import dataclasses
import functools
import importlib.util

import jax
import pytest

from alignjax.config import ReferenceConfig
from alignjax.models import layout
from alignjax.planning import chips, collectives, hlo, hlo_costs, programs
from alignjax.runtime import sharding
from tests.planning.plan_test import config

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None,
        reason='compiles for TPUs: pip install -c requirements.txt -e ".[tpu]"',
    ),
]

FSDP, TENSOR = 2, 2
# A chip's part of a sequence is a multiple of 16 tokens, as its tiles are: sums of other lengths
# are not scattered.
ROWS, PROMPT, K, R = 4, 96, 2, 112
TOKENS = PROMPT + K * R
WIDTH, VOCABULARY, CHUNK = 256, 5120, 16
LAYERS, HEADS, KV_HEADS, HEAD, MLP = 2, 4, 2, 64, 768
PADDED = 384  # a multiple of 128, for the kernel


def compiled(
    topology="v5e:2x2",
    mesh=(1, FSDP, TENSOR),
    rows=ROWS,
    tokens=0,
    part="step",
    gather=True,
    **changes,
):
    """The DPO step of a small network on four chips, or its sampling, taken apart."""
    of = config()
    model = dataclasses.replace(
        of.model,
        **dict(vocab_size=VOCABULARY, width=WIDTH, layers=LAYERS, heads=HEADS, kv_heads=KV_HEADS),
        **dict(head_dim=HEAD, mlp_width=MLP, dtype="bfloat16", remat="full", logits_chunk=CHUNK),
    )
    data = dataclasses.replace(of.data, max_prompt_tokens=PROMPT, max_response_tokens=R)
    train = dataclasses.replace(of.train, batch_size=rows, microbatch_tokens=tokens)
    evaluate = dataclasses.replace(
        of.evaluate, batch_size=rows, samples=K, max_new_tokens=R, gather_weights=gather
    )
    of = dataclasses.replace(
        of,
        reference=ReferenceConfig(mode="cache"),
        model=dataclasses.replace(model, **changes),
        data=data,
        train=train,
        evaluate=evaluate,
    )
    on = chips.find_machine(topology)
    made = programs.make(of, sharding.make_mesh(*mesh, list(on.devices)), part)
    text = made.function.lower(*made.args, **made.static).compile().as_text()
    return hlo.parse(text)


@pytest.fixture(scope="module")
def ours():
    """That program, made before a test may patch what it is made of."""
    return compiled()


def replicated(program):
    """Kept arrays of states of all rows: what a device should have for its own rows only."""
    tokens = {PROMPT, R, K * R, TOKENS, TOKENS // TENSOR}
    # The lookup has all rows, of a part of the width.
    return [
        shape
        for shape in hlo_costs.buffers(program)
        if ROWS in shape.dims
        and tokens & {*shape.dims}
        and shape.elements >= ROWS * R * WIDTH
        and WIDTH // FSDP not in shape.dims
    ]


def vocabularies(program):
    """Kept arrays that hold more of the vocabulary than a gathered table or a chunk's logits."""
    table = VOCABULARY // TENSOR * WIDTH
    most = max(table, ROWS // FSDP * K * CHUNK * VOCABULARY // TENSOR)
    return [
        shape
        for shape in hlo_costs.buffers(program)
        if VOCABULARY in shape.dims
        or (VOCABULARY // TENSOR in shape.dims and shape.elements > most)
    ]


def unexpected(program):
    """Collectives that a step should not have, or not of this size or this often."""
    states = ROWS // FSDP * TOKENS * WIDTH * 2
    kernel = WIDTH * MLP // TENSOR * 2
    head = VOCABULARY // TENSOR * WIDTH * 2
    largest = {
        "all-gather": max(states, kernel),  # weights of one layer, or states of own rows
        "all-reduce": states,
        "reduce-scatter": head,
        "all-to-all": states,
        "collective-permute": states,
    }
    found = []
    for one in collectives.find_collectives(program):
        once = one.kind in ("all-gather", "all-reduce") and one.size == head and one.times == 1
        sizes = [shape.size for shape in one.shapes]
        # What a block adds is summed over tensor, and each chip gets a part of the sequence.
        whole = one.kind == "all-reduce" and (ROWS // FSDP, TOKENS, WIDTH) in [
            shape.dims for shape in one.shapes
        ]
        if whole or (max(sizes) > largest[one.kind] and not once):
            found.append(one)
    return found


def kernel_gathers(program):
    """How often a step gathers each layer's kernel, of all layers together, by its shape."""
    columns = {"q": HEADS * HEAD, "k": KV_HEADS * HEAD, "gate": MLP}
    kernels = [(WIDTH, size // TENSOR) for size in columns.values()]
    kernels += [(size // TENSOR, WIDTH) for size in (HEADS * HEAD, MLP)]  # o, down
    return {
        kernel: sum(
            c.times * sum(shape.dims in (kernel, (1, *kernel)) for shape in c.shapes)
            for c in collectives.find_collectives(program)
            if c.kind == "all-gather"
        )
        for kernel in kernels
    }


def of_the_head(program, fsdp=FSDP, tensor=TENSOR):
    """How often a step gathers the head, and how often it sums its gradient over chips."""
    table = VOCABULARY // tensor * WIDTH
    times = {"gathered": 0, "summed": 0}
    for one in collectives.find_collectives(program):
        if table in (one.shapes[0].elements, one.shapes[0].elements * fsdp):
            times["gathered" if one.kind == "all-gather" else "summed"] += one.times
    return times


def test_rows_stay_where_they_are(ours):
    assert replicated(ours) == []


def test_no_device_holds_the_vocabulary_or_all_logits(ours):
    assert vocabularies(ours) == []


def test_collectives_are_those_of_states_and_one_layers_weights(ours):
    assert unexpected(ours) == []
    kinds = {c.kind for c in collectives.find_collectives(ours)}
    assert {"all-gather", "reduce-scatter"} <= kinds


def test_a_layers_weights_are_gathered_once_each_way(ours):
    turns = 2 * LAYERS  # forward, and again where the backward pass recomputes the layer
    twice = {(WIDTH, KV_HEADS * HEAD // TENSOR), (WIDTH, MLP // TENSOR)}  # k, v and gate, up
    assert kernel_gathers(ours) == {
        kernel: turns * (2 if kernel in twice else 1) for kernel in kernel_gathers(ours)
    }


@pytest.mark.parametrize("tied", [False, True])
def test_sampling_gathers_weights_once_and_not_for_every_token(tied):
    def for_tokens(program):
        """Gathers that are done at every token, of a layer's smallest kernel or more."""
        kernel = 2 * WIDTH * KV_HEADS * HEAD // TENSOR
        return [
            c
            for c in collectives.find_collectives(program)
            if c.kind in ("all-gather", "all-reduce") and c.size >= kernel and c.times >= R - 1
        ]

    assert for_tokens(compiled(part="sample", tied_embeddings=tied)) == []
    assert for_tokens(compiled(part="sample", tied_embeddings=tied, gather=False))


def test_the_head_is_gathered_once_and_its_gradient_is_summed_into_parts(ours):
    assert of_the_head(ours) == {"gathered": 1, "summed": R // CHUNK}
    part = VOCABULARY // TENSOR * WIDTH // FSDP
    reduced = [c for c in collectives.find_collectives(ours) if c.kind == "all-reduce"]
    assert max(c.shapes[0].elements for c in reduced) < part


def test_where_it_is_not_split_the_heads_gradient_is_summed_once(monkeypatch):
    times = functools.partial(of_the_head, fsdp=4, tensor=1)
    assert times(compiled(mesh=(1, 4, 1))) == {"gathered": 1, "summed": 1}
    monkeypatch.setattr(layout, "copies", lambda x, count: x[None])
    assert times(compiled(mesh=(1, 4, 1)))["summed"] == R // CHUNK


def exchanged(program):
    return sum(c.times * c.entered for c in collectives.find_collectives(program))


def four_times(**changes):
    """The same on four times the chips, with four times the rows."""
    return compiled("v5e:4x4", (1, 4 * FSDP, TENSOR), 4 * ROWS, **changes)


def test_what_a_chip_exchanges_stays_the_same_with_the_chips(ours):
    many = four_times()
    assert exchanged(many) <= 1.1 * exchanged(ours)
    assert hlo_costs.flops(many) == pytest.approx(hlo_costs.flops(ours), rel=0.01)


def kernels_of(program):
    """Calls of splash attention: name, how often, and rows, heads and tokens of what is given."""
    return sorted(
        (line.name.partition("_segmented")[0], times, program_shapes(program, where, line))
        for where, line, times in program.running()
        if "tpu_custom_call" in line.text
    )


def program_shapes(program, where, line):
    """The dimensions of a kernel's queries, which follow three tables of the mask's blocks."""
    there = {x.name: x.shapes for x in program.computations[where]}
    return there[line.operands[3]][0].dims


def scores(program):
    """Kept arrays with two axes of tokens: scores or their like."""
    tokens = (PROMPT, R, K * R, PROMPT + K * R)

    def twice(dims):
        return sum(dims.count(n) for n in tokens) > 1 or dims.count(PADDED) > 1

    return [x for x in hlo_costs.buffers(program) if twice(x.dims) and x.elements >= R * R]


def test_attention_is_one_kernel_on_own_rows_and_heads(ours):
    program = ours
    given = (ROWS // FSDP, HEADS // TENSOR, PADDED, HEAD)
    wanted = [("dkv", 1), ("dq", 1), ("fwd", 1), ("fwd", 1)]  # the forward pass twice, with remat
    assert kernels_of(program) == [(f"splash_mha_{x}", LAYERS * n, given) for x, n in wanted]
    assert scores(program) == []
    assert hlo_costs.uncounted(program) == []


def test_without_the_kernel_there_are_scores_and_its_products_are_counted(ours):
    plain = compiled(attention="xla")
    assert kernels_of(plain) == []
    assert scores(plain)
    # Each product: over pairs of tokens, the prompt's with itself, the responses' with both; and
    # over the kernel's blocks of 128 that are not empty. Two products forward, twice; four back.
    one = 2 * ROWS // FSDP * HEADS // TENSOR * HEAD * LAYERS
    pairs = PROMPT**2 + K * R * (PROMPT + R)
    blocks = 6 * 128**2
    more = one * ((2 + 2 + 3 + 4) * blocks - (2 + 2 + 4) * pairs)
    assert hlo_costs.flops(ours) - hlo_costs.flops(plain) == more


def test_unplaced_activations_are_found(monkeypatch):
    monkeypatch.setattr(layout, "place", lambda x, spec: x)
    program = compiled(attention="xla")  # the kernel's call places rows, too
    assert replicated(program)
    assert unexpected(program)
    assert exchanged(four_times(attention="xla")) > 3 * exchanged(program)


def test_rows_of_every_copy_are_looked_up_where_they_are(monkeypatch):
    def everywhere():
        program = compiled("v5e:2x4", (2, FSDP, TENSOR), 2 * ROWS)
        return [s for s in hlo_costs.buffers(program) if s.dims == (2 * ROWS, TOKENS, WIDTH)]

    assert everywhere() == []
    monkeypatch.setattr(layout, "looked_up", layout.rows)
    assert everywhere()


def test_sums_that_are_not_scattered_are_found(monkeypatch):
    monkeypatch.setattr(layout, "whole", layout.rows)
    monkeypatch.setattr(layout, "part", layout.rows)
    assert unexpected(compiled())


def test_weights_that_are_not_gathered_in_place_are_found(ours, monkeypatch):
    move = layout.move
    monkeypatch.setattr(layout, "dot", lambda weights: jax.lax.dot_general)
    monkeypatch.setattr(layout, "copies", lambda x, count: x[None])
    monkeypatch.setattr(
        layout, "move", lambda x, to, back: x if VOCABULARY in x.shape else move(x, to, back)
    )
    program = compiled()
    assert kernel_gathers(program) != kernel_gathers(ours)
    assert min(of_the_head(program).values()) >= R // CHUNK


def test_logits_in_full_are_found():
    assert vocabularies(compiled(logits_chunk=R))


@pytest.mark.parametrize("shape", [(8, 16, 4), (1, 512, 1), (2, 32, 8)])
def test_a_mesh_may_split_the_axes_of_the_torus(shape):
    made = sharding.make_mesh(*shape, list(chips.find_machine("v5p:8x8x8").devices))
    assert made.devices.shape == shape
    assert len({*made.devices.flat}) == 512
