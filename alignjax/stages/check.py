"""Checks the losses on the shapes of the data, and the scorers, before anything is compiled."""

import dataclasses
import functools
import inspect
import logging
import pathlib
import traceback
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alignjax.config import Config
from alignjax.config.fields import is_marked, keywords, name_of, plain
from alignjax.data.batching import Bucketed, assemble
from alignjax.errors import UserError
from alignjax.rewards.scorers import judgements, open_scorers
from alignjax.stages.data import Prepared
from alignjax.stages.run import Run
from alignjax.training.schedules import resolve
from alignjax.types import Batch, Logps

log = logging.getLogger("alignjax")

# Names of metrics that the step and the loop log themselves.
RESERVED = (
    *("step", "loss", "grad_norm", "num_tokens", "weight", "skipped", "learning_rate", "epoch"),
    *("baseline", "running_baseline"),
    *("prompts_per_second", "tokens_per_second", "data_wait_seconds"),
    *("step_seconds", "train_seconds"),
)


def check_losses(config: Config, rows: Bucketed) -> None:
    """Traces ``select``, ``baseline`` and ``loss`` on the data's shapes, also of the sft stage.

    Raises:
      UserError: they do not fit the data (K, scores, labels), need a reference that the run does
        not have, or do not return ``[B]`` losses and named ``[B]`` metrics; or ``select`` adds
        responses that no cache has although ``reference.mode`` is cache.
    """
    check_answered(config, rows)
    batch = _first_rows(rows)
    _check_supervised(config, batch)
    if config.candidates is not None:
        own = batch.response.shape[1] if config.candidates.keep_own else 0
        batch = _as_lists(batch, config.candidates.samples + own)
    else:
        _check_fewest(config, rows, batch)
    check_trained(config, batch)


def check_game(config: Config, rows: Bucketed, *, samples: int) -> None:
    """Traces the functions of both players of a game, each on the shapes of its data.

    Args:
      config, rows: the run's.
      samples: of the policy, per prompt; the policy learns from them, the reward model from them
        and a golden answer.

    Raises:
      UserError: as in `check_losses`.
    """
    check_answered(config, rows)
    batch = _first_rows(rows)
    _check_supervised(config, batch)
    rows_of_both = _as_lists(batch, max(batch.response.shape[1], 1 + samples))
    adversarial: Any = np.zeros(len(batch.weight), bool)
    _check_reward(config, dataclasses.replace(rows_of_both, adversarial=adversarial))
    check_trained(config, _as_lists(batch, samples))


def check_answered(config: Config, rows: Bucketed) -> None:
    """Refuses prompts alone where something learns from the data's own responses.

    Raises:
      UserError: names what does, and the first such row.
    """
    sampled = config.candidates is not None and not config.candidates.keep_own
    alone = (rows.dataset.response_length == 0).all(axis=1)
    if not alone.any() or (sampled and config.sft is None):
        return
    if config.sft is not None:
        reader, instead = "the supervised stage", "set sft=None, or give responses"
    else:
        reader = name_of(config.recipe or config.trained_loss)
        instead = "recipes.train_online, or candidates without keep_own, samples responses"
    raise UserError(
        f"data: {alone.sum()} of {len(alone)} rows, such as {rows.dataset[int(alone.argmax())].id},"
        f" are prompts alone, and {reader} learns from the data's responses: {instead}"
    )


def _check_fewest(config: Config, rows: Bucketed, batch: Batch) -> None:
    """Checks that a loss fits the rows with the fewest responses: a pair may lack one.

    Losses of scored or labelled responses handle absent ones, and are not checked.
    """
    counts = (rows.dataset.response_length > 0).sum(axis=1)
    few = int(counts.min())
    marked = any(x is not None for x in (batch.scores, batch.desirable, batch.adversarial))
    if few == counts.max() or marked:
        return
    response, length = batch.response[:, :few], batch.response_length[:, :few]
    try:
        check_trained(config, dataclasses.replace(batch, response=response, response_length=length))
    except UserError as error:
        first = rows.dataset[int(counts.argmin())].id
        raise UserError(
            f"data: {(counts == few).sum()} of {len(counts)} rows, such as {first}, have {few} "
            f"of {counts.max()} responses: {error}"
        ) from None


