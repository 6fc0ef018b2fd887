"""A run's page: one file that holds everything, and what is suspicious at its top."""

import html.parser
import json
import re

import pytest

from alignjax.errors import UserError
from alignjax.evaluation import findings, report

SETTINGS = {"model": {"path": "", "layers": 2}, "sft": None, "loss": {"beta": 0.1}, "lora": None}
LINES = [
    {"step": i, "loss": 0.7 - i / 50, "eval_loss": 0.6 + i / 50, "rewards/margins": i / 10}
    for i in range(1, 6)
]


def half(mean, half_width=0.1):
    return {"mean": mean, "half_width": half_width, "count": 9}


TABLE = {
    "rewards/accuracies": {"before": None, "after": half(0.55)},
    "unfinished": {"before": half(0.0), "after": half(0.81)},
    "KL to reference, nats": {"before": half(0.0), "after": half(40.0)},
    "win rate/<b>": {"before": None, "after": {"mean": 0.8, "low": 0.7, "high": 0.9}},
    "win rate/kind": {"before": None, "after": {"mean": 0.4, "low": 0.3, "high": 0.49}},
}
DATA_REPORT = {
    "train": {
        "rows_in": 120,
        "kept": 100,
        "held_out": 10,
        "dropped": {"identical_responses": 10},
        "warned": {"truncated_response": 81, "truncated_prompt": 9},
        "ids": {"identical_responses": ["f:1", "f:2"]},
        "kept_labels": {"desirable": 99, "undesirable": 1, "desirable_fraction": 0.99},
    }
}


def sample(prompt, response, ended=True):
    return dict(prompt=prompt, response=response, length=3, ended=ended, logps=-1.0)


@pytest.fixture
def run(tmp_path):
    summary = {"table": TABLE, "steps": 5, "skipped_steps": 0, "data_report": DATA_REPORT}
    before = [sample("Hi <you>", "one"), sample("Hi <you>", "two"), sample("Bye", "same")]
    after = [sample("Hi <you>", "<script>x", False), sample("Bye", "same")]
    files = {
        "config.json": SETTINGS,
        "summary.json": {**summary, "versions": {"jax": "0.10"}},
        "before.json": {"samples": before},
        "after.json": {"samples": after},
    }
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in LINES))
    (tmp_path / "front.png").write_bytes(b"picture")
    return tmp_path


