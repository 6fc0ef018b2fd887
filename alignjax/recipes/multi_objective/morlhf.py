"""MORLHF: for each preference a policy of its own, by policy gradient on a weighted sum of scores.

With w the preference and r_k the scores of ``objectives.scorer``, normalised::

    max_pi  E_pi[sum_k w_k r_k(x, y)] - beta KL[pi || pi_ref]
    whose optimum is pi_ref(y|x) exp(sum_k w_k r_k(x, y) / beta), normalised

===============================  =====================================================
symbol                           code
===============================  =====================================================
w                                ``preference``, sums to 1
r_k                              what `_scalar` makes of ``objectives.scorer``
beta, the divergence, the step   ``config.loss``: ``partial(apo.loss, beta=0.1)``
pi_ref                           the supervised policy, ``setting.load_reference``
===============================  =====================================================

A step samples responses of the policy as it then is (`training.on_policy`), scores them, and moves.
Every distinct training prompt is asked, shuffled, again and again; the data's own responses only
say how large a score is large.

Differs from the paper: the baseline as other papers run it is PPO, with a value network, clipped
ratios and several passes over each batch; here each sample is used once, in REINFORCE with the
mean of the prompt's other samples for a baseline (`apo.loss`). The optimum is the same. From
ParetoHqD's and RiC's code: its KL coefficient adapts (initially 0.2), beta here stays.

Reference: the baseline of Rewards-in-Context, arXiv 2402.10207 (code YangRui2015/RiC,
ppo/morlhf.py), and of ParetoHqD, arXiv 2504.16628.
"""

import dataclasses
import logging
from collections.abc import Callable, Sequence

import jax
import numpy as np

from alignjax.config import CandidatesConfig, SamplingConfig
from alignjax.data.records import Record
from alignjax.errors import UserError
from alignjax.recipes.multi_objective import cost, scores, training
from alignjax.recipes.multi_objective.method import Preference, Respond, Rows, Setting, normalised
from alignjax.runtime import distributed
from alignjax.sampling.generate import Question, Sample, questions
from alignjax.types import Array, Batch, Params

log = logging.getLogger("alignjax")

NORMALISED = ("zscore", "minmax", "none")


def train(
    setting: Setting,
    *,
    steps: int | None = None,
    samples: int = 4,
    normalise: str = "zscore",
    max_empty_fraction: float = 0.9,
) -> Respond:
    """Trains a policy for each of ``objectives.preferences``, one after the other.

    Args:
      setting: the run; its ``config.loss`` reads scores and a reference.
      steps, samples, normalise, max_empty_fraction: see `policy`.

    Returns:
      What responds for a preference that was trained for.

    Raises:
      UserError: see `policy`; or what is returned is asked for another preference.
    """
    known = [normalised(weights) for weights in setting.objectives.preferences]

    def of(preference: Preference) -> Params:
        return policy(
            setting,
            preference,
            steps=steps,
            samples=samples,
            normalise=normalise,
            max_empty_fraction=max_empty_fraction,
        )

    for preference in known:
        of(preference)

    def respond(preference: Preference, asked: Sequence[Question]) -> list[Sample]:
        if preference not in known:
            raise UserError(f"morlhf: no policy was trained for preference {preference}")
        return training.respond_with(setting, of(preference))(asked)

    return respond


