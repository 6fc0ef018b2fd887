"""The recipes: functions that run all stages. A config names one of them.

    recipe=recipes.train_reward_model
    recipe=partial(recipes.play_rounds, game=recipes.RoundsConfig(...))

Settings that only one recipe reads are bound to it. Every stage saves its result, so a resumed run
continues with the first unfinished stage. The modules of the recipes are imported when they are
called, because configs must load quickly.
"""

import pathlib
from typing import Any

from alignjax.config import Config
from alignjax.errors import UserError
from alignjax.recipes.apo.config import RoundsConfig, StepsConfig
from alignjax.recipes.multi_objective import ObjectivesConfig

__all__ = [
    "ObjectivesConfig",
    "RoundsConfig",
    "StepsConfig",
    "align_policy",
    "play_rounds",
    "play_steps",
    "run_config",
    "trace_front",
    "train_online",
    "train_reward_model",
]


def run_config(
    config: Config, workdir: str | pathlib.Path, allow_config_change: bool = False
) -> dict[str, Any]:
    """Runs the recipe of a config; resumes if the workdir contains a run.

    Args:
      config: its ``recipe`` is called; if it is None, `align_policy`.
      workdir: the run's folder.
      allow_config_change: continue a run that began with another config.

    Returns:
      The content of ``summary.json``.

    Raises:
      UserError: see `alignjax.errors` for the kinds and their exit codes.
    """
    recipe = config.recipe or align_policy
    summary: dict[str, Any] = recipe(config, workdir, allow_config_change)
    return summary


def align_policy(
    config: Config, workdir: str | pathlib.Path, allow_config_change: bool = False
) -> dict[str, Any]:
    """Aligns a policy on preferences and measures it, see `recipes.align`."""
    if config.loss is None:
        raise UserError("loss: wanted one, or recipe=recipes.train_reward_model; found none")
    from alignjax.recipes import align

    return align.run(config, workdir, allow_config_change)


def train_reward_model(
    config: Config, workdir: str | pathlib.Path, allow_config_change: bool = False
) -> dict[str, Any]:
    """Trains a reward model, calibrates and measures it, see `recipes.reward_model`."""
    if config.reward_loss is None:
        raise UserError("reward_loss: wanted one with train_reward_model, found none")
    from alignjax.recipes import reward_model

    return reward_model.run(config, workdir, allow_config_change)


def train_online(
    config: Config,
    workdir: str | pathlib.Path,
    allow_config_change: bool = False,
    *,
    updates: int = 1,
    opponent: float | None = None,
) -> dict[str, Any]:
    """Trains a policy on its own samples, drawn at every step, see `recipes.online`."""
    if config.loss is None:
        raise UserError("loss: wanted one with train_online, such as grpo.loss; found none")
    from alignjax.recipes import online

    return online.run(config, workdir, allow_config_change, updates=updates, opponent=opponent)


def play_rounds(
    config: Config,
    workdir: str | pathlib.Path,
    allow_config_change: bool = False,
    *,
    game: RoundsConfig,
) -> dict[str, Any]:
    """Trains a reward model and a policy against each other in rounds, see `recipes.apo.rounds`."""
    from alignjax.recipes.apo import rounds

    return rounds.run(config, workdir, game, allow_config_change)


def play_steps(
    config: Config,
    workdir: str | pathlib.Path,
    allow_config_change: bool = False,
    *,
    game: StepsConfig,
) -> dict[str, Any]:
    """Trains both in turns inside one loop, on new samples, see `recipes.apo.stepwise`."""
    from alignjax.recipes.apo import stepwise

    return stepwise.run(config, workdir, game, allow_config_change)


def trace_front(
    config: Config,
    workdir: str | pathlib.Path,
    allow_config_change: bool = False,
    *,
    objectives: ObjectivesConfig,
) -> dict[str, Any]:
    """Trains policies for several objectives and measures their front.

    See `recipes.multi_objective.run`.
    """
    from alignjax.recipes.multi_objective import run

    return run.run(config, workdir, objectives, allow_config_change)
