"""The verbs that take a finished run or files of responses: generate, evaluate, compare."""

import dataclasses
import json
import math
import re
import shutil
from functools import partial

import numpy as np
import pytest
from absl import flags

from alignjax.commands import compare, export, finished_run, generate, win_rates
from alignjax.config import load
from alignjax.data import sources
from alignjax.data.records import Message
from alignjax.errors import UserError
from alignjax.evaluation import plots
from alignjax.recipes import align
from alignjax.rewards import scorers
from alignjax.runtime import metrics
from alignjax.runtime.sharding import make_mesh
from alignjax.sampling.generate import take_questions
from alignjax.stages import evaluation
from alignjax.stages.data import prepare_data
from alignjax.stages.run import Run
from alignjax.world import sources as world
from tests import runs, used

OVERRIDES = (
    *("train.steps=4", "sft.steps=2", "train.eval_every=3", "evaluate.during=2"),
    *("data.source.size=120", "evaluate.prompts=3", "evaluate.samples=3"),
)


def judge(prompt, response):
    return {"length": float(len(response)), "vowels": sum(map(response.count, "aeiou"))}


@pytest.fixture(scope="module")
def base(tmp_path_factory, whole_run):
    """A finished run, as the verb ``run`` leaves it."""
    workdir = tmp_path_factory.mktemp("verbs") / "one"
    summary = align.run(load.load(runs.__file__, list(OVERRIDES)), workdir)
    finished_run.note_origin(str(workdir), runs.__file__, list(OVERRIDES))
    return workdir, summary


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


# --- what a run measures


def test_a_summary_has_every_metric_of_the_paper_s_tables(base):
    table = base[1]["table"]
    assert {
        *("RM_DPO", "RM_R-DPO", "winner_log_ratio", "bleu", "bleu_char", "true_score"),
        *("best/true_score", evaluation.KL, "rewards/accuracies", "response tokens"),
    } <= set(table)
    for name in ("before", "after"):
        samples = json.loads((base[0] / f"{name}.json").read_text())["samples"]
        assert table["unfinished"][name]["mean"] == np.mean([not s["ended"] for s in samples])
    assert table["RM_DPO"]["before"]["mean"] == 0
    margins, rewards = table["RM_DPO"]["after"], table["rewards/margins"]["after"]
    assert rewards["mean"] == pytest.approx(0.1 * margins["mean"], rel=1e-4)  # beta
    assert table["RM_R-DPO"]["before"]["mean"] != 0
    assert table[evaluation.KL]["after"]["mean"] > 0
    assert base[1]["best_of"] == 3
    both = [json.loads((base[0] / f"{x}.json").read_text())["samples"] for x in ("after", "before")]
    ours, theirs = (
        np.array([world.judge(s["prompt"], s["response"])["true_score"] for s in x]).reshape(3, 3)
        for x in both
    )
    difference = ours[:, :, None] - theirs[:, None]
    wins = ((difference > 0) + (difference == 0) / 2).mean()
    assert table["win rate/true_score"]["before"] is None
    assert table["win rate/true_score"]["after"]["mean"] == pytest.approx(wins)
    for sides in table.values():
        assert all(x is None or math.isfinite(x["mean"]) for x in sides.values())


def test_the_history_holds_kl_and_margins_at_every_evaluation_and_at_the_end(base):
    lines = [x for x in metrics.read(base[0] / "metrics.jsonl") if "eval_kl" in x]
    assert [x["step"] for x in lines] == [3, 4]
    for line in lines:
        assert {"eval_RM_DPO", "eval_kl_half_width", "eval_true_score"} <= set(line)
        assert 0 <= line["eval_unfinished"] <= 1
    end = base[1]["table"]
    assert lines[-1]["eval_RM_DPO"] == pytest.approx(end["RM_DPO"]["after"]["mean"], rel=1e-5)


