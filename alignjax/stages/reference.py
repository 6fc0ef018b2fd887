"""The reference's log-probabilities: computed once and kept on disk, or computed in every step.

A cached table is keyed by everything it depends on: the reference's weights, the model's shape and
dtype, and the prepared rows (which stand for data, tokenizer, template and truncation). Once it is
full the reference's weights are not needed and are freed.
"""

import dataclasses
import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Callable

import numpy as np
from jax.sharding import Mesh

from alignjax.config.fields import identity
from alignjax.data.batching import Bucketed
from alignjax.models.config import ModelConfig
from alignjax.models.logps import score_responses
from alignjax.runtime import distributed
from alignjax.runtime.map_rows import map_rows
from alignjax.types import Params

log = logging.getLogger("alignjax")


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """The network that a policy starts from and is compared with.

    It is read from disk, or made from the seed, where it is needed, and freed afterwards.
    """

    load: Callable[[], Params]  # on the run's mesh
    digest: str  # of the parameters


def dataset_logps(
    params: Params, data: Bucketed, *, config: ModelConfig, batch_size: int, mesh: Mesh, title: str
) -> np.ndarray:
    """Log-probabilities of every response of a dataset under one network.

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


def table_key(reference_digest: str, data: Bucketed, config: ModelConfig) -> str:
    """What a cached table depends on, as 16 hex digits."""
    parts = {"reference": reference_digest, "data": data.dataset.digest, "model": identity(config)}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _table_path(cache_dir: pathlib.Path, key: str) -> pathlib.Path:
    return cache_dir / "ref_logps" / f"{key}.npy"


def is_cached(cache_dir: pathlib.Path, key: str) -> bool:
    """Whether a table of this key is on disk."""
    return bool(distributed.broadcast("look for a table", _table_path(cache_dir, key).is_file))


def cached_logps(
    cache_dir: pathlib.Path, key: str, shape: tuple[int, ...], compute: Callable[[], np.ndarray]
) -> np.ndarray:
    """A ``[N, K]`` table from ``cache_dir``, computed and written if it is not there and whole."""
    path = _table_path(cache_dir, key)
    if distributed.broadcast("check a table", lambda: _is_whole(path, shape)):
        return np.load(path, allow_pickle=False)
    table = compute()
    distributed.run_on_main("write a table", lambda: _write_table(path, table))
    return table


def _is_whole(path: pathlib.Path, shape: tuple[int, ...]) -> bool:
    check = path.with_suffix(".sha256")
    if not path.is_file() or not check.is_file():
        return False
    raw = path.read_bytes()
    whole = hashlib.sha256(raw).hexdigest() == check.read_text(encoding="ascii").strip()
    whole = whole and np.load(path, mmap_mode="r", allow_pickle=False).shape == shape
    if not whole:
        log.warning("%s is damaged: computing it again", path)
    return whole


def _write_table(path: pathlib.Path, table: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.stem}.{os.getpid()}.tmp.npy")
    np.save(temporary, table, allow_pickle=False)
    check = path.with_suffix(".sha256")
    check.write_text(hashlib.sha256(temporary.read_bytes()).hexdigest() + "\n", encoding="ascii")
    temporary.replace(path)  # last, so that a killed write leaves no table that looks whole


@dataclasses.dataclass(frozen=True)
class Choice:
    """How the reference is had in this run, and why."""

    mode: str  # cache | live | none
    reason: str


def choose(
    mode: str,
    *,
    rows: int,
    responses: int,
    trained_rows: int,
    drawn: int,
    cacheable: bool,
    cached: bool,
) -> Choice:
    """Picks the cheaper of caching all responses and scoring the drawn ones in every step.

    Args:
      mode: ``auto``, or what the config insists on.
      rows: N, rows of the dataset.
      responses: K, responses per row.
      trained_rows: rows over the whole run, every epoch counted.
      drawn: K', responses per row that a step scores (K without a ``select``).
      cacheable: the drawn responses are the row's own; others are in no cache.
      cached: the table is on disk already.
    """
    cache, live = rows * responses, trained_rows * drawn
    counts = f"{cache:,} response passes to cache, {live:,} live"
    if mode != "auto":
        return Choice(mode, f"reference.mode={mode}" + (f" ({counts})" if mode != "none" else ""))
    if not cacheable:
        return Choice("live", "select adds responses that are in no cache")
    if cached:
        return Choice("cache", "found on disk")
    # A tie goes to the cache: it frees the reference's weights, and other runs can reuse it.
    return Choice("cache" if cache <= live else "live", counts)
