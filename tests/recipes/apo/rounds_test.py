"""The game in rounds: what it writes, that it goes on where it was, and what it refuses."""

import dataclasses
import json
import pathlib
import shutil
from functools import partial

import numpy as np
import pytest

from alignjax import recipes
from alignjax.commands import export, finished_run
from alignjax.config import (
    OptimConfig,
    ReferenceConfig,
    SamplingConfig,
    TrainConfig,
)
from alignjax.data.tokenizer import load as tokenizers
from alignjax.data.tokenizer import training
from alignjax.errors import UserError
from alignjax.losses import apo, bradley_terry, dpo, sft
from alignjax.recipes import RoundsConfig
from alignjax.recipes.apo import rounds, setup
from alignjax.rewards import reward_models, scorers
from alignjax.runtime import checkpoint, storage
from alignjax.runtime.sharding import make_mesh
from alignjax.sampling import generate
from alignjax.stages import evaluation, samples
from alignjax.stages.data import prepare_data
from alignjax.stages.run import Run
from alignjax.training import optim
from alignjax.world import sources as world
from tests import runs, used

SIZE = 60


def config(*overrides, game=None, **changes):
    """Two rounds of two steps of each player, on 60 pairs."""
    settings = dict(
        golden=partial(world.golden, size=SIZE, seed=0),
        optim=OptimConfig(learning_rate=1e-2, schedule=optim.constant),
        train=TrainConfig(steps=2, batch_size=8, save_every=1),
        rounds=2,
        sampling=SamplingConfig(samples=3, max_new_tokens=5, batch_size=16),
        max_drop_fraction=0.5,
        learning_rates=(1e-2, 5e-3),
    )
    parts = dict(
        loss=sft.loss,
        select=apo.select_best,
        reward_loss=apo.reward_loss,
        reference=ReferenceConfig(mode="none"),
        recipe=partial(recipes.play_rounds, game=RoundsConfig(**{**settings, **(game or {})})),
    )
    base = runs.changed(
        *(f"data.source.size={SIZE}", "sft.steps=2", "train.steps=2", "train.save_every=1"),
        *("evaluate.during=0", "evaluate.max_new_tokens=5", *overrides),
    )
    return dataclasses.replace(base, **{**parts, **changes})


@pytest.fixture(scope="module")
def base(tmp_path_factory, whole_run):
    """One whole run: its folder, and what it returned."""
    workdir = tmp_path_factory.mktemp("rounds") / "w"
    return workdir, recipes.run_config(config(), workdir)


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def results(workdir):
    """All that came of a game, to the last bit: digests of parameters stand for them."""
    names = ["base/record.json", "history.json"]
    for t in (1, 2):
        lists = [f"{side}_lists/{x}" for side in ("reward", "policy")
                 for x in ("lists.jsonl", "record.json")]  # fmt: skip
        names += [f"round-{t}/{x}" for x in (*lists, "reward/record.json", "samples.json")]
    found = {name: (workdir / name).read_bytes() for name in names}
    for t in (1, 2):
        found[f"policy-{t}"] = read(workdir / f"round-{t}/policy/summary.json")["params"]
        for player in ("reward", "policy"):
            found[f"{player}-{t}-lines"] = runs.lines(workdir / f"round-{t}" / player)
    return found


def test_it_writes_what_its_docstring_lists(base):
    workdir, summary = base
    listed = rounds.__doc__.split("\n\n")[2]
    for path in workdir.iterdir():
        if path.name[:5] not in ("round", ".lock") and path.name not in (
            *("config.json", "data_report.json", "tokenizer.model", "sft", "cache"),
        ):
            assert path.name in listed, f"{path.name} is written and not listed"
    in_round = {path.name for path in (workdir / "round-2").glob("[!.]*")}
    assert in_round == {
        *("reward_lists", "reward", "policy_lists", "policy", "samples.json", "measured.json")
    }
    assert all(name in listed for name in in_round)
    assert (workdir / "report.png").read_bytes()[:4] == b"\x89PNG"
    assert summary == read(workdir / "summary.json")
    for folder in (workdir / "base", workdir / "round-2" / "reward"):  # parameters are kept once
        assert (folder / "params").is_dir()
        assert not list((folder / "checkpoints").glob("*/state"))


