"""Computes the reference's log-probabilities: precomputed in a table, or in every step.

The key of a table has everything it depends on: the reference's weights, the model's shape and
dtype, and the prepared rows (and with them data, tokenizer, template and truncation). When the
table is complete, the reference's weights are freed.
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
    """The network from which a policy starts and with which it is compared.

    It is loaded, or made from the seed, whenever it is needed, and freed afterwards.
    """

    load: Callable[[], Params]  # loads it onto the run's mesh
    digest: str  # of the parameters
    # If the reference is a base with adapters: loads the adapters, to continue their training.
    load_adapters: Callable[[], Params] | None = None


@dataclasses.dataclass(frozen=True)
class Choice:
    """How a run computes the reference's log-probabilities, and why."""

    mode: str  # cache | live | none
    reason: str

    @property
    def text(self) -> str:
        """The text for the log."""
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
      run: has the training rows; its cache holds the table.
      reference: scored here if a table has to be computed.
      title: title of the progress bar.
      trained_rows: rows over all steps.
      params: the reference's parameters, if they are loaded.

    Returns:
      The table, ``[N, K]`` nats, or None; and the choice.
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
    """Chooses the cheaper way: precompute all responses, or score some in every step.

    Args:
      mode: ``auto``, or the config's choice.
      rows: N, rows of the dataset.
      responses: K, responses per row.
      trained_rows: rows over all epochs of the run.
      scored: K', responses per row that a step scores (K without a ``select``).
      cacheable: whether a step scores only the row's own responses, and only as wholes.
      cached: whether the table exists on disk.
    """
    cache, live = rows * responses, trained_rows * scored
    counts = f"forward passes: {cache:,} to precompute, {live:,} on the fly"
    if mode != "auto":
        return Choice(mode, f"reference.mode={mode}" + (f" ({counts})" if mode != "none" else ""))
    if not cacheable:
        return Choice("live", "a step scores what cannot be precomputed")
    if cached:
        return Choice("cache", "found on disk")
    # Prefer the cache if costs are equal: it frees the weights, and other runs can reuse it.
    return Choice("cache" if cache <= live else "live", counts)


def table(
    run: Run, rows: Bucketed, reference: Reference, title: str, *, params: Params | None = None
) -> np.ndarray:
    """Loads or computes the log-probability of every response under the reference, ``[N, K]`` nats.

    Args:
      run, rows: the run, and the dataset.
      reference: the network.
      title: title of the progress bar.
      params: the reference's parameters, if they are loaded.
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
    """Makes the key of a table, as JSON data."""
    return {"reference": reference_digest, "data": data.dataset.digest, "model": identity(config)}


def dataset_logps(
    params: Params, data: Bucketed, *, config: ModelConfig, batch_size: int, mesh: Mesh, title: str
) -> np.ndarray:
    """Computes the log-probability of every response of a dataset under a network.

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
