"""The held-out rows of a run: their log-probabilities, and how the data order them."""

import numpy as np

from alignjax.data.batching import Bucketed
from alignjax.stages import reference
from alignjax.stages.run import Run
from alignjax.types import Params


def logps(run: Run, params: Params, title: str) -> np.ndarray:
    """``[N, K]`` nats of every held-out response under one network."""
    return reference.dataset_logps(
        params,
        run.data.held_out,
        config=run.config.model,
        batch_size=run.config.evaluate.batch_size,
        mesh=run.mesh,
        title=title,
    )


def order(rows: Bucketed) -> np.ndarray | None:
    """``[N, K]`` scores that order the held-out responses; None where index 0 is the chosen one.

    Rows with several objectives have no one order: theirs are all NaN, and say nothing.
    """
    by_label = labels(rows)
    table = np.full(rows.dataset.response_length.shape, np.nan)
    for i in range(len(rows.dataset)):
        scores = rows.dataset[i].scores
        if scores is None:
            return None if by_label is None else by_label.astype(np.float64)
        if scores.shape[1] == 1:
            table[i, : len(scores)] = scores[:, 0]
    return table


def labels(rows: Bucketed) -> np.ndarray | None:
    """``[N, K]`` which responses are desirable; None without labels."""
    if not sum(rows.dataset.labels):
        return None
    table = np.zeros(rows.dataset.response_length.shape, bool)
    for i in range(len(rows.dataset)):
        desirable = rows.dataset[i].desirable
        assert desirable is not None  # preparation refuses rows of several kinds
        table[i, : len(desirable)] = desirable
    return table