def test_each_player_starts_where_the_paper_says(base):
    workdir = base[0]
    supervised = read(workdir / "round-1/policy/summary.json")["key"]["start"]
    policies = [supervised]
    for t in (1, 2):
        record = read(workdir / f"round-{t}/reward/record.json")
        assert record["key"]["start"] == supervised  # its base, in every round
        told = read(workdir / f"round-{t}/policy/summary.json")
        assert told["key"]["start"] == told["key"]["reference"] == policies[-1]
        assert told["learning_rate"] == (1e-2, 5e-3)[t - 1]
        for side in ("reward", "policy"):
            lists = read(workdir / f"round-{t}/{side}_lists/record.json")
            assert lists["key"]["policy"] == policies[-1]
        assert lists["key"]["reward"] == record["params"]
        policies.append(told["params"])
    assert len(set(policies)) == 3


def test_the_reward_model_sees_golden_answers_against_samples_beside_pairs(base):
    workdir = base[0]
    settings = config()
    table = laid(settings, workdir)
    said = [json.loads(line) for line in
            (workdir / "round-1/reward_lists/lists.jsonl").read_text().splitlines()]  # fmt: skip
    assert [row["responses"][0] for row in said] == table.answers
    assert all(row["scores"] == [1.0] + [0.0] * (len(row["responses"]) - 1) for row in said)
    prompts = [{r.prompt for r in side.originals} for side in (table.reward, table.policy)]
    assert not prompts[0] & prompts[1]
    assert {r.prompt for r in table.pairs} == prompts[0]
    lists = (workdir / "round-1/policy_lists/lists.jsonl").read_text().splitlines()
    assert {json.loads(line)["prompt"] for line in lists} == prompts[1]
    shares = [float.fromhex(line["adversarial"]) for line in runs.lines(workdir / "round-1/reward")]
    assert 0 < np.mean(shares) < 1
    assert all(float.fromhex(x["adversarial"]) == 0 for x in runs.lines(workdir / "base"))


def laid(settings, workdir):
    run = Run(settings, workdir, prepare_data(settings, workdir), make_mesh(1, 1, 1))
    return setup.set_up(run, settings.recipe.keywords["game"])


def test_the_history_is_what_the_parts_say(base):
    workdir, summary = base
    history = summary["rounds"]
    assert [line["round"] for line in history] == [0, 1, 2]
    assert history[0]["reward_model"] == history[0]["base"]
    assert history[0]["policy"][evaluation.KL]["mean"] == pytest.approx(0, abs=1e-5)
    assert history[2]["policy"][evaluation.KL]["mean"] > 1e-4
    table = laid(config(), workdir)
    last = workdir / "round-2" / "reward"
    found = np.array(scorers.reward_model(table.held_out, path=str(last)))
    accuracy = history[2]["reward_model"]["pairs"]["accuracy"]
    assert accuracy["mean"] == pytest.approx(np.mean(found[:, 0] > found[:, 1]))
    samples = read(workdir / "round-2/samples.json")["samples"]
    truth = [world.judge(s["prompt"], s["response"])["true_score"] for s in samples]
    assert history[2]["policy"]["true_score"]["mean"] == pytest.approx(np.mean(truth))
    before, after = (summary["table"]["true_score"][x]["mean"] for x in ("before", "after"))
    assert before == history[0]["policy"]["true_score"]["mean"]
    assert after == history[2]["policy"]["true_score"]["mean"]


def test_killed_in_its_second_round_it_ends_with_the_same_bits(base, tmp_path):
    """The second round's parts are made again, and of the first what was damaged meanwhile."""
    workdir = pathlib.Path(shutil.copytree(base[0], tmp_path / "w"))
    shutil.rmtree(workdir / "round-2")
    for name in ("history.json", "summary.json"):
        (workdir / name).unlink()
    (workdir / "round-1" / "samples.json").write_text("{}")  # which the second round measures on
    before = {name: x for name, x in runs.stamps(workdir).items() if "samples.json" not in name}
    for place in ("step:round 2: reward model-1", "saving:round 2: policy-2"):
        runs.end_at(place, lambda: recipes.run_config(config(), workdir))
    recipes.run_config(config(), workdir)
    assert results(workdir) == results(base[0])
    assert before.items() <= runs.stamps(workdir).items()


