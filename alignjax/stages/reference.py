"""The reference model, and its log-probabilities: precomputed, or computed on the fly.

A table is keyed by everything it depends on: the reference's weights, the model's shape and dtype,
and the prepared rows (which stand for data, tokenizer, template and truncation). Once it is full
the reference's weights are not needed and are freed.
"""

import dataclasses
import functools
import hashlib
import json
import logging
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from jax.sharding import Mesh

from alignjax.config.fields import identity
from alignjax.data.batching import Bucketed
from alignjax.data.store import npy
from alignjax.models.config import ModelConfig
from alignjax.models.logps import score_responses
from alignjax.runtime import artifacts, storage
from alignjax.runtime.map_rows import map_rows
from alignjax.stages.check import count_responses, keeps_cache
from alignjax.stages.data import cache_dir
from alignjax.stages.run import Run
from alignjax.types import Params

log = logging.getLogger("alignjax")


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """The network that a policy starts from and is compared with.

    It is read from disk, or made from the seed, where it is needed, and freed afterwards.
    """

    load: Callable[[], Params]  # on the run's mesh
    digest: str  # of the parameters
    # Of a policy that is a base with adapters: these alone, which training goes on from.
    load_adapters: Callable[[], Params] | None = None


@dataclasses.dataclass(frozen=True)
class Choice:
    """How a run gets the reference log-probabilities, and why."""

    mode: str  # cache | live | none
    reason: str

    @property
    def text(self) -> str:
        """What the log says."""
        words = {"cache": "precomputed", "live": "computed on the fly", "none": "none"}
        return f"{words[self.mode]} ({self.reason})"


def attach(
    run: Run,
    reference: Reference,
    title: str,
    *,
    trained_rows: int,
    params: Params | None = None,
) -> tuple[np.ndarray | None, Choice]:
    """Chooses how reference log-probabilities are computed: by cost, or by ``reference.mode``.

    Args:
      run: its training rows are those of the steps, its cache holds the table.
      reference: scored here, where a table has to be filled.
      title: of the progress bar of that.
      trained_rows: rows over all steps.
      params: the reference's, where they are loaded already.

    Returns:
      ``[N, K]`` nats where steps read them from a table; and how, and why.
    """
    config, rows = run.config, run.data.train
    count, responses = rows.dataset.response_length.shape
    choice = choose(
        config.reference.mode,
        rows=count,
        responses=responses,
        trained_rows=trained_rows,
        scored=count_responses(config, rows),
        cacheable=keeps_cache(config, rows),
        cached=artifacts.is_whole(*_table(run, rows, reference.digest)),
    )
    log.info("reference log-probs: %s", choice.text)
    cached = choice.mode == "cache"
    return table(run, rows, reference, title, params=params) if cached else None, choice


def choose(
    mode: str,
    *,
    rows: int,
    responses: int,
    trained_rows: int,
    scored: int,
    cacheable: bool,
    cached: bool,
) -> Choice:
    """Picks the cheaper way: precompute all responses, or compute some of them in every step.

    Args:
      mode: ``auto``, or what the config insists on.
      rows: N, rows of the dataset.
      responses: K, responses per row.
      trained_rows: rows over the whole run, every epoch counted.
      scored: K', responses per row that a step scores (K without a ``select``).
      cacheable: the responses that a step scores are the row's own; others are in no cache.
      cached: the table is on disk already.
    """
    cache, live = rows * responses, trained_rows * scored
    counts = f"forward passes: {cache:,} to precompute, {live:,} on the fly"
    if mode != "auto":
        return Choice(mode, f"reference.mode={mode}" + (f" ({counts})" if mode != "none" else ""))
    if not cacheable:
        return Choice("live", "select adds responses that cannot be precomputed")
    if cached:
        return Choice("cache", "found on disk")
    # A tie goes to the cache: it frees the reference's weights, and other runs can reuse it.
    return Choice("cache" if cache <= live else "live", counts)


def table(
    run: Run, rows: Bucketed, reference: Reference, title: str, *, params: Params | None = None
) -> np.ndarray:
    """Loads ``[N, K]`` nats of every response under the reference; computes them if need be.

    Args:
      title: of the progress bar.
      params: the reference's, where they are loaded already.
    """
    path, key = _table(run, rows, reference.digest)

    def make(scratch: pathlib.Path) -> None:
        logps = dataset_logps(
            reference.load() if params is None else params,
            rows,
            config=run.config.model,
            batch_size=run.config.evaluate.batch_size,
            mesh=run.mesh,
            title=title,
        )
        storage.write(scratch / path.name, npy(logps))

    logps: np.ndarray = artifacts.reuse(
        path, key, make, functools.partial(np.load, allow_pickle=False)
    )
    return logps


def _table(run: Run, rows: Bucketed, reference_digest: str) -> tuple[pathlib.Path, dict[str, Any]]:
    key = table_key(reference_digest, rows, run.config.model)
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return cache_dir(run.config, run.workdir) / "ref_logps" / f"{name}.npy", key


def table_key(reference_digest: str, data: Bucketed, config: ModelConfig) -> dict[str, Any]:
    """Makes the key of a table: all that it depends on, as JSON data."""
    return {"reference": reference_digest, "data": data.dataset.digest, "model": identity(config)}


def dataset_logps(
    params: Params, data: Bucketed, *, config: ModelConfig, batch_size: int, mesh: Mesh, title: str
) -> np.ndarray:
    """Computes log-probabilities of every response of a dataset under one network.

    Returns:
      ``[N, K]`` float32 nats; 0 for absent responses.
    """
    return map_rows(
        lambda batch: score_responses(params, batch, config=config),
        data,
        batch_size=batch_size,
        mesh=mesh,
        title=title,
    )
