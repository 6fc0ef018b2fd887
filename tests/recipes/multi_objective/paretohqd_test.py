"""ParetoHqD in two stages: what is chosen, cleaned and trained, side by side or not, and killed."""

import dataclasses
import json
import logging
import shutil
from functools import partial

import chex
import numpy as np
import pytest

from alignjax import recipes
from alignjax.commands import export
from alignjax.errors import UserError
from alignjax.evaluation import fronts
from alignjax.losses import paretohqd
from alignjax.models.config import LoraConfig
from alignjax.recipes import ObjectivesConfig
from alignjax.recipes.multi_objective import paretohqd as method
from alignjax.recipes.multi_objective import rows as rows_of
from alignjax.recipes.multi_objective import sampling, stacked
from alignjax.recipes.multi_objective.method import Rows
from alignjax.rewards import scorers
from alignjax.sampling.generate import take_questions
from alignjax.world import sources as world
from tests import runs, used

NAMES = ("short", "varied")
PREFERENCES = ((0.0, 1.0), (0.5, 0.5), (1.0, 0.0))


def judge(prompt, response):
    return {"short": -float(len(response)), "varied": float(len(set(response)))}


SEEN = []  # the settings that the method was given


def noted(setting, *, size: int = 8, at_once: int = 2):
    SEEN.append(setting)
    return method.train(setting, size=size, prompts=20, at_once=at_once)


def config(*overrides, **changes):
    source = partial(world.lists, size=60, seed=0, responses=2)
    settings = runs.changed("train.steps=2", "sft.steps=6", "optim.eps=1e-3", *overrides)
    return dataclasses.replace(
        settings,
        data=dataclasses.replace(settings.data, source=source),
        loss=paretohqd.loss,
        lora=LoraConfig(rank=2, dropout=0.1),
        optim=dataclasses.replace(settings.optim, learning_rate=0.02),  # eps: no signs of rounding
        evaluate=dataclasses.replace(settings.evaluate, judge=None, max_new_tokens=6),
        recipe=partial(
            recipes.trace_front,
            objectives=ObjectivesConfig(
                method=noted,
                scorer=partial(scorers.judged, judge=judge, name=NAMES),
                names=NAMES,
                preferences=PREFERENCES,
            ),
        ),
        **changes,
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory, whole_run):
    workdir = tmp_path_factory.mktemp("paretohqd")
    recipes.run_config(config(), workdir)
    return workdir


@pytest.fixture
def setting(base):
    return next(seen for seen in SEEN if seen.run.workdir == base)  # others train fronts, too


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_each_stage_is_trained_on_what_is_nearest_to_the_preference(base, setting):
    rows = rows_of.scored_rows(setting)
    first, second = (read(base / f"stage{n}.json") for n in (1, 2))
    chosen = paretohqd.curate(rows.scores, PREFERENCES, 8)
    for own, told in zip(chosen, first["chosen"], strict=True):
        assert told["ids"] == [rows.ids[i] for i in own]
        wanted = dict(zip(NAMES, rows.scores[own].mean(0), strict=True))
        assert told["mean_scores"] == pytest.approx(wanted)
    assert [len(told["ids"]) for told in second["chosen"]] == [4, 4, 4]
    # Asking for more of an objective chooses responses that have more of it.
    for m, name in enumerate(NAMES):
        ends = [first["chosen"][i]["mean_scores"][name] for i in (0, 2)]
        assert ends[1 - m] > ends[m]


