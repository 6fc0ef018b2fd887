"""Shows progress: a bar in a terminal, occasional lines elsewhere.

Without a terminal (a job's log, a notebook, a pipe) a training writes a line whenever it has
metrics; other work writes one line every `EVERY` seconds and one at its end.
"""

import contextlib
import datetime
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from alignjax.runtime import distributed, watchdog

log = logging.getLogger("alignjax")

NOTE = 27  # characters of the metrics after a bar
EVERY = 30.0  # seconds between the lines of work without metrics
# metric -> its short name and format; a player's name may stand before the metric.
SHOWN = {
    "loss": ("loss", "{:.4g}"),
    "rewards/accuracies": ("accuracy", "{:.3f}"),
    "learning_rate": ("lr", "{:.2g}"),
    "tokens_per_second": ("tokens/s", "{:,.0f}"),
}
MANY = 20_000  # quick items that take long enough to show progress
T = TypeVar("T")
Advance = Callable[..., None]  # (items done, **numbers)


@contextlib.contextmanager
def progress(title: str, total: int, *, done: int = 0, watched: bool = True) -> Iterator[Advance]:
    """Shows how many of ``total`` items are done; yields ``advance(n, **numbers)``.

    Of several processes only the first shows it. If there is no progress for too long, the run
    ends, see `watchdog.watching`; with ``watched=False`` the block must check this itself.
    """
    with (
        watchdog.phase(title.strip() if watched else "") as moved,
        _shown(title, total, done) as show,
    ):

        def advance(n: int = 1, **numbers: float) -> None:
            moved()
            show(n, **numbers)

        yield advance


def counted(title: str, items: Iterable[T]) -> Iterator[T]:
    """Yields items whose number is unknown; writes how many there were every `EVERY` seconds."""
    last = time.monotonic()
    with watchdog.phase(title) as moved:
        for count, item in enumerate(items, 1):
            moved()
            if count % 1024 == 0 and time.monotonic() - last >= EVERY:
                last = time.monotonic()
                if distributed.is_main():
                    log.info("%s: %s so far", title, f"{count:,}")
            yield item


def shown(title: str, items: Iterable[T]) -> Iterator[T]:
    """Yields items; shows the progress if they are a list of at least `MANY`."""
    total = len(items) if isinstance(items, list) else 0
    if total < MANY:
        yield from items
        return
    with progress(title, total) as advance:
        for count, item in enumerate(items, 1):
            yield item
            if count % 256 == 0:
                advance(256)
        advance(total % 256)


@contextlib.contextmanager
def _shown(title: str, total: int, done: int) -> Iterator[Advance]:
    if not distributed.is_main():
        yield lambda n=1, **numbers: None
    elif sys.stderr.isatty():
        with _bar(title, total, done) as advance:
            yield advance
    else:
        lines = _Lines(title.strip(), total, done)
        yield lines.advance
        lines.end()


@contextlib.contextmanager
def _bar(title: str, total: int, done: int) -> Iterator[Advance]:
    import rich.console
    import rich.progress as rp
    import rich.table

    console = rich.console.Console(stderr=True)
    wide = console.width >= 100  # wide enough for the elapsed time
    name = f"{title:<22}" if wide else f"{title:<19.19}"
    count = 2 * len(str(total)) + 1
    rest = len(name) + count + 8 * wide + len("ETA 0:00:00") + NOTE + 6
    columns = (
        rp.TextColumn(name),
        rp.BarColumn(bar_width=max(4, min(40, console.width - rest))),
        rp.MofNCompleteColumn(table_column=rich.table.Column(min_width=count)),
        *([rp.TimeElapsedColumn()] if wide else []),
        rp.TextColumn("ETA"),
        rp.TimeRemainingColumn(),
        rp.TextColumn("{task.fields[note]}"),
    )
    with rp.Progress(*columns, console=console, refresh_per_second=4) as bar:
        task = bar.add_task(title, total=total, completed=done, note="")

        def advance(n: int = 1, **numbers: float) -> None:
            bar.update(task, advance=n)
            # In 80 columns there is room for two metrics.
            note = " ".join(list(texts(numbers))[:2])
            if note:
                bar.update(task, note=note)

        yield advance


def texts(numbers: dict[str, Any]) -> list[str]:
    """Formats the metrics of `SHOWN`, such as ``loss 0.48``."""
    out = []
    for name, (short, form) in SHOWN.items():
        for key, value in numbers.items():
            player = key.removesuffix(name)
            if key.endswith(name) and (not player or player.endswith("/")) and value is not None:
                out.append(f"{player}{short} {form.format(value)}")
    return out


class _Lines:
    """Writes lines instead of a bar."""

    def __init__(self, title: str, total: int, done: int) -> None:
        self.title, self.total, self.done, self.begun = title, total, done, done
        self.since = self.last = time.monotonic()
        self.written = -1  # count of the last line

    def advance(self, n: int = 1, **numbers: float) -> None:
        self.done += n
        metrics = texts(numbers)
        now = time.monotonic()
        if metrics or (now - self.last >= EVERY and n):
            self._write(metrics, now)

    def end(self) -> None:
        """Writes the last count, unless the last line has it."""
        if self.written != self.done and self.done > self.begun:
            self._write([], time.monotonic())

    def _write(self, metrics: list[str], now: float) -> None:
        took = now - self.since
        left = (self.total - self.done) * took / max(self.done - self.begun, 1)
        clock = f"ETA {_clock(left)}" if self.done < self.total else f"took {_clock(took)}"
        log.info("%s %d/%d: %s", self.title, self.done, self.total, ", ".join([*metrics, clock]))
        self.last, self.written = now, self.done


def _clock(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))
