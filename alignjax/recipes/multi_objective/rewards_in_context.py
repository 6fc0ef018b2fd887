"""Rewards-in-Context: one policy for every preference, told in its prompt what to be good at.

Offline, every training response is imitated under a prompt that tells its own scores. Then come
rounds: the policy is asked for much of all objectives but one, the samples are scored, and those
good at something are imitated under the scores they got, together with responses of the data.
For a preference all prompts ask for its target. What it writes into the workdir:

    offline/  online-1/ ...               the stages, as `training.fit` leaves them
    online-1.json  online-1-scores.json   what a round sampled, and its scores
    rewards_in_context.json               mean, deviation and limits of the scores; counts of rounds

Scores in prompts are z-scores by mean and deviation of the training responses, whatever they are
told for; targets depend on the training responses alone. Where they go: see `conditioned`.
"""

import dataclasses
import logging
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from alignjax.data.encode import encode_all
from alignjax.data.records import Prompt, Record
from alignjax.errors import UserError
from alignjax.losses import rewards_in_context as ric
from alignjax.recipes.multi_objective import sampling, scores, training
from alignjax.recipes.multi_objective.method import Preference, Respond, Rows, Setting
from alignjax.sampling.generate import Question, Sample

log = logging.getLogger("alignjax")

Limits = Callable[..., tuple[np.ndarray, np.ndarray]]  # [N, M] z-scores -> [M] low, [M] high
# The last line of a plain-text prompt, where it says who speaks next.
_OPENER = re.compile(r"\s*\n(#+ )?\w+( \w+)?:[ \t]*\Z")