def test_best_of_n_and_bleu_by_hand(base):
    """The pick is the scorers' best; scores and BLEU are the pick's."""
    workdir, _ = base
    settings = load.load(runs.__file__, list(OVERRIDES))
    data = prepare_data(settings, workdir)
    questions = take_questions(data.originals, 3)
    texts = ["aa", "aaaa", "b" * 9, " x", "eee", "", "i", "no", "ooo"]
    samples = [
        dataclasses.replace(evaluation_sample(), prompt=questions[i // 3].prompt, response=text)
        for i, text in enumerate(texts)
    ]
    vowels = partial(scorers.judged, judge=judge, name="vowels")
    length = partial(scorers.judged, judge=judge, name="length")

    def sampled(**changes):
        evaluate = dataclasses.replace(settings.evaluate, **changes)
        config = dataclasses.replace(settings, evaluate=evaluate)
        run = Run(config, workdir, data, make_mesh(1, 1, 1))
        return evaluation.sample_metrics(run, evaluation.score_samples(run, samples, "samples"))

    found = sampled(judge=judge, scorers=(vowels,))
    assert found["reward"].mean == pytest.approx(np.mean([2, 4, 0, 0, 3, 0, 1, 1, 3]))
    assert found["best/reward"].mean == pytest.approx((4 + 3 + 3) / 3)
    assert found["best/length"].mean == pytest.approx((4 + 3 + 3) / 3)
    assert sampled(judge=judge)["best/length"].mean == pytest.approx((9 + 3 + 3) / 3)
    assert sampled(judge=judge, best_of=2)["best/length"].mean == pytest.approx((4 + 3 + 2) / 3)
    two = sampled(judge=None, scorers=(vowels, length))
    assert two["best/reward_1"].mean == pytest.approx((9 + 3 + 3) / 3)  # by their mean
    wanted = evaluation.preferred_responses(data.originals)
    samples = [
        dataclasses.replace(s, response=wanted[s.prompt] if i % 3 == 1 else "z")
        for i, s in enumerate(samples)
    ]
    assert sampled(judge=judge)["bleu"].mean == pytest.approx(100)
    assert sampled(judge=judge)["bleu_char"].mean == pytest.approx(1)
    assert sampled(judge=judge, best_of=1)["bleu"].mean < 50


def evaluation_sample():
    from alignjax.sampling.generate import Sample

    return Sample("", "", 1, True, -1.0, -1.0, 0.0)


# --- evaluate --workdir


def test_evaluate_measures_again_and_trains_nothing(base, tmp_path, capsys):
    workdir = shutil.copytree(base[0], tmp_path / "w")
    config = finished_run.config_of(str(workdir), "", ["evaluate.best_of=1"])
    finished_run.require_complete(str(workdir))
    metrics = (workdir / "metrics.jsonl").read_bytes()
    found = align.run(config, workdir)
    assert (workdir / "metrics.jsonl").read_bytes() == metrics
    last = capsys.readouterr().out.splitlines()[-1]  # what a run leaves, evaluated again or not
    assert re.match(rf"kept in {workdir}: [\d.]+ MiB \(checkpoints [\d.]+, ", last)
    assert last.endswith(
        "; to train longer, run it again with more train.steps and --allow_config_change"
    )
    assert found["best_of"] == 1
    for name, sides in base[1]["table"].items():
        if not name.startswith(("best/", "bleu")):
            assert found["table"][name] == sides, name


def test_a_run_that_is_not_finished_or_another_one_is_refused(base, tmp_path):
    def refused(message, *arguments):
        with pytest.raises(UserError, match=message):
            finished_run.config_of(*arguments)

    refused("holds no run", str(tmp_path), "", [])
    workdir = shutil.copytree(base[0], tmp_path / "w")
    other = r"a different config than .*\(loss\.beta: 0\.1 -> 0\.2\)"
    refused(other, str(workdir), "", ["loss.beta=0.2"])
    (workdir / finished_run.ORIGIN).unlink()
    refused("give --config=FILE", str(workdir), "", [])
    assert finished_run.config_of(str(workdir), runs.__file__, list(OVERRIDES)).train.steps == 4
    shutil.rmtree(workdir / "checkpoints" / "4")
    with pytest.raises(UserError, match=r"ended at step 4, but its newest checkpoint is of st"):
        finished_run.require_complete(str(workdir))
    (workdir / "summary.json").unlink()
    refused("unfinished run", str(workdir), "", [])


# --- generate


def test_generate_draws_what_the_run_drew_and_more(base, tmp_path):
    workdir, _ = base
    config = finished_run.config_of(str(workdir), "", [])
    generate.run(config, str(workdir), str(tmp_path / "said.jsonl"))
    found = read(tmp_path / "said.jsonl")
    after = json.loads((workdir / "after.json").read_text())["samples"]
    texts = [text for row in found for text in row["responses"]]
    assert texts == [s["response"].replace("\0", "\ufffd") for s in after]
    assert [len(row["responses"]) for row in found] == [3, 3, 3]
    cut = [not s["ended"] for s in after]
    assert [row["unfinished"] for row in found] == [sum(cut[i : i + 3]) for i in (0, 3, 6)]
    export.export(str(workdir), str(tmp_path / "out"))
    said = used.samples(used.run_of(config, workdir), used.exported(tmp_path / "out"))
    assert used.texts_and_nats(said) == used.texts_and_nats(workdir / "after.json")
    for verb, given in (("generate", "--out=a.jsonl"), ("export", f"--to={tmp_path / 'b'}")):
        message = runs.refused(verb, f"--workdir={workdir}", given, "--preference=1,0")
        assert "--preference: " in message
        assert "holds one policy, wanted none, found 1,0" in message
    ids = write(tmp_path / "p.jsonl", [{"prompt": found[1]["prompt"]}, {"prompt": "Hm? " * 99}])
    generate.run(
        config, str(workdir), str(tmp_path / "t.jsonl"), prompts=ids, samples=2, temperature=0.0
    )
    greedy = read(tmp_path / "t.jsonl")
    assert [row["prompt"] for row in greedy] == [found[1]["prompt"], "Hm? " * 99]
    for row in greedy:
        assert row["responses"][0] == row["responses"][1]
    with pytest.raises(UserError, match=r"--out: wanted - or a name that ends in \.jsonl"):
        generate.run(config, str(workdir), "said.txt")
    for empty in ("", " \n", [], [{"role": "user", "content": " "}]):
        questions = write(tmp_path / "e.jsonl", [{"prompt": "Hm?"}, {"prompt": empty}])
        with pytest.raises(UserError, match=r"e\.jsonl:2: field 'prompt' is empty"):
            generate.run(config, str(workdir), str(tmp_path / "u.jsonl"), prompts=questions)
    with pytest.raises(UserError, match=r"field 'prompt' is missing"):
        generate.run(
            config, str(workdir), str(tmp_path / "u.jsonl"),
            prompts=write(tmp_path / "q.jsonl", [{"text": "x"}]),
        )  # fmt: skip


def test_prompts_as_text_are_told_where_the_data_are_conversations(base, tmp_path, caplog):
    workdir, _ = base
    config = finished_run.config_of(str(workdir), "", [])
    data = prepare_data(config, workdir)
    texts = list(data.original_records.values())
    talks = [dataclasses.replace(record, prompt=(Message("user", "Hi"),)) for record in texts]
    talk = [{"role": "user", "content": "Hi"}]
    path = write(tmp_path / "p.jsonl", [{"prompt": "Hi"}, {"prompt": talk}])
    caplog.set_level("WARNING", "alignjax")
    generate.read_prompts(path, config, data.tokenizer, texts)
    assert "--prompts" not in caplog.text
    generate.read_prompts(path, config, data.tokenizer, talks)
    assert re.search(r"--prompts: 1 prompts of .*p\.jsonl are plain text", caplog.text)


def test_prompts_want_no_data_of_the_run_and_may_be_in_rows_of_any_kind(base, tmp_path):
    """Its files, and what was prepared of them, are gone; HH-RLHF's rows have no ``prompt``."""
    workdir = shutil.copytree(base[0], tmp_path / "w")
    shutil.rmtree(workdir / "cache")
    config = finished_run.config_of(str(workdir), "", [])
    elsewhere = dataclasses.replace(config.data, source=sources.hh, path=str(tmp_path / "gone"))
    config = dataclasses.replace(config, data=elsewhere)
    talk = "\n\nHuman: How do I move a mirror?\n\nAssistant:"
    rows = [{"chosen": f"{talk} Slowly.", "rejected": f"{talk} No."}]
    path = write(tmp_path / "p.jsonl", rows)
    generate.run(config, str(workdir), str(tmp_path / "o.jsonl"), prompts=path, samples=2)
    (row,) = read(tmp_path / "o.jsonl")
    assert row["prompt"] == talk
    assert len(row["responses"]) == 2


# --- win rates


def rows(*scores, prompts=("p", "q"), name=None):
    out = []
    for prompt, values in zip(prompts, scores, strict=True):
        said = [f"{prompt}{i}" for i in range(len(values))]
        given = [{name: x} for x in values] if name else list(values)
        out.append({"prompt": prompt, "responses": said, "scores": given})
    return out


def test_win_rates_of_two_files(tmp_path, capsys):
    a = write(tmp_path / "a.jsonl", rows((1.0, 2.0), (5.0,)))
    b = write(tmp_path / "b.jsonl", rows((2.0,), (5.0, 4.0), prompts=("p", "q"))[::-1])
    with open(a, encoding="utf-8") as file:
        told = [{**json.loads(line), "unfinished": i + 1} for i, line in enumerate(file)]
    a = write(tmp_path / "a.jsonl", told)  # as `generate` writes it; the other is from elsewhere
    found = win_rates.run(a, b, out=str(tmp_path / "n.json"))["scores"]
    # p: 1 < 2, 2 = 2; q: 5 = 5, 5 > 4
    assert (found.wins.mean, found.losses.mean, found.ties.mean) == (0.25, 0.25, 0.5)
    assert found.prompts == 2
    out = capsys.readouterr().out
    assert "Scores that differ by at most 0 are ties" in " ".join(out.split())
    assert "a.jsonl: 3 responses were cut at the token limit" in out
    assert out.count("were cut at the token limit") == 1
    numbers = json.loads((tmp_path / "n.json").read_text())
    assert numbers["scores"]["scores"]["wins"]["mean"] == 0.25
    assert list(numbers["unfinished"].values()) == [3, None]
    assert win_rates.run(a, b, tie=1.0)["scores"].ties.mean == 1


def test_rows_of_one_prompt_are_joined(tmp_path):
    """As `score` writes them of a file of pairs that has two of a prompt."""
    a = write(tmp_path / "a.jsonl", rows((1.0, 2.0), (5.0,)))
    b = write(tmp_path / "b.jsonl", rows((2.0,), (5.0, 4.0)))
    apart = rows((1.0,), (2.0,), (5.0,), prompts=("p", "p", "q"))
    both = write(tmp_path / "both.jsonl", apart)
    assert win_rates.run(both, b)["scores"] == win_rates.run(a, b)["scores"]
    assert win_rates.run(b, both)["scores"] == win_rates.run(b, a)["scores"]


def test_files_are_scored_by_a_config_s_judge_and_scorers(base, tmp_path):
    plain = [{"prompt": p, "responses": r} for p, r in (("p", ["aaa", "x"]), ("q", ["oo"]))]
    other = [{"prompt": p, "responses": r} for p, r in (("p", ["bb"]), ("q", ["u"]))]
    a, b = write(tmp_path / "a.jsonl", plain), write(tmp_path / "b.jsonl", other)
    config = load.load(runs.__file__, [])
    evaluate = dataclasses.replace(
        config.evaluate, judge=judge, scorers=(partial(scorers.judged, judge=judge, name="length"),)
    )
    found = win_rates.run(a, b, config=dataclasses.replace(config, evaluate=evaluate))
    assert set(found) == {"length", "vowels", "reward_0"}
    assert found["length"] == found["reward_0"]
    assert found["length"].wins.mean == pytest.approx((1 / 2 + 1) / 2)
    assert found["vowels"].ties.mean == pytest.approx((1 / 2) / 2)
    no_judge = dataclasses.replace(config.evaluate, judge=None)
    with pytest.raises(UserError, match=r"--config: wanted evaluate\.judge or"):
        win_rates.run(a, b, config=dataclasses.replace(config, evaluate=no_judge))
    with pytest.raises(UserError, match=r"holds a policy, not a reward model"):
        win_rates.run(a, b, reward_models=[str(base[0])])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": None}, r"b\.jsonl:1: field 'scores' is null"),
        ({"responses": []}, r"b\.jsonl:1: field 'responses' is empty"),
        ({"scores": [1.0]}, r"b\.jsonl:1: field 'scores' has 1 entries for 2 responses"),
        ({"scores": [1.0, None]}, r"b\.jsonl:1: .*wanted a finite number 'scores'.*found None"),
        ({"scores": [1.0, math.nan]}, r"b\.jsonl:1: .*wanted a finite number.*found nan"),
        ({"prompt": "z"}, r"b\.jsonl: wanted the same prompts .*; 1 are missing, .*a\.jsonl:1"),
        ({"prompt": "q"}, r"b\.jsonl: wanted the same prompts .*; 1 are missing, .*a\.jsonl:1"),
        ("twice", r"b\.jsonl:3: field 'scores' has 1 entries for 2 responses"),
        ("no scores", r"b\.jsonl:1: field 'scores' is missing; use the command score first"),
        ("more", r"a\.jsonl: wanted the same prompts .*; 1 are missing, .*b\.jsonl:3"),
        ("names", r"b\.jsonl: scores odd, .*a\.jsonl has scores"),
    ],
)
def test_files_that_cannot_be_compared_are_refused(change, message, tmp_path):
    a = write(tmp_path / "a.jsonl", rows((1.0, 2.0), (5.0,)))
    found = rows((1.0, 2.0), (5.0,), name="odd" if change == "names" else None)
    if change == "twice":
        found += [{**found[0], "scores": [1.0]}]
    elif change == "more":
        found += rows((1.0,), prompts=("r",))
    elif change == "no scores":
        del found[0]["scores"]
    elif change != "names":
        found[0] = {**found[0], **change}
    with pytest.raises(UserError, match=message):
        win_rates.run(a, write(tmp_path / "b.jsonl", found))


