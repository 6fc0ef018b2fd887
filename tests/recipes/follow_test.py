"""Runs whose reference follows the policy: what it is, that it is saved, and what is measured."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from alignjax import recipes
from alignjax.config import CandidatesConfig
from alignjax.losses import bradley_terry
from alignjax.recipes import align
from alignjax.rewards import scorers
from alignjax.runtime.checkpoint import tree_digest
from alignjax.runtime.faults import FaultError
from tests import runs

STEPS = 5
CHANGES = (
    *("reference.follow.every=2", "reference.follow.alpha=0.6", "mesh.fsdp=2"),
    *("data.source.size=60", "sft.steps=2", f"train.steps={STEPS}"),
    *("train.save_every=1", "train.keep=9", "train.eval_every=4", "evaluate.during=2"),
)


compared = []  # digests of what the policy was compared with in evaluations of `clean`


def noting(measure):
    def measured(run, params, ref_params, *rest, **more):
        compared.append(tree_digest(ref_params))
        return measure(run, params, ref_params, *rest, **more)

    return measured


@pytest.fixture(scope="module")
def clean(tmp_path_factory, whole_run):
    workdir = tmp_path_factory.mktemp("follow")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("history_line", "policy_kl"):
            patch.setattr(align.evaluation, name, noting(getattr(align.evaluation, name)))
        return workdir, align.run(runs.changed(*CHANGES), workdir)


def references(workdir, config):
    """The reference after each step as saved, and as NumPy has it from the policies saved."""
    found, wanted, by_hand = [], [], runs.supervised(workdir, config)
    for step in range(1, STEPS + 1):
        state = runs.stored(workdir, config, step)
        if step % 2 == 0:
            by_hand = jax.tree.map(
                lambda p, r: 0.6 * np.asarray(p) + 0.4 * np.asarray(r), state.params, by_hand
            )
        found.append(state.reference)
        wanted.append(by_hand)
    return found, wanted


def assert_followed(workdir, config):
    found, wanted = references(workdir, config)
    for some, others in zip(found, wanted, strict=True):
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-8), some, others
        )
    last = jax.tree.leaves(jax.tree.map(lambda x, y: abs(x - y).max(), found[-1], found[0]))
    assert max(last) > 1e-5


def test_the_reference_is_the_mean_of_itself_and_the_policy_every_other_step(clean):
    assert_followed(clean[0], runs.changed(*CHANGES))
    assert clean[1]["reference"]["mode"] == "live"


def test_what_is_measured_is_compared_with_the_start(clean):
    start = tree_digest(runs.supervised(clean[0], runs.changed(*CHANGES)))
    assert compared == [start] * 3  # two evaluations during training, and the KL of the end
    assert clean[1]["table"]["KL to reference, nats"]["after"]["mean"] > 0


def test_a_run_that_was_killed_ends_with_the_same_bits(clean, tmp_path, monkeypatch):
    config = runs.changed(*CHANGES)
    with monkeypatch.context() as patch:
        patch.setenv("ALIGNJAX_FAULT", "step:alignment-4=raise")
        with pytest.raises(FaultError):
            align.run(config, tmp_path)
    assert align.run(config, tmp_path)["resumed_from"] == 3
    found, wanted = (runs.leaves(runs.stored(x, config)) for x in (tmp_path, clean[0]))
    assert any(name.startswith("reference/") for name in found)
    assert found == wanted
    assert runs.lines(tmp_path) == runs.lines(clean[0])


def longest(response, answer):
    return float(len(response)) - 0.01 * len(answer)


@pytest.mark.long
def test_a_policy_of_its_own_samples_is_followed_too(tmp_path):
    rule = functools.partial(scorers.checked, check=longest)
    config = dataclasses.replace(
        runs.changed(*CHANGES, "train.batch_size=4"),
        recipe=recipes.train_online,
        loss=functools.partial(bradley_terry.loss, beta=0.1),
        candidates=CandidatesConfig(scorers=(rule,), samples=3, max_new_tokens=4),
    )
    summary = recipes.run_config(config, tmp_path)
    assert_followed(tmp_path, config)
    assert summary["table"]["KL to reference, nats"]["after"]["mean"] > 0