class Balanced(html.parser.HTMLParser):
    """Notes which tags are not closed in order, and every address that is loaded."""

    def __init__(self):
        super().__init__()
        self.open, self.wrong, self.loads = [], [], []

    def handle_starttag(self, tag, attributes):
        self.loads += [v for k, v in attributes if k in ("src", "href", "xlink:href")]
        if tag not in ("meta", "input", "img", "path", "use", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.loads += [v for k, v in attributes if k in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def test_the_page_is_one_file_with_all_its_parts(run):
    returned = report.write(run)
    text = (run / "report.html").read_text()
    # For the terminal, what was seen in the result; of the data it was told before training.
    assert "the held-out loss rose from 0.62 to 0.7" in " ".join(returned)
    assert "random weights" not in " ".join(returned)
    parser = Balanced()
    parser.feed(text)
    assert parser.wrong == parser.open == []
    assert all(x.startswith(("data:", "#")) for x in parser.loads)
    assert any(x.startswith("data:image/png;base64,") for x in parser.loads)
    titles = re.findall(r"<h2>(.*?)</h2>", text)
    assert titles == [
        *("Result", "Curves", "Pareto front", "Samples", "Data report", "Settings"),
        "Versions",
    ]
    for cell in ("0.550 ± 0.100", "0.800 [0.700, 0.900]", "f:1, f:2", "win rate/&lt;b&gt;"):
        assert cell in text
    for label in ("held out", "nats per prompt", "margin", "step"):
        assert label in text
    assert "3 tokens, cut" in text
    assert "&lt;script&gt;x" in text  # what a policy writes is text, never a program
    assert text.count("<script>") == 1
    assert re.findall(r'data-same="(.)"', text) == ["0", "1"]
    assert "two" not in text  # the first response to each prompt


def test_what_is_suspicious_stands_at_its_top(run):
    text = report.page(run)
    top = text[text.index("<h1>") : text.index("<h2>")]
    for sentence in (
        "random weights",
        "81% of the training rows have a truncated response: raise data.max_response_tokens",
        "99.0% of the labels are desirable",
        "81% of the sampled responses were cut",
        "40.0 nats",
        "0.550 ± 0.100, is not distinguishable from chance",
        "win rate/kind is 0.400 [0.300, 0.490]: the responses got worse by this score",
        "the held-out loss rose from 0.62 to 0.7",
    ):
        assert sentence in top
    assert "prompt:" not in top  # 9% is below the limit
    assert "&lt;b&gt;" not in top  # responses got better by it


def test_a_good_run_says_so():
    settings = {**SETTINGS, "sft": {}}
    counts = {"train": {"kept": 100, "warned": {"truncated_response": 10}}}
    lines = [{"loss": 0.5, "eval_loss": 0.5 - i / 10, "rewards/margins": 0.1} for i in range(4)]
    table = {"rewards/accuracies": half(0.75), "unfinished": {"after": half(0.0)}}
    assert findings.of_data(settings, counts) == []
    assert findings.of_result({"table": table}, lines) == []
    still = [{"rewards/margins": 0.0}] * 3
    alike = [{"scores/std": 0.0}, {"scores/std": 0.0}, {"scores/std": 0.3}]
    assert "in 2 of 3 logged steps every" in findings.of_result({}, alike)[0]
    assert findings.of_result({}, [*alike, {"scores/std": 0.1}]) == []
    assert "margin is 0 at every step" in findings.of_result({"skipped_steps": 2}, still)[1]


def test_a_run_that_measured_nothing_says_so():
    assert report._table({}) == "<p>Nothing was measured.</p>"
    assert report._table(None) == ""


def test_a_number_without_an_interval_or_without_rows_is_written():
    """In a summary NaN is null: of one prompt there is no interval, of none no mean."""
    assert report.interval(half(0.25)) == "0.250 ± 0.100"
    assert report.interval(half(0.25, None)) == "0.250"
    assert report.interval(half(None, None)) == report.interval(None) == "-"


def test_a_folder_without_a_finished_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no finished run"):
        report.write(tmp_path)


FRONT = {
    "objectives": ["kind", "short"],
    "box": {"low": [0.0, 0.0], "high": [1.0, 2.0], "source": "as the config says"},
    "fronts": {
        "run": {
            "hypervolume": {"value": 0.25, "low": 0.125, "high": 0.5},
            "faithfulness": {"mean": 0.75},
            "collapsed": 0.625,
            "unfinished": 0.0,
            "points": [
                dict(
                    preference=[w, 1 - w],
                    collapsed=0.0,
                    unfinished=0.125,
                    kind=half(w),
                    short=half(1),
                )
                for w in (0.0, 0.5, 1.0)
            ],
        }
    },
}


def test_a_front_has_its_scores_and_the_samples_of_its_policies(tmp_path):
    weights = [[i / 7, 1 - i / 7] for i in range(8)]
    (tmp_path / "samples").mkdir()
    for i in range(8):
        content = {"samples": [sample("Hi", f" answer {i}")]}
        (tmp_path / "samples" / f"{i:02d}.json").write_text(json.dumps(content))
    for name, content in (
        ("config", {**SETTINGS, "sft": {}}),
        ("summary", FRONT),
        ("front", {"preferences": weights}),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    text = report.page(tmp_path)
    assert "Hypervolume: 0.250 [0.125, 0.500] of the box kind 0 to 1, short 0 to 2." in text
    for cell in ("0.5 : 0.5", "0.500 ± 0.100", "12.5%"):
        assert f">{cell}</td>" in text
    assert re.findall(r"answer (\d)", text) == ["0", "2", "4", "6"]  # of eight, evenly
    assert "0.29 : 0.71, 3 tokens" in text
    assert "62% of the sampled responses are repetitive or empty" in text
    flat = {**FRONT["fronts"]["run"], "points": [FRONT["fronts"]["run"]["points"][0]] * 2}
    (found,) = findings.of_result({**FRONT, "fronts": {"run": {**flat, "collapsed": 0.0}}}, [])
    assert "all preferences have the same scores" in found


def test_a_game_has_its_rounds_and_the_samples_of_the_first_and_the_last(tmp_path):
    def line(i):
        ranked = {"pairs": {"accuracy": half(0.6 + i / 10)}}
        policy = {"score": half(i), "helpful": half(9), "KL to reference, nats": half(2 * i)}
        return {"round": i, "policy": policy, "reward_model": ranked, "base": {}}

    rounds = [line(i) for i in range(3)]
    for i in range(3):
        (tmp_path / f"round-{i}").mkdir()
        content = {"samples": [sample("Hi", f" answer {i}")]}
        (tmp_path / f"round-{i}" / "samples.json").write_text(json.dumps(content))
    for name, content in (
        ("config", {**SETTINGS, "sft": {}}),
        ("summary", {"rounds": rounds}),
        ("history", rounds),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    text = report.page(tmp_path)
    rows = [re.sub("<.*?>", "|", x) for x in re.findall(r"<tr>(.*?)</tr>", text)]
    cells = [[x for x in row.split("|") if x] for row in rows[:4]]
    assert cells == [
        ["round 0", "round 1", "round 2"],
        ["policy: score", *(f"{i}.000 ± 0.100" for i in range(3))],
        ["policy: KL to reference, nats", *(f"{2 * i}.000 ± 0.100" for i in range(3))],
        ["reward model: accuracy on pairs", *(f"0.{6 + i}00 ± 0.100" for i in range(3))],
    ]
    assert re.findall(r"answer (\d)", text) == ["0", "2"]
    assert "after round 2, 3 tokens" in text
