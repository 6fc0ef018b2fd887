"""ParetoHqD in the embedded world with three objectives: `paretohqd_world.py`, seven preferences.

Command:   python -m alignjax run --config=configs/paretohqd_world3.py --workdir=runs/paretohqd3
Hardware:  2 CPU cores
Time:      TODO
Expect:    TODO
"""

import dataclasses
from functools import partial

import paretohqd_world

from alignjax import score
from alignjax.config import Config
from alignjax.data import world
from alignjax.objectives import paretohqd
from alignjax.recipes.fronts import paretohqd as recipe

NAMES = ("helpful", "harmless", "concise")


def get_config() -> Config:
    two = paretohqd_world.get_config()
    assert two.objectives is not None
    ends = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    edges = ((0.5, 0.5, 0.0), (0.5, 0.0, 0.5), (0.0, 0.5, 0.5))
    return dataclasses.replace(
        two,
        data=dataclasses.replace(
            two.data,
            source=partial(world.lists, size=4000, seed=0, responses=2, objectives=NAMES),
        ),
        objectives=dataclasses.replace(
            two.objectives,
            # Help is harm for some prompts only: see `recipe.train`.
            method=partial(
                recipe.train,
                size=100,
                curate=paretohqd.curate,
                centred=True,
                prompts=500,
                at_once=7,
            ),
            scorer=partial(score.judged, judge=world.judge, name=NAMES),
            names=NAMES,
            preferences=(*ends, *edges, (1 / 3, 1 / 3, 1 / 3)),
            box=((0.0, 1.0),) * 3,
        ),
    )
