"""The stage that makes lists: what it writes, that it goes on where it was, and what it refuses."""

import collections
import dataclasses
import json
import shutil
from functools import partial

import numpy as np
import pytest

from alignjax.config import CandidatesConfig, EvaluateConfig
from alignjax.data.records import DataReport, Message, Record, check
from alignjax.data.sources import lists
from alignjax.errors import UserError
from alignjax.losses import hps
from alignjax.recipes import align
from alignjax.rewards import scorers
from alignjax.runtime.sharding import make_mesh
from alignjax.sampling import generate
from alignjax.stages import candidates, samples, sft
from alignjax.stages import sample_lists as sampled
from alignjax.stages.check import check_losses, check_scorers
from alignjax.stages.data import prepare_data
from alignjax.stages.run import Run
from tests import runs


def judge(prompt, response):
    return {"length": float(len(response)), "first": float(ord(response[:1] or "a"))}


LENGTH = partial(scorers.judged, judge=judge, name="length")
RM = partial(scorers.reward_model, path="nowhere")
FIRST = partial(scorers.judged, judge=judge, name=("length", "first"))


def config(*overrides, **changes):
    settings = dict(
        scorers=(LENGTH,), samples=3, max_new_tokens=5, batch_size=16, max_drop_fraction=0.5
    )
    return dataclasses.replace(
        runs.changed(
            *("data.source.size=60", "train.steps=2", "sft.steps=2", "evaluate.during=0"),
            *("evaluate.prompts=2", *overrides),
        ),
        select=partial(hps.select, gamma=1.0),
        loss=hps.loss,
        candidates=CandidatesConfig(**{**settings, **changes}),
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory, whole_run):
    """One whole run."""
    workdir = tmp_path_factory.mktemp("candidates")
    summary = align.run(config(), workdir)
    assert summary["data_report"] == json.loads((workdir / "data_report.json").read_text())
    return workdir, summary


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return prepare_data(config(), tmp_path_factory.mktemp("prepared"))


def rows(workdir, side="train"):
    text = (workdir / "candidates" / f"{side}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_every_prompt_has_a_list_of_distinct_scored_responses(base):
    workdir, summary = base
    data = prepare_data(config(), workdir)  # as generate does
    assert summary["data_report"] == json.loads((workdir / "data_report.json").read_text())
    for side, own in (("train", data.train), ("held_out", data.held_out)):
        found = rows(workdir, side)
        prompts = {own.dataset[i].prompt for i in range(len(own.dataset))}
        assert [row["prompt"] for row in found] == [
            q.prompt for q in generate.take_questions(own, 99)
        ]
        assert {row["prompt"] for row in found} == prompts
        for row in found:
            assert len(set(row["responses"])) == len(row["responses"]) == len(row["scores"])
            assert row["scores"] == [float(len(text)) for text in row["responses"]]
            assert all(text.strip() for text in row["responses"])
    counts = summary["data_report"]["candidates"]["train"]["responses"]
    found = rows(workdir)
    assert counts["prompts"] == len(found)
    assert counts["sampled"] == 3 * len(found)
    assert counts["kept"] == sum(len(row["responses"]) for row in found)
    lost = sum(counts.get(x, 0) for x in ("empty", "duplicate", "unwritable"))
    assert counts["kept"] == counts["sampled"] - lost
    assert counts["unfinished"] > 0  # five tokens are few


def test_the_alignment_trains_on_the_lists_and_asks_the_held_out_prompts(base):
    workdir, summary = base
    report = summary["data_report"]["candidates"]["train"]
    usable = [row for row in rows(workdir) if len(set(row["scores"])) > 1]
    assert report["kept"] == len(usable)
    assert report["rows_in"] - report["kept"] == sum(report["dropped"].values())
    lists = [np.array(row["scores"]) for row in usable]
    squares = sum(((scores - scores.mean()) ** 2).sum() for scores in lists)
    sd = np.sqrt(squares / sum(len(scores) - 1 for scores in lists))
    assert list(report["score_sd"].values()) == [pytest.approx(sd, rel=1e-6)]
    line = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[0])
    assert 1 <= line["negatives/effective"] <= 2
    assert line["rewards/accuracies"] == 0
    (digest,) = {json.loads((workdir / f"{x}.json").read_text())["key"]["data"]
                 for x in ("before", "after")}  # fmt: skip
    assert digest == prepare_data(config(), workdir).held_out.dataset.digest


def again(base, tmp_path, settings=None):
    """The stage alone, in a folder with the run's supervised stage and tokenizer."""
    settings = settings or config()
    for name in ("sft", "cache"):
        if not (tmp_path / name).exists():
            shutil.copytree(base[0] / name, tmp_path / name)
    shutil.copy(base[0] / "tokenizer.model", tmp_path)
    data = prepare_data(settings, tmp_path)
    mesh = make_mesh(1, 1, 1)
    run = Run(settings, tmp_path, data, mesh)
    return candidates.make(run, sft.run_stage(run)).data


