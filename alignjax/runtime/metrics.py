"""Reports a run: metrics.jsonl, TensorBoard, a progress bar. Values are fetched one step late.

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
from alignjax.runtime import distributed, watchdog

log = logging.getLogger("alignjax")

FLUSH_SECONDS = 30  # of TensorBoard's files, which waits for the disk
CHECKSUM = b', "crc32": '  # begins the last field of a line


class Writer:
    """Appends metrics to ``metrics.jsonl`` (the source of truth) and to TensorBoard files.

    With several processes the first one writes, and the writers of the others do nothing.
    """

    def __init__(self, workdir: pathlib.Path, *, after_step: int) -> None:
        """Opens the files, without the lines of steps after ``after_step``, which run again."""
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
        self._board = _Board(workdir / "tensorboard", after_step)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Writes a line ``{"step": step, name: number, ...}``; null for what is not finite.

        A full disk does not stop a training: the line is written with the next one.
        """
        if not self._writes:
            return
        finite = {name: x if math.isfinite(x) else None for name, x in values.items()}
        self._append(_as_line({"step": step, **finite}) + "\n")
        self._board.write(step, values)

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
            self._board.close()


class _Board:
    """TensorBoard's files, written where they are asked for.

    The library's own writer does it on a thread, for which a training would wait for ever once a
    full disk has ended it.
    """

    def __init__(self, folder: pathlib.Path, after_step: int) -> None:
        """Opens a file; TensorBoard hides what earlier ones hold of steps after ``after_step``."""
        from tensorboardX import event_file_writer
        from tensorboardX.proto import event_pb2

        self._folder, self._flushed = folder, 0.0
        self._file: Any = None
        with self._errors():
            folder.mkdir(parents=True, exist_ok=True)
            self._file = event_file_writer.EventsWriter(str(folder / "events"))
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._file.write_event(event_pb2.Event(step=after_step + 1, session_log=start))

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes numbers, as long as that has not failed before."""
        from tensorboardX import summary
        from tensorboardX.proto import event_pb2

        if self._file is None:
            return
        with self._errors():
            for name, value in values.items():
                point = summary.scalar(name, value)
                event = event_pb2.Event(step=step, wall_time=time.time(), summary=point)
                self._file.write_event(event)
            if time.monotonic() > self._flushed + FLUSH_SECONDS:
                self._flushed = time.monotonic()
                self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            with self._errors():
                self._file.close()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            log.warning("%s: not written any more (%s)", self._folder, error)
            with contextlib.suppress(OSError):
                if self._file is not None:
                    self._file.close()
            self._file = None


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
        self._start()

    def _start(self) -> None:
        self._sums: dict[str, float] = {}
        self._rows = self._counted = self._tokens = self._skipped = 0.0
        self._since = time.perf_counter()

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

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from a `state`; the clock starts anew."""
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
        self._rows += values["weight"]
        self._tokens += values["num_tokens"]
        return values

    def averages(self) -> dict[str, float]:
        """Returns means since the last call, weighted by rows, and throughput per second.

        Padding does not count as tokens; a prompt counts once, whatever K is. Without a step since
        the last call there is nothing to tell.
        """
        if not self._counted and not self._skipped:
            self._start()
            return {}
        seconds = max(time.perf_counter() - self._since, 1e-9)
        out = {name: total / max(self._counted, 1e-9) for name, total in self._sums.items()}
        out["skipped"] = self._skipped
        out["prompts_per_second"] = self._rows / seconds
        out["tokens_per_second"] = self._tokens / seconds
        self._start()
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


@contextlib.contextmanager
def progress(title: str, total: int, *, done: int = 0, watched: bool = True) -> Iterator[Any]:
    """Shows a progress bar with ETA; yields ``advance(n, **numbers)``.

    With several processes the first one shows it. Where it stands still for too long the run ends,
    see `watchdog.watching`; ``watched`` is False where the block sees to that itself.
    """
    import rich.console
    import rich.progress as rp

    console = rich.console.Console(stderr=True)
    columns = (
        rp.TextColumn(f"{title:<22}"),
        rp.BarColumn(),
        rp.MofNCompleteColumn(),
        rp.TimeElapsedColumn(),
        rp.TextColumn("ETA"),
        rp.TimeRemainingColumn(),
        rp.TextColumn("{task.fields[note]}"),
    )
    shown = distributed.is_main()
    with (
        watchdog.phase(title.strip() if watched else "") as moved,
        rp.Progress(*columns, console=console, refresh_per_second=4, disable=not shown) as bar,
    ):
        task = bar.add_task(title, total=total, completed=done, note="")

        def advance(n: int = 1, **numbers: float) -> None:
            note = "  ".join(f"{k} {v:.4g}" for k, v in numbers.items())
            moved()
            bar.update(task, advance=n)
            if numbers:
                bar.update(task, note=note)

        yield advance