def test_a_game_that_has_ended_is_left_as_it_is(base):
    workdir, summary = base
    before = runs.stamps(workdir)
    assert recipes.run_config(config(), workdir) == summary
    assert runs.stamps(workdir) == before


@pytest.mark.long
def test_other_measures_train_nothing(base, tmp_path):
    workdir = pathlib.Path(shutil.copytree(base[0], tmp_path / "copy"))
    steps = {x: t for x, t in runs.stamps(workdir).items() if "checkpoints" in x}
    found = recipes.run_config(config("evaluate.samples=3"), workdir)
    assert steps.items() <= runs.stamps(workdir).items()
    assert [line["policy"]["true_score"]["count"] for line in found["rounds"]] == [2] * 3
    assert results(workdir)["policy-2"] == results(base[0])["policy-2"]


@pytest.fixture
def begun(base, tmp_path):
    """A folder in which the supervised stage and the pairs' reward model are done."""
    for name in ("sft", "cache", "base"):
        shutil.copytree(base[0] / name, tmp_path / name)
    shutil.copy(base[0] / "tokenizer.model", tmp_path)
    return tmp_path


@pytest.mark.long
def test_without_an_adversary_one_reward_model_stays(begun):
    pair = dict(select=bradley_terry.select, loss=partial(dpo.loss, beta=0.1))
    settings = config(
        game=dict(adversarial=False, rounds=1, reference="supervised"),
        reference=ReferenceConfig(mode="auto"),
        **pair,
    )
    found = recipes.run_config(settings, begun)
    assert not (begun / "round-1" / "reward").exists()
    assert not (begun / "round-1" / "reward_lists").exists()
    lists = read(begun / "round-1/policy_lists/record.json")
    assert lists["key"]["reward"] == read(begun / "base/record.json")["params"]
    assert found["rounds"][1]["ahead"]["pairs"]["mean"] == 0
    assert read(begun / "round-1/policy/summary.json")["reference"]["mode"] in ("cache", "live")


# --- what is refused


def refused(settings, workdir, match):
    with pytest.raises(UserError, match=match) as caught:
        recipes.run_config(settings, workdir)
    assert "\n" not in str(caught.value)