def _check_supervised(config: Config, batch: Batch) -> None:
    if config.sft is not None:
        batch = _select("sft.select", config.sft.select, batch)
        _check("sft.loss", config.sft.loss, _logps(batch, reference=False), batch)


def check_trained(config: Config, batch: Batch) -> None:
    """Traces ``select``, ``baseline`` and ``loss`` of a config on the shapes of a batch.

    Raises:
      UserError: as in `check_losses`.
    """
    takes_opponent = config.recipe is not None and "opponent" in keywords(config.recipe)
    if is_marked(config.trained_loss, "compares_halves") and not takes_opponent:
        raise UserError(
            f"loss: {name_of(config.trained_loss)} compares the policy's samples with another "
            "policy's, which only recipe=partial(recipes.train_online, opponent=...) draws; for "
            "lists from the data use bradley_terry.loss, or another loss of scored lists"
        )
    selected = _select("select", config.select, batch)
    if config.reference.mode == "cache" and not _keeps_cache(config, batch):
        why = f"{name_of(config.trained_loss)} reads parts of responses, whose"
        if not _reads(config, "reads_tail"):
            assert config.select is not None
            why = f"{name_of(config.select)} adds responses, whose"
        raise UserError(
            f"reference.mode: wanted auto, live or none, found 'cache': {why} log-probabilities "
            "no cache has"
        )
    if config.loss is None:
        _check_reward(config, selected)
        return
    logps = _logps(selected, reference=config.reference.mode != "none")
    logps = _with_parts(config, logps)
    if config.baseline is not None:
        selected = _baseline(config.baseline, logps, selected)
    _check("loss", config.loss, logps, selected)
    _check_follow(config, logps, selected)


def _check_follow(config: Config, logps: Logps, batch: Any) -> None:
    """Refuses a reference that follows the policy if the loss reads none."""
    if config.reference.follow is None:
        return
    assert config.loss is not None
    without = dataclasses.replace(logps, reference=None, reference_tail=None)
    try:
        _trace("loss", config.loss, without, batch)
    except UserError:
        return
    raise UserError(
        f"reference.follow: {name_of(config.loss)} with this config compares the policy with no "
        "reference; set reference.follow=none, or use another loss"
    )


def _check_reward(config: Config, batch: Any) -> None:
    assert config.reward_loss is not None
    if batch.scores is not None and batch.scores.ndim == 3:  # the loss sees one objective at a time
        one: Any = jax.ShapeDtypeStruct(batch.scores.shape[:2], jnp.float32)
        batch = dataclasses.replace(batch, scores=one)
    scores = jax.ShapeDtypeStruct(batch.response_length.shape, jnp.float32)
    _check("reward_loss", config.reward_loss, scores, batch)


def _as_lists(batch: Batch, k: int) -> Batch:
    """Makes the shapes of lists of k scored responses, which the run will sample."""
    b, _, r = batch.response.shape
    arrays: dict[str, Any] = dict(
        response=np.zeros((b, k, r), np.int32),
        response_length=np.ones((b, k), np.int32),
        scores=np.zeros((b, k), np.float32),
        desirable=None,
    )
    return dataclasses.replace(batch, **arrays)


def _select(field: str, select: Callable[..., Any] | None, batch: Batch) -> Any:
    if select is None:
        return batch
    selected = _trace(field, select, jax.random.key(0), batch)
    if not isinstance(selected, Batch):
        raise UserError(f"{field}: {name_of(select)}: wanted a Batch, found another type")
    return selected


def _logps(batch: Any, *, reference: bool) -> Logps:
    """Makes the shapes of the log-probabilities of a batch."""
    zeros: Any = jax.ShapeDtypeStruct(batch.response_length.shape, jnp.float32)
    return Logps(policy=zeros, reference=zeros if reference else None, length=batch.response_length)


