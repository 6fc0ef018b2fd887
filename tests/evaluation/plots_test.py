"""Tables, samples and pictures."""

import json

import matplotlib.image
import numpy as np
import pytest

from alignjax.evaluation import plots, tables
from alignjax.evaluation.statistics import Interval
from alignjax.runtime import distributed
from alignjax.sampling.generate import Sample


def write_metrics(folder, lines):
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)


LINES = [
    {
        "step": i,
        "loss": 0.7 - 0.01 * i,
        "rewards/chosen": 0.1 * i,
        "rewards/rejected": -0.1 * i,
        "rewards/margins": 0.2 * i,
        "rewards/accuracies": 0.5,
    }
    for i in range(1, 9)
] + [{"step": 8, "eval_rewards/accuracies": 0.75}]


def test_a_table_keeps_its_numbers_where_there_is_little_room(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    tables.print_rows({"a long name": ["0.250 [0.125, 0.375]"] * 3}, ("x", "a", "b", "c"), "title")
    out = capsys.readouterr().out
    assert "a long name" in out
    assert out.count("0.375]") == 3


@pytest.mark.parametrize("main", [True, False])
def test_the_first_process_alone_tells_and_draws(tmp_path, monkeypatch, capsys, main):
    monkeypatch.setattr(distributed, "is_main", lambda: main)
    tables.say("numbers")
    tables.print_rows({"a": ["1"]}, ("x", "b"), "title")
    plots.plot_rounds({"panel": {"line": [(0, 1.0, 0.1)]}}, tmp_path / "rounds.png")
    told = capsys.readouterr().out
    assert ("numbers" in told, "title" in told) == (main, main)
    assert (tmp_path / "rounds.png").exists() == main


def test_a_picture_with_every_panel(tmp_path):
    write_metrics(tmp_path, LINES)
    scores = [[0.1, 0.2, 0.9], [0.8, 0.9, 0.7]]
    figure = plots.plot_training(tmp_path, tmp_path / "r.png", scores, "true_score")
    pixels = matplotlib.image.imread(tmp_path / "r.png")
    assert pixels.shape[1] > 1000
    assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 20  # not one colour
    axes = figure.axes
    titles = [axis.get_title() for axis in axes]
    assert titles == ["loss", "reward", "reward accuracy", "true_score of sampled responses"]
    (line,) = axes[0].lines
    np.testing.assert_allclose(line.get_xdata(), range(1, 9))
    np.testing.assert_allclose(line.get_ydata(), [x["loss"] for x in LINES[:8]])
    names = [text.get_text() for text in axes[1].get_legend().get_texts()]
    assert names == ["chosen", "rejected", "margin"]
    evaluated = axes[2].lines[1]
    assert list(evaluated.get_xdata()) == [8]
    assert list(evaluated.get_ydata()) == [0.75]
    bars = sum(patch.get_height() for patch in axes[3].patches)
    assert bars == 6


def test_every_panel_has_room_for_its_labels(tmp_path, monkeypatch):
    """Of numbers of many digits, too; and no panel reaches into another."""
    monkeypatch.setattr(distributed, "is_main", lambda: False)  # measured here, not written
    wide = -54321.5
    write_metrics(tmp_path, lines := [{"step": 9000 + i, "loss": wide / (i + 1)} for i in range(3)])
    history = [{"step": i, "kl": i, "a": wide / (i + 1), "b": 0.12345 * i} for i in range(3)]
    for figure in (
        *plots.training_figures(lines),
        plots.plot_training(tmp_path, tmp_path, [[wide], [2 * wide]], "true_score"),
        plots.plot_histories({"run": history}, ("a", "b"), tmp_path),
    ):
        figure.draw_without_rendering()
        boxes = [axis.get_tightbbox() for axis in figure.axes]
        for i, box in enumerate(boxes):
            assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
            assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1
            assert not any(box.overlaps(other) for other in boxes[:i])


@pytest.mark.parametrize("scores", [None, [[0.5], [0.5]]])
def test_a_run_without_rewards_has_fewer_panels(scores, tmp_path):
    write_metrics(tmp_path, [{"step": 1, "loss": 2.0, "nll": 2.0}])
    figure = plots.plot_training(tmp_path, tmp_path / "r.png", scores, "x")
    assert len(figure.axes) == (1 if scores is None else 2)
    assert (tmp_path / "r.png").stat().st_size > 1000


def test_the_table_prints_values_with_intervals(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    table = {
        "rewards/accuracies": (Interval(0.0, 0.0, 9), Interval(0.71234, 0.0456, 9)),
        "true_score": (None, Interval(0.5, 0.25, 2)),
    }
    tables.print_table(table, "runs/x: 8 steps")
    out = capsys.readouterr().out
    assert "runs/x: 8 steps" in out
    (accuracy,) = [line for line in out.splitlines() if "rewards/accuracies" in line]
    assert [x.strip() for x in accuracy.strip("│").split("│")[1:]] == [
        "0.000 ± 0.000",
        "0.712 ± 0.046",
    ]
    (score,) = [line for line in out.splitlines() if "true_score" in line]
    assert [x.strip() for x in score.strip("│").split("│")[1:]] == ["-", "0.500 ± 0.250"]
    assert "95%" in out


def sample(prompt, response):
    return Sample(
        prompt=prompt,
        response=response,
        ended=True,
        length=3,
        logps=-1.0,
        reference=-1.0,
        kl=0.0,
    )


def test_samples_are_one_for_each_prompt_with_their_scores(capsys):
    before = [sample(p, f" old {p} {i}") for p in ("A", "B", "C") for i in (0, 1)]
    after = [sample(p, f" new {p} {i}") for p in ("A", "B", "C") for i in (0, 1)]

    def judge(prompt, response):
        return {"true_score": 1.0 if "new" in response else 0.25, "other": 7.0}

    tables.print_samples(before, after, judge, count=2)
    out = capsys.readouterr().out
    assert out.count("before |") == out.count("after  |") == 2
    assert "before | old A 0  [true_score 0.25]" in out
    assert "after  | new B 0  [true_score 1.00]" in out
    assert "old A 1" not in out
    assert "C" not in out
    tables.print_samples(before, after, None, count=1)
    assert capsys.readouterr().out.strip().endswith("new A 0")


def test_a_front_is_drawn_with_its_box_and_labels_that_do_not_collide(tmp_path):
    low, high = np.zeros(2), np.array([1.0, 4.0])
    means = [(0.1, 0.2), (0.1001, 0.2), (0.6, 0.9)]
    front = {
        "objectives": ["kind", "short"],
        "preferences": [[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]],
        "scores": [[list(mean)] * 3 for mean in means],
        "truth": None,
    }
    figure = plots.plot_fronts({"run": front}, low, high, tmp_path / "front.png")
    (axis,) = figure.axes
    assert [text.get_text() for text in axis.texts] == ["0 : 1\n0.5 : 0.5", "1 : 0"]
    assert axis.get_xlim()[0] < 0 < 1 < axis.get_xlim()[1]
    assert axis.get_ylim()[0] < 0 < 4 < axis.get_ylim()[1]
    assert axis.get_xlabel() == "kind, mean score"
