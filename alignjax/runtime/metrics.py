"""Reports a run: metrics.jsonl and loggers. Values are fetched one step late.

Fetching late keeps the device busy: while step t runs, the host reads the numbers of step t - 1.
It also bounds how far the host runs ahead, which CPU collectives need.
"""

import contextlib
import dataclasses
import json
import logging
import math
import pathlib
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import jax

from alignjax.errors import NumericalError
from alignjax.runtime import distributed, loggers

log = logging.getLogger("alignjax")

CHECKSUM = b', "crc32": '  # begins the last field of a line


class Writer:
    """Appends metrics to ``metrics.jsonl`` (the source of truth) and to loggers.

    With several processes the first one writes, and the writers of the others do nothing.
    """

    def __init__(
        self, workdir: pathlib.Path, *, after_step: int, names: tuple[str, ...] = ("tensorboard",)
    ) -> None:
        """Opens the files, without the lines of steps after ``after_step``, which run again.

        ``names`` are those of the loggers, see `runtime.loggers`.
        """
        self._writes = distributed.is_main()
        if not self._writes:
            return
        workdir.mkdir(parents=True, exist_ok=True)
        self._path = workdir / "metrics.jsonl"
        if self._path.exists():
            kept = [_as_line(x) for x in read(self._path) if x["step"] <= after_step]
            temporary = self._path.with_name(self._path.name + ".tmp")
            temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
            temporary.replace(self._path)  # in one step: a kill must not lose the earlier lines
        self._file = self._path.open("ab", buffering=0)
        self._waiting = b""  # lines that a full disk has not taken
        self._loggers = loggers.open_all(names, workdir, after_step=after_step)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Writes a line ``{"step": step, name: number, ...}``; null for what is not finite.

        A full disk does not stop a training: the line is written with the next one.
        """
        if not self._writes:
            return
        finite = {name: x if math.isfinite(x) else None for name, x in values.items()}
        self._append(_as_line({"step": step, **finite}) + "\n")
        numbers = loggers.grouped(values)
        for logger in self._loggers:
            logger.write(step, numbers)

    def _append(self, text: str) -> None:
        self._waiting += text.encode()
        try:
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting) or 0 :]
        except OSError as error:
            lines = self._waiting.count(b"\n")
            log.warning("%s: %d line(s) not written yet (%s)", self._path, lines, error)

    def close(self) -> None:
        """Closes the files; on a full disk it warns: what ends the run is told by who failed."""
        if self._writes:
            if self._waiting:
                self._append("")
            self._file.close()
            for logger in self._loggers:
                logger.close()


@dataclasses.dataclass(frozen=True)
class Watch:
    """Functions that are told the step and the numbers of what a training writes."""

    line: Callable[[int, dict[str, Any]], None] = lambda step, values: None
    evaluation: Callable[[int, dict[str, Any]], None] = lambda step, values: None


NOBODY = Watch()


def _as_line(values: dict[str, Any]) -> str:
    """Writes a line, with a checksum of itself at its end."""
    text = json.dumps(values)
    return f'{text[:-1]}, "crc32": {zlib.crc32(text.encode())}}}'


def _parse(line: bytes, *, summed: bool) -> dict[str, Any] | None:
    """Reads a line; None: a kill cut it short, or it is not as it was written."""
    if summed:
        text, _, checksum = line.rpartition(CHECKSUM)
        line = text + b"}"
        if checksum != b"%d}" % zlib.crc32(line):
            return None
    try:
        values = json.loads(line)
        float(values["step"])
    except (ValueError, KeyError, TypeError):
        return None
    return dict(values)


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """Reads the lines of a ``metrics.jsonl``; those that cannot be read are counted and said."""
    lines = path.read_bytes().splitlines()
    summed = any(CHECKSUM in line for line in lines)  # else of an earlier version
    parsed = [_parse(line, summed=summed) for line in lines]
    bad = [number for number, values in enumerate(parsed, start=1) if values is None]
    if bad:
        log.warning(
            "%s: %d of %d lines cannot be read and are left out (the first: line %d)",
            *(path, len(bad), len(lines), bad[0]),
        )
    return [values for values in parsed if values is not None]


class Meter:
    """Averages steps between log lines, measures throughput, and stops on non-finite steps."""

    def __init__(self, *, max_skipped: int) -> None:
        self._max_skipped = max_skipped
        self._bad: list[int] = []  # steps in a row that were not finite
        self._start(0.0)

    def _start(self, seconds: float) -> None:
        self._sums: dict[str, float] = {}
        self._rows = self._counted = self._tokens = self._skipped = 0.0
        self._since, self._steps = seconds, 0

    def state(self) -> dict[str, Any]:
        """Gives the sums since the last line, as JSON data, for a checkpoint.

        With it, a line that spans a stop equals that of a run without the stop, but for the
        throughput, which counts the time since the restart.
        """
        return {
            "bad": list(self._bad),
            "sums": dict(self._sums),
            "counted": self._counted,
            "skipped": self._skipped,
        }

    def restore(self, state: dict[str, Any], seconds: float) -> None:
        """Continues from a `state`; ``seconds`` are those of all steps until then."""
        self._since = seconds
        self._bad, self._sums = list(state["bad"]), dict(state["sums"])
        self._counted, self._skipped = state["counted"], state["skipped"]

    def add(self, step: int, scalars: dict[str, jax.Array]) -> dict[str, float]:
        """Fetches one step's scalars from the device, and adds them up.

        Returns:
          The scalars as numbers.

        Raises:
          NumericalError: ``max_skipped`` steps in a row were not finite.
        """
        values = {name: float(x) for name, x in jax.device_get(scalars).items()}
        if values["skipped"]:
            self._bad.append(step)
            self._skipped += 1
            if len(self._bad) >= self._max_skipped:
                raise NumericalError(
                    f"loss or gradient not finite in {len(self._bad)} steps in a row "
                    f"({self._bad[0]} to {self._bad[-1]}; loss {values['loss']}, gradient norm "
                    f"{values['grad_norm']}); the last checkpoint holds the parameters from "
                    "before; lower optim.learning_rate or look at these batches"
                )
        else:
            self._bad = []
            for name, value in values.items():
                self._sums[name] = self._sums.get(name, 0.0) + value * values["weight"]
            self._counted += values["weight"]
        self._steps += 1
        self._rows += values["weight"]
        self._tokens += values["num_tokens"]
        return values

    def averages(self, seconds: float) -> dict[str, float]:
        """Returns means since the last call, weighted by rows, and throughput per second.

        Padding does not count as tokens; a prompt counts once, whatever K is. Without a step since
        the last call there is nothing to tell.

        Args:
          seconds: that all steps took until now, without compiling; see `training.loop`.
        """
        if not self._counted and not self._skipped:
            self._start(seconds)
            return {}
        took = max(seconds - self._since, 1e-9)
        out = {name: total / max(self._counted, 1e-9) for name, total in self._sums.items()}
        out["skipped"] = self._skipped
        out["prompts_per_second"] = self._rows / took
        out["tokens_per_second"] = self._tokens / took
        out["step_seconds"] = took / max(self._steps, 1)
        self._start(seconds)
        return out


@contextlib.contextmanager
def timed() -> Iterator[list[float]]:
    """Times a block: yields a list that gets its seconds, without compiling, when it ends.

    Tracing counts as compiling. The block has to wait for its results: what still runs on the
    device when it ends is not counted.
    """
    spans: list[tuple[float, float]] = []
    took: list[float] = []

    # JAX passes whatever else it knows of an event as keywords.
    def note(event: str, start_time: float, end_time: float, **_: str | int) -> None:
        if event.startswith("/jax/core/compile/"):
            spans.append((start_time, end_time))

    jax.monitoring.register_event_time_span_listener(note)
    since = time.time()  # the clock of the spans
    try:
        yield took
    finally:
        until = time.time()
        jax.monitoring.unregister_event_time_span_listener(note)
        compiling, reached = 0.0, since
        for start, end in sorted(spans):  # spans of nested jits lie inside one another
            compiling += max(0.0, end - max(start, reached))
            reached = max(reached, end)
        took.append(max(0.0, until - since - compiling))