def train(
    setting: Setting,
    *,
    target: Callable[..., np.ndarray] = ric.l2,
    limits: Limits = ric.normal_limits,
    online_rounds: int = 2,
    online_samples: int = 20_000,
    originals: int = 10_000,
    quantile: float = 0.7,
    online_steps: int = 4_000,
    online_learning_rate: float = 1e-5,
    temperature: float = 0.7,
    top_p: float = 0.9,
) -> Respond:
    """Trains offline as ``train`` and ``optim`` of the config say, then in rounds.

    Args:
      setting: the config's ``loss`` is `rewards_in_context.loss`.
      target: `l2`, `linf` or `linear` of objectives.rewards_in_context: from a preference to the
        z-scores that a prompt asks for.
      limits: `normal_limits` or `data_limits` of it: the z-scores a target lies between.
      online_rounds: rounds after the offline stage; 0: none.
      online_samples: samples of a round, to prompts of random training responses.
      originals: training responses that a round trains on too, at most; of those that `keep` keeps.
      quantile: of `keep`, for samples and originals, each among its own kind.
      online_steps: optimizer steps of a round.
      online_learning_rate: peak; schedule and the rest as in ``optim``.
      temperature, top_p: of the samples of a round; length and batch size as ``evaluate`` has them.

    Raises:
      UserError: a keyword out of its range, a round without a single usable sample; or as
        `training.fit`.

    Differs from the authors' code: a sample that is empty or was cut for lack of room is left out;
    there some repetitive ones are. Objectives with one value are told as 0.0. Rounds of a constant
    learning rate need ``optim.constant``.
    """
    _check_ranges(online_rounds, online_samples, originals, quantile, temperature, top_p)
    config = setting.config
    rows = training.scored_rows(setting)
    scale = _scale(setting, rows.scores)
    z = scale(rows.scores)
    low, high = limits(z)
    own = [_record(rows, i, z[i]) for i in range(len(z))]
    params = training.fit(
        setting, "offline", training.prepared(setting, own, "offline rows"), reference=False
    )
    frontier = np.flatnonzero(ric.keep(z, quantile=quantile))
    settings = dataclasses.replace(config.evaluate, samples=1, temperature=temperature, top_p=top_p)
    online: list[Record] = []
    rounds: list[dict[str, Any]] = []
    for number in range(1, online_rounds + 1):
        name, rng = f"online-{number}", np.random.default_rng((config.train.seed, number))
        picked = rng.integers(0, len(z), online_samples)
        wanted = ric.online_targets(rng, online_samples, low=low, high=high)
        mixed = rng.permutation(frontier)[:originals]
        asked = [_record(rows, i, w) for i, w in zip(picked, wanted, strict=True)]
        drawn = sampling.sampled(
            setting,
            name,
            params,
            _questions(setting, asked, range(online_samples)),
            settings=settings,
            seed=number,
        )
        said, counts = _usable(rows, picked, drawn, name)
        good, scored = _good(setting, name, said, scale, quantile)
        online += good
        counts |= {**scored, "kept of all rounds": len(online), "originals": len(mixed)}
        log.info("%s: %s", name, ", ".join(f"{n:,} {what}" for what, n in counts.items()))
        rounds.append(counts)
        params = training.fit(
            setting,
            name,
            training.prepared(setting, [*(own[i] for i in mixed), *online], f"{name} rows"),
            start=params,
            steps=online_steps,
            learning_rate=online_learning_rate,
            reference=False,
        )
    _tell(setting, rows, low, high, rounds)
    ask = training.respond_with(setting, params)

    def respond(preference: Preference, asked: Sequence[Question]) -> list[Sample]:
        wanted = target(preference, low, high)
        names = setting.objectives.names
        log.info(
            "asked for: %s",
            ", ".join(f"{n} {w:.1f}" for n, w in zip(names, wanted, strict=True)),
        )
        told = [
            dataclasses.replace(r, prompt=conditioned(r.prompt, wanted))
            for r in _held_out(setting, asked)
        ]
        samples = ask(_questions(setting, told, [q.number for q in asked]))
        each = config.evaluate.samples
        return [
            dataclasses.replace(s, prompt=asked[i // each].prompt) for i, s in enumerate(samples)
        ]

    return respond


def conditioned(prompt: Prompt, wanted: np.ndarray | tuple[float, ...]) -> Prompt:
    r"""A prompt that tells scores, `losses.rewards_in_context.score_text` of them.

    In plain text they come at the end, or before the last line if that only says who speaks next
    (one or two words and a colon); in a conversation at the end of the last message. So a prompt
    that is too long loses its beginning and keeps them.

    >>> conditioned("User: Hi!\nAssistant:", (1.25, -0.5))
    'User: Hi! <rm1_score> 1.2 <rm2_score> -0.5\nAssistant:'
    >>> conditioned("Once upon", (1.0, 0.0))
    'Once upon <rm1_score> 1.0 <rm2_score> 0.0'
    """
    text = ric.score_text(wanted)
    if not isinstance(prompt, str):
        last = prompt[-1]
        return (*prompt[:-1], dataclasses.replace(last, content=f"{last.content} {text}"))
    opener = _OPENER.search(prompt)
    end = opener.start() if opener else len(prompt.rstrip())
    return f"{prompt[:end]} {text}{prompt[end:]}"


def _check_ranges(
    rounds: int, samples: int, originals: int, quantile: float, temperature: float, top_p: float
) -> None:
    for ok, field, wanted, found in (
        (rounds >= 0, "online_rounds", "a number >= 0", rounds),
        (samples > 0, "online_samples", "a positive number", samples),
        (originals >= 0, "originals", "a number >= 0", originals),
        (0 <= quantile <= 1, "quantile", "a number in [0, 1]", quantile),
        (temperature >= 0, "temperature", "a number >= 0", temperature),
        (0 < top_p <= 1, "top_p", "a number in (0, 1]", top_p),
    ):
        if not ok:
            raise UserError(f"recipe.objectives.method.{field}: wanted {wanted}, found {found!r}")


def _scale(setting: Setting, of: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """From scores to z-scores by the training responses; 0 for an objective with one value."""
    mean, deviation = of.mean(axis=0), of.std(axis=0)
    flat = of.max(axis=0) == of.min(axis=0)
    for i in np.flatnonzero(flat):
        name = setting.objectives.names[i]
        log.warning("objective %s has one value, %s, in all rows: told as 0", name, of[0, i])

    def scale(scores: np.ndarray) -> np.ndarray:
        return np.where(flat, 0.0, (scores - mean) / np.where(flat, 1.0, deviation))

    return scale


def _record(rows: Rows, i: int, told: np.ndarray) -> Record:
    """Training response i under a prompt that tells these z-scores."""
    prompt = conditioned(rows.prompts[i], told)
    return Record(id=f"{rows.ids[i]}-{i}", prompt=prompt, responses=(rows.responses[i],))


def _questions(
    setting: Setting, records: Sequence[Record], numbers: Sequence[int]
) -> list[Question]:
    """The records' prompts, tokenised and cut as the data are."""
    limits = setting.config.data
    rows = encode_all(
        records,
        setting.data.tokenizer,
        max_prompt_tokens=limits.max_prompt_tokens,
        max_response_tokens=limits.max_response_tokens,
    )
    return [
        Question(number, row.prompt, row.prompt_ids)
        for number, row in zip(numbers, rows, strict=True)
    ]


def _held_out(setting: Setting, asked: Sequence[Question]) -> list[Record]:
    """The records that are asked: of a conversation a question has what the template made of it.

    Raises:
      UserError: a prompt is none of the held-out ones.
    """
    tokens, records = setting.data.tokenizer, setting.data.asked_records.values()
    known = {tokens.render(record.prompt): record for record in records}
    for question in asked:
        if question.prompt not in known:
            raise UserError(f"prompt: wanted one of the held-out rows, found {question.prompt!r}")
    return [known[question.prompt] for question in asked]


def _usable(
    rows: Rows, picked: np.ndarray, drawn: Sequence[Sample], name: str
) -> tuple[list[Record], dict[str, int]]:
    """The samples that can be trained on, under the prompts as the data have them."""
    counts = {"sampled": len(drawn), "empty": 0, "unfinished": 0}
    said = []
    for i, sample in enumerate(drawn):
        if not sample.response.strip():
            counts["empty"] += 1
        elif not sample.ended:
            counts["unfinished"] += 1
        else:
            prompt = rows.prompts[picked[i]]
            said.append(Record(id=f"{name}-{i}", prompt=prompt, responses=(sample.response,)))
    if not said:
        raise UserError(
            f"{name}: wanted samples to train on, found {counts['empty']} empty and "
            f"{counts['unfinished']} cut for lack of room (evaluate.max_new_tokens)"
        )
    return said, counts


def _good(
    setting: Setting,
    name: str,
    said: list[Record],
    scale: Callable[[np.ndarray], np.ndarray],
    quantile: float,
) -> tuple[list[Record], dict[str, int]]:
    """The samples that are good at something, each under a prompt that tells the scores it got."""
    found = np.concatenate(scores.kept(setting, said, f"{name}-scores"))
    whole = np.isfinite(found).all(axis=1)  # a scorer may lack an objective
    if not whole.any():
        raise UserError(
            f"recipe.objectives.scorer: gives no sample of {name} a score on every objective"
        )
    got = scale(found[whole])
    kept = ric.keep(got, quantile=quantile)
    usable = [record for record, ok in zip(said, whole, strict=True) if ok]
    records = [
        dataclasses.replace(record, prompt=conditioned(record.prompt, z))
        for record, z, good in zip(usable, got, kept, strict=True)
        if good
    ]
    return records, {"unscored": int((~whole).sum()), "kept": len(records)}


def _tell(
    setting: Setting, rows: Rows, low: np.ndarray, high: np.ndarray, rounds: list[dict[str, Any]]
) -> None:
    from alignjax.runtime import workdirs

    told = {
        "objectives": list(setting.objectives.names),
        "mean": rows.scores.mean(axis=0).tolist(),
        "deviation": rows.scores.std(axis=0).tolist(),
        "low": low.tolist(),
        "high": high.tolist(),
        "rounds": rounds,
    }
    workdirs.write_json(setting.workdir / "rewards_in_context.json", told)
