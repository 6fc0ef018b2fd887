"""Mutants of a prompt that is computed once, and of the decoder's options: each is noticed."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax.models import layer, stream, transformer
from alignjax.models.logps import response_logps, token_logps
from tests import tiny
from tests.models.logps_test import assert_close, value_and_grad
from tests.models.transformer_test import FAMILIES
from tests.oracles.plain import plain_logps


def masks_from_ids(monkeypatch):
    inner = response_logps

    def mutant(params, batch, *, config):
        lengths = dict(
            prompt_length=jnp.sum(batch.prompt != 0, axis=1),
            response_length=jnp.sum(batch.response != 0, axis=2),
        )
        return inner(params, dataclasses.replace(batch, **lengths), config=config)

    monkeypatch.setitem(globals(), "response_logps", mutant)


def responses_see_those_before(monkeypatch):
    inner = layer.attend

    def mutant(query, key, value, mask, **shared):
        if not shared:
            return inner(query, key, value, mask)
        b, k, t, *_ = query.shape
        query, key, value = (x.reshape(b, 1, k * t, *x.shape[3:]) for x in (query, key, value))
        mask = jnp.tril(jnp.ones((k * t, k * t), bool))
        return inner(query, key, value, mask, **shared).reshape(b, k, t, *query.shape[3:])

    monkeypatch.setattr(layer, "attend", mutant)


def responses_one_position_late(monkeypatch):
    inner = transformer.Transformer._angles

    def mutant(self, position):
        late = jnp.arange(position.shape[1]) >= 7  # P
        return inner(self, position + (late if position.shape[1] == 7 + 3 * 6 else 0))

    monkeypatch.setattr(transformer.Transformer, "_angles", mutant)


def responses_see_prompt_padding(monkeypatch):
    inner = layer.attend

    def mutant(*args, **shared):
        if "shared_mask" in shared:
            shared["shared_mask"] = jnp.ones_like(shared["shared_mask"])
        return inner(*args, **shared)

    monkeypatch.setattr(layer, "attend", mutant)


def prompt_sees_its_padding(monkeypatch):
    inner = layer.attend

    def mutant(query, key, value, mask, **shared):
        if (
            "shared_mask" not in shared and query.shape[0] == 3
        ):  # the plain path has 9 rows, and no padding in front
            mask = jnp.tril(jnp.ones(mask.shape[-2:], bool))
        return inner(query, key, value, mask, **shared)

    monkeypatch.setattr(layer, "attend", mutant)


def first_token_from_the_first_response(monkeypatch):
    """The state before a response's first token is the prompt's last, not the response's."""
    inner = jnp.broadcast_to

    def mutant(x, shape, **kwargs):
        return (
            jnp.roll(inner(x, shape, **kwargs), 1, axis=0) if len(shape) == 4 else inner(x, shape)
        )

    monkeypatch.setattr(transformer.jnp, "broadcast_to", mutant)


@pytest.mark.parametrize(
    "mutate",
    [
        masks_from_ids,
        responses_see_those_before,
        responses_one_position_late,
        responses_see_prompt_padding,
        prompt_sees_its_padding,
        first_token_from_the_first_response,
    ],
)
def test_the_comparison_fails_on_mutants(mutate, monkeypatch):
    """Of padded rows, as fused kernels have them."""
    config = tiny.model(attention="xla")
    batch, params = tiny.ragged(3), tiny.params(config)
    assert (batch.prompt[:, -1] == 0).any() or (
        batch.response[batch.response_length > 0] == 0
    ).any()
    wanted = value_and_grad(params, batch, logps=plain_logps, config=config)[0]
    right = value_and_grad(params, batch, logps=response_logps, config=config)[0]
    assert_close(right, wanted, 1e-5)
    mutate(monkeypatch)
    mutant = globals()["response_logps"]
    wrong = jax.jit(lambda p: mutant(p, batch, config=config), compiler_options=tiny.FAST)(params)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_close(wrong, wanted, 1e-5)


def part_of_its_prompt(packed):
    """Responses see those before."""
    part = jnp.where(packed.seen.part >= 0, packed.seen.prompt, -1)
    return packed.replace(seen=packed.seen.replace(part=part))


def one_position_late(packed):
    late = packed.seen.part != packed.seen.prompt
    return packed.replace(seen=packed.seen.replace(position=packed.seen.position + late))


def prompt_of_the_first_row(packed):
    prompt = jnp.where(packed.seen.prompt >= 0, 0, -1)
    return packed.replace(seen=packed.seen.replace(prompt=prompt))


def after_the_response_before(packed):
    """The state before a response's first token is the prompt's last, not the token before."""
    before = packed.before
    return packed.replace(before=jnp.concatenate([before[:, :1], before[:, :-1] + 1], axis=1))


@pytest.mark.parametrize(
    "mutate",
    [
        part_of_its_prompt,
        one_position_late,
        prompt_of_the_first_row,
        after_the_response_before,
    ],
)
def test_the_comparison_fails_on_mutants_of_a_stream(mutate, monkeypatch):
    config, batch = tiny.model(), tiny.ragged(3)
    params, inner = tiny.params(config), stream.pack
    wanted = value_and_grad(params, batch, logps=plain_logps, config=config)[0]
    assert_close(
        value_and_grad(params, batch, logps=response_logps, config=config)[0], wanted, 1e-5
    )
    monkeypatch.setattr(stream, "pack", lambda batch: mutate(inner(batch)))
    score = jax.jit(lambda p: response_logps(p, batch, config=config), compiler_options=tiny.FAST)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_close(score(params), wanted, 1e-5)


@pytest.mark.parametrize(
    ("family", "mutant"),
    [
        ("everything", dict(norm_eps=1e-3)),
        ("everything", dict(rope_theta=9000.0)),
        ("everything", dict(rope_scaling=None)),
        ("mistral", dict(window=5)),
        ("gemma2", dict(full_every=3)),
        ("gemma2", dict(attention_softcap=1.6)),
        ("gemma2", dict(logit_softcap=2.1)),
        ("gemma2", dict(activation="silu")),
        ("gemma3", dict(window_rope_theta=110.0)),
        ("gemma3", dict(query_scalar=7.0)),
    ],
    ids=str,
)
def test_the_comparison_sees_small_differences(family, mutant):
    params = tiny.params(tiny.model(**FAMILIES[family]))
    found = fast_logps(params, tiny.model(**{**FAMILIES[family], **mutant}))
    assert np.abs(found - family_logps(family)).max() > 1e-4


@functools.cache
def family_logps(family):
    config = tiny.model(**FAMILIES[family])
    return fast_logps(tiny.params(config), config)


def fast_logps(params, config):
    batch = tiny.ragged(2)
    score = jax.jit(lambda p: token_logps(p, batch, config=config), compiler_options=tiny.FAST)
    return score(params)
