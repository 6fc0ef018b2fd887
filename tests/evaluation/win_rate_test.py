"""Win rates against loops over every comparison, and their intervals by simulation."""

import numpy as np
import pytest

from alignjax.evaluation import win_rate


def by_brute_force(ours, theirs, tie):
    shares = []
    for x, y in zip(ours, theirs, strict=True):
        pairs = [(a, b) for a in x for b in y]
        won = sum(a - b > tie for a, b in pairs) / len(pairs)
        lost = sum(b - a > tie for a, b in pairs) / len(pairs)
        shares.append((won, lost, 1 - won - lost))
    return np.mean(shares, axis=0)


@pytest.mark.parametrize("tie", [0.0, 1.0])
def test_shares_equal_the_loops(tie):
    rng = np.random.default_rng(0)
    ours = [rng.integers(0, 4, rng.integers(1, 5)).astype(float) for _ in range(40)]
    theirs = [rng.integers(0, 4, rng.integers(1, 5)).astype(float) for _ in range(40)]
    found = win_rate.compare(ours, theirs, tie=tie)
    wanted = by_brute_force(ours, theirs, tie)
    shares = [found.wins.mean, found.losses.mean, found.ties.mean]
    np.testing.assert_allclose(shares, wanted)
    assert found.win_rate.mean == pytest.approx(wanted[0] + wanted[2] / 2)
    assert found.prompts == 40
    for share in (found.wins, found.losses, found.ties, found.win_rate):
        assert 0 <= share.low < share.mean < share.high <= 1


def test_a_wider_tie_moves_wins_and_losses_to_ties_and_sides_can_be_swapped():
    ours, theirs = [np.array([0.5]), np.array([0.2])], [np.array([0.4]), np.array([0.9])]
    assert win_rate.compare(ours, theirs).ties.mean == 0
    assert win_rate.compare(ours, theirs, tie=0.2).ties.mean == 0.5
    one, other = win_rate.compare(ours, theirs), win_rate.compare(theirs, ours)
    assert (one.wins, one.losses) == (other.losses, other.wins)
    assert win_rate.compare(ours, ours).ties.mean == win_rate.compare(ours, ours).ties.low == 1.0


def test_intervals_hold_the_truth_as_often_as_they_say(monkeypatch):
    """150 runs at 95% have a standard error of 1.8%; 50 prompts cost the bootstrap about 1%."""
    monkeypatch.setattr(win_rate, "DRAWS", 100)
    rng = np.random.default_rng(0)
    held = held_if_rows_were_prompts = 0
    for _ in range(150):
        prompt = rng.normal(size=50)  # who is better at a prompt is shared by its responses
        scores = [prompt[i] + 0.2 * rng.normal(size=4) for i in range(50)]
        found = win_rate.compare(scores, [np.zeros(1)] * 50).win_rate
        held += found.low <= 0.5 <= found.high
        rows = [np.array([x]) for x in np.concatenate(scores)]
        found = win_rate.compare(rows, [np.zeros(1)] * 200).win_rate
        held_if_rows_were_prompts += found.low <= 0.5 <= found.high
    assert 0.88 < held / 150 < 0.99
    assert held_if_rows_were_prompts / 150 < 0.8