def policy(
    setting: Setting,
    preference: Preference,
    *,
    steps: int | None = None,
    samples: int = 4,
    normalise: str = "zscore",
    max_empty_fraction: float = 0.9,
) -> Params:
    """The policy of one preference: trained in ``workdir/morlhf/...``, or read back from there.

    Args:
      setting: the run. Batch size, learning rate and adapters are the config's, the length of
        responses is ``evaluate.max_new_tokens``, and they are drawn from the policy itself:
        temperature 1, nothing cut.
      preference: M weights that sum to 1.
      steps: of the optimizer; None: ``train.steps``, or ``train.epochs`` over the distinct prompts.
      samples: K responses per prompt and step, 2 at least.
      normalise: of each objective over the training responses: "zscore" (less the mean, over the
        standard deviation), "minmax" (to [0, 1]) or "none". beta is in units of what comes out.
      max_empty_fraction: stop when more of a step's responses are empty; in [0, 1).

    Returns:
      Its parameters: of the whole network, or adapters where the config has ``lora``.

    Raises:
      UserError: a hyperparameter is out of its range, or the loss does not fit scored samples;
        the policy came to give empty responses; or as `offline.fit`.
    """
    from alignjax.stages import bricks, check, fresh_samples
    from alignjax.training import on_policy

    if samples < 2:
        raise UserError(f"recipe.objectives.method.samples: wanted 2 at least, found {samples}")
    if normalise not in NORMALISED:
        raise UserError(
            f"recipe.objectives.method.normalise: wanted {', '.join(NORMALISED)}, found "
            f"{normalise!r}"
        )
    if not 0 <= max_empty_fraction < 1:
        raise UserError(
            "recipe.objectives.method.max_empty_fraction: wanted a number in [0, 1), found "
            f"{max_empty_fraction}"
        )
    data, config = setting.data, dataclasses.replace(setting.config, sft=None, recipe=None)
    lists = CandidatesConfig(scorers=(setting.objectives.scorer,), samples=samples)
    check.check_losses(dataclasses.replace(config, candidates=lists), data.train)
    rows = training.scored_rows(setting)
    shift, scale = normalisation(rows.scores, normalise)
    asked = questions(data.train, len(data.train.dataset))
    steps = fresh_samples.steps_of(config, asked) if steps is None else steps
    name = "morlhf/" + "-".join(f"{w:.4f}" for w in preference)
    learner, prompts = fresh_samples.make_policy(
        config,
        setting.mesh,
        asked,
        data.tokenizer,
        setting.load_reference,
        sampling=SamplingConfig(samples=samples, max_new_tokens=config.evaluate.max_new_tokens),
        steps=steps,
        max_empty_fraction=max_empty_fraction,
    )
    weights = {"shift": shift.tolist(), "scale": scale.tolist(), "samples": samples}
    constant = [n for n, s in zip(setting.objectives.names, scale, strict=True) if not s]
    if constant:
        log.warning(
            "%s: %s: the same score for all training responses, left out", name, ", ".join(constant)
        )
    scalar = _scalar(setting, rows, np.array(preference) * scale, shift)
    run = setting.training(name, config, data.train)
    job = bricks.make_job(name, run, setting.digest, weights)
    state, _ = on_policy.fit(job, learner, prompts, scalar, jax.random.key(config.train.seed))
    cost.note_steps(setting, name)
    return state.params


def normalisation(table: np.ndarray, how: str) -> tuple[np.ndarray, np.ndarray]:
    """What makes objectives comparable: ``(r - shift) * scale``.

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


def _scalar(
    setting: Setting, rows: Rows, weights: np.ndarray, shift: np.ndarray
) -> Callable[[Batch], Array | np.ndarray]:
    """What gives ``[B, K]`` weighted sums of normalised scores of a step's samples.

    A reward model that reads the policy's ids scores them where they are, any other scorer their
    text.
    """
    from alignjax.stages import fresh_samples

    several, data = setting.objectives, setting.data
    scorer = scores.scorer_of(several, setting.config.mesh)
    if scorer.reward_model is not None:
        names = scorer.reward_model.objectives
        columns = np.array([names.index(name) for name in several.names])
        by_ids = fresh_samples.by_reward_model(scorer.reward_model, data.tokenizer, setting.mesh)

        def of_ids(batch: Batch) -> Array:
            return (by_ids(batch)[..., columns] - shift) @ weights

        return of_ids
    prompts = dict(zip(rows.ids, rows.prompts, strict=True))

    def of_texts(batch: Batch) -> np.ndarray:
        said = fresh_samples.texts(batch, data.tokenizer)
        records = []
        for number, responses in said:
            example = data.train.dataset[number]
            prompt = prompts.get(example.id, example.prompt)
            records.append(Record(id=example.id, prompt=prompt, responses=tuple(responses)))
        table = np.zeros(batch.response_length.shape)
        counted = np.flatnonzero(distributed.fetch(batch.weight) > 0)
        given = scorer.tables(records, several.names)
        for row, found in zip(counted, given, strict=True):
            table[row] = (found - shift) @ weights
        return table

    return of_texts
