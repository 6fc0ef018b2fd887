"""Small steps compiled for TPUs: no batch on every device, no vocabulary in full, no stray traffic.

Needs libtpu (`pip install -c requirements.txt -e ".[tpu]"`), and no TPU. Sizes are such that each
dimension tells what it is.
"""

import dataclasses
import functools
import importlib.util

import pytest

from alignjax import hlo, hlo_costs, plan, sharding
from alignjax.models import layout
from alignjax.recipes import programs
from tests.plan_test import config

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None,
        reason='compiles for TPUs: pip install -c requirements.txt -e ".[tpu]"',
    ),
]

FSDP, TENSOR = 2, 2
ROWS, PROMPT, K, R = 4, 112, 2, 80  # tokens of a row: 272
WIDTH, VOCABULARY, CHUNK = 256, 5120, 16
LAYERS, HEADS, HEAD = 2, 4, 64
PADDED = 384  # a multiple of 128, for the kernel


def compiled(**changes):
    """The DPO step of a small network on four chips, taken apart."""
    of = config()
    model = dataclasses.replace(
        of.model,
        **dict(vocab_size=VOCABULARY, width=WIDTH, layers=LAYERS, heads=HEADS, kv_heads=2),
        **dict(head_dim=HEAD, mlp_width=768, dtype="bfloat16", remat="full", logits_chunk=CHUNK),
    )
    data = dataclasses.replace(of.data, max_prompt_tokens=PROMPT, max_response_tokens=R)
    train = dataclasses.replace(of.train, batch_size=ROWS)
    of = dataclasses.replace(
        of, model=dataclasses.replace(model, **changes), data=data, train=train
    )
    on = plan.machine("v5e:2x2")
    mesh = sharding.make_mesh(1, FSDP, TENSOR, list(on.devices))
    made = programs.make(of, mesh, "step")
    text = made.function.lower(*made.args).compile().as_text()
    return hlo.parse(text)


@functools.cache
def ours():
    return compiled()


def replicated(program):
    """Kept arrays of states of all rows: what a device should have for its own rows only."""
    tokens = {PROMPT, R, K * R, PROMPT + K * R, (PROMPT + K * R) // TENSOR}
    # The lookup has all rows, of a part of the width.
    return [
        shape
        for shape in hlo_costs.kept(program)
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
        for shape in hlo_costs.kept(program)
        if VOCABULARY in shape.dims
        or (VOCABULARY // TENSOR in shape.dims and shape.elements > most)
    ]


def unexpected(program):
    """Collectives that a step should not have, or not of this size or this often."""
    states = ROWS // FSDP * (PROMPT + K * R) * WIDTH * 2
    kernel = WIDTH * 768 // TENSOR * 2
    head = VOCABULARY // TENSOR * WIDTH * 2
    largest = {
        "all-gather": max(states, kernel),  # weights of one layer, or states of own rows
        "all-reduce": states,
        "reduce-scatter": head,
        "all-to-all": states,
        "collective-permute": states,
    }
    found = []
    for one in hlo_costs.collectives(program):
        head_gather = one.kind == "all-gather" and one.size == head and one.times == 1
        sizes = [shape.size for shape in one.shapes]
        if max(sizes) > largest[one.kind] and not head_gather:
            found.append(one)
    return found


def test_rows_stay_where_they_are():
    assert replicated(ours()) == []


def test_no_device_holds_the_vocabulary_or_all_logits():
    assert vocabularies(ours()) == []


def test_collectives_are_those_of_states_and_one_layers_weights():
    assert unexpected(ours()) == []
    kinds = {c.kind for c in hlo_costs.collectives(ours())}
    assert {"all-gather", "reduce-scatter"} <= kinds


def test_the_head_is_gathered_once_and_not_in_every_chunk():
    table = hlo.Shape("bf16", (VOCABULARY // TENSOR, WIDTH))
    gathers = [
        c
        for c in hlo_costs.collectives(ours())
        if c.kind == "all-gather" and any(s.elements == table.elements for s in c.shapes)
    ]
    assert [c.times for c in gathers] == [1]


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

    return [x for x in hlo_costs.kept(program) if twice(x.dims) and x.elements >= R * R]


def test_attention_is_one_kernel_on_own_rows_and_heads():
    program = ours()
    given = (ROWS // FSDP, HEADS // TENSOR, PADDED, HEAD)
    wanted = [("dkv", 1), ("dq", 1), ("fwd", 1), ("fwd", 1)]  # the forward pass twice, with remat
    assert kernels_of(program) == [(f"splash_mha_{x}", LAYERS * n, given) for x, n in wanted]
    assert scores(program) == []
    assert hlo_costs.uncounted(program) == []


def test_without_the_kernel_there_are_scores_and_its_products_are_counted():
    plain = compiled(attention="xla")
    assert kernels_of(plain) == []
    assert scores(plain)
    # Each product: over pairs of tokens, the prompt's with itself, the responses' with both; and
    # over the kernel's blocks of 128 that are not empty. Two products forward, twice; four back.
    one = 2 * ROWS // FSDP * HEADS // TENSOR * HEAD * LAYERS
    pairs = PROMPT**2 + K * R * (PROMPT + R)
    blocks = 6 * 128**2
    more = one * ((2 + 2 + 3 + 4) * blocks - (2 + 2 + 4) * pairs)
    assert hlo_costs.flops(ours()) - hlo_costs.flops(plain) == more


def test_unplaced_activations_are_found(monkeypatch):
    monkeypatch.setattr(layout, "_place", lambda x, spec: x)
    program = compiled(attention="xla")  # the kernel's call places rows, too
    assert replicated(program)
    assert unexpected(program)


def test_logits_in_full_are_found():
    assert vocabularies(compiled(logits_chunk=R))