def _with_parts(config: Config, logps: Logps) -> Logps:
    """Adds what a step computes for a loss that reads more of responses than their sums."""
    if _reads(config, "reads_tail") and _reads(config, "reads_squares"):
        raise UserError(
            f"loss: {name_of(config.trained_loss)} reads tails (ld_dpo) and squared probabilities "
            "(wpo) of responses; a step computes one of them"
        )
    if _reads(config, "reads_tail"):
        policy, reference = logps.policy, logps.reference
        return dataclasses.replace(logps, policy_tail=policy, reference_tail=reference)
    if _reads(config, "reads_squares"):
        return dataclasses.replace(logps, log_squares=logps.policy)
    return logps


def _reads(config: Config, what: str) -> bool:
    """Whether the loss, or one bound to it, has the mark `reads_tail` or `reads_squares`."""
    return is_marked(config.trained_loss, what)


def _baseline(baseline: Callable[..., Any], logps: Logps, batch: Any) -> Batch:
    """Traces the baseline; returns the batch as the loss sees it, with the baseline's averages."""
    values = _trace("baseline", baseline, logps, batch)
    shape = getattr(values, "shape", type(values))
    if shape != batch.weight.shape:
        raise UserError(
            f"baseline: {name_of(baseline)}: wanted one value per prompt, [B], found {shape} for "
            f"B={len(batch.weight)}"
        )
    mean: Any = jax.ShapeDtypeStruct(batch.weight.shape, jnp.float32)
    return dataclasses.replace(batch, baseline=mean, running_baseline=mean)


def _check(field: str, loss: Callable[..., Any], values: Any, batch: Any) -> None:
    """Traces a loss on what it compares, and checks what it returns."""
    returned = _trace(field, loss, values, batch)
    if not (isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[1], dict)):
        raise UserError(f"{field}: {name_of(loss)} must return (losses, metrics), two values")
    losses, metrics = returned[0], (batch.select_metrics or {}) | returned[1]
    taken = [name for name in metrics if name in RESERVED]
    if taken:
        raise UserError(
            f"{field}: {name_of(loss)} returns a metric {taken[0]!r}, a name that is reserved for "
            "the step; rename it"
        )
    b = len(batch.response_length)
    shapes = {n: getattr(x, "shape", type(x)) for n, x in {"loss": losses, **metrics}.items()}
    wrong = {n: shape for n, shape in shapes.items() if shape != (b,)}
    if wrong:
        raise UserError(
            f"{field}: {name_of(loss)}: wanted one value per prompt, [B], found shapes {wrong} for "
            f"B={b}"
        )


def _trace(field: str, function: Callable[..., Any], *args: Any) -> Any:
    """Traces a function of the config at step 0, on shapes.

    Raises:
      UserError: the function raises any error; names the line in its file, except for ValueErrors,
        whose messages are complete.
    """
    try:
        return jax.eval_shape(resolve(function, jnp.int32(0), 1), *args)
    except Exception as error:  # a user's own loss may raise anything
        what = " ".join(str(error).split())[:400]
        if not isinstance(error, ValueError):  # the package's ValueErrors are complete messages
            file = inspect.getsourcefile(plain(function))
            frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
            at = f"{pathlib.Path(frames[-1].filename).name}:{frames[-1].lineno}: " if frames else ""
            what = f"{at}{type(error).__name__}: {what}"
        raise UserError(f"{field}: {name_of(function)} on this data: {what}") from error


def count_responses(config: Config, rows: Bucketed) -> int:
    """Counts the responses per prompt that a step scores: K' of ``select``, else K."""
    k: int = _select("select", config.select, _first_rows(rows)).response.shape[1]
    return k


def keeps_cache(config: Config, rows: Bucketed) -> bool:
    """Whether a step scores only whole responses of the rows, which can be precomputed."""
    return _keeps_cache(config, _first_rows(rows))