def test_what_the_representatives_say_is_cleaned_and_counted(base, setting):
    said = [read(base / f"representative-{i:02d}.json")["samples"] for i in range(3)]
    questions = take_questions(setting.run.data.train, 1000)
    assert {len(samples) for samples in said} == {20}
    # The method's own limit; what is measured has 6.
    assert 6 < max(s["length"] for samples in said for s in samples) <= 64
    measured = read(base / "samples" / "00.json")["samples"]
    assert max(s["length"] for s in measured) <= 6
    assert len(questions) > 20
    kept, faults = set(), []
    for sample in (s for samples in said for s in samples):
        encoded = setting.run.data.tokenizer.encode("", [sample["response"]]).response_ids[0][:-1]
        if not sample["response"].strip():
            faults.append("empty")
        elif not sample["ended"]:
            faults.append("unfinished")
        elif fronts.is_collapsed(encoded.tolist()):
            faults.append("collapsed")
        elif (sample["prompt"], sample["response"]) in kept:
            faults.append("repeated")
        else:
            kept.add((sample["prompt"], sample["response"]))
    second = read(base / "stage2.json")
    wanted = {name: faults.count(name) for name in set(faults)} | {"kept": len(kept)}
    assert second["cleaned"] == wanted
    assert second["responses"] == len(kept) > 4
    assert faults


@pytest.mark.long
def test_one_after_the_other_gives_what_side_by_side_gives(base, setting):
    rows = rows_of.scored_rows(setting)
    chosen = paretohqd.curate(rows.scores, PREFERENCES, 8)
    used, place = np.unique(chosen, return_inverse=True)
    prepared = rows_of.prepare_rows(setting, rows_of.single_records(rows, used.tolist()), "again")
    fit = partial(stacked.fit_each, setting, rows=prepared, chosen=place.reshape(chosen.shape))
    together, alone = fit("stage1", at_once=2), fit("alone", at_once=1)
    for one, other in zip(together, alone, strict=True):
        chex.assert_trees_all_close(one, other, atol=1e-5)
    moved = [x["layers"]["q"]["lora_b"] for x in alone]
    assert np.abs(moved[0] - moved[1]).max() > 1e-3
    # From other parameters it does not go on with what was trained from the reference.
    with pytest.raises(UserError, match="belongs to another run: start"):
        fit("alone", at_once=1, starts=together)


def test_its_policies_are_exported_and_sampled(base, tmp_path, caplog):
    """Adapters that were trained side by side, in two programs: each by itself."""
    export.export(str(base), str(tmp_path / "out"), preference="all")
    run = used.run_of(config(), base)
    for i, name in enumerate(("0-1", "0.5-0.5", "1-0")):
        said = used.texts_and_nats(base / "samples" / f"{i:02d}.json")
        found = used.samples(run, used.exported(tmp_path / "out" / name))
        assert used.texts_and_nats(found) == said
    texts = used.generated(config(), base, tmp_path / "a.jsonl", preference="0.9,0.1")
    assert texts == used.written(said)
    with pytest.raises(UserError, match=r"out: exists already"):
        export.export(str(base), str(tmp_path / "out"), preference="1,0")


@pytest.mark.long
def test_killed_in_its_second_stage_it_ends_the_same(base, tmp_path):
    workdir = shutil.copytree(base, tmp_path / base.name)
    for name in ("stage2", "samples"):
        shutil.rmtree(workdir / name)
    for name in ("stage2.json", "front.json", "summary.json"):
        (workdir / name).unlink()
    before = runs.stamps(workdir)
    runs.end_at("step:stage2/02-1", lambda: recipes.run_config(config(), workdir))
    recipes.run_config(config(), workdir)
    assert read(workdir / "stage2.json") == read(base / "stage2.json")
    assert read(workdir / "front.json")["scores"] == read(base / "front.json")["scores"]
    assert before.items() <= runs.stamps(workdir).items()  # what is done is not done again


@pytest.mark.long
def test_stage_1_alone_and_linear_curation_are_the_ablations(base, setting):
    trained = method.train(setting, size=8, at_once=2, two_stages=False)
    questions = take_questions(setting.run.data.originals, 2)
    one = sampling.respond(setting, trained, PREFERENCES[0], questions)
    both = read(base / "samples" / "00.json")["samples"]
    assert [s.prompt for s in one] == [s["prompt"] for s in both]
    assert [s.logps for s in one] != [s["logps"] for s in both]
    with pytest.raises(UserError, match=r"wanted a policy for 0.3,0.7, found 0,1 0.5,0.5 1,0"):
        sampling.respond(setting, trained, (0.3, 0.7), questions)
    folder = base / "linear"
    other = dataclasses.replace(setting, run=dataclasses.replace(setting.run, workdir=folder))
    folder.mkdir()
    method.train(other, size=8, at_once=3, two_stages=False, curate=paretohqd.curate_linear)
    rows = rows_of.scored_rows(setting)
    chosen = paretohqd.curate_linear(rows.scores, PREFERENCES, 8)
    told = read(folder / "stage1.json")["chosen"]
    assert [x["ids"] for x in told] == [[rows.ids[i] for i in own] for own in chosen]