# --- compare


def test_compare_puts_runs_side_by_side(base, tmp_path, capsys, monkeypatch):
    """The other run is the same one twice as far: each of its steps, at twice the KL and margin."""
    other = tmp_path / "other"
    other.mkdir()
    double = ("eval_kl", "eval_RM_DPO", "eval_RM_R-DPO")
    lines = metrics.read(base[0] / "metrics.jsonl")
    doubled = [{k: 2 * v if k in double else v for k, v in line.items()} for line in lines]
    write(other / "metrics.jsonl", doubled)
    out = tmp_path / "plots" / "c.png"
    monkeypatch.setenv("COLUMNS", "160")
    found = compare.run([str(base[0]), str(other)], str(out))
    assert out.read_bytes()[:4] == b"\x89PNG"
    assert json.loads(out.with_suffix(".json").read_text()) == json.loads(json.dumps(found))
    one, two = found["by_step"]["RM_DPO"]["4"]
    assert two == pytest.approx(2 * one)
    (low, high), (_, further) = found["kl_range"].values()
    assert (low, further) == (0, pytest.approx(2 * high))
    grid = {float(kl): values for kl, values in found["by_kl"]["RM_DPO"].items()}
    assert max(grid) == pytest.approx(further, abs=1e-3)
    for kl, (a, b) in grid.items():
        assert (a is None) == (kl > high)
        assert b is not None
    assert grid[max(grid)][0] is None
    text = capsys.readouterr().out
    assert "RM_DPO, at equal KL" in text
    assert "its KL was never that large" in text


