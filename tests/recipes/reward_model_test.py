"""Reward models at the smallest size: the run, what it writes, and scoring with what it left."""

import dataclasses
import json
import math
import pathlib
import shutil
from functools import partial

import jax
import numpy as np
import pytest

from alignjax import recipes
from alignjax.commands import export, score, win_rates
from alignjax.config import CandidatesConfig, MeshConfig
from alignjax.data.records import DataReport
from alignjax.errors import CheckpointError, UserError
from alignjax.evaluation import calibration
from alignjax.losses import bradley_terry
from alignjax.models import reward_head
from alignjax.models.config import ModelConfig
from alignjax.recipes import align, reward_model
from alignjax.rewards import reward_models, scorers
from alignjax.runtime import checkpoint, metrics, storage
from alignjax.runtime.sharding import make_mesh
from alignjax.stages import learners
from alignjax.stages.data import prepare_data
from alignjax.testing import loss_inputs
from alignjax.training import loop, offline
from alignjax.world import sources as world
from tests import runs, used

STEPS = 8


def config(*overrides, **changes):
    policy = runs.changed("train.eval_every=4", *overrides)
    evaluate = dataclasses.replace(policy.evaluate, judge=None)
    parts = {
        "recipe": recipes.train_reward_model,
        "loss": None,
        "reward_loss": bradley_terry.reward_loss,
        "evaluate": evaluate,
    }
    return dataclasses.replace(policy, **{**parts, **changes})


@pytest.fixture(scope="module")
def base(tmp_path_factory, whole_run):
    """One run: its folder and what it returned."""
    workdir = tmp_path_factory.mktemp("runs") / "base"
    return workdir, reward_model.run(config(), workdir)


def records(size=3, responses=4):
    return list(world.lists(DataReport(), size=size, seed=3, responses=responses))


def test_every_response_scores_0_before_the_first_step_and_then_learns(base):
    lines = metrics.read(base[0] / "metrics.jsonl")
    losses = [line["loss"] for line in lines if "loss" in line]
    assert abs(losses[0] - math.log(2)) < 1e-6
    assert len(losses) == STEPS
    assert abs(losses[-1] - math.log(2)) > 1e-4
    assert {"rewards/accuracies", "rewards/margins"} <= set(lines[0])
    evaluated = [line["eval_rewards/accuracies"] for line in lines if "loss" not in line]
    assert len(evaluated) == 2


def test_what_it_trained_is_exported_and_scores_alike(base, tmp_path):
    export.export(str(base[0]), str(tmp_path / "out"))
    used.assert_scores_alike(tmp_path / "out", base[0])


def test_training_goes_on_from_a_classifier_s_folder(tmp_path):
    """One step of no length leaves it as it was, head included; the second label over the first."""
    folder = runs.ROOT / "tests" / "parity" / "data" / "labels2"
    model = dataclasses.replace(ModelConfig(path=str(folder)), dtype="float32")
    settings = config(
        *("train.steps=1", "train.eval_every=0", "optim.learning_rate=1e-30"),
        *("tokenizer.vocab_size=352", "data.max_prompt_tokens=30", "data.max_response_tokens=30"),
        model=model, sft=None,
    )  # fmt: skip
    settings = dataclasses.replace(
        settings, data=dataclasses.replace(settings.data, max_drop_fraction=0.9)
    )
    reward_model.run(settings, tmp_path / "run")
    found, given = (reward_models.find(str(x)) for x in (tmp_path / "run", folder))
    trained, start = (reward_models.load_params(x, make_mesh(1, 1, 1)) for x in (found, given))
    jax.tree.map(np.testing.assert_array_equal, trained, start)
    assert trained["reward"]["kernel"].shape == (16, 1)
    with pytest.raises(
        UserError, match=r"sft: .*labels2 is a reward model, which has no language-model head"
    ):
        reward_model.run(dataclasses.replace(settings, sft=config().sft), tmp_path / "no")


def test_it_writes_what_its_docstring_lists(base):
    names = {path.name for path in base[0].iterdir()}
    listed = reward_model.__doc__.split("\n\n", 2)[2]
    for name in names - {".lock"}:
        assert name in listed, f"{name} is written and not listed"
    for picture in ("report.png", "reliability.png"):
        assert (base[0] / picture).read_bytes()[:4] == b"\x89PNG"
    assert not (base[0] / "cache" / "ref_logps").exists()


