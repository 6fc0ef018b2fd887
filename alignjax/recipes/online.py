"""Trains a policy on its own samples: GRPO, RLOO, online DPO, or any loss of scored responses.

`run` has the stages in order. They write the files of `recipes.align`, except for ``candidates/``
and the held-out rows in the table of ``summary.json``.

The config's ``candidates`` has the number of responses to each prompt, how they are sampled, and
the scorers. `recipes.align` samples once, from the supervised policy; here every step samples from
the current policy. ``loss`` reads the scores:

    grpo.loss             GRPO, Dr. GRPO and RLOO by its arguments
    grpo.loss_batch       REINFORCE++
    grpo.loss_clipped     PPO of whole responses: several ``updates`` on each step's samples
    apo.loss              REINFORCE with the other samples' mean as baseline, and a KL penalty
    bradley_terry.loss    online DPO: the best of the samples against the worst
    xpo.loss              XPO, online DPO against the reference's samples: ``opponent=1.0``
    nash_md.loss          Nash-MD, against a mixture of policy and reference: ``opponent=0.5``

With ``opponent`` the second half of each prompt's responses is sampled from that mixture, and the
metrics are of the first half.

The prompts are the distinct ones of the training data. The data's own responses are not trained on;
scorers get them as ``Record.answers``, so that `scorers.checked` can compare samples with them.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax

from alignjax.config import Config
from alignjax.config.fields import describe
from alignjax.data.records import DataReport
from alignjax.errors import UserError
from alignjax.evaluation import tables
from alignjax.evaluation.statistics import Interval
from alignjax.recipes.run import open_run
from alignjax.rewards.scorers import Scorer, digests, open_scorers
from alignjax.runtime import checkpoint
from alignjax.sampling.generate import Sample, take_questions
from alignjax.stages import adapters, evaluation, fresh_samples, sft
from alignjax.stages import reference as references
from alignjax.stages.data import split
from alignjax.stages.reference import Reference
from alignjax.stages.run import Run
from alignjax.training import on_policy
from alignjax.training.job import Learner
from alignjax.training.on_policy import Prompts
from alignjax.types import Params

MAX_EMPTY = 0.9  # stop when a larger share of a step's responses is empty


def run(
    config: Config,
    workdir: str | pathlib.Path,
    allow_config_change: bool = False,
    *,
    updates: int = 1,
    opponent: float | None = None,
) -> dict[str, Any]:
    """Trains and measures the policy; see `alignjax.recipes.run_config`.

    Args:
      updates: optimizer updates on each step's samples; more than 1 need a loss that corrects for
        it.
      opponent: weight of the reference in the mixture that gives the second half of each prompt's
        samples: its logits are (1 - opponent) x the policy's + opponent x the reference's. None:
        the policy gives all samples.

    Raises:
      UserError: there are no ``candidates``, or they keep the data's own responses; a scorer fails;
        the loss does not fit ``updates``; or as `recipes.align.run`.
    """
    settings = config.candidates
    fresh_samples.check_updates(config, updates)
    if settings is None:
        raise UserError(
            "candidates: wanted CandidatesConfig(scorers=..., samples=...) with "
            "recipes.train_online, found none"
        )
    if settings.keep_own:
        raise UserError("candidates.keep_own: wanted False with recipes.train_online, found True")
    fresh_samples.check_opponent(config, settings, opponent)
    with open_run(config, workdir, allow_config_change) as run:
        scorers = open_scorers(settings.scorers, "candidates.scorers", config)
        run = _measured(run, settings.scorers)
        load_reference = sft.run_stage(run)
        reference = Reference(load_reference, checkpoint.tree_digest(load_reference()))
        samples = evaluation.held_out_samples(
            "before", run, reference.digest, lambda: (load_reference(), None)
        )
        learner, prompts = _learner(run, reference, updates, opponent)
        made_of: dict[str, Any] = {"scorers": digests(scorers)}
        made_of |= {"updates": updates} if updates > 1 else {}
        made_of |= {"opponent": opponent} if opponent is not None else {}
        trained, counts = _train(run, reference, learner, prompts, scorers, made_of)
        return _finish(run, reference, learner, samples, trained, counts)


def _measured(run: Run, scorers: tuple[Callable[..., Any], ...]) -> Run:
    """Evaluates with the scorers that it learns from, if ``evaluate.scorers`` is empty.

    Held-out prompts alone have no responses to compare rewards of.
    """
    evaluate = run.config.evaluate
    if not (run.data.held_out.dataset.response_length > 0).any():
        if run.config.train.keep_best:
            raise UserError("train.keep_best: wanted empty, because the data are prompts alone")
        evaluate = dataclasses.replace(evaluate, held_out=False)
    evaluate = dataclasses.replace(evaluate, scorers=evaluate.scorers or scorers)
    return dataclasses.replace(run, config=dataclasses.replace(run.config, evaluate=evaluate))


def _learner(
    run: Run, reference: Reference, updates: int, opponent: float | None
) -> tuple[Learner, Prompts]:
    """Makes the policy and the prompts of its steps."""
    config, data = run.config, run.data
    assert config.candidates is not None  # see `run`
    questions = take_questions(data.train, len(data.train.dataset))
    return fresh_samples.make_policy(
        config,
        run.mesh,
        questions,
        data.tokenizer,
        reference.load,
        sampling=config.candidates,
        steps=fresh_samples.steps_of(config, questions),
        max_empty_fraction=MAX_EMPTY,
        updates=updates,
        opponent=opponent,
    )


def _train(
    run: Run,
    reference: Reference,
    learner: Learner,
    prompts: Prompts,
    scorers: list[Scorer],
    made_of: dict[str, Any],
) -> tuple[Params, dict[str, int]]:
    """Trains the policy; returns its parameters (with ``lora`` the adapters) and counts."""
    config, steps, on_held_out = run.config, len(prompts.batches), None
    if config.evaluate.held_out or config.train.keep_best:
        title = "reference, held out"
        on_held_out = references.table(run, run.data.held_out, reference, title)
    evaluation.require_metric(run, on_held_out, on_held_out)
    watched = evaluation.paced(run, prompts.batches.row_count, steps)
    job = watched.job("online", reference.digest, made_of, extendable=True)
    records, _ = split(config, {side: DataReport() for side in ("train", "held_out")})
    originals = {record.id: record for record in records}

    def during(params: Params) -> dict[str, float]:
        policy, of = adapters.whole(config, learner.ref_params, params), learner.ref_params
        if of is None and watched.config.evaluate.during:
            of = reference.load()  # the KL is to the start, also where the reference has moved
        return evaluation.history_line(watched, policy, of, on_held_out)

    state, counts = on_policy.fit(
        job,
        learner,
        prompts,
        fresh_samples.score_by(scorers, run, originals),
        jax.random.key(config.train.seed),
        during,
    )
    return state.params, counts


def _finish(
    run: Run,
    reference: Reference,
    learner: Learner,
    before: list[Sample],
    trained: Params,
    counts: dict[str, int],
) -> dict[str, Any]:
    """Measures the policy and its KL to the reference, and writes the report."""
    ref_params = reference.load() if learner.ref_params is None else learner.ref_params
    params = adapters.whole(run.config, ref_params, trained)
    digest = checkpoint.tree_digest(params)
    after = evaluation.held_out_samples("after", run, digest, lambda: (params, ref_params))
    # Steps donate buffers; if one donated the reference's, all numbers below would be wrong.
    if checkpoint.tree_digest(ref_params) != reference.digest:
        raise AssertionError("the reference's parameters changed during the run")
    table: tables.Table = evaluation.compare_samples(run, before, after) if after else {}
    divergence = evaluation.policy_kl(run, params, ref_params, after)
    if divergence is not None:
        table[evaluation.KL] = (Interval(0.0, 0.0, 0), divergence)
    rest = {"reference": {"mode": "live"}, "loss": describe(run.config.loss)}
    return evaluation.write_report(run, table, before, after, rest | counts)