@pytest.mark.long
def test_whole_networks_are_trained_where_there_are_no_adapters(setting, tmp_path):
    config = dataclasses.replace(setting.run.config, lora=None)
    run = dataclasses.replace(setting.run, config=config, workdir=tmp_path)
    whole = dataclasses.replace(setting, run=run)
    trained = method.train(whole, size=8, at_once=3, two_stages=False)
    questions = take_questions(setting.run.data.originals, 2)
    assert len(sampling.respond(whole, trained, PREFERENCES[2], questions)) == 4


def test_centred_scores_are_what_is_above_the_mean_of_a_prompt():
    table = np.array([[1.0, 2.0], [3.0, 2.0], [5.0, 0.0]])
    rows = Rows(("b", "a", "b"), ("", "", ""), ("", "", ""), table)
    np.testing.assert_array_equal(method._centre(rows), [[-2, 1], [0, 0], [2, -1]])


def test_representatives_are_each_objective_alone_and_the_balanced_one():
    grid = [(a / 4, b / 4, (4 - a - b) / 4) for a in range(5) for b in range(5 - a)]
    found = [grid[i] for i in method.representatives(grid)]
    assert found[:3] == [(1, 0, 0), (0, 1, 0), (0, 0, 1)]
    assert sorted(found[3]) == [0.25, 0.25, 0.5]
    assert method.representatives([(0.0, 1.0), (1.0, 0.0)]) == [1, 0]


def with_rows(monkeypatch, table):
    n = len(table)
    rows = Rows(*[tuple(str(i) for i in range(n))] * 3, np.asarray(table, float))
    monkeypatch.setattr(rows_of, "scored_rows", lambda setting: rows)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            dict(size=21),
            r"stage1: size: wanted 21 .* preference \(0.0, 1.0\), found 20 in the data",
        ),
        (dict(size=1), r"recipe\.objectives\.method\.size: wanted a number >= 2, found 1"),
        (
            dict(at_once=0),
            r"recipe\.objectives\.method\.at_once: wanted a number >= 1, found 0",
        ),
        (
            dict(max_new_tokens=0),
            r"recipe\.objectives\.method\.max_new_tokens: wanted a positive number, found 0",
        ),
        (
            dict(prompts=0),
            r"recipe\.objectives\.method\.prompts: wanted a number >= 1, found 0",
        ),
    ],
)
def test_bad_settings_are_refused_before_anything_is_trained(setting, monkeypatch, changes, said):
    with_rows(monkeypatch, np.random.default_rng(0).normal(size=(20, 2)))
    with pytest.raises(UserError, match=said):
        method.train(setting, **changes)


def test_a_constant_objective_is_named(setting, monkeypatch, caplog):
    with_rows(monkeypatch, [(i, 3.0) for i in range(20)])
    monkeypatch.setattr(stacked, "fit_each", lambda *_, **__: [])
    logging.getLogger("alignjax").addHandler(caplog.handler)
    try:
        method.train(setting, size=4, two_stages=False)
    finally:
        logging.getLogger("alignjax").removeHandler(caplog.handler)
    assert "stage1: varied is the same for all responses, and has no effect" in caplog.text


def test_nothing_left_after_cleaning_is_refused(setting, monkeypatch):
    monkeypatch.setattr(method, "_fault", lambda sample, ids: "collapsed")
    with pytest.raises(UserError, match=r"stage2: wanted responses .*found none: 60 collapsed"):
        noted(setting)
