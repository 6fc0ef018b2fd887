"""Trains MORLHF: a policy for each preference, by policy gradient on a weighted sum of scores.

With w the preference and r_k the normalised scores of ``objectives.scorer``, it solves::

    max_pi  E_pi[sum_k w_k r_k(x, y)] - beta KL[pi || pi_ref]
    optimum: pi(y|x) = pi_ref(y|x) exp(sum_k w_k r_k(x, y) / beta), normalised

===============================  =====================================================
symbol                           code
===============================  =====================================================
w                                ``preference``, sums to 1
r_k                              ``objectives.scorer``, normalised: `scalar_score`
beta, the divergence, the step   ``config.loss``: ``partial(apo.loss, beta=0.1)``
pi_ref                           the supervised policy, ``setting.reference``
===============================  =====================================================

A step samples responses of the current policy (`training.on_policy`), scores them, and updates it.
The prompts are the distinct ones of the training data, shuffled again in every pass; the data's own
responses are only used to normalise the scores.

Differs from the paper: papers run this baseline with PPO: a value network, ratios clipped token by
token, and several passes over each batch. Here REINFORCE uses each sample once, with the mean of
the prompt's other samples as its baseline (`apo.loss`). The optimum is the same. For several passes
with clipping, set ``updates=4`` and ``loss=partial(grpo.loss_clipped, beta=0.2)``; its ratios are
of whole responses, and its baseline is the same mean. In RiC's code the KL coefficient adapts
(initially 0.2); here beta is constant.

Reference: the baseline of Rewards-in-Context, arXiv 2402.10207 (code YangRui2015/RiC,
ppo/morlhf.py), and of ParetoHqD, arXiv 2504.16628.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable

import jax
import numpy as np

from alignjax.commands.policies import TRAINED, Network, Policies, Preference
from alignjax.config import CandidatesConfig, SamplingConfig
from alignjax.data.records import Record
from alignjax.recipes.multi_objective import cost, rows
from alignjax.recipes.multi_objective.method import Rows, Setting, require
from alignjax.sampling.generate import take_questions
from alignjax.types import Array, Batch

log = logging.getLogger("alignjax")

NORMALISED = ("zscore", "minmax", "none")


def train(
    setting: Setting,
    *,
    steps: int | None = None,
    samples: int = 4,
    max_new_tokens: int = 64,
    normalise: str = "zscore",
    max_empty_fraction: float = 0.9,
    updates: int = 1,
) -> Policies:
    """Trains a policy for each of ``objectives.preferences``, one after the other.

    Args:
      setting: the run; its ``config.loss`` reads scores and a reference.
      steps, samples, max_new_tokens, normalise, max_empty_fraction, updates: see `policy`.

    Raises:
      UserError: see `policy`.
    """
    networks = [
        policy(
            setting,
            preference,
            steps=steps,
            samples=samples,
            max_new_tokens=max_new_tokens,
            normalise=normalise,
            max_empty_fraction=max_empty_fraction,
            updates=updates,
        )
        for preference in setting.preferences
    ]
    return setting.policies(TRAINED, networks)


def policy(
    setting: Setting,
    preference: Preference,
    *,
    steps: int | None = None,
    samples: int = 4,
    max_new_tokens: int = 64,
    normalise: str = "zscore",
    max_empty_fraction: float = 0.9,
    updates: int = 1,
) -> Network:
    """Trains the policy of one preference in ``workdir/morlhf/...``, unless it is there.

    Args:
      setting: the run. Batch size, learning rate and adapters are the config's.
      preference: M weights that sum to 1.
      steps: of sampling; None: ``train.steps``, or ``train.epochs`` over the distinct prompts.
      samples: K responses per prompt and step, at least 2; drawn at temperature 1 from all tokens.
      max_new_tokens: of a response; a longer one is cut, and trained on without its end.
      normalise: how to scale each objective by its scores of the training responses: "zscore"
        (subtract the mean, divide by the standard deviation), "minmax" (to [0, 1]) or "none". beta
        is in units of the result.
      max_empty_fraction: stop when more of a step's responses are empty; in [0, 1).
      updates: optimizer updates on a step's samples; more than 1 need a loss that corrects for it.

    Returns:
      The place of the network, with ``lora`` of its adapters.

    Raises:
      UserError: a hyperparameter is out of its range, the loss does not fit scored samples, the
        policy gives too many empty responses; or as `offline.fit`.
    """
    from alignjax.stages import check, fresh_samples
    from alignjax.training import on_policy

    _check(samples, max_new_tokens, normalise, max_empty_fraction)
    fresh_samples.check_updates(setting.run.config, updates)
    data = setting.run.data
    config = dataclasses.replace(setting.run.config, sft=None, recipe=None)
    lists = CandidatesConfig(scorers=(setting.objectives.scorer,), samples=samples)
    check.check_losses(dataclasses.replace(config, candidates=lists), data.train)
    questions = take_questions(data.train, len(data.train.dataset))
    learner, prompts = fresh_samples.make_policy(
        config,
        setting.run.mesh,
        questions,
        data.tokenizer,
        setting.reference.load,
        sampling=SamplingConfig(samples=samples, max_new_tokens=max_new_tokens),
        steps=fresh_samples.steps_of(config, questions) if steps is None else steps,
        max_empty_fraction=max_empty_fraction,
        updates=updates,
    )
    name = "morlhf/" + "-".join(f"{w:.4f}" for w in preference)
    scored = rows.scored_rows(setting)
    shift, scale = normalisation(scored.scores, normalise)
    _warn_of_constants(setting, name, scale)
    identity = {
        "shift": shift.tolist(),
        "scale": scale.tolist(),
        "samples": samples,
        "max_new_tokens": max_new_tokens,
        **({"updates": updates} if updates > 1 else {}),
    }
    run = setting.stage(config, data.train)
    own = dataclasses.replace(run, workdir=run.workdir / name)
    on_policy.fit(
        own.job(name, setting.reference.digest, identity),
        learner,
        prompts,
        scalar_score(setting, scored, np.array(preference) * scale, shift),
        jax.random.key(config.train.seed),
    )
    cost.note_steps(setting, name)
    return Network(preference, name)


def _check(samples: int, max_new_tokens: int, normalise: str, max_empty_fraction: float) -> None:
    require(samples >= 2, "samples", "at least 2", samples)
    require(max_new_tokens > 0, "max_new_tokens", "a positive number", max_new_tokens)
    require(normalise in NORMALISED, "normalise", ", ".join(NORMALISED), normalise)
    share = max_empty_fraction
    require(0 <= share < 1, "max_empty_fraction", "a number in [0, 1)", share)


def _warn_of_constants(setting: Setting, name: str, scale: np.ndarray) -> None:
    constant = [n for n, s in zip(setting.objectives.names, scale, strict=True) if not s]
    if constant:
        log.warning(
            "%s: left out %s: all training responses have the same score", name, ", ".join(constant)
        )


def normalisation(table: np.ndarray, how: str) -> tuple[np.ndarray, np.ndarray]:
    """Computes shift and scale for normalised scores ``(r - shift) * scale``.

    Args:
      table: ``[N, M]`` scores of the training responses.
      how: see `policy`.

    Returns:
      ``[M]`` shift and scale; a constant objective has scale 0, except with "none".
    """
    if how == "none":
        return np.zeros(table.shape[1]), np.ones(table.shape[1])
    shift = table.mean(axis=0) if how == "zscore" else table.min(axis=0)
    spread = table.std(axis=0) if how == "zscore" else np.ptp(table, axis=0)
    differs = np.ptp(table, axis=0) > 0
    return shift, np.where(differs, 1 / np.where(differs, spread, 1.0), 0.0)


def scalar_score(
    setting: Setting, scored: Rows, weights: np.ndarray, shift: np.ndarray
) -> Callable[[Batch], Array | np.ndarray]:
    """Makes the score of a step's samples: ``[B, K]`` weighted sums of normalised scores.

    Reward models score the sampled ids on the devices, all models in memory at once; any other
    scorer gets the text.
    """
    from alignjax.stages import fresh_samples

    names, run = setting.objectives.names, setting.run
    scorer = rows.objectives_scorer(setting.objectives, run.config)
    if not scorer.only_reward_models:
        asked = zip(scored.ids, scored.prompts, strict=True)
        return functools.partial(
            fresh_samples.score_texts,
            run.data,
            {id: Record(id=id, prompt=prompt, responses=()) for id, prompt in asked},
            lambda records: [(x - shift) @ weights for x in scorer.tables(records, names)],
        )
    score_ids = fresh_samples.by_reward_models(scorer.reward_models, run.data.tokenizer, run.mesh)
    columns = np.array(scorer.columns(names))
    return lambda batch: (score_ids(batch)[..., columns] - shift) @ weights
