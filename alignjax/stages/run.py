"""The run that stages work for, as one value."""

import dataclasses
import pathlib

import jax
from jax.sharding import Mesh

from alignjax.config import Config, SamplingConfig
from alignjax.data.batching import Bucketed
from alignjax.sampling.generate import Sampling
from alignjax.stages.data import Prepared
from alignjax.types import Array


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """The settings, the folder, the data and the devices of a run; made by `recipes.run.open_run`.

    A stage with a config, a folder or rows of its own gets a copy with those replaced.
    """

    config: Config  # resolved: the model's shape is that of ``model.path``
    workdir: pathlib.Path
    data: Prepared
    mesh: Mesh

    def on(self, rows: Bucketed) -> "Run":
        """The same run, trained on other rows."""
        return dataclasses.replace(self, data=dataclasses.replace(self.data, train=rows))

    def sampling(self, settings: SamplingConfig, title: str, key: Array | None = None) -> Sampling:
        """How networks of the run respond.

        Args:
          settings: how many responses to each prompt, and how to draw them.
          title: of the progress bar.
          key: of every draw; None: that of the run's seed.
        """
        return Sampling(
            model=self.config.model,
            tokenizer=self.data.tokenizer,
            settings=settings,
            key=jax.random.key(self.config.train.seed) if key is None else key,
            mesh=self.mesh,
            title=title,
        )
