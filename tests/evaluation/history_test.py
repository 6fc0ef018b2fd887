"""A run's history: what is read of it, and metrics at equal steps and equal KL."""

import json

import pytest

from alignjax.errors import UserError
from alignjax.evaluation.history import at_kl, at_step, kl_range, points


def write(folder, *lines):
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    return folder


def line(step, kl, **more):
    return {"step": step, "eval_kl": kl, **{f"eval_{name}": x for name, x in more.items()}}


def test_points_are_the_evaluations_after_a_start_at_the_reference(tmp_path):
    write(
        tmp_path,
        {"step": 1, "loss": 0.7},
        line(4, 0.5, RM_DPO=1.0, true_score=0.6, odd=None),
        {"step": 4, "loss": 0.6},
        {"step": 6, "eval_RM_DPO": 2.0},  # an evaluation without samples
        line(8, 2.0, RM_DPO=3.0, true_score=0.8),
    )
    assert points(tmp_path) == [
        {"step": 0.0, "kl": 0.0, "RM_DPO": 0.0},  # the score at the start was not measured
        {"step": 4.0, "kl": 0.5, "RM_DPO": 1.0, "true_score": 0.6},
        {"step": 8.0, "kl": 2.0, "RM_DPO": 3.0, "true_score": 0.8},
    ]


def test_runs_that_cannot_be_compared_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"--runs: .* holds no run"):
        points(tmp_path)
    write(tmp_path, {"step": 1, "loss": 0.7, "eval_RM_DPO": 1.0})
    with pytest.raises(UserError, match=r"no evaluations with a KL: .*evaluate\.during"):
        points(tmp_path)


HISTORY = [
    {"step": 0.0, "kl": 0.0, "x": 0.0},
    {"step": 5.0, "kl": 1.0, "x": 2.0, "y": 1.0},
    {"step": 10.0, "kl": 3.0, "x": 3.0, "y": 5.0},
    {"step": 15.0, "kl": 2.0, "x": 9.0, "y": 7.0},
]


@pytest.mark.parametrize(
    ("name", "kl", "wanted"),
    [
        ("x", 0.0, 0.0),
        ("x", 0.5, 1.0),
        ("x", 1.0, 2.0),
        ("x", 2.0, 2.5),  # on the way up, where training first comes to it
        ("x", 3.0, 3.0),
        ("x", 3.1, None),
        ("y", 0.5, None),  # nothing is extrapolated to where it was not measured
        ("y", 2.0, 3.0),
        ("z", 1.0, None),
    ],
)
def test_between_two_evaluations_a_metric_is_linear_in_kl(name, kl, wanted):
    assert at_kl(HISTORY, name, kl) == wanted


def test_steps_and_ranges():
    assert at_step(HISTORY, "x", 10) == 3.0
    assert at_step(HISTORY, "x", 11) is None
    assert at_step(HISTORY, "y", 0) is None
    assert kl_range(HISTORY) == (0.0, 3.0)
    twice = [{"step": 0.0, "kl": 1.0, "x": 4.0}, {"step": 5.0, "kl": 1.0, "x": 6.0}]
    assert at_kl(twice, "x", 1.0) == 4.0
