"""Objectives tried on the data's shapes: what does not fit is told before anything is compiled."""

import argparse
import dataclasses
import logging
import pathlib
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignjax import recipes
from alignjax.config import EvaluateConfig, FollowConfig, ReferenceConfig
from alignjax.config.load import load
from alignjax.data.batching import assemble
from alignjax.errors import UserError
from alignjax.losses import (
    bco,
    bradley_terry,
    dpo,
    grpo,
    hps,
    kto,
    ld_dpo,
    mixed,
    nash_md,
    plackett_luce,
    rdro,
    sft,
    simpo,
    slic,
    wpo,
    xpo,
)
from alignjax.models.config import LoraConfig
from alignjax.stages import check
from alignjax.stages.data import prepare_data
from alignjax.stages.run import Run
from alignjax.types import Schedule
from alignjax.world import sources as world
from tests import runs

LISTS = dataclasses.replace(
    runs.get_config().data, source=partial(world.lists, size=60, seed=0, responses=4)
)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return prepare_data(runs.get_config(), tmp_path_factory.mktemp("pairs")).train


@pytest.fixture(scope="module")
def lists(tmp_path_factory):
    config = runs.get_config(data=LISTS)
    return prepare_data(config, tmp_path_factory.mktemp("lists")).train


@pytest.fixture(scope="module")
def unpaired(tmp_path_factory):
    data = dataclasses.replace(
        runs.get_config().data,
        source=partial(world.unpaired, size=60, seed=0, desirable_fraction=0.3),
    )
    return prepare_data(runs.get_config(data=data), tmp_path_factory.mktemp("unpaired"))


def scalar(logps, batch):
    return logps.policy.mean(), {}


def scalar_metric(logps, batch):
    return logps.policy[:, 0], {"x": logps.policy.mean()}


def no_metrics(logps, batch):
    return logps.policy[:, 0]


def taken(logps, batch):
    return logps.policy[:, 0], {"weight": logps.policy[:, 0]}


def mistaken(logps, batch):
    return logps.polcy[:, 0], {}


def misshapen(logps, batch):
    return jnp.concatenate([logps.policy, logps.policy[0]]), {}


def branching(logps, batch):
    return (logps.policy[:, 0], {}) if logps.policy[0, 0] > 0 else (logps.policy[:, 1], {})


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (scalar, r"loss: .*scalar: wanted one value per prompt, \[B\], found shapes .*\(\)"),
        (scalar_metric, r"wanted one value per prompt, \[B\], found shapes \{'x': \(\)\}"),
        (no_metrics, r"no_metrics must return \(losses, metrics\)"),
        (taken, r"returns a metric 'weight', a name that is reserved for the step"),
        (mistaken, r"check_test\.py:\d+: AttributeError: .*'polcy'"),
        (misshapen, r"loss: .*misshapen on this data: "),
        (branching, r"check_test\.py:\d+: TracerBoolConversionError: "),
        (hps.loss, r"loss: .*hps\.loss on this data: "),
    ],
)
def test_a_loss_that_does_not_fit_is_told_in_one_line(loss, message, pairs):
    config = runs.get_config(loss=loss)
    if loss is hps.loss:  # wants to know how many responses it was drawn from
        config = dataclasses.replace(config, loss=plackett_luce.loss)
        message = r"plackett_luce\.loss on this data: .*scores"
    with pytest.raises(UserError, match=message) as caught:
        check.check_losses(config, pairs)
    assert "\n" not in str(caught.value)


def test_k_and_reference_are_checked(pairs, lists):
    with pytest.raises(UserError, match=r"K=4: set `select`"):
        check.check_losses(runs.get_config(data=LISTS), lists)
    with pytest.raises(UserError, match=r"set reference\.mode"):
        check.check_losses(runs.changed("reference.mode=none"), pairs)
    with pytest.raises(UserError, match=r"select: .*hps\.select on this data: .*scores"):
        check.check_losses(runs.get_config(select=partial(hps.select, gamma=1.0)), pairs)


@pytest.mark.parametrize("loss", [ld_dpo.loss, wpo.loss])
def test_what_a_loss_reads_beside_sums_is_there_for_it_and_for_what_binds_it(loss, pairs, lists):
    check.check_losses(runs.get_config(loss=partial(loss, beta=0.2)), pairs)
    with pytest.raises(UserError, match=r"K=4: set `select`"):
        check.check_losses(runs.get_config(data=LISTS, loss=loss), lists)
    inside = partial(mixed.loss, losses=(sft.loss_chosen, loss), weights=(1.0, 1.0))
    check.check_losses(runs.get_config(loss=inside), pairs)

    def unmarked(logps, batch):
        return loss(logps, batch)

    with pytest.raises(UserError, match=r"unmarked on this data: .* or binds a function that is$"):
        check.check_losses(runs.get_config(loss=unmarked), pairs)


