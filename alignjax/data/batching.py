"""Makes batches of rows: chooses padded shapes, deals rows to batches, reads batches ahead.

The rows of batch i are a pure function of the rows' lengths and the seed. The data position is
therefore one integer, the index of the next batch, for any number of devices, processes or reading
threads.
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
    """The schedule of batches of a run: which rows make up batch i."""

    shapes: tuple[Shape, ...]
    shape: np.ndarray  # [batches] index into shapes
    rows: np.ndarray  # [batches, B] dataset rows; -1 fills up the last batch of a shape

    def __len__(self) -> int:
        return len(self.rows)

    def only(self, places: np.ndarray) -> "Batches":
        """Keeps the rows at these places of every batch: the rows that one process reads."""
        return dataclasses.replace(self, rows=self.rows[:, places])

    @property
    def row_count(self) -> int:
        """The number of rows in all batches, without fillers."""
        return int((self.rows >= 0).sum())


def choose_shapes(
    prompt_length: np.ndarray, response_length: np.ndarray, *, count: int, multiple: int
) -> tuple[tuple[Shape, ...], np.ndarray]:
    """Chooses a few shapes that need little padding.

    Starts from one shape for all rows. Then splits a group of rows in two, greedily: by the
    prompt's or the response's length, at the threshold with the fewest padded tokens.

    Args:
      prompt_length: ``[N]`` tokens.
      response_length: ``[N, K]`` tokens; a row is as long as its longest response.
      count: the most shapes; the step compiles once for each.
      multiple: token counts are rounded up to a multiple of it.

    Returns:
      The shapes, shortest first, and the index of each row's shape, ``[N]``.
    """
    k = response_length.shape[1]
    rounded = np.stack([prompt_length, response_length.max(axis=1)], axis=1)
    rounded = np.maximum(-(-rounded // multiple) * multiple, multiple)

    def cost(rows: np.ndarray) -> int:
        if not len(rows):
            return 0
        prompt, response = rounded[rows].max(axis=0)
        return len(rows) * int(prompt + k * response)

    def splits() -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
        """Yields every split of a group in two: the tokens saved, the group, its two parts."""
        for i, rows in enumerate(groups):
            unsplit = cost(rows)
            for axis in (0, 1):
                for edge in np.unique(rounded[rows, axis])[:-1]:
                    short = rounded[rows, axis] <= edge
                    low, high = rows[short], rows[~short]
                    yield unsplit - cost(low) - cost(high), i, low, high

    groups: list[np.ndarray] = [np.arange(len(rounded))]
    while len(groups) < count:
        best = max(splits(), key=lambda split: split[0], default=None)
        if best is None or best[0] <= 0:
            break
        _, i, low, high = best
        groups[i : i + 1] = [low, high]
    shapes = [Shape(*(int(x) for x in rounded[rows].max(axis=0))) for rows in groups]
    order = sorted(range(len(groups)), key=lambda i: (shapes[i].prompt + k * shapes[i].response, i))
    assignment = np.zeros(len(rounded), np.int32)
    for rank, i in enumerate(order):
        assignment[groups[i]] = rank
    return tuple(shapes[i] for i in order), assignment


def shuffled(rows: int, seed: int) -> Iterator[int]:
    """Yields row indices without end: each epoch has every row once, in a new order."""
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
    """Deals rows to batches in order; each batch has rows of one shape.

    A batch is complete when ``batch_size`` rows of its shape are waiting. Rows still waiting at the
    end of an epoch come first in the next. At the end of the run, the last batches are filled up
    with rows of weight 0, so that no row is lost.

    Args:
      shapes, assignment: from `choose_shapes`.
      batch_size: rows per batch.
      order: dataset rows, in the order of their use; a row may occur several times.
      rows: stop after this many rows; 0: when ``order`` ends.
      batches: stop after this many batches, without the rows still waiting; 0: no limit.
    """
    waiting: list[list[int]] = [[] for _ in shapes]
    shape_of: list[int] = []
    complete: list[list[int]] = []
    for position, row in enumerate(order):
        if (rows and position == rows) or (batches and len(complete) == batches):
            break
        queue = waiting[assignment[row]]
        queue.append(row)
        if len(queue) == batch_size:
            shape_of.append(int(assignment[row]))
            complete.append(queue.copy())
            queue.clear()
    if not batches:
        for shape, queue in enumerate(waiting):
            if queue:
                shape_of.append(shape)
                complete.append(queue + [-1] * (batch_size - len(queue)))
    return Batches(
        shapes, np.array(shape_of, np.int32), np.array(complete, np.int64).reshape(-1, batch_size)
    )


def assemble(
    dataset: Dataset, rows: np.ndarray, shape: Shape, ref_logps: np.ndarray | None = None
) -> Batch:
    """Builds one batch of NumPy arrays.

    Args:
      dataset: the prepared rows.
      rows: ``[B]`` row indices; -1 makes a row of weight 0.
      shape: the padded lengths; no row may be longer.
      ref_logps: ``[N, K]`` float32 nats, the reference's log-probabilities of the dataset.
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
        # The dataset decides whether there are scores and labels: this process's rows may all be
        # fillers while another's are not, and their batches must have the same arrays.
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
    # `store` refuses a dataset in which only some rows have scores or labels.
    if batch.scores is not None:
        assert example.scores is not None
        batch.scores[i, : len(example.scores)] = example.scores
    if batch.desirable is not None:
        assert example.desirable is not None
        batch.desirable[i, : len(example.desirable)] = example.desirable


def read(
    dataset: Dataset, batches: Batches, *, start: int = 0, ref_logps: np.ndarray | None = None
) -> Iterator[Batch]:
    """Yields batches ``start, start + 1, ...`` of a run, read ahead by background threads."""
    import grain

    def load(i: int) -> Batch:
        return assemble(dataset, batches.rows[i], batches.shapes[batches.shape[i]], ref_logps)

    ahead = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
    yield from grain.MapDataset.range(start, len(batches)).map(load).to_iter_dataset(ahead)


@dataclasses.dataclass(frozen=True)
class Bucketed:
    """A dataset, and the shapes that its rows are padded to."""

    dataset: Dataset
    shapes: tuple[Shape, ...]
    assignment: np.ndarray  # [N] index into shapes

    def in_order(self, batch_size: int) -> Batches:
        """Schedules every row once, without shuffling: for scoring and sampling."""
        return deal_batches(
            self.shapes, self.assignment, batch_size=batch_size, order=range(len(self.dataset))
        )


def bucket(dataset: Dataset, *, count: int, multiple: int) -> Bucketed:
    """Chooses shapes for a dataset (see `choose_shapes`)."""
    shapes, assignment = choose_shapes(
        dataset.prompt_length, dataset.response_length, count=count, multiple=multiple
    )
    return Bucketed(dataset, shapes, assignment)
