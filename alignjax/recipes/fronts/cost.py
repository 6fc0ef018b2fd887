"""What methods of several objectives cost: device seconds of steps and of sampling, by part.

Not the clock of the whole run: reading, compiling, saving and measuring are left out. Training
counts as `train.fit` counts, sampling as `timed` does, both over all starts of a killed run. With
others on the same device their share is in it.
"""

import contextlib
import pathlib
import time
from collections.abc import Iterator

import jax

from alignjax.recipes.fronts.setting import Setting


@contextlib.contextmanager
def timed() -> Iterator[list[float]]:
    """Yields a list that holds the block's seconds once it is left, without those of compiling.

    Tracing counts as compiling. For blocks that wait for their results: what is still running on
    the device is not counted.
    """
    spans: list[tuple[float, float]] = []
    took: list[float] = []

    # JAX calls it with whatever it knows of an event.
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
        for start, end in sorted(spans):  # one lies inside another where jits are nested
            compiling += max(0.0, end - max(start, reached))
            reached = max(reached, end)
        took.append(max(0.0, until - since - compiling))


def note_seconds(setting: Setting, name: str, seconds: float) -> None:
    """Keeps the time that a part of a method took; told again, the new time stands."""
    from alignjax.recipes import workdirs

    folder = setting.workdir / "seconds"
    folder.mkdir(exist_ok=True)
    workdirs.write_json(folder / f"{name.replace('/', '-')}.json", seconds)


def seconds(workdir: pathlib.Path) -> dict[str, float]:
    """What every part of a run's method took, by name."""
    from alignjax.recipes import workdirs

    return {p.stem: workdirs.read_json(p) for p in sorted((workdir / "seconds").glob("*.json"))}
