"""The run that stages work for, as one value."""

import dataclasses
import pathlib

from jax.sharding import Mesh

from alignjax.config import Config
from alignjax.data.batching import Bucketed
from alignjax.stages.data import Prepared


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