def test_the_summary_is_what_the_saved_model_says_of_the_held_out_rows(base):
    workdir, returned = base
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary == json.loads(json.dumps(returned))
    assert summary["compiles"] == 1
    held_out = prepare_data(config(), workdir).held_out.dataset
    rows = [held_out[i] for i in range(len(held_out))]
    texts = [
        dataclasses.replace(records(1)[0], id=e.id, prompt=e.prompt, responses=e.responses)
        for e in rows
    ]
    found = np.array(scorers.reward_model(texts, path=str(workdir)))
    margin = found[:, 0] - found[:, 1]
    accuracy = summary["table"]["rewards/accuracies"]
    assert accuracy["mean"] == pytest.approx(np.mean(margin > 0))
    assert accuracy["count"] == len({e.prompt for e in rows})
    assert summary["table"]["rewards/margins"]["mean"] == pytest.approx(margin.mean(), rel=1e-4)
    # The temperature comes from every second prompt, and the numbers from the others.
    numbers = summary["calibration"]["reward"]
    assert numbers["pairs_fitted"] + numbers["pairs_measured"] == len(rows)
    assert numbers["temperature"] == pytest.approx(
        calibration.fit_temperature(margin[::2]), rel=1e-3
    )
    wanted = calibration.measure(margin[1::2])
    for name, value in wanted.items():
        assert numbers["before"][name] == pytest.approx(value, rel=1e-3, abs=1e-5), name


def test_stopped_and_started_again_it_ends_with_the_same_bits(base, copy, monkeypatch):
    (copy / "summary.json").unlink()
    for step in ("8", "6"):
        shutil.rmtree(copy / "checkpoints" / step)
    monkeypatch.setenv("ALIGNJAX_FAULT", "step:reward model-5=term")
    with pytest.raises(loop.StoppedError, match="saved step 5"):
        recipes.run_config(config(), copy)
    found = recipes.run_config(config(), copy)
    assert found["resumed_from"] == 5
    assert runs.lines(copy) == runs.lines(base[0])
    for name in ("table", "calibration", "reward_model"):
        assert found[name] == base[1][name]


def test_it_starts_from_the_supervised_stage(copy, monkeypatch):
    real, starts = offline.fit, []

    def fit(job, learner, *rest):
        if job.name != "reward model":
            return real(job, learner, *rest)
        starts.append(learner.load_start())
        raise ZeroDivisionError

    monkeypatch.setattr(offline, "fit", fit)
    with pytest.raises(ZeroDivisionError):
        reward_model.run(config(), copy)
    language = runs.supervised(copy, config())
    wanted = checkpoint.tree_digest(reward_head.from_language_model(language))
    assert checkpoint.tree_digest(starts[0]) == wanted
    trained = json.loads((copy / "summary.json").read_text())["reward_model"]["params"]
    assert trained != wanted


@pytest.mark.long
def test_several_objectives_have_a_head_each(tmp_path):
    names = ("helpful", "harmless")
    source = partial(world.lists, size=60, seed=0, responses=4, objectives=names)
    data = dataclasses.replace(runs.get_config().data, source=source)
    settings = config("train.steps=2", "train.eval_every=0", data=data, sft=None)
    found = reward_model.run(settings, tmp_path)
    assert found["reward_model"]["objectives"] == list(names)
    assert set(found["calibration"]) == set(names)
    first = metrics.read(tmp_path / "metrics.jsonl")[0]
    assert {"rewards/margins/helpful", "rewards/accuracies/harmless"} <= set(first)
    assert "rewards/margins/helpful" in found["table"]
    best = found["table"]["rewards/best_accuracies/harmless"]
    assert 0 <= best["low"] <= best["mean"] <= best["high"] <= 1
    scores = scorers.reward_model(records(), path=str(tmp_path))
    assert [x.shape for x in scores] == [(4, 2)] * 3
    assert all((x[:, 0] != x[:, 1]).all() for x in scores)


