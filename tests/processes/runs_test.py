"""Whole runs by several processes: what one alone does, and whose rows are read by whom."""

import itertools
import json
import math
import pathlib
import re
import subprocess
import sys

import pytest

from tests import runs

pytestmark = pytest.mark.long

CONFIG = pathlib.Path(__file__).with_name("noted.py")
STAGES = ("supervised", "alignment")
STEPS = 8
# Sums of float32 in another order: log-probabilities of 300 nats are rounded to 3e-5 of them, and
# rewards are their differences times beta, 0.1. Losses are of order one.
LOSS, REWARD = 1e-6, 1e-5


def launch(processes, devices, *arguments, **env):
    """Several processes to their end, by the launcher."""
    sizes = [f"--processes={processes}", f"--devices={devices}"]
    launcher = str(runs.ROOT / "launch" / "local.py")
    return subprocess.run(
        [sys.executable, launcher, *sizes, "--", *arguments],
        cwd=runs.ROOT,
        env=runs.environment(**env),
        capture_output=True,
        text=True,
        timeout=600,
    )


def arguments(workdir, config=CONFIG):
    return ["run", f"--config={config}", f"--workdir={workdir}"]


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def ran(tmp_path_factory, compiled):
    """The run by one process; and by four, killed at the end of step 6, and then by two."""
    top = tmp_path_factory.mktemp("processes")
    notes = {count: top / f"notes-{count}" for count in (1, 4, 2)}
    for folder in notes.values():
        folder.mkdir()

    def env(count):
        return {**compiled, "ALIGNJAX_NOTES": str(notes[count])}

    alone = runs.start(*arguments(top / "one"), **env(1), JAX_NUM_CPU_DEVICES="4", NPROC="32")
    assert alone.returncode == 0, alone.stderr
    fault = {"ALIGNJAX_FAULT": "saving:alignment-6=kill"}
    killed = launch(4, 1, *arguments(top / "several"), **env(4), **fault)
    assert killed.returncode == 137, killed.stderr
    ended = launch(2, 2, *arguments(top / "several"), **env(2))
    assert ended.returncode == 0, ended.stderr
    return top, notes, (killed, ended)


@pytest.fixture(scope="module")
def noted(ran):
    """What each process noted, by how many there were."""
    return {
        count: [read(path) for path in sorted(folder.glob("rows-*.json"))]
        for count, folder in ran[1].items()
    }


def halves(steps):
    """The rows of every step that go to the first part of the mesh, and those of the second."""
    return [step[: len(step) // 2] for step in steps], [step[len(step) // 2 :] for step in steps]


def reads_its_own(note, stage, own):
    """Whether a process put those rows on the mesh and opened no others, however far ahead."""
    put = note["batches"][stage]
    opened = set(note["opened"][stage])
    first = own[: len(put)] if stage == "supervised" or len(put) > 5 else own[-len(put) :]
    return put == first and {*itertools.chain(*put)} <= opened <= {*itertools.chain(*own)}


def test_a_process_reads_its_own_rows_of_the_same_batches(noted):
    (one,) = noted[1]
    assert [len(one["batches"][stage]) for stage in STAGES] == [2, STEPS]
    for stage in STAGES:
        steps = one["batches"][stage]
        assert reads_its_own(one, stage, steps)
        # fsdp=2 x tensor=2: of four processes 0 and 1 hold the first half of the rows.
        for note, own in zip(noted[4], (0, 0, 1, 1), strict=True):
            assert reads_its_own(note, stage, halves(steps)[own])
            assert not reads_its_own(note, stage, halves(steps)[1 - own])
    assert [len(note["batches"]["alignment"]) for note in noted[4]] == [6] * 4
    for note, own in zip(noted[2], halves(one["batches"]["alignment"]), strict=True):
        # From the save of step 6, or of step 3 where that was cut short.
        assert len(note["batches"]["alignment"]) in (2, 5)
        assert reads_its_own(note, "alignment", own)
    # One that opens all that the batches hold does not pass.
    greedy = {**noted[4][0], "opened": one["opened"]}
    assert not reads_its_own(greedy, "supervised", halves(one["batches"]["supervised"])[0])


def test_numbers_are_those_of_one_process(ran):
    top = ran[0]
    for folder in ("sft", ""):
        one, several = (metrics_of(top / name / folder) for name in ("one", "several"))
        assert [line["step"] for line in several] == [line["step"] for line in one]
        # How hard the draws are: the unit of gamma is the same, with others and after the kill.
        steps = [line for line in one if "grad_norm" in line]  # others are of held-out rows
        assert len(steps) > 1
        assert all(("negatives/effective" in line) == (folder == "") for line in steps)
        for mine, theirs in zip(several, one, strict=True):
            assert mine.keys() == theirs.keys()
            for name, x in mine.items():
                wide = REWARD if name.startswith("rewards/") else 0.0
                near = math.isclose(x, theirs[name], rel_tol=LOSS, abs_tol=wide)
                assert near, f"step {mine['step']}, {name}: {x} and {theirs[name]}"
    one, several = (read(top / name / "summary.json") for name in ("one", "several"))
    assert several["resumed_from"] in (3, 6)
    assert several["steps"] == STEPS
    assert several["table"].keys() == one["table"].keys()
    for name, sides in one["table"].items():
        for side, x in sides.items():
            if x is not None:  # RM_DPO is a difference of four log-probabilities, not times beta
                assert several["table"][name][side]["mean"] == pytest.approx(x["mean"], abs=1e-4)


def metrics_of(folder):
    """The lines of a run without clocks, and without accuracies: at the start all rewards tie."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    left_out = (*runs.TIMED, "accuracies")
    return [
        {k: x for k, x in json.loads(line).items() if not k.endswith(left_out)} for line in lines
    ]


def test_samples_and_digests_are_those_of_one_process(ran):
    top = ran[0]
    for name in ("before", "after"):
        one, several = (read(top / who / f"{name}.json") for who in ("one", "several"))
        assert [s["response"] for s in several["samples"]] == [
            s["response"] for s in one["samples"]
        ]
        for mine, theirs in zip(several["samples"], one["samples"], strict=True):
            assert mine["logps"] == pytest.approx(theirs["logps"], rel=LOSS)
            assert mine["kl"] == pytest.approx(theirs["kl"], abs=1e-5, nan_ok=True)
        # Of the parameters after the supervised stage: one view of them, whoever holds them.
        if name == "before":
            assert len(several["key"]["params"]) == 16


def test_process_0_alone_writes_and_tells(ran):
    top, _, done = ran
    for process in done:
        # Lines of the others are those of the transport library, which threads of it mix up.
        others = [line for line in process.stderr.splitlines() if line.startswith("[")]
        assert any("peer ranks" in line for line in others)
        ours = re.compile("supervised|reference|sampling|alignment|held-out|numbers|ETA")
        assert [line for line in others if ours.search(line)] == []
    assert done[0].stderr.count("supervised: held-out loss") == 1
    assert done[1].stdout.count("numbers:") == 1
    one, several = (
        {str(p.relative_to(top / who)) for p in (top / who).rglob("*") if _ours(p)}
        for who in ("one", "several")
    )
    assert several == one


def _ours(path: pathlib.Path) -> bool:
    """Files that the recipe writes, and not the checkpoint library or the board."""
    theirs = ("checkpoints", "params", "tensorboard", "cache")
    return path.is_file() and not any(part in theirs for part in path.parts)
