"""Rows -> batches: a few padded shapes, which rows make up which batch, and arrays read ahead.

Which rows make up batch i of a whole run is a pure function of the rows' lengths and the seed.
The data position is therefore one integer, the index of the next batch, whatever the number of
devices, processes or reading threads.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, cast

import numpy as np

from alignjax.data.store import Dataset, Example
from alignjax.types import Batch


@dataclasses.dataclass(frozen=True)
class Shape:
    """The lengths that the rows of a batch are padded to, in tokens."""

    prompt: int
    response: int


@dataclasses.dataclass(frozen=True)
class Batches:
    """Every batch of a run, in order."""

    shapes: tuple[Shape, ...]
    shape: np.ndarray  # [batches] index into shapes
    rows: np.ndarray  # [batches, B] dataset rows; -1 fills up the last batch of a shape

    def __len__(self) -> int:
        return len(self.rows)

    def only(self, places: np.ndarray) -> "Batches":
        """Keeps of every batch the rows at these places: those that one process reads."""
        return dataclasses.replace(self, rows=self.rows[:, places])

    @property
    def row_count(self) -> int:
        """Rows over all batches, fillers not counted."""
        return int((self.rows >= 0).sum())


def choose_shapes(
    prompt_length: np.ndarray, response_length: np.ndarray, *, count: int, multiple: int
) -> tuple[tuple[Shape, ...], np.ndarray]:
    """Chooses few shapes that waste little: splits the rows where that saves most padding.

    Starts from one shape for all rows and splits greedily, by prompt or by response length at any
    threshold, whichever leaves the fewest padded tokens.

    Args:
      prompt_length: ``[N]`` tokens.
      response_length: ``[N, K]`` tokens; a row is as long as its longest response.
      count: shapes at most; each one compiles once.
      multiple: token counts are rounded up to a multiple of it.

    Returns:
      The shapes, shortest first, and ``[N]`` the shape of every row.
    """
    k = response_length.shape[1]
    up = np.stack([prompt_length, response_length.max(axis=1)], axis=1)
    up = np.maximum(-(-up // multiple) * multiple, multiple)

    def cost(rows: np.ndarray) -> int:
        if not len(rows):
            return 0
        prompt, response = up[rows].max(axis=0)
        return len(rows) * int(prompt + k * response)

    def splits() -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
        """Every split of a group in two: the tokens it saves, the group, its two parts."""
        for i, rows in enumerate(groups):
            whole = cost(rows)
            for axis in (0, 1):
                for edge in np.unique(up[rows, axis])[:-1]:
                    short = up[rows, axis] <= edge
                    low, high = rows[short], rows[~short]
                    yield whole - cost(low) - cost(high), i, low, high

    groups: list[np.ndarray] = [np.arange(len(up))]
    while len(groups) < count:
        best = max(splits(), key=lambda split: split[0], default=None)
        if best is None or best[0] <= 0:
            break
        _, i, low, high = best
        groups[i : i + 1] = [low, high]
    shapes = [Shape(*(int(x) for x in up[rows].max(axis=0))) for rows in groups]
    order = sorted(range(len(groups)), key=lambda i: (shapes[i].prompt + k * shapes[i].response, i))
    assignment = np.zeros(len(up), np.int32)
    for rank, i in enumerate(order):
        assignment[groups[i]] = rank
    return tuple(shapes[i] for i in order), assignment


def shuffled(rows: int, seed: int) -> Iterator[int]:
    """Yields row indices without end: every epoch holds each row once, in its own order."""
    import grain

    order = grain.MapDataset.range(rows).seed(seed).shuffle().repeat()
    for position in range(np.iinfo(np.int64).max):
        yield int(order[position])


def deal_batches(
    shapes: tuple[Shape, ...],
    assignment: np.ndarray,
    *,
    batch_size: int,
    order: Iterable[int],
    rows: int = 0,
    batches: int = 0,
) -> Batches:
    """Deals rows to batches, in order; each batch holds rows of one shape.

    A batch leaves when its shape has ``batch_size`` rows waiting. Rows still waiting at the end of
    an epoch come first in the next; those waiting at the very end leave in batches filled up with
    rows of weight 0, so that over the run no row is lost.

    Args:
      shapes, assignment: from `choose_shapes`.
      batch_size: rows per batch.
      order: dataset rows, as often as they are to be used.
      rows: stop after so many rows; 0: when ``order`` ends.
      batches: stop after so many batches; 0: no limit. Rows then waiting are not used.
    """
    waiting: list[list[int]] = [[] for _ in shapes]
    shape_of: list[int] = []
    dealt: list[list[int]] = []
    for position, row in enumerate(order):
        if (rows and position == rows) or (batches and len(dealt) == batches):
            break
        queue = waiting[assignment[row]]
        queue.append(row)
        if len(queue) == batch_size:
            shape_of.append(int(assignment[row]))
            dealt.append(queue.copy())
            queue.clear()
    if not batches:
        for shape, queue in enumerate(waiting):
            if queue:
                shape_of.append(shape)
                dealt.append(queue + [-1] * (batch_size - len(queue)))
    return Batches(
        shapes, np.array(shape_of, np.int32), np.array(dealt, np.int64).reshape(-1, batch_size)
    )


def assemble(
    dataset: Dataset, rows: np.ndarray, shape: Shape, ref_logps: np.ndarray | None = None
) -> Batch:
    """Builds one batch, of NumPy arrays.

    Args:
      dataset: the prepared rows.
      rows: ``[B]`` row indices; -1 makes a row of weight 0.
      shape: what to pad to; no row may be longer.
      ref_logps: ``[N, K]`` float32 nats, the reference's log-probabilities of the whole dataset.
    """
    b, k, m = len(rows), dataset.response_length.shape[1], len(dataset.objectives)
    zeros: Any = np.zeros  # a Batch's fields are declared as JAX's arrays
    real: Any = rows >= 0
    batch: Any = Batch(
        prompt=zeros((b, shape.prompt), np.int32),
        prompt_length=zeros(b, np.int32) + 1,
        response=zeros((b, k, shape.response), np.int32),
        response_length=zeros((b, k), np.int32),
        weight=real.astype(np.float32),
        prompt_id=(real * rows).astype(np.int32),
        # Whether there are scores and labels is the dataset's property, not these rows': they may
        # all be fillers while another process's rows are not, and the two must have one shape.
        scores=zeros((b, k, m), np.float32) if m else None,
        desirable=zeros((b, k), bool) if sum(dataset.labels) else None,
    )
    for i in np.flatnonzero(real).tolist():
        _write_row(batch, i, dataset[int(rows[i])])
    if m == 1:
        batch = batch.replace(scores=batch.scores[..., 0])
    if dataset.adversarial is not None:
        batch = batch.replace(adversarial=real & dataset.adversarial[batch.prompt_id])
    if ref_logps is not None:
        logps = np.where(real[:, None], ref_logps[rows], 0.0)
        batch = batch.replace(ref_logps=logps.astype(np.float32))
    return cast(Batch, batch)


def _write_row(batch: Any, i: int, example: Example) -> None:
    """Writes an example into row ``i`` of a batch of NumPy arrays."""
    n = len(example.prompt_ids)
    batch.prompt[i, batch.prompt.shape[1] - n :] = example.prompt_ids
    batch.prompt_length[i] = n
    for j, ids in enumerate(example.response_ids):
        batch.response[i, j, : len(ids)] = ids
        batch.response_length[i, j] = len(ids)
    # Preparation refuses a dataset in which some rows have scores, or labels, and others none.
    if batch.scores is not None:
        assert example.scores is not None
        batch.scores[i, : len(example.scores)] = example.scores
    if batch.desirable is not None:
        assert example.desirable is not None
        batch.desirable[i, : len(example.desirable)] = example.desirable


def read(
    dataset: Dataset, batches: Batches, *, start: int = 0, ref_logps: np.ndarray | None = None
) -> Iterator[Batch]:
    """The batches ``start, start + 1, ...`` of a run, read ahead by background threads."""
    import grain

    def one(i: int) -> Batch:
        return assemble(dataset, batches.rows[i], batches.shapes[batches.shape[i]], ref_logps)

    ahead = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
    yield from grain.MapDataset.range(start, len(batches)).map(one).to_iter_dataset(ahead)


@dataclasses.dataclass(frozen=True)
class Bucketed:
    """A dataset with the shapes its rows are padded to."""

    dataset: Dataset
    shapes: tuple[Shape, ...]
    assignment: np.ndarray  # [N] index into shapes

    def in_order(self, batch_size: int) -> Batches:
        """Every row once, no shuffling: for scoring and sampling."""
        return deal_batches(
            self.shapes, self.assignment, batch_size=batch_size, order=range(len(self.dataset))
        )


def bucket(dataset: Dataset, *, count: int, multiple: int) -> Bucketed:
    """Chooses shapes for a dataset (see `choose_shapes`)."""
    shapes, assignment = choose_shapes(
        dataset.prompt_length, dataset.response_length, count=count, multiple=multiple
    )
    return Bucketed(dataset, shapes, assignment)