def _keeps_cache(config: Config, batch: Batch) -> bool:
    if _reads(config, "reads_tail") or config.reference.follow is not None:
        return False
    cache: Any = np.zeros(batch.response_length.shape, np.float32)
    cached = dataclasses.replace(batch, ref_logps=cache)
    return _select("select", config.select, cached).ref_logps is not None


def bind_fraction(config: Config, rows: Bucketed) -> Config:
    """Binds ``desirable_fraction`` of ``loss`` and ``baseline`` to the training data's.

    A value that the config binds has precedence.

    Raises:
      UserError: all labelled training responses are of one class.
    """
    good, bad = rows.dataset.labels
    if not good + bad:
        return config
    if not good or not bad:
        raise UserError(
            f"data: all {good + bad} labelled training responses are "
            f"{'desirable' if good else 'undesirable'}: unpaired data need both classes"
        )
    fraction = good / (good + bad)
    changes: dict[str, Any] = {}
    for field in ("loss", "baseline"):
        function = getattr(config, field)
        if function is None or "desirable_fraction" not in keywords(plain(function)):
            continue
        given = function.keywords if isinstance(function, functools.partial) else {}
        if given.get("desirable_fraction") is None:
            changes[field] = functools.partial(function, desirable_fraction=fraction)
    log.info(
        "labels: %s desirable and %s undesirable training responses, desirable fraction %.6f; "
        "class weights %.4f and %.4f%s",
        f"{good:,}",
        f"{bad:,}",
        fraction,
        1 / fraction,
        1 / (1 - fraction),
        "" if "loss" in changes else " (not bound to the loss)",
    )
    return dataclasses.replace(config, **changes)


def bind_score_sd(run: Run) -> Run:
    """Binds ``score_sd`` of ``select`` and ``loss`` to the training data's.

    It is the unit of gamma in `hps`. A value that the config binds has precedence.
    """
    sd = run.data.train.dataset.score_sd
    if len(sd) != 1 or not sd[0]:  # functions that need a ranking refuse such data
        return run
    changes: dict[str, Any] = {}
    for field in ("select", "loss"):
        function = getattr(run.config, field)
        if function is None or "score_sd" not in keywords(plain(function)):
            continue
        given = function.keywords if isinstance(function, functools.partial) else {}
        if given.get("score_sd") is None:
            changes[field] = functools.partial(function, score_sd=sd[0])
        log.info(
            "scores: std within a list %.4g, pooled over %s lists; %s",
            sd[0],
            f"{len(run.data.train.dataset):,}",
            f"it is the unit of {field}.gamma"
            if field in changes
            else f"{field}.gamma has the unit {given['score_sd']:g}, as the config says",
        )
    return dataclasses.replace(run, config=dataclasses.replace(run.config, **changes))


def _first_rows(rows: Bucketed) -> Batch:
    """Makes a batch of the data's first row, twice."""
    picked = np.flatnonzero(rows.assignment == rows.assignment[0])[:1].repeat(2)
    return assemble(rows.dataset, picked, rows.shapes[rows.assignment[0]])


def check_scorers(config: Config, data: Prepared) -> None:
    """Tries the scorers and the judge before training, because they are used only hours later.

    A reward model is only looked up, because loading it takes long. Other scorers and the judge
    score the first held-out row.

    Raises:
      UserError: one of them fails.
    """
    example = data.originals.dataset[0]
    candidates = config.candidates.scorers if config.candidates is not None else ()
    for scorer in (
        *open_scorers(candidates, "candidates.scorers", config),
        *open_scorers(config.evaluate.scorers, "evaluate.scorers", config),
    ):
        if not scorer.reward_models:
            record = data.original_records[example.id]
            texts = record.responses or ("",)  # a prompt without responses gets one to score
            scorer.means([dataclasses.replace(record, responses=texts, answers=record.responses)])
    if config.evaluate.judge is not None:
        first = example.responses[0] if example.responses else ""
        judgements(config.evaluate.judge, [(example.prompt, first)])
