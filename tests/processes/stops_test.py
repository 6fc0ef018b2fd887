"""Runs of several processes that are stopped, killed and started again, with other counts too."""

import signal

import jax
import numpy as np
import pytest

from alignjax.runtime import distributed
from tests.processes import members
from tests.training import loop_test


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """What one process makes of it that nobody stops: the rows of every step, and the weights."""
    rows = []
    feed = loop_test.make_feed(see=lambda i, batch: rows.append(batch.prompt_id.tolist()))
    state, _ = loop_test.fit(loop_test.job(tmp_path_factory.mktemp("clean"), feed=feed))
    return rows, np.asarray(state.params["w"])


@pytest.mark.slow
def test_a_signal_to_one_stops_all_and_any_count_goes_on(clean, compiled, tmp_path):
    """2 processes, then 1, then 2: SIGTERM to process 1, later to the only one."""
    rows, w = clean
    # SIGTERM reaches process 1 in step 5; SIGINT process 0 in step 6, after which all stop.
    trouble = ({"MEMBER_TROUBLE": "int-6"}, {"ALIGNJAX_FAULT": "step:alignment-5=term"})
    codes, output = members.start(tmp_path, trouble, **compiled)
    assert codes == [143, 143], output
    line = f"alignjax: SIGTERM: saved step 6 in {tmp_path}; run the same command again to resume"
    assert [members.last_line(x) for x in output] == [line] * 2
    first = members.told(tmp_path, 2)
    assert [x["rows"] for x in first] == [rows[:6]] * 2

    fault = {"ALIGNJAX_FAULT": "step:alignment-9=term"}
    codes, output = members.start(tmp_path, [fault], **compiled)
    assert codes == [143], output
    assert members.told(tmp_path, 1)[0]["rows"] == rows[6:9]

    codes, output = members.start(tmp_path, [{}, {}], **compiled)
    assert codes == [0, 0], output
    for last in members.told(tmp_path, 2):
        assert (last["resumed_from"], last["steps"]) == (9, 12)
        assert last["rows"] == rows[9:]
        # Sums of rows in another order, over 12 steps of Adam; the weights are about 1.
        np.testing.assert_allclose(last["w"], w, rtol=0, atol=1e-5)


def test_without_agreement_a_signal_to_one_does_not_stop_all(monkeypatch, tmp_path):
    """Negative control: a loop that does not ask the others goes on to the end."""
    monkeypatch.setattr(distributed, "max_over_processes", lambda numbers: lambda: 0)
    monkeypatch.setenv("ALIGNJAX_FAULT", "step:alignment-5=term")
    state, counts = loop_test.fit(loop_test.job(tmp_path))
    assert counts["steps"] == int(state.step) == 12


@pytest.mark.long
def test_a_process_that_dies_before_its_part_is_saved(clean, compiled, tmp_path):
    """Nothing of that step counts; the others end with 5; started again, the run ends the same."""
    rows, w = clean
    each = ({}, {"ALIGNJAX_FAULT": "logged:alignment-8=kill", "MEMBER_TROUBLE": "saved-7"})
    codes, output = members.start(tmp_path, each, **compiled)
    assert codes == [5, -signal.SIGKILL], output
    host = distributed.platform.node()
    assert members.last_line(output[0]) == (
        f"alignjax: process 1 ({host}): lost, no heartbeat for 10 s"
    )
    codes, output = members.start(tmp_path, [{}, {}], **compiled)
    assert codes == [0, 0], output
    for last in members.told(tmp_path, 2):
        assert last["resumed_from"] == 4
        assert last["rows"] == rows[4:]
        np.testing.assert_allclose(last["w"], w, rtol=0, atol=1e-5)
    steps = [p.name for p in (tmp_path / "checkpoints").iterdir()]
    assert sorted(steps) == ["12", "4", "8"]
    assert jax.process_count() == 1