def test_under_another_limit_of_drops_the_lists_are_the_same(base, tmp_path, counted):
    again(base, tmp_path)
    counted.clear()
    again(base, tmp_path, config(max_drop_fraction=0.6))
    assert not counted


@pytest.fixture
def counted(monkeypatch):
    """How often batches were sampled and scorers called."""
    calls = collections.Counter()

    def count(name, module, attribute):
        inner = getattr(module, attribute)

        def counting(*args, **kwargs):
            calls[name] += 1
            return inner(*args, **kwargs)

        monkeypatch.setattr(module, attribute, counting)

    count("sampled", generate, "sample")
    count("scored", scorers.Scorer, "means")
    return calls


def content(folder):
    files = (folder / "candidates").iterdir()
    return {path.name: path.read_bytes() for path in files if path.is_file()}


def test_killed_it_goes_on_and_nothing_is_done_twice(base, tmp_path, counted):
    for place in ("part:train-000001", "part:scored-held_out-000000"):
        runs.end_at(place, lambda: again(base, tmp_path))
    again(base, tmp_path)
    assert counted == {"sampled": 5, "scored": 2}  # 4 + 1 batches, one chunk on each side
    assert content(tmp_path) == content(base[0])


def test_a_complete_stage_is_skipped_and_a_damaged_file_made_again(base, tmp_path, counted):
    first = again(base, tmp_path)
    counted.clear()
    second = again(base, tmp_path)
    again(base, tmp_path, config(gather_weights=False))  # where the weights are decides nothing
    assert not counted
    assert first.train.dataset.digest == second.train.dataset.digest
    file = tmp_path / "candidates" / "train.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b'"scores": [', b'"scores": [9', 1))
    again(base, tmp_path)
    assert counted["sampled"] == 5
    assert file.read_bytes() == whole


def test_other_settings_make_other_lists(base, tmp_path, counted):
    again(base, tmp_path)
    counted.clear()
    again(base, tmp_path, config(samples=2, max_drop_fraction=0.9))
    assert counted["sampled"] == 5
    assert all(len(row["responses"]) <= 2 for row in rows(tmp_path))


def test_the_data_s_own_responses_come_first(base, tmp_path):
    settings = config(keep_own=True, scorers=(LENGTH, FIRST))
    found = again(base, tmp_path, settings)
    data = prepare_data(settings, tmp_path)
    mine = collections.defaultdict(list)
    for i in range(len(data.train.dataset)):
        mine[data.train.dataset[i].prompt] += data.train.dataset[i].responses
    for row in rows(tmp_path):
        own = list(dict.fromkeys(mine[row["prompt"]]))
        assert row["responses"][: len(own)] == own
        sampled = row["responses"][len(own) :]
        assert 0 <= len(sampled) <= 3
        # The mean of two scorers, of which one has two objectives.
        for text, given in zip(row["responses"], row["scores"], strict=True):
            length, first = judge("", text).values()
            assert given == pytest.approx((length + (length + first) / 2) / 2)
    assert found.train.dataset.response_length.shape[1] >= 5
    counts = found.report["candidates"]["train"]["responses"]
    assert counts["own"] == 2 * len(data.train.dataset)


def fake(texts, monkeypatch):
    """Batches whose responses are these, whatever the prompt."""

    def batches(sampling, params, questions, ref_params, *, done):
        samples = [generate.Sample("", text, 1, ended, 0.0, 0.0, 0.0) for text, ended in texts]
        if 0 not in done:
            yield 0, dict.fromkeys(range(len(questions)), samples)

    monkeypatch.setattr(samples, "respond_in_batches", batches)


def test_every_response_is_accounted_for(base, tmp_path, monkeypatch):
    fake([(" a", True), ("  ", True), (" a", False), (" b\0", True), (" bc", True)], monkeypatch)
    counts = again(base, tmp_path).report["candidates"]["held_out"]["responses"]
    n = counts["prompts"]
    wanted = dict(own=0, sampled=5, empty=1, duplicate=1, unwritable=1, unfinished=1, kept=2)
    assert {k: v for k, v in counts.items() if k != "prompts"} == {
        name: n * each for name, each in wanted.items()
    }


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        ([" a", " b"], "tied_scores"),
        ([" a", " a"], "single_response"),
        (["", " "], "no_scores"),
    ],
)
def test_prompts_without_a_list_are_counted_and_too_many_of_them_refused(
    texts, reason, base, tmp_path, monkeypatch
):
    fake([(text, True) for text in texts], monkeypatch)
    with pytest.raises(UserError, match=rf"all \d+ rows were dropped: .*{reason} "):
        again(base, tmp_path)
    inner = sampled.collect

    def half(*args):
        """Every other prompt has what others would have had as well."""
        records, counts = inner(*args)
        good = dict(responses=(" a", " bc"))
        return [dataclasses.replace(r, **good) if i % 2 else r
                for i, r in enumerate(records)], counts  # fmt: skip

    monkeypatch.setattr(sampled, "collect", half)
    shutil.rmtree(tmp_path / "candidates")
    message = rf"rows dropped \(.*%\), more than candidates\.max_drop_fraction = 0\.1.*: {reason} "
    with pytest.raises(UserError, match=message):
        again(base, tmp_path, config(max_drop_fraction=0.1))
    shutil.rmtree(tmp_path / "candidates")
    found = again(base, tmp_path, config(max_drop_fraction=0.6))
    assert found.report["candidates"]["train"]["dropped"][reason] > 0


