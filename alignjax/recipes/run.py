"""Opens a run, the first step of every recipe: folder, config, data, devices."""

import contextlib
import dataclasses
import logging
import math
import pathlib
import shlex
from collections.abc import Callable, Iterator, Sequence

import optax

from alignjax.config import Config
from alignjax.config.fields import describe
from alignjax.data.batching import Bucketed
from alignjax.evaluation import findings, report, tables
from alignjax.runtime import loggers, sharding, storage, watchdog, workdirs
from alignjax.runtime.distributed import broadcast, is_main
from alignjax.stages import pretrained
from alignjax.stages.check import bind_fraction, check_losses, check_scorers
from alignjax.stages.data import prepare_data
from alignjax.stages.run import Run
from alignjax.training import compiled
from alignjax.training.job import Learner

log = logging.getLogger("alignjax")


@contextlib.contextmanager
def open_run(
    config: Config,
    workdir: str | pathlib.Path,
    allow_config_change: bool = False,
    *,
    check: Callable[[Config, Bucketed], None] = check_losses,
) -> Iterator[Run]:
    """Prepares the data and checks the config's functions, before anything is trained.

    Args:
      config: from the config file.
      workdir: the run's folder, locked inside the block.
      allow_config_change: continue a run that began with another config.
      check: tries the config's functions on the shapes of the training rows.

    Raises:
      UserError: see `alignjax.errors` for the kinds and their exit codes.
    """
    loggers.check(config.train.loggers)
    workdir, config = pathlib.Path(workdir), pretrained.resolve(config)
    with (
        watchdog.watching(config.train.stuck_after),
        workdirs.owned(workdir),
        workdirs.bound(workdir, config, allow_change=allow_config_change),
    ):
        pretrained.keep_files(config, workdir)
        data = prepare_data(config, workdir)
        config = bind_fraction(config, data.train)
        check(config, data.train)
        check_scorers(config, data)
        if config.select is None:  # otherwise a step's responses are not known yet
            compiled.check_longest(data.train.dataset, config.train.microbatch_tokens)
        _warn(findings.of_data(describe(config), data.report))
        mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
        yield Run(config, workdir, data, mesh)
        if (workdir / "summary.json").is_file():
            _warn(broadcast("report.html", lambda: report.write(workdir)))
            tables.say(f"report: {workdir / 'report.html'}")
        # `align` and `online` train one policy.
        if config.loss is not None and (config.recipe is None or config.candidates is not None):
            named = shlex.quote(str(workdir))
            tables.say(f"chat with it: python -m alignjax chat --model={named}")
            tables.say(f"export it: python -m alignjax export --workdir={named} --to=FOLDER")
        tables.say(_kept(workdir))


def _warn(sentences: Sequence[str]) -> None:
    for sentence in sentences if is_main() else ():
        log.warning("look at this: %s", sentence)


def optimized(learner: Learner, optimizer: optax.GradientTransformation) -> Learner:
    """Replaces the optimizer by one with an unknown learning rate."""
    update = dataclasses.replace(learner.update, optimizer=optimizer)
    return dataclasses.replace(learner, update=update, learning_rate=lambda step: math.nan)


def _kept(workdir: pathlib.Path) -> str:
    """Describes what a finished run keeps on disk, largest first."""
    sizes = storage.sizes(workdir)
    largest = sorted(sizes, key=lambda name: -sizes[name])[:4]
    listed = ", ".join(f"{name} {sizes[name] / 2**20:,.1f}" for name in largest)
    line = f"kept in {workdir}: {sum(sizes.values()) / 2**20:,.1f} MiB ({listed})"
    if "checkpoints" in sizes:
        line += "; to train longer, run it again with more train.steps and --allow_config_change"
    return line