def test_a_step_computes_tails_or_squares(pairs):
    tails = partial(ld_dpo.weighted, loss=slic.loss_hinge, alpha=0.3)
    check.check_losses(runs.get_config(loss=tails), pairs)
    assert not check.keeps_cache(runs.get_config(loss=tails), pairs)
    check.check_losses(runs.get_config(loss=partial(wpo.weighted, loss=slic.loss_hinge)), pairs)
    with pytest.raises(UserError, match=r"wpo\.weighted reads tails .* a step computes one of the"):
        check.check_losses(runs.get_config(loss=partial(wpo.weighted, loss=tails)), pairs)


@pytest.mark.parametrize(
    "loss",
    [
        xpo.loss,
        partial(nash_md.loss, tau=0.2),
        partial(mixed.loss, losses=(sft.loss, partial(xpo.loss, beta=0.2)), weights=(1.0, 1.0)),
    ],
)
def test_a_loss_of_two_policies_wants_the_recipe_that_samples_both(loss, lists):
    """In lists from the data the first half is not the policy's."""
    config = runs.get_config(data=LISTS, loss=loss)
    with pytest.raises(UserError, match=r"^loss: .* compares .*train_online, opponent=\.\.\."):
        check.check_losses(config, lists)
    online = partial(recipes.train_online, opponent=1.0)
    check.check_losses(dataclasses.replace(config, recipe=online), lists)


def follows(**changes):
    return runs.get_config(reference=ReferenceConfig(follow=FollowConfig()), **changes)


def test_a_reference_that_follows_is_in_no_cache_and_has_to_be_read(pairs, lists):
    for loss in (partial(dpo.loss, beta=0.1), ld_dpo.loss, wpo.loss):
        check.check_losses(follows(loss=loss), pairs)
        assert not check.keeps_cache(follows(loss=loss), pairs)
    none = r"^reference\.follow: .*{} .*compares the policy with no reference; set .*=none"
    with pytest.raises(UserError, match=none.format("simpo.loss")):
        check.check_losses(follows(loss=simpo.loss), pairs)
    with pytest.raises(UserError, match=none.format("grpo.loss")):
        check.check_losses(follows(data=LISTS, loss=partial(grpo.loss, beta=0.0)), lists)
    check.check_losses(follows(data=LISTS, loss=partial(grpo.loss, beta=0.1)), lists)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"lora": LoraConfig(rank=2)}, "none with lora: the reference is the adapters' base"),
        ({"loss": None, "reward_loss": bradley_terry.reward_loss}, "none: only the reference of "),
        *(
            (
                {"reference": ReferenceConfig(mode=mode)},
                rf"none with reference\.mode='{mode}': only a reference that steps score moves",
            )
            for mode in ("cache", "none")
        ),
    ],
)
def test_a_reference_cannot_follow_what_is_no_whole_policy_or_not_scored(changes, wanted):
    settings = {"reference": ReferenceConfig(), "evaluate": EvaluateConfig(), **changes}
    settings["reference"] = dataclasses.replace(settings["reference"], follow=FollowConfig())
    with pytest.raises(UserError, match=rf"^reference\.follow: wanted {wanted}.*, found FollowC"):
        runs.get_config(**settings)


@pytest.mark.parametrize("file", ["apo", "paretohqd"])
def test_a_reference_of_several_policies_follows_none(file):
    with pytest.raises(UserError, match=r"^reference\.follow: wanted none: only the reference of"):
        load(f"configs/demo/{file}.py", ["reference.follow.every=2"])


def test_tails_are_in_no_cache(pairs):
    config = runs.get_config(loss=ld_dpo.loss)
    assert not check.keeps_cache(config, pairs)
    assert check.keeps_cache(runs.get_config(loss=wpo.loss), pairs)
    cached = dataclasses.replace(config, reference=ReferenceConfig(mode="cache"))
    with pytest.raises(UserError, match=r"reference.mode: .* found 'cache': .*ld_dpo\.loss reads"):
        check.check_losses(cached, pairs)