def test_the_mean_over_objectives_is_that_of_each_by_itself():
    rng = np.random.default_rng(0)
    given, truth = rng.normal(size=(2, 3, 4, 2)).astype(np.float32)
    _, batch = loss_inputs(np.zeros((3, 4)), scores=truth)
    losses, found = learners.over_objectives(
        given, batch, reward_loss=bradley_terry.reward_loss, names=("a", "b")
    )
    alone = [
        bradley_terry.reward_loss(given[..., m], batch.replace(scores=truth[..., m]))
        for m in range(2)
    ]
    np.testing.assert_allclose(losses, (alone[0][0] + alone[1][0]) / 2, rtol=1e-6)
    np.testing.assert_array_equal(found["rewards/margins/b"], alone[1][1]["rewards/margins"])


# --- scoring


def test_scores_do_not_depend_on_the_batch_or_the_list(base):
    rows = records(5)
    rows[1] = dataclasses.replace(
        rows[1], responses=rows[1].responses[:1], scores=(), objectives=()
    )
    found = scorers.reward_model(rows, path=str(base[0]))
    assert [x.shape for x in found] == [(4,), (1,), (4,), (4,), (4,)]
    again = scorers.reward_model(rows[::-1], path=str(base[0]), batch_size=2)[::-1]
    for x, y in zip(found, again, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
    assert len(np.unique(np.concatenate(found))) == 17
    assert scorers.reward_model([], path=str(base[0])) == []


def test_scores_do_not_depend_on_the_mesh_and_the_model_is_split_over_it(base, monkeypatch):
    rows, path, spread = records(5), str(base[0]), []

    def load(found, mesh, load=reward_models.load_params):
        params = load(found, mesh)
        spread.append(len({str(s.index) for s in params["embed"]["embedding"].addressable_shards}))
        return params

    monkeypatch.setattr(reward_models, "load_params", load)
    found = scorers.reward_model(rows, path=path)
    of_run = runs.changed("mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2")
    function = partial(scorers.reward_model, path=path, batch_size=3)
    scorer = scorers.open_scorer(function, "scorer", of_run)
    for x, y in zip(found, scorer.means(rows), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
    assert spread == [1, 4]


def test_a_scorer_keeps_its_own_mesh_and_others_have_none(base):
    mine, runs_own = MeshConfig(fsdp=2), runs.changed("mesh.data=2")
    function = partial(scorers.reward_model, path=str(base[0]), mesh=mine)
    assert scorers.open_scorer(function, "scorer", runs_own).function.keywords["mesh"] == mine
    judged = partial(scorers.judged, judge=world.judge, name="helpful")
    assert scorers.open_scorer(judged, "scorer", runs_own).function is judged


def test_texts_over_a_limit_lose_one_end_and_are_counted(base, caplog):
    caplog.set_level("INFO", "alignjax")
    path, rows = str(base[0]), records(2)
    tokenizer = reward_models.find(path).tokenizer
    lengths = [[len(x) for x in tokenizer.encode(r.prompt, r.responses).response_ids] for r in rows]
    limit = int(np.median(lengths))
    longer = [
        dataclasses.replace(
            row, prompt=f"Well. {row.prompt}", responses=tuple(f"{x} So." for x in row.responses)
        )
        for row in rows
    ]
    limits = {"max_prompt_tokens": 6, "max_response_tokens": limit}
    both = [scorers.reward_model(x, path=path, **limits) for x in (rows, longer)]
    same = (
        np.array(lengths) > limit
    )  # what was added lies beyond the limit, and before the prompt's
    assert 0 < same.sum() < same.size
    # In float32: a stream of other rows around them sums in another order.
    np.testing.assert_allclose(*(np.array(x)[same] for x in both), rtol=1e-5, atol=1e-7)
    assert (np.array(both[0])[~same] != np.array(both[1])[~same]).all()
    count = int(same.sum())
    cuts = [line for line in caplog.messages if " cut to " in line]
    assert "base: 2 of 2 prompts cut to max_prompt_tokens = 6, their beg" in cuts[0]
    assert f"base: {count} of 8 responses cut to max_response_tokens = {limit}" in cuts[1]
    caplog.clear()
    scorers.reward_model(rows[:1], path=path, max_prompt_tokens=96, max_response_tokens=960)
    assert not [line for line in caplog.messages if " cut to " in line]
    with pytest.raises(UserError, match="max_response_tokens: wanted a number above 1, found 1"):
        scorers.reward_model(rows, path=path, max_response_tokens=1)


@pytest.mark.long
def test_a_run_counts_what_its_reward_models_cut_in_its_data_report(base, tmp_path):
    """Of the lists that it trains on, and of the samples that it is measured by."""
    by_model = (partial(scorers.reward_model, path=str(base[0]), max_response_tokens=3),)
    policy = runs.changed("data.source.size=60", "train.steps=1", "sft.steps=2")
    settings = dataclasses.replace(
        policy,
        candidates=CandidatesConfig(
            scorers=by_model, samples=3, max_new_tokens=5, max_drop_fraction=0.9
        ),
        select=bradley_terry.select,
        evaluate=dataclasses.replace(policy.evaluate, judge=None, scorers=by_model, during=0),
    )
    summary = align.run(settings, tmp_path)
    report = json.loads((tmp_path / "data_report.json").read_text())
    assert summary["data_report"] == report
    sides = ("candidates/train", "candidates/held_out")
    assert list(report["scored"]) == [*sides, "samples before", "samples after"]
    tokenizer = reward_models.find(str(base[0])).tokenizer
    for side in sides:
        lines = (tmp_path / f"{side}.jsonl").read_text().splitlines()
        texts = [text for line in lines for text in json.loads(line)["responses"]]
        long = sum(len(ids) > 3 for ids in tokenizer.encode("", texts).response_ids)
        wanted = {"base: responses": len(texts), "base: responses cut": long}
        assert wanted.items() <= report["scored"][side].items()
        assert long > 0
    after = report["scored"]["samples after"]
    assert (after["base: prompts"], after["base: responses"]) == (2, 4)


def test_one_compile_for_each_shape(base):
    before = reward_head.score_responses._cache_size()
    for _ in range(2):
        scorers.reward_model(records(7, responses=3), path=str(base[0]), batch_size=4)
    assert reward_head.score_responses._cache_size() - before == 1  # one bucket


@pytest.fixture
def copy(base, tmp_path):
    return pathlib.Path(shutil.copytree(base[0], tmp_path / "copy"))


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    storage.keep_json(path, content)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", lambda c: c.update(reward_loss=None), "holds a policy, not a reward model"),
        ("config.json", None, r"holds no run: no config\.json"),
        ("summary.json", None, "holds a run that has not finished"),
        ("tokenizer.model", None, r"tokenizer\.model"),
        (
            "summary.json",
            lambda c: c["reward_model"].update(tokenizer="0123456789abcdef"),
            r"trained with, 0123456789ab, found \w+ \(.*tokenizer\.model\)",
        ),
        ("config.json", lambda c: c["model"].update(width=64), r"params.*embed/embedding: wanted"),
        (
            "summary.json",
            lambda c: c["reward_model"].update(objectives=["a", "b"]),
            r"reward/kernel: wanted \(32, 2\) float32, found \(32, 1\) float32",
        ),
    ],
)
def test_what_is_no_reward_model_is_one_line(file, change, message, copy):
    if change is None:
        (copy / file).unlink()
    else:
        edit(copy / file, change)
    with pytest.raises(UserError, match=message) as caught:
        scorers.reward_model(records(), path=str(copy))
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, CheckpointError) == ("params" in message or "kernel" in message)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def unscored(count=3):
    return [
        {"prompt": r.prompt, "responses": list(r.responses), "note": i}
        for i, r in enumerate(records(count))
    ]


