"""The programs of a training: one that makes the state at step 0, and those that step it."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from alignjax.runtime.sharding import abstract, shard_tree
from alignjax.training.job import State
from alignjax.types import Params


def compile_start(
    start: Callable[..., State], *shapes: Params, mesh: Mesh, stacked: bool = False
) -> tuple[Callable[..., State], State]:
    """Compiles what makes a state of the parameters to start from, which it donates.

    Args:
      start: from one tree of parameters or more to the state at step 0.
      shapes: of the parameters.
      mesh: where the state goes.
      stacked: whether every leaf has a leading axis of networks.

    Returns:
      The program; shapes, dtypes and shardings of the state.
    """
    state = jax.eval_shape(start, *shapes)
    layout = shard_tree(state, mesh, stacked=stacked)
    donated = tuple(range(len(shapes)))
    program = jax.jit(start, out_shardings=layout, donate_argnums=donated)
    return program, abstract(state, layout)


def compile_step(step: Callable[..., Any], target: State) -> Callable[..., Any]:
    """Compiles ``(state, ...) -> (state, scalars)``, which donates the state.

    The state comes out laid out as it went in: what one step returns fits the next, nothing is
    compiled twice, and its memory is used again. Whatever else a step is given, the reference
    above all, is not donated: it is needed at the next step.

    Args:
      step: one step.
      target: shapes, dtypes and shardings of the state.
    """
    layout = jax.tree.map(lambda x: x.sharding, target)
    return jax.jit(step, donate_argnums=0, out_shardings=(layout, None))
