"""The attainable front, against brute force over responses."""

import numpy as np
import pytest

from alignjax.errors import UserError
from alignjax.world import front
from alignjax.world import sources as world

PROMPTS = [world.prompt_text(0, i) for i in range(40)]
TWO = ("helpful", "harmless")


@pytest.mark.parametrize("trade_off", ["concave", "convex"])
@pytest.mark.parametrize("names", [TWO, world.OBJECTIVES])
def test_no_policy_is_better_in_any_direction(trade_off, names):
    """The support function of the mean scores is the mean of the prompts' maxima."""
    of = world.World(trade_off=trade_off)
    found = front.attainable(PROMPTS, names, world=of)
    assert found.shape[1] == len(names)
    assert 3 <= len(found) == len(np.unique(found, axis=0))
    rng = np.random.default_rng(0)
    for weights in rng.dirichlet(np.ones(len(names)), size=20):
        best = []
        for prompt in PROMPTS:
            table = world.scores(of, prompt)
            best.append(max(weights @ np.array([table[n] for n in names])))
        reached = (found @ weights).max()
        assert reached <= np.mean(best) + 1e-12
        # About 200 weights are tried, not all: the nearest is within half a step of the grid.
        assert reached == pytest.approx(np.mean(best), rel=2e-3)


def test_it_holds_the_ends_and_nothing_that_is_dominated():
    found = front.attainable(PROMPTS, TWO)
    tables = [world.scores(world.DEFAULT_WORLD, prompt) for prompt in PROMPTS]
    for m, name in enumerate(TWO):
        assert found[:, m].max() == pytest.approx(np.mean([t[name].max() for t in tables]))
    for point in found:
        assert not ((found >= point).all(axis=1) & (found > point).any(axis=1)).any()


def test_an_unknown_score_is_named():
    with pytest.raises(UserError, match=r"found 'helpfull' \(did you mean 'helpful'\?\)"):
        front.attainable(PROMPTS, ("helpfull", "harmless"))
