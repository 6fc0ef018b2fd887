"""Measures how many prompts HPS needs beside Plackett-Luce, where the truth is a linear reward.

    python benchmarks/papers/hps_efficiency.py         # 10 minutes of CPU time

The abstract of HPS says that it improves sample efficiency; its Theorem 1 bounds the distance to
the optimal parameters by O(n / sqrt(m)) for m prompts with n responses each, and that of
Plackett-Luce by O(n^2 / sqrt(m)). Here the reward of a response is theta . phi, with 16 features
phi ~ N(0, 1) and |theta| = 2; the scores are the rewards plus Gumbel noise, so that the lists are
ranked as Plackett-Luce says. The shipped losses are minimised over theta, at beta 1, with a ridge
of 1e-4. The draws of "one draw" are made once, as a run of one epoch makes them; gamma's unit is
the standard deviation of scores within a list.

- error: |theta' - theta| / |theta|.
- regret: reward of the best of n fresh responses, minus that of the one that theta' prefers.

Prints means over 20 seeds, with 95% intervals of the mean.
"""

import argparse
import functools
import pathlib
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import jax
import jax.numpy as jnp
import numpy as np

from alignjax.losses import bradley_terry, dpo, hps, plackett_luce
from alignjax.testing import loss_inputs
from alignjax.types import Array, Logps, Loss, Select

FEATURES, LENGTH, RIDGE = 16, 2.0, 1e-4
PROMPTS = (125, 500, 2000)
RESPONSES = (4, 16)
SEEDS, T95 = 20, 2.093  # and the 97.5% quantile of Student's t for so many
FRESH = 4000  # lists that the regret is measured on
TURNS, LONGEST = 10, 3.0  # of Newton's method, and its longest step; the losses are convex
FLAT = 1e-3  # largest norm of the gradient at the end


def methods(score_sd: float) -> dict[str, tuple[Loss, Select | None]]:
    """Names the losses, and what chooses the responses that they see."""

    def full(gamma: float) -> Loss:
        return functools.partial(hps.loss_full, beta=1.0, gamma=gamma, score_sd=score_sd)

    def draw(gamma: float) -> Select:
        return functools.partial(hps.select, gamma=gamma, score_sd=score_sd)

    one = functools.partial(hps.loss, beta=1.0)
    return {
        "Plackett-Luce": (functools.partial(plackett_luce.loss, beta=1.0), None),
        "all pairs": (functools.partial(bradley_terry.loss, beta=1.0), None),
        "Plackett-Luce, the best alone": (
            functools.partial(plackett_luce.loss_top1, beta=1.0),
            None,
        ),
        "HPS, gamma 1": (full(1.0), None),
        "HPS, gamma 3": (full(3.0), None),
        "HPS, one draw, gamma 0": (one, draw(0.0)),
        "HPS, one draw, gamma 1": (one, draw(1.0)),
        "HPS, one draw, gamma 3": (one, draw(3.0)),
        "a random pair": (functools.partial(dpo.loss, beta=1.0), bradley_terry.select_random),
        "best and worst": (functools.partial(dpo.loss, beta=1.0), bradley_terry.select),
    }


def lists(key: Array, theta: Array, count: int, responses: int) -> tuple[Array, Array]:
    """Draws features ``[m, n, d]`` and scores ``[m, n]``."""
    of_features, of_noise = jax.random.split(key)
    features = jax.random.normal(of_features, (count, responses, FEATURES))
    return features, features @ theta + jax.random.gumbel(of_noise, (count, responses))


def fit(
    loss: Loss, select: Select | None, key: Array, features: Array, scores: Array
) -> tuple[Array, Array]:
    """Minimises a loss over theta by Newton's method; returns theta and the gradient's norm."""
    batch = loss_inputs(jnp.zeros(scores.shape), jnp.zeros(scores.shape), scores=scores)[1]
    if select is not None:
        # Each response has its place as its token, which tells which ones `select` keeps.
        places = jnp.broadcast_to(jnp.arange(scores.shape[1]), scores.shape)[..., None]
        batch = select(key, batch.replace(response=places.astype(jnp.int32)))
        features = jnp.take_along_axis(features, batch.response, axis=1)

    def objective(theta: Array) -> Array:
        reward = features @ theta
        logps = Logps(policy=reward, reference=jnp.zeros_like(reward), length=batch.response_length)
        return loss(logps, batch)[0].mean() + RIDGE * theta @ theta

    def step(_: Any, theta: Array) -> Array:
        move = jnp.linalg.solve(jax.hessian(objective)(theta), jax.grad(objective)(theta))
        return theta - move * jnp.minimum(1.0, LONGEST / jnp.linalg.norm(move))

    found = jax.lax.fori_loop(0, TURNS, step, jnp.zeros(FEATURES))
    return found, jnp.linalg.norm(jax.grad(objective)(found))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def measure(loss: Loss, select: Select | None, m: int, n: int, keys: Array) -> tuple[Array, ...]:
    """Measures error, regret and the gradient that is left, ``[seeds]`` each."""

    def one(key: Array) -> tuple[Array, ...]:
        of_theta, of_lists, of_draws, of_fresh = jax.random.split(key, 4)
        theta = jax.random.normal(of_theta, (FEATURES,))
        theta = theta * LENGTH / jnp.linalg.norm(theta)
        found, left = fit(loss, select, of_draws, *lists(of_lists, theta, m, n))
        fresh, _ = lists(of_fresh, theta, FRESH, n)
        reward, chosen = fresh @ theta, (fresh @ found).argmax(axis=1)
        lost = reward.max(axis=1) - jnp.take_along_axis(reward, chosen[:, None], axis=1)[:, 0]
        return jnp.linalg.norm(found - theta) / LENGTH, lost.mean(), left

    return jax.lax.map(one, keys)


def with_interval(values: np.ndarray) -> str:
    """Formats a mean with the half-width of its 95% interval."""
    half = T95 * values.std(ddof=1) / np.sqrt(SEEDS)
    return f"{values.mean():.4f} ± {half:.4f}"


def table(title: str, n: int, found: dict[str, list[np.ndarray]]) -> None:
    """Prints a row per method, a column per number of prompts."""
    print(f"\n{title}, n = {n} | " + " | ".join(f"m = {m:,}" for m in PROMPTS))
    for name, row in found.items():
        print(f"{name} | " + " | ".join(with_interval(values) for values in row))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.parse_args()
    keys = jax.random.split(jax.random.key(0), SEEDS)
    score_sd = float(np.sqrt(LENGTH**2 + np.pi**2 / 6))
    for n in RESPONSES:
        errors: dict[str, list[np.ndarray]] = {}
        regrets: dict[str, list[np.ndarray]] = {}
        for name, (loss, select) in methods(score_sd).items():
            for m in PROMPTS:
                error, regret, left = map(np.asarray, measure(loss, select, m, n, keys))
                if left.max() > FLAT:
                    sys.exit(f"{name}, m = {m}: not at the minimum, gradient {left.max():.1e}")
                errors.setdefault(name, []).append(error)
                regrets.setdefault(name, []).append(regret)
        table("error", n, errors)
        table("regret", n, regrets)


if __name__ == "__main__":
    main()
