"""Looks inside traced programs."""

from collections.abc import Iterator
from typing import Any

import jax


def equations(jaxpr: Any) -> Iterator[Any]:
    """Yields every equation of a program, those of its inner programs too."""
    for eqn in jaxpr.eqns:
        yield eqn
        inner = jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns"))
        for program in (getattr(x, "jaxpr", x) for x in inner):
            if hasattr(program, "eqns"):
                yield from equations(program)
