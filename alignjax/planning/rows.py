"""Makes rows instead of a run's data for a plan: of the maximum length, or as shapes on a mesh."""

import json
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from alignjax.config import Config
from alignjax.data.batching import Bucketed, bucket
from alignjax.data.store import Dataset
from alignjax.runtime import sharding


def on_mesh(batch: Any, mesh: Mesh) -> Any:
    """Describes a batch whose rows are split over the mesh."""
    split = sharding.row_sharding(mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split), batch)


def everywhere(mesh: Mesh, value: Any) -> Any:
    """Describes an array, given as a function that makes it, with a copy on each device."""
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return sharding.abstract(jax.eval_shape(value), replicated)


def two_rows(
    config: Config,
    k: int,
    *,
    labels: bool = False,
    scored: bool = False,
    adversarial: bool = False,
) -> Bucketed:
    """Makes two rows of k responses of the maximum length."""
    data = config.data
    lengths = np.full(k, data.max_response_tokens, np.int64)
    row: dict[str, Any] = {
        "id": b"",
        "domain": b"",
        "prompt": b"",
        "responses": json.dumps([""] * k).encode(),
        "prompt_ids": np.zeros(data.max_prompt_tokens, np.int32),
        "response_ids": np.zeros(lengths.sum(), np.int32),
        "response_length": lengths,
        "scores": np.arange(k, dtype=np.float32) if scored else np.zeros(0, np.float32),
        "desirable": np.zeros(k if labels else 0, np.int64),
    }
    other = {**row, "desirable": row["desirable"] + 1}
    dataset = Dataset(
        prompt_length=np.full(2, data.max_prompt_tokens, np.int32),
        response_length=np.tile(lengths, (2, 1)).astype(np.int32),
        objectives=("score",) if scored else (),
        labels=(k, k) if labels else (0, 0),
        digest="",
        report={},
        path="",
        _rows=[row, other],
        adversarial=np.ones(2, bool) if adversarial else None,
    )
    return bucket(dataset, count=1, multiple=data.pad_multiple)
