"""Writes metrics to metrics.jsonl and loggers, and averages steps.

The loop fetches values one step late, to keep the device busy: while step t runs, the host reads
the metrics of step t - 1. It also bounds how far the host runs ahead, which CPU collectives need.
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

CHECKSUM = b', "crc32": '  # the start of a line's last field


class Writer:
    """Appends metrics to ``metrics.jsonl`` (the source of truth) and to loggers.

    With several processes, only the first one writes.
    """

    def __init__(
        self, workdir: pathlib.Path, *, after_step: int, names: tuple[str, ...] = ("tensorboard",)
    ) -> None:
        """Opens the files; removes lines of steps after ``after_step``, which run again.

        ``names`` are loggers, see `runtime.loggers`.
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
            temporary.replace(self._path)  # atomic: a kill must not lose the earlier lines
        self._file = self._path.open("ab", buffering=0)
        self._waiting = b""  # lines not yet written because the disk is full
        self._loggers = loggers.open_all(names, workdir, after_step=after_step)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Writes a line ``{"step": step, name: number, ...}``; null if not finite.

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
        """Closes the files; a full disk only warns, so as not to hide the run's own error."""
        if self._writes:
            if self._waiting:
                self._append("")
            self._file.close()
            for logger in self._loggers:
                logger.close()


@dataclasses.dataclass(frozen=True)
class Watch:
    """Functions that are called with each step and its metrics, for notebooks."""

    line: Callable[[int, dict[str, Any]], None] = lambda step, values: None
    evaluation: Callable[[int, dict[str, Any]], None] = lambda step, values: None


NOBODY = Watch()


def _as_line(values: dict[str, Any]) -> str:
    """Formats a line, with its checksum at the end."""
    text = json.dumps(values)
    return f'{text[:-1]}, "crc32": {zlib.crc32(text.encode())}}}'


def _parse(line: bytes, *, summed: bool) -> dict[str, Any] | None:
    """Parses a line; None if a kill cut it short or it was changed."""
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
    """Reads the lines of a ``metrics.jsonl``; warns of lines that cannot be read."""
    lines = path.read_bytes().splitlines()
    summed = any(CHECKSUM in line for line in lines)  # earlier versions had no checksums
    parsed = [_parse(line, summed=summed) for line in lines]
    bad = [number for number, values in enumerate(parsed, start=1) if values is None]
    if bad:
        log.warning(
            "%s: %d of %d lines cannot be read and are left out (the first: line %d)",
            *(path, len(bad), len(lines), bad[0]),
        )
    return [values for values in parsed if values is not None]


class Meter:
    """Averages metrics between log lines, measures throughput, and stops on non-finite steps."""

    def __init__(self, *, max_skipped: int) -> None:
        self._max_skipped = max_skipped
        self._bad: list[int] = []  # the latest steps, if they were not finite
        self._start(0.0)

    def _start(self, seconds: float) -> None:
        self._sums: dict[str, float] = {}
        self._rows = self._counted = self._tokens = self._skipped = 0.0
        self._since, self._steps = seconds, 0

    def state(self) -> dict[str, Any]:
        """Returns the sums since the last line as JSON data, for a checkpoint.

        With them, a resumed run writes the same line as an uninterrupted one, except for the
        throughput, which counts only the time since the restart.
        """
        return {
            "bad": list(self._bad),
            "sums": dict(self._sums),
            "counted": self._counted,
            "skipped": self._skipped,
        }

    def restore(self, state: dict[str, Any], seconds: float) -> None:
        """Continues from a `state`; ``seconds`` is the time of all steps until then."""
        self._since = seconds
        self._bad, self._sums = list(state["bad"]), dict(state["sums"])
        self._counted, self._skipped = state["counted"], state["skipped"]

    def add(self, step: int, scalars: dict[str, jax.Array]) -> dict[str, float]:
        """Fetches one step's metrics from the device, and adds them to the sums.

        Returns:
          The metrics as numbers.

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

        Padding does not count as tokens, and a prompt counts once for any K. Empty if there was no
        step since the last call.

        Args:
          seconds: time of all steps until now, without compiling; see `training.loop`.
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
    """Times a block, without compiling: yields a list to which its seconds are appended.

    Tracing counts as compiling. The block must wait for its results: work that still runs on the
    device is not counted.
    """
    spans: list[tuple[float, float]] = []
    took: list[float] = []

    # JAX passes other fields of an event as keywords.
    def note(event: str, start_time: float, end_time: float, **_: str | int) -> None:
        if event.startswith("/jax/core/compile/"):
            spans.append((start_time, end_time))

    jax.monitoring.register_event_time_span_listener(note)
    since = time.time()  # JAX's spans use the same clock
    try:
        yield took
    finally:
        until = time.time()
        jax.monitoring.unregister_event_time_span_listener(note)
        compiling, reached = 0.0, since
        for start, end in sorted(spans):  # spans of nested jits overlap
            compiling += max(0.0, end - max(start, reached))
            reached = max(reached, end)
        took.append(max(0.0, until - since - compiling))
