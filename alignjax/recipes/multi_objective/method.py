"""The types that methods of several objectives share."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Annotated

import numpy as np

from alignjax import errors
from alignjax.commands.policies import Network, Policies, Preference
from alignjax.config import Config
from alignjax.data.batching import Bucketed
from alignjax.data.records import Prompt
from alignjax.recipes.multi_objective import ObjectivesConfig
from alignjax.stages.reference import Reference
from alignjax.stages.run import Run

# (setting, *, hyperparameters): trains, resumes if it was killed, and returns where the networks
# are and how to respond for a preference.
Method = Callable[..., Policies]
# Annotates the hyperparameter of a method for the number of networks that it trains in one program;
# `alignjax.planning` finds it by this annotation.
AtOnce = Annotated[int, "networks in one program"]


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
    """The input of a method: a run up to its supervised policy, and the objectives."""

    run: Run
    reference: Reference  # the supervised policy
    objectives: ObjectivesConfig

    @property
    def preferences(self) -> list[Preference]:
        """The preferences of the config, each scaled to sum to 1."""
        return [normalise(weights) for weights in self.objectives.preferences]

    def policies(self, way: str, networks: Sequence[Network]) -> Policies:
        """Makes the result of a method, see `alignjax.commands.policies`."""
        return Policies(
            objectives=self.objectives.names,
            preferences=tuple(self.preferences),
            identity={
                "data": self.run.data.train.dataset.digest,
                "tokenizer": self.run.data.tokenizer.digest,
                "reference": self.reference.digest,
            },
            way=way,
            networks=tuple(networks),
        )

    def stage(self, config: Config, rows: Bucketed) -> Run:
        """Makes the run of one training inside the method, with its own config and rows."""
        return dataclasses.replace(self.run, config=config).on(rows)


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Every training response with its scores, in the order of the data. N responses."""

    ids: tuple[str, ...]  # of their records; responses to one prompt have the same
    prompts: tuple[Prompt, ...]
    responses: tuple[str, ...]
    scores: np.ndarray  # [N, M] float64, larger is better, in the order of ``objectives.names``


def require(valid: bool, name: str, wanted: str, found: object) -> None:
    """Raises a `UserError` about a hyperparameter of a method unless it is valid."""
    errors.require(valid, f"recipe.objectives.method.{name}", wanted, found)


def normalise(weights: Sequence[float]) -> Preference:
    """Scales weights to sum to 1."""
    total = sum(weights)
    return tuple(w / total for w in weights)
