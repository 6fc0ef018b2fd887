"""MODPO as a recipe: the lists it makes, which objective orders them, one policy a preference."""

import dataclasses
import json
from functools import partial

import numpy as np
import pytest

from alignjax import recipes
from alignjax.commands import export
from alignjax.errors import UserError
from alignjax.losses import dpo, modpo
from alignjax.recipes import ObjectivesConfig
from alignjax.recipes.multi_objective import modpo as method
from alignjax.recipes.multi_objective import rows as rows_of
from alignjax.recipes.multi_objective import training
from alignjax.recipes.multi_objective.method import Rows, Setting
from alignjax.rewards import scorers
from alignjax.stages.run import Run
from alignjax.world import sources as world
from tests import runs, used

NAMES = ("harmless", "helpful")
PREFERENCES = ((2.0, 0.0), (0.25, 0.75))


LOSS = partial(modpo.loss, beta=0.3)


def config(*overrides, preferences=PREFERENCES, loss=LOSS, **keywords):
    settings = runs.changed(
        *("data.max_response_tokens=64", "sft.steps=2", "train.steps=2", "train.save_every=1"),
        *overrides,
    )
    source = partial(
        world.lists, size=40, seed=0, responses=3, objectives=("helpful", "harmless", "concise")
    )
    return dataclasses.replace(
        settings,
        data=dataclasses.replace(settings.data, source=source),
        loss=loss,
        recipe=partial(
            recipes.trace_front,
            objectives=ObjectivesConfig(
                method=partial(method.train, **keywords),
                scorer=partial(scorers.judged, judge=world.judge, name=NAMES),
                names=NAMES,
                preferences=preferences,
            ),
        ),
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory, whole_run):
    """One whole run, the lists it trained on, and what each policy was trained with."""
    workdir, given, fitted = tmp_path_factory.mktemp("modpo"), [], {}
    prepare, fit = rows_of.prepare_rows, training.fit

    def seen(setting, records, name):
        given.extend(records)
        return prepare(setting, records, name)

    def trained(setting, name, rows, config):
        fitted[name] = config
        return fit(setting, name, rows, config)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_of, "prepare_rows", seen)
        patch.setattr(training, "fit", trained)
        recipes.run_config(config(log_odds=2.0), workdir)
    return workdir, given, fitted


def lines(workdir, i):
    text = (workdir / f"modpo-{i:02d}" / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_scores_become_rewards_in_log_odds(base):
    records = base[1]
    truth = np.array([[[world.judge(r.prompt, y)[n] for n in NAMES] for y in r.responses]
                      for r in records])  # fmt: skip
    assert truth.shape[1:] == (3, 2)
    assert {r.objectives for r in records} == {NAMES}
    rewards = np.array([r.scores for r in records])
    np.testing.assert_allclose(rewards.reshape(-1, 2).std(axis=0), 2.0, rtol=1e-6)
    np.testing.assert_allclose(rewards, truth * (2.0 / truth.reshape(-1, 2).std(axis=0)), rtol=1e-5)


def test_each_preference_has_a_policy_of_its_own(base):
    workdir, _, fitted = base
    assert {p.name for p in workdir.glob("modpo-*")} == set(fitted) == {"modpo-00", "modpo-01"}
    found = json.loads((workdir / "front.json").read_text())
    assert set(found["seconds_by_part"]) == set(fitted)
    for name, preference, main in (("modpo-00", (1.0, 0.0), 0), ("modpo-01", (0.25, 0.75), 1)):
        loss, select = fitted[name].loss, fitted[name].select
        assert loss.keywords == {"beta": 0.3, "preference": preference, "main": main}
        assert select.keywords == {"main": main, "noisy": False}
    # At the start policy and reference are one: all weight on harmless is DPO, log 2 nats.
    first, other = (lines(workdir, i)[0] for i in range(2))
    assert first["loss"] == pytest.approx(np.log(2), rel=1e-5)
    assert first["rewards/collective"] == other["rewards/collective"] == 0
    assert first["rewards/margins"] == 0
    assert abs(other["rewards/margins"]) > 1e-3  # harmless is the margin


def test_its_policies_are_exported_and_sampled(base, tmp_path):
    workdir, settings = base[0], config(log_odds=2.0)
    export.export(str(workdir), str(tmp_path / "out"), preference="all")
    run = used.run_of(settings, workdir)
    for i, name in enumerate(("1-0", "0.25-0.75")):
        said = used.texts_and_nats(workdir / "samples" / f"{i:02d}.json")
        found = used.samples(run, used.exported(tmp_path / "out" / name))
        assert used.texts_and_nats(found) == said
    texts = used.generated(settings, workdir, tmp_path / "a.jsonl", preference="0.25,0.75")
    assert texts == used.written(said)


@pytest.mark.parametrize(
    ("preference", "main", "wanted"),
    [
        ((0.3, 0.7), None, 1),
        ((0.5, 0.5), None, 0),
        ((0.3, 0.7), 0, 0),
        ((0.0, 1.0), 0, 1),  # the loss would divide by 0
        ((0.0, 0.2, 0.8), 0, 2),
    ],
)
def test_the_objective_that_orders_the_pairs(preference, main, wanted):
    assert method.ordering(preference, main) == wanted


def rows(scores):
    n = len(scores)
    return Rows(tuple("aab"[:n]), ("p",) * n, ("x", "y", "z")[:n], np.array(scores, float))


OBJECTIVES = config().recipe.keywords["objectives"]


def setting(config):
    return Setting(Run(config, None, None, None), None, OBJECTIVES)


def test_prompts_with_one_response_are_counted(caplog):
    with caplog.at_level("INFO", logger="alignjax"):
        (record,) = method.make_lists(OBJECTIVES, rows([[1, 2], [3, 5], [4, 4]]), 1.0)
    assert record.responses == ("x", "y")
    assert "1 lists; 1 prompts have one response" in caplog.text


def test_bad_data_and_keywords_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"found helpful, which has one value, 2\.0, in all 3 rows"):
        method.make_lists(OBJECTIVES, rows([[1, 2], [3, 2], [4, 2]]), 1.0)
    with pytest.raises(UserError, match="wanted prompts with two responses or more, found 2"):
        method.make_lists(
            OBJECTIVES, dataclasses.replace(rows([[1, 2], [3, 5]]), ids=("a", "b")), 1.0
        )


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"main": 2}, "recipe.objectives.method.main: wanted 0 to 1, found 2"),
        (
            {"log_odds": 0.0},
            "recipe.objectives.method.log_odds: wanted a positive number, found 0.0",
        ),
    ],
)
def test_keywords_out_of_range_are_refused(keywords, message):
    with pytest.raises(UserError, match=message):
        method.train(setting(config()), **keywords)


def test_a_loss_without_preferences_is_refused():
    other = setting(config(loss=dpo.loss))
    with pytest.raises(UserError, match=r"loss: wanted modpo.loss .* found alignjax.*dpo.loss"):
        method.train(other)
