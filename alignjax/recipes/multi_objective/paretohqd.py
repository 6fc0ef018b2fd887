"""ParetoHqD in two stages: fine-tuning on curated data, then on curated responses of its own.

Algorithm of the paper (arXiv 2504.16628), for P preferences between M objectives:

1. Every training response is scored; `losses.paretohqd.curate` chooses the ``size`` nearest to
   each preference's direction out of the best layers.
2. Stage 1: for each preference the supervised policy is fine-tuned on its ``size`` responses.
3. M + 1 representatives, one for each objective alone and the balanced one, respond to training
   prompts. The responses are cleaned, scored and curated again, ``size // 2`` for each preference.
4. Stage 2: each preference's policy of stage 1 is fine-tuned on those.

What it writes into the workdir, besides what `training` says:

    stage1/NN/  stage2/NN/         checkpoints of the preferences from number NN on
    representative-NN.json         what the policy of preference NN said
    representatives.json           the scores of what is left of it
    stage1.json  stage2.json       which responses were chosen, their mean scores, what was cleaned

Differs from the paper: its learning rate, adapters and rule for cleaning are not stated in what was
available to us. Here a response goes that is empty, was cut for lack of room, is collapsed
(`fronts.is_collapsed`), or was said before to the same prompt.
"""

import dataclasses
import functools
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from alignjax.data.records import Record
from alignjax.errors import UserError
from alignjax.evaluation import fronts
from alignjax.losses import paretohqd
from alignjax.recipes.multi_objective import scores, training
from alignjax.recipes.multi_objective.method import Preference, Respond, Rows, Setting, normalised
from alignjax.sampling.generate import Question, Sample, questions
from alignjax.types import Params

log = logging.getLogger("alignjax")