def test_too_few_golden_answers_are_refused_before_anything_is_trained(tmp_path):
    few = partial(world.golden, size=SIZE // 2, seed=0)
    match = r"rows dropped .* more than .*game\.max_missing_fraction = 0\.01 .*no_golden_answer"
    refused(config(game=dict(golden=few)), tmp_path, match)
    assert not (tmp_path / "sft").exists()


@pytest.mark.long
def test_a_policy_of_empty_responses_is_stopped_with_round_and_share(begun, monkeypatch):
    real = samples.respond_in_batches

    def mute(sampling, *args, **rest):
        for number, found in real(sampling, *args, **rest):
            if sampling.title.startswith("round 2: sampling, policy"):
                found = {
                    i: [dataclasses.replace(s, response=" ") for s in x] for i, x in found.items()
                }
            yield number, found

    monkeypatch.setattr(samples, "respond_in_batches", mute)
    match = (
        r"^recipe\.game\.max_empty_fraction: round 2: wanted at most 50\.0% empty samples, found "
        r"100\.0% of the policy's \d+ samples to the policy prompts$"
    )
    settings = config(game=dict(sequential=True))
    refused(settings, begun, match)
    refused(settings, begun, match)  # the samples are kept, and so is what is said of them
    # A sequential reward model goes on from the last one.
    models = [
        read(begun / name / "record.json") for name in ("base", "round-1/reward", "round-2/reward")
    ]
    assert models[1]["key"]["start"] == models[0]["params"]
    assert models[2]["key"]["start"] == models[1]["params"]


def test_samples_that_are_all_alike_are_refused_with_the_round(begun, monkeypatch):
    def same(sampling, params, questions, ref_params, *, done):
        sample = generate.Sample("", " a", 1, True, 0.0, 0.0, 0.0)
        samples = [sample] * sampling.settings.samples
        if 0 not in done:
            yield 0, dict.fromkeys(range(len(questions)), samples)

    monkeypatch.setattr(samples, "respond_in_batches", same)
    refused(
        config(game=dict(adversarial=False)), begun, r"all \d+ rows were dropped: .*identical_pair"
    )


def other_reward_model(folder, base, **changes):
    """The pairs' reward model under another config."""
    shutil.copytree(base[0] / "base", folder)
    said = read(folder / "config.json")
    for name, value in changes.items():
        said[name] |= value
    storage.keep_json(folder / "config.json", said)
    return str(folder)


def test_a_reward_model_of_another_size_or_tokenizer_is_refused(base, tmp_path):
    wide = other_reward_model(tmp_path / "wide", base, model={"width": 64})
    match = r"game\.reward_model: .*wide: wanted a model of the policy's size, .*width: 32 -> 64$"
    refused(config(game=dict(reward_model=wide)), tmp_path / "a", match)
    other = pathlib.Path(other_reward_model(tmp_path / "other", base))
    path = str(other / "tokenizer.model")
    pathlib.Path(path).unlink()
    texts = [f"number {i} is a fine number\n" for i in range(100)]
    training.train_sentencepiece(texts, vocab_size=300, path=path)
    said = read(other / "summary.json")
    said["reward_model"]["tokenizer"] = tokenizers.load(path).digest
    storage.keep_json(other / "summary.json", said)
    match = r"game\.reward_model: .*other: wanted the policy's tokenizer \w{12}, found \w{12}$"
    refused(config(game=dict(reward_model=str(other))), tmp_path / "b", match)
    assert not (tmp_path / "b" / "sft").exists()
    refused(config(game=dict(reward_model="none")), tmp_path / "c", r"game\.reward_model: none hol")


@pytest.mark.long
def test_a_reward_model_that_is_given_stands_for_the_pairs_own(base, begun):
    shutil.rmtree(begun / "base")
    given = str(base[0] / "base")
    found = recipes.run_config(config(game=dict(reward_model=given, rounds=1)), begun)
    assert not (begun / "base").exists()
    one = base[1]["rounds"][0]["base"]["pairs"]
    assert found["rounds"][0]["base"]["pairs"] == one


def test_losses_are_tried_on_the_rows_to_come(tmp_path):
    refused(config(select=None, loss=dpo.loss), tmp_path, r"^loss: .*dpo\.loss on this data: .*K=3")
    pairs_only = partial(of_pairs, size=2)
    refused(
        config(reward_loss=pairs_only), tmp_path, r"^reward_loss: .*of_pairs on this data: .*K=4"
    )
    assert not (tmp_path / "sft").exists()


def of_pairs(scores, batch, *, size: int):
    if scores.shape[1] != size:
        raise ValueError(f"wanted K={size}, found K={scores.shape[1]}")
    return scores[:, 0], {}


# --- afterwards


@pytest.mark.long
def test_the_last_policy_is_what_the_verbs_take(base, tmp_path):
    workdir = base[0]
    params = finished_run.load_policy(config(), str(workdir))
    digest = read(workdir / "round-2/policy/summary.json")["params"]
    assert checkpoint.tree_digest(params) == digest
    finished_run.require_complete(str(workdir))
    export.export(str(workdir), str(tmp_path / "exported"))
    card = (tmp_path / "exported" / "README.md").read_text(encoding="utf-8")
    assert f"`{sft.loss.__module__}.loss`, 2 steps" in card
    wanted = used.texts_and_nats(workdir / "round-2" / "samples.json")
    said = used.samples(used.run_of(config(), workdir), used.exported(tmp_path / "exported"))
    assert used.texts_and_nats(said) == wanted
    assert used.generated(config(), workdir, tmp_path / "a.jsonl") == used.written(wanted)
    for name in ("base", "round-2/reward"):
        to = tmp_path / name.replace("/", "-")
        export.export(str(workdir / name), str(to))
        used.assert_scores_alike(to, workdir / name)
    with pytest.raises(UserError, match=r"holds a game, not a reward model: .*round-\*/reward"):
        reward_models.find(str(workdir))
    assert reward_models.find(str(workdir / "round-2/reward")).digest
    last = partial(scorers.reward_model, path=str(workdir / "round-1/reward"))
    held_out = laid(config(), workdir).held_out
    assert scorers.open_scorer(last, "s", None).means(held_out[:1])
