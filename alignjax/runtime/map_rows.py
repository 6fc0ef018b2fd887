"""Applies a compiled function to a dataset, batch by batch; fetches results one batch late."""

from collections.abc import Callable

import numpy as np
from jax.sharding import Mesh

from alignjax.data.batching import Bucketed, read
from alignjax.runtime import distributed
from alignjax.runtime.loggers.bars import progress
from alignjax.runtime.sharding import fitting, own_rows, put_rows
from alignjax.types import Array, Batch


def map_rows(
    function: Callable[[Batch], Array], data: Bucketed, *, batch_size: int, mesh: Mesh, title: str
) -> np.ndarray:
    """Applies a compiled function to every response of a dataset, with a progress bar.

    Args:
      function: ``batch -> [B, K]`` or ``[B, K, M]``.
      data: N >= 1 rows.
      batch_size: the most prompts at a time.
      mesh: the devices.
      title: title of the progress bar.

    Returns:
      ``[N, K]`` or ``[N, K, M]`` float32.
    """
    table: np.ndarray | None = None
    batch_size = min(batch_size, fitting(len(data.dataset), mesh))
    batches = data.in_order(batch_size)
    own = batches.only(own_rows(mesh, batch_size))
    # While the device computes a batch, the host fetches the results of the one before.
    waiting: list[tuple[np.ndarray, Array]] = []

    def fetch() -> None:
        nonlocal table
        rows, computed = waiting.pop(0)
        values = distributed.fetch(computed)
        if table is None:
            k = data.dataset.response_length.shape[1]
            table = np.zeros((len(data.dataset), k, *values.shape[2:]), np.float32)
        table[rows[rows >= 0]] = values[rows >= 0]

    with progress(title, len(data.dataset)) as advance:
        for rows, batch in zip(batches.rows, read(data.dataset, own), strict=True):
            waiting.append((rows, function(put_rows(batch, mesh))))
            if len(waiting) > 1:
                fetch()
            advance(int((rows >= 0).sum()))
        while waiting:
            fetch()
    assert table is not None
    return table