def test_the_picture_has_every_run_against_steps_and_kl(tmp_path):
    history = [{"step": 0.0, "kl": 0.0, "a": 0.0}, {"step": 4.0, "kl": 1.5, "a": 2.0}]
    figure = plots.plot_histories({"x": history, "y": history}, ["a"], tmp_path / "p.png")
    above, below = figure.axes
    assert [line.get_label() for line in above.lines] == ["x", "y"]
    assert list(above.lines[0].get_xdata()) == [0, 4]
    assert list(below.lines[0].get_xdata()) == [0, 1.5]


def test_what_cannot_be_compared_is_refused(base, tmp_path):
    one = str(base[0])
    for workdirs, out, message in (
        ([one], "c.png", r"--runs: wanted two or more"),
        ([one, one], "c.png", r"of different names, found one, one"),
        ([one, str(tmp_path)], "c.pdf", r"--out: wanted a name that ends in \.png"),
        ([one, str(tmp_path)], "c.png", r"holds no run"),
    ):
        with pytest.raises(UserError, match=message):
            compare.run(workdirs, out)
    write(tmp_path / "metrics.jsonl", [{"step": 2, "eval_kl": 1.0, "eval_else": 2.0}])
    with pytest.raises(UserError, match=r"no metric in common"):
        compare.run([one, str(tmp_path)], "c.png")


