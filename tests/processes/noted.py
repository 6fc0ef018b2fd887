"""A small run on four devices, of which every process notes what it read to train on.

A process writes ``rows-I.json`` into $ALIGNJAX_NOTES: the prompt ids of every batch that it put on
the mesh, by stage, and which rows of the data it opened meanwhile.
"""

import dataclasses
import json
import os
import pathlib
from functools import partial
from typing import Any

from alignjax.config import Config
from alignjax.data.store import Dataset
from alignjax.losses import hps
from alignjax.training import loop, offline
from alignjax.training.job import Feed, Job, Learner
from alignjax.world import sources as world
from tests import runs


def get_config() -> Config:
    """HPS from a supervised stage with a cached reference; the last held-out batch is not full."""
    _note(pathlib.Path(os.environ["ALIGNJAX_NOTES"]))
    base = runs.changed(
        *("sft.steps=2", "reference.mode=cache", "mesh.fsdp=2", "mesh.tensor=2"),
    )
    source = partial(world.lists, size=60, seed=0, responses=3)
    return dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, source=source),
        loss=hps.loss,
        select=partial(hps.select, gamma=hps.curriculum()),  # type: ignore[arg-type]
    )


def _note(folder: pathlib.Path) -> None:
    put_rows, fit, read = loop.put_rows, offline.fit, Dataset.__getitem__
    batches: dict[str, list[list[int]]] = {}
    opened: dict[str, set[int]] = {}
    data: Any = None
    stage = ""

    def putting(batch: Any, mesh: Any) -> Any:
        batches[stage].append(batch.prompt_id.tolist())
        told = {"batches": batches, "opened": {name: sorted(x) for name, x in opened.items()}}
        index = os.environ.get("JAX_PROCESS_ID", "0")
        (folder / f"rows-{index}.json").write_text(json.dumps(told), encoding="utf-8")
        return put_rows(batch, mesh)

    def fitting(job: Job, learner: Learner, feed: Feed, *rest: Any) -> Any:
        nonlocal data, stage
        stage, data = job.name, feed.dataset
        batches[stage], opened[stage] = [], set()
        out = fit(job, learner, feed, *rest)
        data = None
        return out

    def reading(self: Dataset, row: int) -> Any:
        if self is data:
            opened[stage].add(int(row))
        return read(self, row)

    loop.put_rows, offline.fit = putting, fitting
    Dataset.__getitem__ = reading  # type: ignore[method-assign]