def test_pairs_that_lack_a_response_are_named(pairs):
    length = pairs.dataset.response_length.copy()
    length[3, 1] = 0
    short = dataclasses.replace(
        pairs, dataset=dataclasses.replace(pairs.dataset, response_length=length)
    )
    message = rf"data: 1 of {len(length)} rows, such as {pairs.dataset[3].id}, have 1 of 2 resp"
    with pytest.raises(UserError, match=message):
        check.check_losses(runs.get_config(), short)
    check.check_losses(runs.get_config(loss=sft.loss), short)


def test_the_loss_of_a_reward_model_is_given_scores(pairs, lists):
    def margin(scores, batch, *, wanted: tuple[int, ...]):
        assert scores.shape == batch.response_length.shape == wanted
        assert batch.scores is None or batch.scores.shape == wanted
        return scores[:, 0] - scores[:, 1], {}

    def config(loss, **changes):
        return runs.get_config(loss=None, reward_loss=loss, evaluate=EvaluateConfig(), **changes)

    def fitting(rows):
        return partial(margin, wanted=(2, rows.dataset.response_length.shape[1]))

    check.check_losses(config(fitting(pairs)), pairs)
    check.check_losses(config(fitting(lists), data=LISTS), lists)
    with pytest.raises(UserError, match=r"reward_loss: .*mistaken on this data: .*polcy"):
        check.check_losses(config(mistaken), pairs)


def test_the_supervised_loss_is_checked_too(pairs):
    stage = dataclasses.replace(runs.get_config().sft, loss=dpo.loss)
    with pytest.raises(UserError, match=r"sft\.loss: .*dpo\.loss on this data: .*reference"):
        check.check_losses(runs.get_config(sft=stage), pairs)


def test_what_fits_passes(pairs, lists):
    check.check_losses(runs.get_config(), pairs)
    check.check_losses(runs.get_config(loss=sft.loss), pairs)
    check.check_losses(runs.get_config(loss=plackett_luce.loss), lists)
    gamma = Schedule(optax.linear_schedule(-5.0, 5.0, 8))
    config = runs.get_config(select=partial(hps.select, gamma=gamma), loss=hps.loss)
    check.check_losses(config, lists)
    assert check.count_responses(config, lists) == 2
    assert check.count_responses(runs.get_config(), lists) == 4


def share(rows):
    labels = [rows.dataset[i].desirable[0] for i in range(len(rows.dataset))]
    return np.mean(labels)


def test_the_desirable_fraction_is_that_of_the_training_responses(unpaired, caplog):
    rows, wanted = unpaired.train, share(unpaired.train)
    config = runs.get_config(loss=rdro.loss, baseline=partial(bco.baseline, reduction="batch_mean"))
    with caplog.at_level(logging.INFO):
        found = check.bind_fraction(config, rows)
    assert found.loss.keywords == {"desirable_fraction": wanted}
    assert found.baseline.keywords == {"desirable_fraction": wanted, "reduction": "batch_mean"}
    assert f"class weights {1 / wanted:.4f} and {1 / (1 - wanted):.4f}" in caplog.text
    assert unpaired.report["train"]["kept_labels"]["desirable_fraction"] == wanted
    assert wanted != share(unpaired.held_out)
    bound = partial(rdro.loss, desirable_fraction=0.25, alpha=0.4)
    assert check.bind_fraction(runs.get_config(loss=bound), rows).loss == bound


def test_what_takes_no_fraction_is_left_alone(unpaired, pairs):
    config = runs.get_config()
    assert check.bind_fraction(config, unpaired.train).loss is config.loss
    config = runs.get_config(loss=rdro.loss)
    assert check.bind_fraction(config, pairs) is config
    with pytest.raises(UserError, match=r"rdro\.loss: wanted a label for every response"):
        check.check_losses(config, pairs)


def rescaled(report, *, unit):
    """The lists of `LISTS`, with scores in another unit and from another zero."""
    for record in LISTS.source(report):
        scores = tuple((unit * (score - 0.5),) for (score,) in record.scores)
        yield dataclasses.replace(record, scores=scores)


def as_run(rows, **functions):
    data: Any = argparse.Namespace(train=rows)
    return Run(runs.get_config(**functions), pathlib.Path(), data, None)


def drawn(run):
    """What the select of a run makes of its first rows."""
    rows = run.data.train
    batch = assemble(rows.dataset, np.arange(32), rows.shapes[0])
    pair = run.config.select(jax.random.key(0), batch)
    return pair.response_length, pair.select_metrics