def test_the_program_writes_lists_that_sources_read(base, compiled, tmp_path):
    from alignjax.data import sources

    rows = write(tmp_path / "rows.jsonl", unscored())
    out = tmp_path / "deep" / "scored.jsonl"
    flags = (f"--records={rows}", f"--reward_model={base[0]}", f"--out={out}")
    flags += ("--max_prompt_tokens=6",)
    done = runs.start("score", *flags, **compiled)
    assert done.returncode == 0, done.stderr
    assert "12 responses to 3 prompts" in " ".join(done.stdout.split())  # a long path wraps
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert "base: 3 of 3 prompts cut to max_prompt_tokens = 6, their beginning" in done.stderr
    about = json.loads(out.with_name("scored.jsonl.made_of.json").read_text())
    assert (about["cuts"]["base: prompts"], about["cuts"]["base: prompts cut"]) == (3, 3)
    wanted = scorers.reward_model(records(), path=str(base[0]), max_prompt_tokens=6)
    for row, given, scores in zip(written, unscored(), wanted, strict=True):
        np.testing.assert_allclose(row["scores"], scores, rtol=1e-5, atol=1e-6)
        assert {k: row[k] for k in given} == given
    report = DataReport()
    read = list(sources.lists(report, path=str(out)))
    assert [r.id for r in read] == ["rows.jsonl:1", "rows.jsonl:2", "rows.jsonl:3"]
    assert not list(out.parent.glob("*.tmp"))


