"""What `benchmarks/demo_seeds.py` asks of the demo at every seed."""

import json

import numpy as np
import pytest

from alignjax.data.records import DataReport
from alignjax.evaluation.statistics import Interval
from alignjax.world import sources as world
from benchmarks import demo_seeds

GOOD = {
    "isa": "AVX2",
    "seed": 3,
    "kl": 2.9,
    "true_score": (0.6, 0.7, Interval(0.1, 0.09, 128)),
    "well_formed": (0.96, 0.945, Interval(-0.015, 0.02, 128)),
}
WORSE = {
    "gain": {"true_score": (0.6, 0.7, Interval(0.1, 0.11, 128))},
    "malformed": {"well_formed": (0.96, 0.93, Interval(-0.03, 0.02, 128))},
    "far": {"kl": 3.1},
}


@pytest.mark.parametrize("change", WORSE.values(), ids=WORSE)
def test_a_run_holds_where_all_three_do(change):
    assert demo_seeds.holds(GOOD)
    assert not demo_seeds.holds({**GOOD, **change})
    table = demo_seeds.tabulate([GOOD, {**GOOD, **change, "seed": 4}])
    assert [line.split()[-2] for line in table.splitlines()[2:4]] == ["yes", "NO"]
    assert table.splitlines()[4].endswith("1 of 2 hold")


def test_changes_are_of_the_same_prompts(tmp_path):
    records = list(world.pairs(DataReport(), size=4, seed=0, temperature=0.1))
    for name, broken in (("before", 1), ("after", 0)):
        samples = [
            {"prompt": x.prompt, "response": x.responses[0] + (" the the" if i < broken else "")}
            for i, x in enumerate(records)
        ]
        (tmp_path / f"{name}.json").write_text(json.dumps({"samples": samples}))
    before, after, change = demo_seeds.changes_of(tmp_path)["well_formed"]
    np.testing.assert_allclose([before, after, change.mean], [0.75, 1.0, 0.25], rtol=1e-12)