def three(records, *, give):
    return [give(len(r.responses)) for r in records]


def test_a_conversation_is_written_so_that_it_can_be_read_back(tmp_path):
    prompt = (Message("user", "Hello\u2028there"), Message("assistant", "x"), Message("user", "y"))
    record = Record(id="a:1", prompt=prompt, responses=(" b", " c"), domain="d")
    (tmp_path / "l.jsonl").write_text(sampled.line(record, [1.0, 0.1]), encoding="utf-8")
    report = DataReport()
    source = lists(report, path=str(tmp_path / "l.jsonl"), domain="domain")
    (found,) = check(source, report)
    assert (found.id, found.prompt, found.responses) == ("a:1", prompt, (" b", " c"))
    assert (found.scores, found.domain) == (((1.0,), (0.1,)), "d")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(scorers=()), r"candidates\.scorers: wanted at least one scorer"),
        (dict(samples=0), r"candidates\.samples: wanted a whole number in \[1, "),
        (dict(max_drop_fraction=2.0), r"candidates\.max_drop_fraction: wanted"),
        (dict(scorers=(LENGTH, partial(scorers.judged, judge=judge, nam="x"))),
         r"candidates\.scorers\[1\]\.nam: .*did you mean 'name'"),
        (dict(scorers=(LENGTH, "x")), r"candidates\.scorers: wanted"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        config(**changes)


def test_the_objective_is_tried_on_the_lists_to_come(tmp_path):
    """Before anything is trained or sampled: a loss for pairs does not fit lists of three."""
    settings = dataclasses.replace(config(), select=None, loss=runs.get_config().loss)
    with pytest.raises(UserError, match=r"loss: .*dpo\.loss on this data: .*K=3"):
        align.run(settings, tmp_path)
    assert not (tmp_path / "sft").exists()


def test_a_cached_reference_is_checked_against_the_lists_to_come(prepared):
    """The draws want scores, which the lists will have and the data have not."""

    def added(key, batch):
        return dataclasses.replace(hps.select(key, batch, gamma=1.0), ref_logps=None)

    cached = config("reference.mode=cache")
    check_losses(cached, prepared.train)
    with pytest.raises(UserError, match=r"reference.mode: .* found 'cache': .*added adds resp"):
        check_losses(dataclasses.replace(cached, select=added), prepared.train)


def no_scores(prompt, response):
    return {"length": float("nan")}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(candidates=CandidatesConfig(scorers=(LENGTH, RM))), r"nowhere holds no run"),
        (dict(evaluate=EvaluateConfig(scorers=(RM,))), r"nowhere holds no run"),
        (dict(evaluate=EvaluateConfig(scorers=(partial(three, give=lambda k: np.zeros(k + 1)),))),
         r"evaluate\.scorers\[0\]: .*three: record '.*' has 2 responses: wanted scores \[2\]"),
        (dict(candidates=CandidatesConfig(
            scorers=(partial(scorers.judged, judge=judge, name="lenght"),))),
         r"candidates\.scorers\[0\]: .*judged: .*no score 'lenght' \(did you mean 'length'"),
        (dict(evaluate=EvaluateConfig(judge=no_scores)),
         r"evaluate\.judge: .*no_scores: wanted finite numbers, found \{'length': nan\}"),
        (dict(evaluate=EvaluateConfig(judge=lambda prompt, response: {})),
         r"evaluate\.judge: .*wanted \{name: number\}, at least one, found \{\}"),
        (dict(evaluate=EvaluateConfig(judge=lambda prompt, response: response.scores)),
         r"evaluate\.judge: .*: AttributeError: .*'scores'"),
    ],
)  # fmt: skip
def test_scorers_and_judges_that_cannot_be_used_are_named(changes, message, prepared):
    with pytest.raises(UserError, match=message):
        check_scorers(dataclasses.replace(config(), **changes), prepared)


def test_scorers_are_tried_before_anything_is_trained(tmp_path):
    with pytest.raises(UserError, match=r"nowhere holds no run"):
        align.run(config(scorers=(RM,)), tmp_path)
    assert not (tmp_path / "sft").exists()