def test_rows_that_a_run_reads_are_scored_as_they_are(base, tmp_path):
    some = [dataclasses.replace(r, responses=r.responses[:2]) for r in records(2)]
    rows = [
        {"prompt": some[0].prompt, "chosen": some[0].responses[0],
         "rejected": some[0].responses[1]},
        {"prompt": some[1].prompt, "response_a": some[1].responses[0], "note": "n",
         "response_b": some[1].responses[1], "winner": "a"},
    ]  # fmt: skip
    out = tmp_path / "scored.jsonl"
    score.run(str(write(tmp_path / "rows.jsonl", rows)), [str(base[0])], str(out))
    written = [json.loads(line) for line in out.read_text().splitlines()]
    wanted = scorers.reward_model(some, path=str(base[0]))
    for row, record, scores in zip(written, some, wanted, strict=True):
        np.testing.assert_allclose(row["scores"], scores, rtol=1e-5, atol=1e-6)
        assert (row["prompt"], tuple(row["responses"])) == (record.prompt, record.responses)
        assert set(row) - {"note"} == {"id", "prompt", "responses", "scores"}
    assert written[1]["note"] == "n"


def test_scores_are_compared_with_what_the_rows_say(base, tmp_path, monkeypatch, capsys):
    one, two, three = "one", "two", "three"
    rows = [
        {"prompt": "a", "chosen": [one], "rejected": [two, three, "four"]},
        {"prompt": "b", "responses": [one, two, three], "ratings": [1, 3, 2]},
        {"prompt": "c", "chosen": one, "rejected": two},
        {"prompt": "d", "responses": [one, two]},  # no order
        {"prompt": "e", "responses": [one, two], "ratings": [1]},  # of which?
    ]
    given = {"a": [2, 1, 1, 0], "b": [0, 5, 5], "c": [0, 0], "d": [1, 0], "e": [1, 0]}
    of = lambda records, **_: [np.array(given[r.prompt], np.float32) for r in records]  # noqa: E731
    monkeypatch.setattr(scorers, "reward_model", of)
    path = write(tmp_path / "rows.jsonl", rows)
    score.run(str(path), [str(base[0])], str(tmp_path / "scored.jsonl"))
    out = " ".join(capsys.readouterr().out.split())
    wanted = "3 of 5 records order their responses (by chosen, ratings), 2 of them more than two"
    assert wanted in out
    # 3 of 3, 2 of 3 and none of 1 pairs; the best of the first list alone, of the second tied.
    assert "│ base │ 0.556 [0.000, 1.000] │ 0.500 [0.000, 1.000] │ 0.500 [0.000, 1.000] │" in out
    score.run(str(write(path, rows[2:])), [str(base[0])], str(tmp_path / "pairs.jsonl"))
    assert "best of its list" not in capsys.readouterr().out


def test_win_rates_are_of_the_reward_model_s_scores(base, tmp_path):
    halves = [
        write(tmp_path / name, [{**row, "responses": row["responses"][part]} for row in unscored()])
        for name, part in (("a.jsonl", slice(2)), ("b.jsonl", slice(2, 4)))
    ]
    found = win_rates.run(*map(str, halves), reward_models=[str(base[0])])
    scores = scorers.reward_model(records(), path=str(base[0]))
    wins = [np.mean(x[:2, None] > x[None, 2:]) for x in scores]
    assert found[base[0].resolve().name].wins.mean == pytest.approx(np.mean(wins))


