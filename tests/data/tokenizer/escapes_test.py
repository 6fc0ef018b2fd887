"""Every template of `escapes.txt` ends in one line, or does no harm; with small limits, soon."""

import json
import subprocess
import sys

import pytest

from tests import runs
from tests.data.tokenizer import escapes

KINDS = escapes.escapes()
SECONDS = 1.5  # of the processor, for one: far above what it may take, far below what it would


@pytest.fixture(scope="module")
def ended():
    """How each of them ended, in a program of its own whose memory is limited."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.data.tokenizer.escapes"],
        cwd=runs.ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    count = sum(len(templates) for templates in KINDS.values())
    assert len(lines) == count, f"it ended after {lines[-1:]}: {done.stderr[-2000:]}"
    return lines


@pytest.mark.parametrize("kind", KINDS)
def test_no_template_gets_out_of_its_bounds(kind, ended):
    wanted = "rendered" if kind == "harmless" else "refused"
    found = [x for x in ended if x["kind"] == kind]
    assert [x["source"] for x in found] == KINDS[kind]
    bad = [
        x
        for x in found
        if x["ended"] != wanted
        or x["seconds"] > SECONDS
        or x.get("size", 0) > 100_000
        or "\n" in x.get("line", "")
        or len(x.get("line", "")) > 400
        or "emory" in x.get("line", "")  # the limits are to be met first
    ]
    assert not bad
