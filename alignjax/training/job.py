"""The dataclasses that describe a training: its folder, network, rows and turns."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import numpy as np
import optax
from jax.sharding import Mesh

from alignjax.config import TrainConfig
from alignjax.data.batching import Batches, read
from alignjax.data.store import Dataset
from alignjax.runtime.metrics import NOBODY, Watch
from alignjax.runtime.sharding import own_rows
from alignjax.training.step import Update
from alignjax.types import Array, Batch, GameState, Params, TrainState

State = TypeVar("State", TrainState, GameState)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """Where a training runs, and what the loop does between its steps."""

    name: str  # for messages and the progress bar
    workdir: pathlib.Path  # of metrics.jsonl and checkpoints/
    mesh: Mesh
    identity: dict[str, Any]  # inputs of the training; a checkpoint with others is refused
    train: TrainConfig  # how often to save, to log and to evaluate; when to give up
    extendable: bool  # whether more steps may follow; else the last checkpoint has parameters only
    watch: Watch = NOBODY


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Learner:
    """A network to train: its initial parameters, and how a step updates it."""

    update: Update
    learning_rate: optax.Schedule  # the optimizer's, for the lines of the metrics
    params_shape: Params  # shapes and dtypes of what is trained
    # Loads the initial parameters onto the mesh, in buffers of their own: the first step donates
    # them. Called only when there is no checkpoint.
    load_start: Callable[[], Params]
    # Parameters that steps read and do not change: of the reference, or the adapters' base.
    ref_params: Params | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Feed:
    """The rows to train on, and their batches."""

    dataset: Dataset
    batches: Batches  # of the whole run
    ref_logps: np.ndarray | None = None  # [N, K] nats under the reference, when cached

    def read(self, start: int, mesh: Mesh) -> Iterator[Batch]:
        """Reads this process's rows of the batches ``start, start + 1, ...`` into host memory."""
        mine = self.batches.only(own_rows(mesh, self.batches.rows.shape[1]))
        return read(self.dataset, mine, start=start, ref_logps=self.ref_logps)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Turns(Generic[State]):
    """The steps of any training, for the loop."""

    total: int  # number of steps of the whole run
    target: State  # shapes, dtypes and shardings of the state
    # Makes the state at step 0 with these shardings; called only when there is no checkpoint.
    start: Callable[[], State]
    # steps done -> this process's rows of each following step, on the host: trees of arrays with a
    # leading axis (see `sharding.own_rows`).
    batches: Callable[[int], Iterator[Any]]
    # (state, batch on the mesh, steps done) -> (state, scalars); the state is donated.
    take: Callable[[State, Any, int], tuple[State, dict[str, Array]]]
    traced: list[str]  # gets a name whenever a program is traced
    # (a player's prefix, step) -> more of the player's numbers for the metrics line of a step
    line: Callable[[str, int], dict[str, float]]
    # steps done -> prefix of the next step's numbers; each prefix has its own averages.
    player: Callable[[int], str] = lambda done: ""
    # Sees the numbers of every step before it is saved; may raise.
    watch: Callable[[int, dict[str, float]], None] = lambda step, values: None