# --- the command line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "--out=a.jsonl"], "generate requires either --workdir=RUN or --model=FOLDER"),
        (["generate", "--workdir=w"], "w holds no run"),
        (
            ["generate", "--workdir=w", "--out=a.jsonl", "--runs=a"],
            "generate does not take --runs; it ",
        ),
        (["generate", "--workdir=w", "--out=a.jsonl", "--samples=0"], "samples"),
        (["evaluate"], "evaluate requires either --workdir=RUN, or --records"),
        (["evaluate", "--workdir=w", "--records=a", "--against=b"], "requires either"),
        (["evaluate", "--workdir=w", "--tie=1"], "--workdir does not take --tie"),
        (["evaluate", "--records=a"], "evaluate requires --against"),
        (
            ["evaluate", "--records=a", "--against=b", "--config=c", "--reward_model=d"],
            "wanted one of",
        ),
        (["evaluate", "--records=a.jsonl", "--against=b.jsonl"], "a.jsonl: no such file"),
        (["evaluate", "--workdir=nowhere"], "--workdir: nowhere holds no run"),
        (["compare", "--out=c.png"], "compare requires --runs"),
        (["compare", "--runs=a,b", "--out=c.png", "--config=x"], "compare does not take --config"),
        (["front", "--runs=a,b"], "front requires --out"),
        (["front", "--runs=nowhere", "--out=f.png"], "nowhere has no front"),
        (["run", "--config=c", "--workdir=w", "--against=x"], "run does not take --against"),
    ],
)
def test_wrong_flags_are_one_line(arguments, message, monkeypatch, tmp_path):
    """In this process: what `main` does with the error is tested with whole programs."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises((UserError, flags.Error)) as caught:
        runs.here(*arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value).strip() or isinstance(caught.value, flags.Error)


@pytest.mark.slow
def test_verbs_as_programs(base, compiled, tmp_path):
    workdir, _ = base
    done = runs.start(
        "generate", f"--workdir={workdir}", f"--out={tmp_path / 'a.jsonl'}", **compiled
    )
    assert done.returncode == 0, done.stderr
    assert "9 responses to 3 prompts" in done.stderr
    done = runs.start("evaluate", f"--workdir={tmp_path}")
    assert done.returncode == 2
    assert done.stderr == f"alignjax: --workdir: {tmp_path} holds no run\n"
