"""Defines `Run`, the value that all stages receive."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from alignjax.config import Config, SamplingConfig
from alignjax.data.batching import Batches, Bucketed, deal_batches, shuffled
from alignjax.runtime import storage
from alignjax.runtime.distributed import run_on_main
from alignjax.runtime.metrics import NOBODY, Watch
from alignjax.sampling.generate import Sampling
from alignjax.stages.data import Prepared
from alignjax.training.job import Job
from alignjax.types import Array


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """The config, folder, data and devices of a run; made by `recipes.run.open_run`.

    A stage with its own config, folder or rows gets a copy with these replaced.
    """

    config: Config  # resolved: with the shape of the model in ``model.path``
    workdir: pathlib.Path
    data: Prepared
    mesh: Mesh
    watch: Watch = NOBODY  # for the alignment, not for stages before it

    def on(self, rows: Bucketed) -> "Run":
        """Returns the same run with other training rows."""
        return dataclasses.replace(self, data=dataclasses.replace(self.data, train=rows))

    def add_to_report(self, section: str, content: Mapping[str, Any]) -> None:
        """Adds to a section of data_report.json."""
        path = self.workdir / "data_report.json"

        def write() -> None:
            known = storage.read_here(path) if path.is_file() else {}
            wanted = known | {section: {**known.get(section, {}), **content}}
            if wanted != known:
                storage.keep_here(path, wanted)

        run_on_main("data_report.json", write)

    def note_cuts(self, where: str, cuts: Mapping[str, int]) -> None:
        """Adds to data_report.json how many texts reward models truncated; see `Cuts`."""
        if cuts:
            self.add_to_report("scored", {where: dict(cuts)})

    def batches(self) -> Batches:
        """Schedules all batches, as a function of the rows' lengths, batch size and seed."""
        train, rows = self.config.train, self.data.train
        count = len(rows.dataset)
        return deal_batches(
            rows.shapes,
            rows.assignment,
            batch_size=train.batch_size,
            order=shuffled(count, train.seed),
            rows=0 if train.steps else max(1, round(train.epochs * count)),
            batches=train.steps,
        )

    def job(
        self,
        name: str,
        reference_digest: str,
        more: dict[str, Any] | None = None,
        *,
        extendable: bool = False,
    ) -> Job:
        """Makes the job of a training in the run's folder.

        Args:
          name: for messages and the progress bar.
          reference_digest: digest of the reference's parameters.
          more: other parts of the identity, which a checkpoint must have to be continued.
          extendable: see `Job`; False for a stage on whose result others build.
        """
        identity = {
            "data": self.data.train.dataset.digest,
            "tokenizer": self.data.tokenizer.digest,
            "reference": reference_digest,
            **(more or {}),
        }
        return Job(
            name=name,
            workdir=self.workdir,
            mesh=self.mesh,
            identity=identity,
            train=self.config.train,
            extendable=extendable,
            watch=self.watch,
        )

    def sampling(self, settings: SamplingConfig, title: str, key: Array | None = None) -> Sampling:
        """Makes the sampling of the run's networks.

        Args:
          settings: number of responses per prompt, temperature and so on.
          title: title of the progress bar.
          key: PRNG key; None: from the run's seed.
        """
        return Sampling(
            model=self.config.model,
            tokenizer=self.data.tokenizer,
            settings=settings,
            key=jax.random.key(self.config.train.seed) if key is None else key,
            mesh=self.mesh,
            title=title,
        )