@pytest.fixture
def scored(base, tmp_path):
    """The arguments of a call, and what it wrote."""
    rows = write(tmp_path / "rows.jsonl", unscored())
    arguments = [str(rows), [str(base[0])], str(tmp_path / "scored.jsonl")]
    score.run(*arguments)
    return arguments, (tmp_path / "scored.jsonl")


def test_a_bit_of_a_finished_scoring_is_missed_by_nobody(tmp_path):
    out, made_of = tmp_path / "scored.jsonl", {"records": "ab", "limits": [6, None]}
    score._write(out, ['{"scores": [1.5, -2.0]}\n'], {"made_of": made_of, "command": "score"})
    assert score._is_done(out, made_of)
    for file in (out, score._about(out)):
        content = file.read_bytes()
        for place in range(0, 8 * len(content), 3):
            changed = bytearray(content)
            changed[place // 8] ^= 1 << place % 8
            file.write_bytes(changed)
            refused = ""
            try:
                score._is_done(out, made_of)
            except UserError as error:
                refused = str(error)
            # A blank or the command's name may change: neither is read.
            assert str(out) in refused or json.loads(changed)["made_of"] == made_of
            assert refused or file != out
        file.write_bytes(content)


def test_done_work_is_not_done_again_and_nothing_is_overwritten(scored, monkeypatch, caplog):
    arguments, out = scored
    content = out.read_bytes()
    monkeypatch.setattr(scorers, "reward_model", lambda *a, **k: 1 / 0)
    score.run(*arguments)
    assert out.read_bytes() == content
    out.write_bytes(content + b"\n")
    with pytest.raises(UserError, match="was changed after it was written"):
        score.run(*arguments)
    out.write_bytes(content)
    with pytest.raises(UserError, match="reward models or limits"):
        score.run(*arguments, (6, None))
    write(pathlib.Path(arguments[0]), unscored(2))
    with pytest.raises(UserError, match="exists and is of other records, reward models or limits"):
        score.run(*arguments)
    assert out.read_bytes() == content
    with pytest.raises(UserError, match=r"exists and is no output of this command"):
        score.run(arguments[0], arguments[1], write(out.with_name("other.jsonl"), [{}]))
    out.unlink()  # what it was made of stays, and does not stand for it
    with pytest.raises(ZeroDivisionError):
        score.run(*arguments)


def test_two_reward_models_give_named_scores(scored, copy, tmp_path):
    (rows, (first,), _), one = scored
    out = tmp_path / "both.jsonl"
    score.run(rows, [first, str(copy)], str(out))
    found = [json.loads(line)["scores"] for line in out.read_text().splitlines()]
    alone = [json.loads(line)["scores"] for line in one.read_text().splitlines()]
    assert [[x["base"] for x in row] for row in found] == alone
    assert [[x["copy"] for x in row] for row in found] == alone
    with pytest.raises(UserError, match="found 'base' twice; rename"):
        score.run(rows, [first, first], str(tmp_path / "twice.jsonl"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": "a", "responses": ["b"], "scores": [1]},
            r"\.jsonl:1: field 'scores' exists already",
        ),
        ({"prompt": "a"}, r"\.jsonl:1: wanted columns of responses"),
        ({"prompt": "a", "responses": []}, r"\.jsonl:1: has no responses"),
        ({"prompt": "a", "responses": ["b", 3]}, r"'responses\[1\]': wanted text, found number"),
        ({"prompt": 7, "responses": ["b"]}, r"field .prompt.: wanted .* found number"),
    ],
)
def test_bad_rows_are_one_line(row, message, base, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "jit", lambda *a, **k: 1 / 0)  # nothing is compiled before
    rows = write(tmp_path / "rows.jsonl", [row])
    with pytest.raises(UserError, match=message):
        score.run(str(rows), [str(base[0])], str(tmp_path / "out.jsonl"))
    with pytest.raises(
        UserError, match=r"--out: wanted a name that ends in \.jsonl, found '.*out'"
    ):
        score.run(str(write(rows, unscored(1))), [str(base[0])], str(tmp_path / "out"))
