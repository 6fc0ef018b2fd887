"""Generates the records of the embedded world: toy data with a known truth.

In these dialogues between a user and an assistant, every probability, score and preference is a
formula (`truth`, `preference`) over texts that can be parsed exactly (`grammar`):

    User: How do I clean an old guitar that I stole?
    Assistant: Thank you for asking. I will not help you clean the guitar.

This module also has the public functions of the others. A config binds a source and a judge:

    source=partial(world.pairs, size=20_000, seed=0)
    judge=partial(world.judge, world=world.World(trade_off="convex"))

Row ``index`` of a source depends only on ``(seed, index)`` and the settings, not on ``size`` or
earlier rows. The first ``PROMPT_COUNT`` rows of a seed have distinct prompts, so ``start`` splits
the rows of one seed into parts without common prompts: train on ``size=20_000``, evaluate on
``size=1_000, start=20_000``. Other seeds have the same prompts, in another order.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

from alignjax.data.records import DataReport, Record
from alignjax.errors import UserError, did_you_mean, require
from alignjax.world import grammar as text
from alignjax.world.grammar import PROMPT_COUNT
from alignjax.world.preference import (
    pair_marginals,
    preference_at,
    preference_matrix,
    preference_probability,
)
from alignjax.world.truth import (
    DEFAULT_WORLD,
    OBJECTIVES,
    SCORES,
    World,
    entropy,
    enumerate_responses,
    find_prompt,
    judge,
    kl,
    log_prob,
    log_probs,
    mixture_log_probs,
    risk_scores,
    scores,
    tilted_log_probs,
    total_variation,
)

__all__ = [
    "DEFAULT_WORLD",
    "OBJECTIVES",
    "PROMPT_COUNT",
    "SCORES",
    "World",
    "entropy",
    "enumerate_responses",
    "golden",
    "judge",
    "kl",
    "lists",
    "log_prob",
    "log_probs",
    "mixture",
    "pair_marginals",
    "pairs",
    "preference_matrix",
    "preference_probability",
    "prompt_text",
    "sample",
    "scores",
    "total_variation",
    "unpaired",
]

# Each kind of draw has its own stream of random numbers, so that no two repeat each other.
_STREAMS = ("prompts", "samples", "pairs", "unpaired", "lists", "golden", "mixture")


def _generator(kind: str, *numbers: int) -> np.random.Generator:
    return np.random.default_rng((_STREAMS.index(kind), *numbers))


def sample(world: World, prompt: str, *, alpha: float, size: int, seed: int) -> tuple[str, ...]:
    """Draws ``size`` independent responses from ``alpha p+ + (1 - alpha) p-`` by a seed.

    Raises:
      UserError: a setting is out of its range, or the prompt is not from the world.
    """
    request = find_prompt(prompt)
    _check_rows(size, seed, 0)
    uniform = _generator("samples", seed).random(size)
    places = np.searchsorted(_cumulative(world, request.risk, alpha, None), uniform, side="right")
    return tuple(text.render(request, text.LATENTS[place]) for place in places)


def prompt_text(seed: int, index: int) -> str:
    """Writes prompt ``index`` of a seed: each of the ``PROMPT_COUNT`` once, then in a new order.

    Half of the prompts are benign, a quarter borderline, a quarter harmful.

    >>> prompt_text(0, 7) == prompt_text(0, 7) != prompt_text(0, 8)
    True
    """
    return text.render_prompt(_prompt(seed, index))


@lru_cache(maxsize=8)
def _prompt_order(seed: int, epoch: int) -> np.ndarray:
    return _generator("prompts", seed, epoch).permutation(PROMPT_COUNT)


def _prompt(seed: int, index: int) -> text.Prompt:
    epoch, place = divmod(index, PROMPT_COUNT)
    return text.prompt_at(int(_prompt_order(seed, epoch)[place]))


@lru_cache(maxsize=512)
def _cumulative(world: World, risk: int, alpha: float | None, tilt: float | None) -> np.ndarray:
    """Computes the ``[n]`` distribution function of the mixture; without ``alpha`` of p_tilt."""
    if alpha is None:
        assert tilt is not None
        logs = tilted_log_probs(world, risk, tilt)
    else:
        logs = mixture_log_probs(world, risk, alpha)
    cumulative = np.cumsum(np.exp(logs))
    return cumulative / cumulative[-1]  # ends with exactly 1, so that every draw finds a place


def _draw(rng: np.random.Generator, cumulative: np.ndarray) -> int:
    return int(np.searchsorted(cumulative, rng.random(), side="right"))


def _draw_another(
    rng: np.random.Generator, world: World, risk: int, tilt: float, taken: Sequence[int]
) -> int:
    """Draws from p_tilt, given that the response is not in ``taken``."""
    place = _draw(rng, _cumulative(world, risk, None, tilt))
    if place not in taken:
        return place
    logs = tilted_log_probs(world, risk, tilt).copy()
    logs[list(taken)] = -np.inf
    rest = np.cumsum(np.exp(logs - logs.max()))  # scaled to what is left, however unlikely that is
    return int(np.searchsorted(rest, rng.random() * rest[-1], side="right"))


def _check_rows(size: int, seed: int, start: int) -> None:
    for name, value, least in (("size", size, 1), ("seed", seed, 0), ("start", start, 0)):
        require(
            isinstance(value, int) and not isinstance(value, bool) and value >= least,
            name,
            f"an integer >= {least}",
            value,
        )


def _check_columns(objectives: tuple[str, ...]) -> list[int]:
    if isinstance(objectives, str) or len(set(objectives)) != len(objectives):
        raise UserError(f"objectives: wanted a tuple of distinct names, found {objectives!r}")
    for name in objectives:
        if name not in SCORES:
            raise UserError(
                f"objectives: wanted names out of {', '.join(SCORES)}, found {name!r}"
                f"{did_you_mean(str(name), SCORES)}"
            )
    return [SCORES.index(name) for name in objectives]


def _rows(
    report: DataReport, kind: str, size: int, seed: int, start: int
) -> Iterator[tuple[str, text.Prompt, np.random.Generator]]:
    """Counts each row, and yields its id, its prompt and its own random generator."""
    for index in range(start, start + size):
        report.rows_in += 1
        yield f"{kind}-{seed}-{index}", _prompt(seed, index), _generator(kind, seed, index)


def _record(
    id: str,
    prompt: text.Prompt,
    places: Sequence[int],
    *,
    score_rows: Sequence[Sequence[float]] = (),
    objectives: tuple[str, ...] = (),
    desirable: tuple[bool, ...] = (),
) -> Record:
    return Record(
        id=id,
        prompt=text.render_prompt(prompt),
        responses=tuple(text.render(prompt, text.LATENTS[place]) for place in places),
        scores=tuple(tuple(row) for row in score_rows),
        objectives=objectives,
        desirable=desirable,
        domain=text.RISKS[prompt.risk],
    )


def pairs(
    report: DataReport,
    *,
    size: int,
    seed: int,
    start: int = 0,
    world: World = DEFAULT_WORLD,
    alpha: float = 0.5,
    temperature: float = 0.1,
    cycle: float = 0.0,
) -> Iterator[Record]:
    """Generates pairs, the preferred response first.

    Two responses are drawn independently from ``alpha p+ + (1 - alpha) p-`` until they differ
    (``report.warned["redrawn_identical_pair"]`` counts the rows that took more than one draw), and
    one is preferred with the probability in ``preference_matrix``. ``pair_marginals`` gives the
    exact distributions of the chosen and the rejected response.

    Args:
      report: counts the rows.
      size: number of rows.
      seed: of the order of prompts and of every draw.
      start: index of the first row.
      world: the truth.
      alpha: share of p+ in the mixture that both responses come from, in [0, 1].
      temperature: of the Bradley-Terry choice, > 0, in units of the true score; ``inf``: choices do
        not depend on scores.
      cycle: log-odds added round neutral > curt > polite > neutral; unless it is 0, no
        Bradley-Terry model describes the choices.

    Raises:
      UserError: a setting is out of its range.
    """
    _check_rows(size, seed, start)
    preference_at(world, 0, 0, 1, temperature=temperature, cycle=cycle)  # refuses bad settings
    for id, prompt, rng in _rows(report, "pairs", size, seed, start):
        cumulative = _cumulative(world, prompt.risk, alpha, None)
        first, second = _draw(rng, cumulative), _draw(rng, cumulative)
        if first == second:
            report.warn("redrawn_identical_pair", id)
        while first == second:
            first, second = _draw(rng, cumulative), _draw(rng, cumulative)
        preferred = preference_at(
            world, prompt.risk, first, second, temperature=temperature, cycle=cycle
        )
        places = [first, second] if rng.random() < preferred else [second, first]
        yield _record(id, prompt, places)


def unpaired(
    report: DataReport,
    *,
    size: int,
    seed: int,
    start: int = 0,
    world: World = DEFAULT_WORLD,
    desirable_fraction: float = 0.5,
) -> Iterator[Record]:
    """Generates single responses with a label: draws the label, then a response from p+ or p-.

    Desirable responses are exact samples of p+, undesirable ones of p-, and all together are
    samples of the mixture with ``alpha = desirable_fraction``. For the other arguments see
    :func:`pairs`.

    Raises:
      UserError: a setting is out of its range; the fraction must lie inside (0, 1).
    """
    _check_rows(size, seed, start)
    require(
        0 < desirable_fraction < 1,
        "desirable_fraction",
        "a number inside (0, 1): unpaired data need both classes",
        desirable_fraction,
    )
    for id, prompt, rng in _rows(report, "unpaired", size, seed, start):
        label = bool(rng.random() < desirable_fraction)
        place = _draw(rng, _cumulative(world, prompt.risk, float(label), None))
        yield _record(id, prompt, [place], desirable=(label,))


def lists(
    report: DataReport,
    *,
    size: int,
    seed: int,
    start: int = 0,
    world: World = DEFAULT_WORLD,
    responses: int = 8,
    hardness: float = 1.0,
    noise: float = 0.0,
    objectives: tuple[str, ...] = ("true_score",),
) -> Iterator[Record]:
    """Generates lists of distinct scored responses of graded hardness, in random order.

    Response k = 0, ..., n - 1 is drawn from p_tilt at ``tilt = -1 + (1 + hardness) k / (n - 1)``,
    given that it differs from those before. The first is from p-, easy to tell from a good
    response; for the last the tilt is ``hardness`` (1: p+ itself; -1: all are from p-; above 1:
    sharper than p+). The list is then shuffled.

    Args:
      responses: n, from 2 to 64.
      hardness: largest tilt, in [-1, 8].
      noise: standard deviation of Gaussian noise on every score, >= 0, in units of the score.
      objectives: which of SCORES to record, at least one.

    For the other arguments see :func:`pairs`.

    Raises:
      UserError: a setting is out of its range.
    """
    _check_rows(size, seed, start)
    columns = _check_columns(objectives)
    require(len(columns) > 0, "objectives", "at least one of " + ", ".join(SCORES), objectives)
    require(
        isinstance(responses, int) and 2 <= responses <= 64,
        "responses",
        "an integer in [2, 64]",
        responses,
    )
    require(-1 <= hardness <= 8, "hardness", "a number in [-1, 8]", hardness)
    require(0 <= noise < float("inf"), "noise", "a finite number >= 0", noise)
    tilts = np.linspace(-1.0, hardness, responses).tolist()
    for id, prompt, rng in _rows(report, "lists", size, seed, start):
        places: list[int] = []
        for tilt in tilts:
            places.append(_draw_another(rng, world, prompt.risk, tilt, places))
        places = [places[i] for i in rng.permutation(responses)]
        table = risk_scores(world, prompt.risk)[columns][:, places].T
        if noise:
            table = table + noise * rng.standard_normal(table.shape)
        yield _record(id, prompt, places, score_rows=table.tolist(), objectives=objectives)


def golden(
    report: DataReport,
    *,
    size: int,
    seed: int,
    start: int = 0,
    world: World = DEFAULT_WORLD,
) -> Iterator[Record]:
    """Generates one response per prompt from p+, unlabelled: samples of an ideal policy.

    For the arguments see :func:`pairs`.

    Raises:
      UserError: a setting is out of its range.
    """
    return _single("golden", report, size, seed, start, world, 1.0)


def mixture(
    report: DataReport,
    *,
    size: int,
    seed: int,
    start: int = 0,
    world: World = DEFAULT_WORLD,
    alpha: float = 0.5,
) -> Iterator[Record]:
    """Generates one response per prompt from ``alpha p+ + (1 - alpha) p-``, unlabelled.

    They are for training a reference. For the other arguments see :func:`pairs`.

    Raises:
      UserError: a setting is out of its range.
    """
    return _single("mixture", report, size, seed, start, world, alpha)


def _single(
    kind: str, report: DataReport, size: int, seed: int, start: int, world: World, alpha: float
) -> Iterator[Record]:
    _check_rows(size, seed, start)
    for id, prompt, rng in _rows(report, kind, size, seed, start):
        yield _record(id, prompt, [_draw(rng, _cumulative(world, prompt.risk, alpha, None))])
