"""Fronts side by side: one box, one table, one picture; and what does not compare."""

import json

import numpy as np
import pytest

from alignjax.commands import front
from alignjax.errors import UserError
from alignjax.evaluation import pareto


def fake(folder, name, scores, **changes):
    """A run's folder with a front in it."""
    p = len(scores)
    told = {
        "method": name,
        "objectives": [f"o{m}" for m in range(np.shape(scores)[2])],
        "preferences": np.full((p, np.shape(scores)[2]), 0.5).tolist(),
        "prompts": [f"p{j}" for j in range(np.shape(scores)[1])],
        "scores": np.asarray(scores).tolist(),
        "collapsed": [0.0, 0.5][:p],
        "unfinished": [0.25, 0.5][:p],
        "seconds": 2.0,
        "box": None,
        "truth": None,
        **changes,
    }
    (folder / name).mkdir()
    (folder / name / "front.json").write_text(json.dumps(told))
    return str(folder / name)


@pytest.mark.parametrize("objectives", [2, 3])
def test_runs_are_compared_in_one_box_one_table_one_picture(tmp_path, capsys, objectives):
    rng = np.random.default_rng(0)
    one, two = rng.uniform(size=(2, 2, 6, objectives))
    truth = rng.uniform(1, 2, size=(5, objectives)).tolist()
    folders = [fake(tmp_path, "one", one, truth=truth), fake(tmp_path, "two", two, truth=truth)]
    found = front.run(folders, str(tmp_path / "x" / "front.png"))
    means = np.concatenate([one.mean(axis=1), two.mean(axis=1)])
    np.testing.assert_array_equal(found["box"]["low"], means.min(axis=0))
    np.testing.assert_array_equal(found["box"]["high"], means.max(axis=0))
    volume = pareto.hypervolume(two.mean(axis=1), low=means.min(axis=0), high=means.max(axis=0))
    assert found["fronts"]["two"]["hypervolume"]["value"] == volume
    assert found["fronts"]["two"]["collapsed"] == 0.25
    assert found["fronts"]["two"]["unfinished"] == 0.375
    assert [x["unfinished"] for x in found["fronts"]["two"]["points"]] == [0.25, 0.5]
    assert json.loads((tmp_path / "x" / "front.json").read_text()) == json.loads(json.dumps(found))
    assert (tmp_path / "x" / "front.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert f"{volume:.3f}" in out
    assert "reference point" in out
    assert "37.5%" in out
    box = [[-1.0, 3.0]] * objectives
    stated = [fake(tmp_path, name, x, box=box) for name, x in (("three", one), ("four", two))]
    found = front.run(stated, str(tmp_path / "front.png"))
    assert found["box"] == {"low": [-1.0] * objectives, "high": [3.0] * objectives,
                            "source": "as the config says"}  # fmt: skip


def test_fronts_that_do_not_compare_are_refused(tmp_path):
    scores = np.zeros((2, 3, 2))
    one = fake(tmp_path, "one", scores)
    out = str(tmp_path / "front.png")
    with pytest.raises(UserError, match="two has other prompts than one"):
        front.run([one, fake(tmp_path, "two", scores[:, :2])], out)
    with pytest.raises(UserError, match="three has other objectives than one"):
        front.run([one, fake(tmp_path, "three", scores, objectives=["a", "b"])], out)
    with pytest.raises(UserError, match="wanted runs of different names, found one, one"):
        front.run([one, one], out)
    with pytest.raises(UserError, match="has no front"):
        front.run([str(tmp_path)], out)
    with pytest.raises(UserError, match=r"ends in \.png"):
        front.run([one], "front.jpg")
    assert not list(tmp_path.glob("*.json"))
