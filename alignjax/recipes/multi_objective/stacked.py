"""Trains networks of several preferences side by side: one program, one copy of their base."""

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from alignjax.commands.policies import Network
from alignjax.config import Config
from alignjax.data.batching import Batches, Bucketed, choose_shapes, deal_batches, shuffled
from alignjax.recipes.multi_objective import cost, training
from alignjax.recipes.multi_objective.method import Setting
from alignjax.types import Params


def fit_each(
    setting: Setting,
    name: str,
    rows: Bucketed,
    chosen: np.ndarray,
    *,
    at_once: int,
    starts: Sequence[Params] | None = None,
) -> list[Params]:
    """Trains one network for each preference with the config's loss, on rows of its own.

    With ``lora`` the networks are adapters of one base. The loss gets no reference.

    Args:
      name: of the folder, the progress bars and the file of the time; ``name/NN`` has the networks
        from number NN on. A call that was completed before is skipped.
      rows: of all networks together.
      chosen: ``[P, k]`` rows of each network.
      at_once: networks trained in one program; changes results only by rounding.
      starts: P results of `fit_each`; None: the reference, or the same fresh adapters, for all.

    Returns:
      P trained networks, or adapters.

    Raises:
      UserError: the loss does not fit the rows; or as `offline.fit`.
    """
    networks: list[Params] = []
    for first in range(0, len(chosen), at_once):
        part = slice(first, first + at_once)
        begin = None if starts is None else starts[part]
        folder = f"{name}/{first:02d}"
        networks += _fit_together(setting, folder, rows, chosen[part], first, begin)
    return networks


def networks(setting: Setting, name: str, *, at_once: int) -> list[Network]:
    """Lists the places where `fit_each` saves the network of each preference."""
    preferences = setting.preferences
    return [
        Network(
            preference,
            f"{name}/{i - i % at_once:02d}",
            member=i % at_once,
            members=min(at_once, len(preferences) - (i - i % at_once)),
        )
        for i, preference in enumerate(preferences)
    ]


def _fit_together(
    setting: Setting,
    name: str,
    rows: Bucketed,
    chosen: np.ndarray,
    first: int,
    starts: Sequence[Params] | None,
) -> list[Params]:
    """Trains networks ``first, first + 1, ...`` in one program."""
    from alignjax.runtime import checkpoint
    from alignjax.stages import check, learners
    from alignjax.training import offline
    from alignjax.training.job import Feed

    count, reference = len(chosen), setting.reference
    batches = _deal_batches(setting.run.config, rows, chosen)
    config = training.stage_config(setting.run.config, steps=len(batches))
    check.check_losses(config, rows)
    run = setting.stage(config, rows)
    learner = learners.policy(config, run.mesh, len(batches), load_reference=reference.load)

    def load_starts() -> Params:
        each = [learner.load_start()] * count if starts is None else starts
        return jax.tree.map(lambda *x: jnp.stack(x), *each)

    identity = {
        "start": "reference" if starts is None else checkpoint.tree_digest(list(starts)),
        "rows": hashlib.sha256(batches.rows.tobytes()).hexdigest()[:16],
    }
    # A network's key depends only on its number, not on the others in its program.
    root = jax.random.key(config.train.seed)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(root, first + jnp.arange(count))
    own = dataclasses.replace(run, workdir=run.workdir / name)
    state, _ = offline.fit(
        own.job(name, reference.digest, identity),
        dataclasses.replace(learner, load_start=load_starts),
        Feed(rows.dataset, batches),
        keys,
    )
    cost.note_steps(setting, name)
    return [jax.tree.map(lambda x, i=i: x[i], state.params) for i in range(count)]


def _deal_batches(config: Config, rows: Bucketed, chosen: np.ndarray) -> Batches:
    """Deals every batch: row i is for network i % P. All have one shape, and compile once."""
    data, settings = rows.dataset, config.train
    used = np.unique(chosen)
    shapes, _ = choose_shapes(
        data.prompt_length[used],
        data.response_length[used],
        count=1,
        multiple=config.data.pad_multiple,
    )
    k = chosen.shape[1]

    def in_order(own: np.ndarray) -> Iterable[int]:
        return (int(own[i]) for i in shuffled(k, settings.seed))

    each = [
        deal_batches(
            shapes,
            np.zeros(len(data), np.int32),
            batch_size=settings.batch_size,
            order=in_order(own),
            rows=0 if settings.steps else max(1, round(settings.epochs * k)),
            batches=settings.steps,
        ).rows
        for own in chosen
    ]
    together = np.stack(each, axis=2).reshape(len(each[0]), -1)
    return Batches(shapes, np.zeros(len(together), np.int32), together)
