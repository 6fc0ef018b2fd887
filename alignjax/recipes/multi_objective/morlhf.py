"""MORLHF: for each preference a policy of its own, by policy gradient on a weighted sum of scores.

With w the preference and r_k the scores of ``objectives.scorer``, normalised::

    max_pi  E_pi[sum_k w_k r_k(x, y)] - beta KL[pi || pi_ref]
    whose optimum is pi_ref(y|x) exp(sum_k w_k r_k(x, y) / beta), normalised

===============================  =====================================================
symbol                           code
===============================  =====================================================
w                                ``preference``, sums to 1
r_k                              ``objectives.scorer``, normalised: `scalar_score`
beta, the divergence, the step   ``config.loss``: ``partial(apo.loss, beta=0.1)``
pi_ref                           the supervised policy, ``setting.reference``
===============================  =====================================================

A step samples responses of the current policy (`training.on_policy`), scores them, and updates it.
The prompts are the distinct ones of the training data, shuffled anew in every pass; the data's own
responses only set the scale of the scores.

Differs from the paper: other papers run this baseline with PPO, a value network, ratios clipped
token by token and several passes over each batch. Here each sample is used once, in REINFORCE, with
the mean of the prompt's other samples as its baseline (`apo.loss`). The optimum is the same. PPO's
passes and clipping are ``updates=4`` and ``loss=partial(grpo.loss_clipped, beta=0.2)``: its ratios
are of whole responses, and its baseline is the same mean. In RiC's code the KL coefficient adapts
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
from alignjax.errors import UserError
from alignjax.recipes.multi_objective import cost, rows
from alignjax.recipes.multi_objective.method import Rows, Setting
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
      samples: K responses per prompt and step, 2 at least; drawn at temperature 1 from all tokens.
      max_new_tokens: of a response; a longer one is cut, and learned from as it is.
      normalise: of each objective over the training responses: "zscore" (less the mean, over the
        standard deviation), "minmax" (to [0, 1]) or "none". beta is in units of the result.
      max_empty_fraction: stop when more of a step's responses are empty; in [0, 1).
      updates: of the optimizer on a step's samples; more than 1 want a loss that corrects for it.

    Returns:
      Where it is; there are adapters alone where the config has ``lora``.

    Raises:
      UserError: a hyperparameter is out of its range, or the loss does not fit scored samples;
        the policy gives empty responses; or as `offline.fit`.
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
    for ok, field, wanted, value in (
        (samples >= 2, "samples", "2 at least", samples),
        (max_new_tokens > 0, "max_new_tokens", "a positive number", max_new_tokens),
        (normalise in NORMALISED, "normalise", ", ".join(NORMALISED), normalise),
        (
            0 <= max_empty_fraction < 1,
            "max_empty_fraction",
            "a number in [0, 1)",
            max_empty_fraction,
        ),
    ):
        if not ok:
            raise UserError(f"recipe.objectives.method.{field}: wanted {wanted}, found {value!r}")


def _warn_of_constants(setting: Setting, name: str, scale: np.ndarray) -> None:
    constant = [n for n, s in zip(setting.objectives.names, scale, strict=True) if not s]
    if constant:
        log.warning(
            "%s: %s: the same score for all training responses, left out", name, ", ".join(constant)
        )


def normalisation(table: np.ndarray, how: str) -> tuple[np.ndarray, np.ndarray]:
    """Finds shift and scale that make objectives comparable, by ``(r - shift) * scale``.

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

    Reward models score the sampled ids on the devices, which hold all of them; any other scorer
    gets the text.
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