def train(
    setting: Setting,
    *,
    size: int = 100,
    curate: Callable[..., np.ndarray] = paretohqd.curate,
    two_stages: bool = True,
    centred: bool = False,
    prompts: int = 10_000,
    at_once: int = 4,
) -> Respond:
    """Trains a policy, or a set of adapters, for each preference.

    The config's ``loss`` (`losses.paretohqd.loss`), ``optim``, ``train`` and ``lora`` are those
    of each fine-tuning.

    Args:
      size: k, responses that each preference is fine-tuned on in stage 1; half of it in stage 2.
      curate: ``(scores, preferences, size) -> [P, size]`` rows; `paretohqd.curate_linear` is the
        paper's ablation.
      two_stages: False stops after stage 1, another ablation.
      centred: curates by how much better a response is than the mean of those to its prompt, rather
        than by its scores. Not in the paper: where objectives are at odds for some prompts only,
        the best layers are else full of the prompts for which they are not.
      prompts: training prompts that the representatives respond to, at random, at most.
      at_once: preferences trained in one program, side by side: more is quicker as long as memory
        holds their rows' activations (`benchmarks/adapters.py`).

    Returns:
      How to respond for one of the config's preferences.

    Raises:
      UserError: fewer responses to choose from than ``size``, or after cleaning than half of it.
    """
    for name, value in (("size", size - 1), ("prompts", prompts), ("at_once", at_once)):
        if value < 1:
            raise UserError(
                f"recipe.objectives.method.{name}: wanted a number of "
                f"{2 if name == 'size' else 1} or more, found {value + (name == 'size')}"
            )
    preferences = [normalised(weights) for weights in setting.objectives.preferences]
    rows = training.scored_rows(setting)
    stage = functools.partial(
        _stage, setting, preferences=preferences, curate=curate, centred=centred, at_once=at_once
    )
    policies = stage("stage1", rows, size=size)
    if two_stages:
        said, counts = _say(setting, rows, preferences, policies, prompts)
        policies = stage("stage2", said, size=size // 2, starts=policies, counts=counts)

    def respond(preference: Preference, asked: Sequence[Question]) -> list[Sample]:
        if preference not in preferences:
            raise UserError(
                f"preference {preference}: no policy was trained for it: "
                f"recipe.objectives.preferences has {len(preferences)} others"
            )
        policy = _merged(setting, policies[preferences.index(preference)])
        return training.respond_with(setting, policy)(asked)

    return respond


def representatives(preferences: Sequence[Preference]) -> list[int]:
    """The preference nearest to each objective alone, and the one nearest to all alike; once each.

    >>> representatives([(0.0, 1.0), (0.3, 0.7), (0.6, 0.4), (1.0, 0.0)])
    [3, 0, 2]
    """
    table = np.array(preferences)
    m = table.shape[1]
    wanted = [*np.eye(m), np.full(m, 1 / m)]
    nearest = [int(np.linalg.norm(table - w, axis=1).round(12).argmin()) for w in wanted]
    return list(dict.fromkeys(nearest))


def _stage(
    setting: Setting,
    name: str,
    rows: Rows,
    *,
    preferences: list[Preference],
    curate: Callable[..., np.ndarray],
    centred: bool,
    at_once: int,
    size: int,
    starts: list[Params] | None = None,
    counts: dict[str, int] | None = None,
) -> list[Params]:
    """Chooses rows for each preference, says which, and fine-tunes on them."""
    from alignjax.recipes.multi_objective import stacked
    from alignjax.runtime import workdirs

    names = setting.objectives.names
    if not rows.ids:
        raise UserError(
            f"recipe.objectives.method, {name}: no response is left to choose from: {counts}"
        )
    for m in np.flatnonzero(np.ptp(rows.scores, axis=0) == 0):
        log.warning("%s: %s is the same for all responses, and says nothing", name, names[m])
    points = _centred(rows) if centred else rows.scores
    try:
        chosen = curate(points, preferences, size)
    except ValueError as error:
        raise UserError(f"recipe.objectives.method, {name}: {error}") from None
    means = [rows.scores[own].mean(axis=0) for own in chosen]
    for preference, mean in zip(preferences, means, strict=True):
        log.info("%s: %s chosen for %s have %s", name, size, _told(preference), _told(mean, names))
    told = {
        "responses": len(rows.scores),
        "cleaned": counts or {},
        "chosen": [
            {
                "preference": list(preference),
                "ids": [rows.ids[i] for i in own],
                "mean_scores": dict(zip(names, mean.tolist(), strict=True)),
            }
            for preference, own, mean in zip(preferences, chosen, means, strict=True)
        ],
    }
    workdirs.write_json(setting.workdir / f"{name}.json", told)
    used, place = np.unique(chosen, return_inverse=True)
    bucketed = training.prepared(setting, training.records_of(rows, used.tolist()), name)
    return stacked.fit_each(
        setting, name, bucketed, place.reshape(chosen.shape), at_once=at_once, starts=starts
    )


def _centred(rows: Rows) -> np.ndarray:
    """``[N, M]`` scores less their mean over the responses to the same prompt."""
    _, prompt, count = np.unique(rows.ids, return_inverse=True, return_counts=True)
    sums = np.zeros((len(count), rows.scores.shape[1]))
    np.add.at(sums, prompt, rows.scores)
    return rows.scores - (sums / count[:, None])[prompt]


def _told(numbers: Any, names: Sequence[str] = ()) -> str:
    """``0.30, 0.70``, or ``helpful 0.412, harmless 0.950``."""
    if not names:
        return ", ".join(f"{x:.2f}" for x in numbers)
    return ", ".join(f"{name} {x:.3f}" for name, x in zip(names, numbers, strict=True))


def _say(
    setting: Setting,
    rows: Rows,
    preferences: list[Preference],
    policies: list[Params],
    prompts: int,
) -> tuple[Rows, dict[str, int]]:
    """What the representatives respond to training prompts, cleaned and scored, and its counts."""
    from alignjax.recipes.multi_objective import sampling

    config, dataset = setting.config, setting.data.train.dataset
    texts = dict(zip(rows.ids, rows.prompts, strict=True))
    asked = questions(setting.data.train, len(dataset))
    asked = [q for q in asked if dataset[q.number].id in texts]
    if len(asked) > prompts:
        drawn = np.random.default_rng(config.train.seed).choice(len(asked), prompts, replace=False)
        asked = [asked[i] for i in np.sort(drawn)]
    counts: Counter[str] = Counter()
    kept: list[dict[str, None]] = [{} for _ in asked]
    for i in representatives(preferences):
        samples = sampling.sampled(
            setting,
            f"representative-{i:02d}",
            _merged(setting, policies[i]),
            asked,
            settings=dataclasses.replace(config.evaluate, samples=1, judge=None, scorers=()),
            seed=2 + i,
        )
        ids = setting.data.tokenizer.encode("", [s.response for s in samples]).response_ids
        for said, sample, tokens in zip(kept, samples, ids, strict=True):
            fault = _fault(sample, tokens[:-1].tolist())
            if not fault and sample.response in said:
                fault = "repeated"
            counts[fault or "kept"] += 1
            if not fault:
                said[sample.response] = None
    records = [
        Record(id=dataset[q.number].id, prompt=texts[dataset[q.number].id], responses=tuple(said))
        for q, said in zip(asked, kept, strict=True)
        if said
    ]
    told = ", ".join(f"{n:,} {x}" for x, n in counts.items())
    log.info("responses of the representatives: %s", told)
    tables = scores.kept(setting, records, name="representatives") if records else []
    return training.with_scores(setting, records, tables), dict(counts)


def _fault(sample: Sample, ids: list[int]) -> str:
    """Why a response is not trained on; empty for a good one."""
    if not sample.response.strip():
        return "empty"
    if not sample.ended:
        return "unfinished"
    return "collapsed" if fronts.is_collapsed(ids) else ""


def _merged(setting: Setting, policy: Params) -> Params:
    """The whole network, its adapters added into the weights: it samples quicker than beside."""
    from alignjax.models import lora

    if setting.config.lora is None:
        return policy
    return lora.merge(setting.load_reference(), policy, setting.config.lora)
