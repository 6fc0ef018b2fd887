"""What a method of several objectives is given, and what it gives back."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from jax.sharding import Mesh

from alignjax.config import Config
from alignjax.data.batching import Bucketed
from alignjax.data.records import Prompt
from alignjax.recipes.multi_objective import ObjectivesConfig
from alignjax.sampling.generate import Question, Sample
from alignjax.stages.data import Prepared
from alignjax.stages.run import Run
from alignjax.types import Params

Preference = tuple[float, ...]  # M weights >= 0 that sum to 1
# Samples to every prompt in the order asked, `evaluate.samples` each, as `generate.respond`.
Respond = Callable[[Preference, Sequence[Question]], list[Sample]]
Method = Callable[..., Respond]  # (setting, *, hyperparameters); trains, and goes on if killed


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
    """One run of several objectives, up to where its method begins."""

    config: Config
    workdir: pathlib.Path
    data: Prepared
    mesh: Mesh
    load_reference: Callable[[], Params]  # the supervised policy, on the mesh
    digest: str  # of its parameters
    objectives: ObjectivesConfig

    def training(self, name: str, config: Config, rows: Bucketed) -> Run:
        """The run of one training inside a method: a folder, a config and rows of its own."""
        run = Run(config, self.workdir / name, self.data, self.mesh)
        return run.on(rows)

    @property
    def run(self) -> Run:
        return Run(self.config, self.workdir, self.data, self.mesh)


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Every training response with its scores, in the order of the data. N responses."""

    ids: tuple[str, ...]  # of the records they belong to: responses to one prompt share theirs
    prompts: tuple[Prompt, ...]
    responses: tuple[str, ...]
    scores: np.ndarray  # [N, M] float64, larger is better, as ``objectives.names`` orders them


def normalised(weights: Sequence[float]) -> Preference:
    """The preference of these weights: scaled to sum to 1."""
    total = sum(weights)
    return tuple(w / total for w in weights)
