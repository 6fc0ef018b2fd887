"""Trains ParetoHqD in two stages: on curated data, then on curated responses of its policies.

Algorithm of the paper (arXiv 2504.16628), for P preferences between M objectives:

1. Every training response is scored; `losses.paretohqd.curate` chooses from the best layers the
   ``size`` responses nearest to each preference's direction.
2. Stage 1: for each preference the supervised policy is fine-tuned on its ``size`` responses.
3. M + 1 representatives, one for each objective alone and one for equal weights, respond to
   training prompts. The responses are cleaned, scored and curated again, ``size // 2`` for each
   preference.
4. Stage 2: each preference's policy of stage 1 is fine-tuned on these.

It writes into the workdir, besides the files of `training`:

    stage1/NN/  stage2/NN/         checkpoints of the preferences from number NN on
    representative-NN.json         responses of the policy of preference NN
    representatives.json           the scores of the cleaned responses
    stage1.json  stage2.json       the chosen responses, their mean scores, counts of the cleaning

Differs from the paper: the text available to us does not state its learning rate, adapters and rule
for cleaning. Here a response is removed if it is empty, was cut at the token limit, is collapsed
(`fronts.is_collapsed`), or repeats an earlier one to the same prompt.
"""

import functools
import logging
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from alignjax.commands.policies import TRAINED, Policies, Preference
from alignjax.config import SamplingConfig
from alignjax.data.records import Prompt, Record
from alignjax.errors import UserError
from alignjax.evaluation import fronts
from alignjax.losses import paretohqd
from alignjax.recipes.multi_objective import rows, sampling, stacked
from alignjax.recipes.multi_objective.method import AtOnce, Rows, Setting, require
from alignjax.sampling.generate import Question, Sample, take_questions
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
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    top_p: float = 1.0,
    at_once: AtOnce = 4,
) -> Policies:
    """Trains a policy, or a set of adapters, for each preference.

    Each fine-tuning uses the config's ``loss`` (`losses.paretohqd.loss`), ``optim``, ``train`` and
    ``lora``.

    Args:
      size: k, responses that each preference is fine-tuned on in stage 1; half as many in stage 2.
      curate: ``(scores, preferences, size) -> [P, size]`` rows; `paretohqd.curate_linear` is the
        paper's ablation.
      two_stages: False: only stage 1, another ablation.
      centred: subtracts from scores their mean over the prompt's responses before curating. Not in
        the paper: if objectives conflict for some prompts only, the best layers without it have
        mostly responses to the other prompts.
      prompts: number of random training prompts that the representatives respond to, at most.
      max_new_tokens, temperature, top_p: of these responses, as in `SamplingConfig`; those that are
        cut are not trained on.
      at_once: preferences trained in one program; more are quicker, if the activations of their
        rows fit into memory (docs/running.md).

    Raises:
      UserError: there are fewer than ``size`` responses, or after cleaning than half of it.
    """
    for name, value, least in (("size", size, 2), ("prompts", prompts, 1), ("at_once", at_once, 1)):
        require(value >= least, name, f"a number >= {least}", value)
    drawn = sampling.settings(
        setting, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p
    )
    choose = functools.partial(_choose, setting, curate=curate, centred=centred)
    scored = rows.scored_rows(setting)
    chosen = choose("stage1", scored, size=size)
    name, policies = "stage1", _fine_tune(setting, "stage1", scored, chosen, at_once=at_once)
    if two_stages:
        samples, counts = _sample_representatives(setting, scored, policies, prompts, drawn)
        chosen = choose("stage2", samples, size=size // 2, counts=counts)
        name = "stage2"
        _fine_tune(setting, name, samples, chosen, at_once=at_once, starts=policies)
    return setting.policies(TRAINED, stacked.networks(setting, name, at_once=at_once))


def representatives(preferences: Sequence[Preference]) -> list[int]:
    """Finds the preferences nearest to each objective alone and to equal weights, without repeats.

    >>> representatives([(0.0, 1.0), (0.3, 0.7), (0.6, 0.4), (1.0, 0.0)])
    [3, 0, 2]
    """
    table = np.array(preferences)
    m = table.shape[1]
    wanted = [*np.eye(m), np.full(m, 1 / m)]
    nearest = [int(np.linalg.norm(table - w, axis=1).round(12).argmin()) for w in wanted]
    return list(dict.fromkeys(nearest))


def _none_left(counts: dict[str, int]) -> str:
    """Explains why no response can be chosen, from the counts of the cleaning.

    >>> _none_left({"unfinished": 8, "kept": 1})
    '8 unfinished, 1 without a score; recipe.objectives.method.max_new_tokens may be too low'
    >>> _none_left({})
    'all without a score'
    """
    named = [f"{n} {k if k != 'kept' else 'without a score'}" for k, n in counts.items()]
    cut = "; recipe.objectives.method.max_new_tokens may be too low"
    return (", ".join(named) or "all without a score") + cut * ("unfinished" in counts)


def _choose(
    setting: Setting,
    name: str,
    scored: Rows,
    *,
    size: int,
    curate: Callable[..., np.ndarray],
    centred: bool,
    counts: dict[str, int] | None = None,
) -> np.ndarray:
    """Chooses rows for each preference, and writes the choice to ``NAME.json``.

    Args:
      counts: numbers of responses that cleaning kept and removed.

    Returns:
      ``[P, size]`` rows.
    """
    from alignjax.runtime import storage

    names, preferences = setting.objectives.names, setting.preferences
    if not scored.ids:
        raise UserError(
            f"recipe.objectives.method, {name}: wanted responses to choose from, found none: "
            f"{_none_left(counts or {})}"
        )
    for m in np.flatnonzero(np.ptp(scored.scores, axis=0) == 0):
        log.warning("%s: %s is the same for all responses, and has no effect", name, names[m])
    try:
        chosen = curate(_centre(scored) if centred else scored.scores, preferences, size)
    except ValueError as error:
        raise UserError(f"recipe.objectives.method, {name}: {error}") from None
    means = [
        dict(zip(names, scored.scores[own].mean(axis=0).tolist(), strict=True)) for own in chosen
    ]
    for preference, mean in zip(preferences, means, strict=True):
        weights = ", ".join(f"{w:.2f}" for w in preference)
        scores = ", ".join(f"{objective} {x:.3f}" for objective, x in mean.items())
        log.info("%s: %s chosen for %s have %s", name, size, weights, scores)
    content = {
        "responses": len(scored.scores),
        "cleaned": counts or {},
        "chosen": [
            {
                "preference": list(preference),
                "ids": [scored.ids[i] for i in own],
                "mean_scores": mean,
            }
            for preference, own, mean in zip(preferences, chosen, means, strict=True)
        ],
    }
    storage.keep_json(setting.run.workdir / f"{name}.json", content)
    return chosen


def _fine_tune(
    setting: Setting,
    name: str,
    scored: Rows,
    chosen: np.ndarray,
    *,
    at_once: int,
    starts: list[Params] | None = None,
) -> list[Params]:
    """Fine-tunes a policy for each preference on its chosen rows."""
    used, place = np.unique(chosen, return_inverse=True)
    records = rows.single_records(scored, used.tolist())
    prepared = rows.prepare_rows(setting, records, name)
    return stacked.fit_each(
        setting, name, prepared, place.reshape(chosen.shape), at_once=at_once, starts=starts
    )


def _centre(rows: Rows) -> np.ndarray:
    """Subtracts from ``[N, M]`` scores their mean over the responses to the same prompt."""
    _, prompt, count = np.unique(rows.ids, return_inverse=True, return_counts=True)
    sums = np.zeros((len(count), rows.scores.shape[1]))
    np.add.at(sums, prompt, rows.scores)
    return rows.scores - (sums / count[:, None])[prompt]


def _sample_representatives(
    setting: Setting, scored: Rows, policies: list[Params], prompts: int, settings: SamplingConfig
) -> tuple[Rows, dict[str, int]]:
    """Samples responses of the representatives to training prompts, cleans and scores them.

    Returns:
      The remaining responses, and the numbers kept and removed for each fault.
    """
    data = setting.run.data
    questions, texts = _training_prompts(setting, scored, prompts)
    counts: Counter[str] = Counter()
    kept: list[dict[str, None]] = [{} for _ in questions]  # of each prompt, in order
    for i in representatives(setting.preferences):
        samples = sampling.sample_to_train(
            setting,
            f"representative-{i:02d}",
            sampling.merged_network(setting, policies[i]),
            questions,
            settings=settings,
            seed=2 + i,
        )
        ids = data.tokenizer.encode("", [s.response for s in samples]).response_ids
        for own, sample, tokens in zip(kept, samples, ids, strict=True):
            fault = _fault(sample, tokens[:-1].tolist())
            if not fault and sample.response in own:
                fault = "repeated"
            counts[fault or "kept"] += 1
            if not fault:
                own[sample.response] = None
    records = [
        Record(id=id, prompt=prompt, responses=tuple(own))
        for (id, prompt), own in zip(texts, kept, strict=True)
        if own
    ]
    described = ", ".join(f"{n:,} {x}" for x, n in counts.items())
    log.info("responses of the representatives: %s", described)
    tables = rows.score_records(setting, records, "representatives") if records else []
    return rows.join_scores(setting.objectives, records, tables), dict(counts)


def _training_prompts(
    setting: Setting, scored: Rows, limit: int
) -> tuple[list[Question], list[tuple[str, Prompt]]]:
    """Draws at most ``limit`` random training prompts: tokenised, and as (id, text)."""
    train = setting.run.data.train
    prompts = dict(zip(scored.ids, scored.prompts, strict=True))
    questions = take_questions(train, len(train.dataset))
    questions = [q for q in questions if train.dataset[q.number].id in prompts]
    if len(questions) > limit:
        rng = np.random.default_rng(setting.run.config.train.seed)
        questions = [
            questions[i] for i in np.sort(rng.choice(len(questions), limit, replace=False))
        ]
    ids = [train.dataset[q.number].id for q in questions]
    return questions, [(id, prompts[id]) for id in ids]


def _fault(sample: Sample, ids: list[int]) -> str:
    """Returns why a response is not used for training; an empty text if it is used."""
    if not sample.response.strip():
        return "empty"
    if not sample.ended:
        return "unfinished"
    return "collapsed" if fronts.is_collapsed(ids) else ""