def test_hardness_does_not_depend_on_the_unit_of_the_scores(lists, tmp_path, caplog):
    """64 times the scores, from another zero: the same draws, and numbers up to rounding."""
    data = dataclasses.replace(LISTS, source=partial(rescaled, unit=64.0))
    prepared = prepare_data(runs.get_config(data=data), tmp_path)
    select = partial(hps.select, gamma=3.0)
    with caplog.at_level(logging.INFO):
        run, other = (
            check.bind_score_sd(as_run(rows, select=select, loss=hps.loss))
            for rows in (lists, prepared.train)
        )
    for x, y in zip(jax.tree.leaves(drawn(run)), jax.tree.leaves(drawn(other)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4)
    raw = as_run(lists, select=partial(hps.select, gamma=3.0, score_sd=1.0))
    number = [drawn(x)[1]["negatives/effective"].mean() for x in (raw, run)]
    assert number[0] > 2.5  # of 3: the draws from raw scores are nearly uniform
    assert number[1] < 2.0

    sd = other.config.select.keywords["score_sd"]
    assert sd == pytest.approx(64 * run.config.select.keywords["score_sd"], rel=1e-5)
    assert f"std within a list {sd:.4g}" in caplog.text
    # The training rows', wherever it is read; another start of the run opens the same rows.
    assert sd == prepared.report["train"]["score_sd"]["true_score"]
    assert sd != prepared.held_out.dataset.score_sd[0]
    again = prepare_data(runs.get_config(data=data), tmp_path)
    assert again.train.dataset.score_sd == prepared.train.dataset.score_sd == (sd,)


def test_a_unit_that_the_config_binds_wins_and_other_losses_get_none(lists, pairs):
    published = as_run(lists, select=partial(hps.select, gamma=3.0, score_sd=1.0))
    assert check.bind_score_sd(published).config == published.config
    full = check.bind_score_sd(as_run(lists, loss=hps.loss_full)).config.loss
    assert full.keywords == {"score_sd": lists.dataset.score_sd[0]}
    for rows, loss in ((lists, plackett_luce.loss), (pairs, hps.loss_full)):
        run = as_run(rows, loss=loss)
        assert check.bind_score_sd(run).config == run.config


@pytest.mark.parametrize(("labels", "name"), [((7, 0), "desirable"), ((0, 7), "undesirable")])
def test_one_class_only_is_refused(unpaired, labels, name):
    dataset = dataclasses.replace(unpaired.train.dataset, labels=labels)
    rows = dataclasses.replace(unpaired.train, dataset=dataset)
    with pytest.raises(UserError, match=rf"all 7 labelled training responses are {name}: "):
        check.bind_fraction(runs.get_config(loss=kto.loss), rows)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        (dict(alpha=1.0), r"loss: .*rdro\.loss on this data: .*alpha: wanted .* found 1\.0"),
        (dict(desirable_fraction=1.5), r"desirable_fraction: wanted .* in \(0, 1\), found 1\.5"),
        (dict(reduction="sum"), r"reduction: wanted 'class_mean' or 'batch_mean', found 'sum'"),
    ],
)
def test_values_out_of_range_are_told_before_anything_is_compiled(unpaired, keywords, message):
    config = runs.get_config(loss=partial(rdro.loss, **keywords))
    with pytest.raises(UserError, match=message) as caught:
        check.check_losses(check.bind_fraction(config, unpaired.train), unpaired.train)
    assert "\n" not in str(caught.value)


KTO = dict(loss=kto.loss, select=kto.select, baseline=kto.baseline)


def test_baselines_are_tried_too(unpaired):
    check.check_losses(runs.get_config(**KTO), unpaired.train)
    for missing, message in (
        ("select", r"baseline: .*kto\.baseline on this data: .*set `select` to kto\.select"),
        ("baseline", r"loss: .*kto\.loss on this data: .*set `select` to kto\.select and"),
    ):
        with pytest.raises(UserError, match=message):
            check.check_losses(runs.get_config(**{**KTO, missing: None}), unpaired.train)
    wrong = {**KTO, "baseline": lambda logps, batch: logps.policy}
    with pytest.raises(UserError, match=r"baseline: .*wanted one value per prompt.*\(2, 2\)"):
        check.check_losses(runs.get_config(**wrong), unpaired.train)


def test_responses_of_other_rows_are_in_no_cache(unpaired, pairs):
    config = runs.get_config(**KTO)
    assert not check.keeps_cache(config, unpaired.train)
    assert check.keeps_cache(runs.get_config(), pairs)
    assert check.keeps_cache(runs.get_config(loss=sft.loss, select=sft.select), pairs)
    cached = dataclasses.replace(config, reference=ReferenceConfig(mode="cache"))
    with pytest.raises(UserError, match=r"reference\.mode: wanted auto, live or none, found 'cach"):
        check.check_losses(cached, unpaired.train)
