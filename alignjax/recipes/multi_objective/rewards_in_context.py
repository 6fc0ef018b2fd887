"""Trains Rewards-in-Context: one policy for all preferences; prompts state the target scores.

In the offline stage, the policy is trained on every training response, with a prompt that states
the response's own scores. In each online round, prompts ask for high scores on all objectives but
one; the samples are scored, and the policy is trained on those with a high score, with prompts that
state the actual scores, and on training responses. To respond for a preference, every prompt asks
for the target scores of that preference. It writes into the workdir:

    offline/  online-1/ ...               the stages, see `training.fit`
    online-1.json  online-1-scores.json   the samples of a round, and their scores
    rewards_in_context.json               mean, deviation and limits of the scores; counts of rounds

Scores in prompts are z-scores by mean and standard deviation of the training responses, also for
samples. Targets depend only on the training responses. `condition` adds scores to a prompt.
"""

import dataclasses
import logging
from collections.abc import Callable, Sequence

import numpy as np

from alignjax.commands.policies import PROMPT, Network, Policies
from alignjax.config import Config
from alignjax.config.fields import name_of
from alignjax.data.records import Prompt, Record, extend_prompt
from alignjax.errors import UserError
from alignjax.losses import rewards_in_context as ric
from alignjax.recipes.multi_objective import rows, sampling, training
from alignjax.recipes.multi_objective.method import Rows, Setting, require
from alignjax.sampling import generate
from alignjax.sampling.generate import Sample
from alignjax.types import Params

log = logging.getLogger("alignjax")

Limits = Callable[..., tuple[np.ndarray, np.ndarray]]  # [N, M] z-scores -> [M] low, [M] high


@dataclasses.dataclass(frozen=True, eq=False)
class _Scale:
    """Statistics of the training responses, for z-scores."""

    mean: np.ndarray  # [M]
    deviation: np.ndarray  # [M]
    flat: np.ndarray  # [M] whether an objective has only one value

    def z_scores(self, scores: np.ndarray) -> np.ndarray:
        """Computes ``[N, M]`` z-scores; 0 for flat objectives, whose deviation is 0 or rounding."""
        deviation = np.where(self.flat, 1.0, self.deviation)
        return np.where(self.flat, 0.0, (scores - self.mean) / deviation)


@dataclasses.dataclass(frozen=True, eq=False)
class _Training:
    """The training responses, with their scores and the range of targets."""

    scored: Rows
    scale: _Scale
    z: np.ndarray  # [N, M] z-scores of the responses
    low: np.ndarray  # [M] lowest z-scores of targets
    high: np.ndarray  # [M] highest

    def record(self, i: int, wanted: np.ndarray) -> Record:
        """Makes a record of response i, with a prompt that states these z-scores."""
        rows = self.scored
        prompt = condition(rows.prompts[i], wanted)
        return Record(id=f"{rows.ids[i]}-{i}", prompt=prompt, responses=(rows.responses[i],))


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
    max_new_tokens: int = 64,
    temperature: float = 0.7,
    top_p: float = 0.9,
) -> Policies:
    """Trains offline with ``train`` and ``optim`` of the config, then in rounds.

    Args:
      setting: the config's ``loss`` is `rewards_in_context.loss`.
      target: `l2`, `linf` or `linear` of losses.rewards_in_context: from a preference to the
        z-scores that a prompt asks for.
      limits: `normal_limits` or `data_limits` of the same module: lowest and highest z-scores of
        targets.
      online_rounds: rounds after the offline stage; 0: none.
      online_samples: samples of a round, to prompts of random training responses.
      originals: training responses that a round also trains on, at most; chosen by `keep`.
      quantile: of `keep`, separately for samples and originals.
      online_steps: optimizer steps of a round.
      online_learning_rate: peak; other settings as in ``optim``.
      max_new_tokens, temperature, top_p: of the samples of a round, as in `SamplingConfig`; those
        that are cut are not trained on.

    Raises:
      UserError: a keyword is out of its range, a round has no usable sample; or as `training.fit`.

    Differs from the authors' code: samples that are empty or were cut at the token limit are left
    out; there some repetitive ones are. Objectives with one value have the score 0.0 in prompts. A
    constant learning rate in rounds needs ``optim.constant``.
    """
    require(online_rounds >= 0, "online_rounds", "a number >= 0", online_rounds)
    require(online_samples > 0, "online_samples", "a positive number", online_samples)
    require(originals >= 0, "originals", "a number >= 0", originals)
    require(0 <= quantile <= 1, "quantile", "a number in [0, 1]", quantile)
    settings = sampling.settings(
        setting, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p
    )
    config = setting.run.config
    offline = training.stage_config(config, reference=False)
    online = training.stage_config(
        config, steps=online_steps, learning_rate=online_learning_rate, reference=False
    )

    data = _read_training(setting, limits)
    own = [data.record(i, z) for i, z in enumerate(data.z)]
    name, params = "offline", _imitate(setting, "offline", own, offline)
    frontier = np.flatnonzero(ric.keep(data.z, quantile=quantile))
    kept: list[Record] = []  # good samples of all rounds so far
    rounds: list[dict[str, int]] = []
    for number in range(1, online_rounds + 1):
        name, rng = f"online-{number}", np.random.default_rng((config.train.seed, number))
        responses, wanted = _ask(rng, data, online_samples)
        questions = generate.ask(
            [record.prompt for record in wanted],
            range(online_samples),
            setting.run.data.tokenizer,
            config.data.max_prompt_tokens,
        )
        samples = sampling.sample_to_train(
            setting, name, params, questions, settings=settings, seed=number
        )
        usable, counts = _usable(data.scored, responses, samples, name)
        good, scored = _good(setting, name, usable, data, quantile)
        kept += good
        mixed = rng.permutation(frontier)[:originals]
        counts |= {**scored, "kept of all rounds": len(kept), "originals": len(mixed)}
        log.info("%s: %s", name, ", ".join(f"{n:,} {what}" for what, n in counts.items()))
        rounds.append(counts)
        params = _imitate(setting, name, [*(own[i] for i in mixed), *kept], online, start=params)
    _write_summary(setting, data, rounds)
    return _policies(setting, name, data, target)


def _policies(
    setting: Setting, name: str, data: _Training, target: Callable[..., np.ndarray]
) -> Policies:
    """Makes the policies: one network for all preferences, and the target scores of each."""
    names, preferences = setting.objectives.names, setting.preferences
    scores = [target(preference, data.low, data.high).tolist() for preference in preferences]
    for preference, wanted in zip(preferences, scores, strict=True):
        named = ", ".join(f"{n} {w:.1f}" for n, w in zip(names, wanted, strict=True))
        log.info("preference %s: asked for %s", ", ".join(f"{w:.2f}" for w in preference), named)
    return dataclasses.replace(
        setting.policies(PROMPT, [Network((), name)]),
        scores=tuple(map(tuple, scores)),
        target=name_of(target),
        low=tuple(data.low.tolist()),
        high=tuple(data.high.tolist()),
    )


def condition(prompt: Prompt, wanted: np.ndarray | tuple[float, ...]) -> Prompt:
    r"""Adds scores to a prompt: `score_text` of them, where `extend_prompt` adds text.

    >>> condition("User: Hi!\nAssistant:", (1.25, -0.5))
    'User: Hi! <rm1_score> 1.2 <rm2_score> -0.5\nAssistant:'
    >>> condition("Once upon", (1.0, 0.0))
    'Once upon <rm1_score> 1.0 <rm2_score> 0.0'
    """
    return extend_prompt(prompt, ric.score_text(wanted))


def _read_training(setting: Setting, limits: Limits) -> _Training:
    scored = rows.scored_rows(setting)
    scale = _fit_scale(setting.objectives.names, scored.scores)
    z = scale.z_scores(scored.scores)
    low, high = limits(z)
    return _Training(scored, scale, z, low, high)


def _fit_scale(names: Sequence[str], table: np.ndarray) -> _Scale:
    flat = table.max(axis=0) == table.min(axis=0)
    for i in np.flatnonzero(flat).tolist():
        log.warning("objective %s has one value, %s, in all rows: set to 0", names[i], table[0, i])
    return _Scale(table.mean(axis=0), table.std(axis=0), flat)


def _imitate(
    setting: Setting,
    name: str,
    records: Sequence[Record],
    config: Config,
    start: Params | None = None,
) -> Params:
    prepared = rows.prepare_rows(setting, records, f"{name} rows")
    return training.fit(setting, name, prepared, config, start=start)


def _ask(rng: np.random.Generator, data: _Training, count: int) -> tuple[np.ndarray, list[Record]]:
    """Draws training responses, and makes their prompts ask for all objectives but one."""
    numbers = rng.integers(0, len(data.z), count)
    targets = ric.online_targets(rng, count, low=data.low, high=data.high)
    return numbers, [data.record(i, wanted) for i, wanted in zip(numbers, targets, strict=True)]


def _usable(
    scored: Rows, responses: np.ndarray, samples: Sequence[Sample], name: str
) -> tuple[list[Record], dict[str, int]]:
    """Makes records of the finished samples, with the original prompts; counts the others."""
    counts = {"sampled": len(samples), "empty": 0, "unfinished": 0}
    records = []
    for i, sample in enumerate(samples):
        if not sample.response.strip():
            counts["empty"] += 1
        elif not sample.ended:
            counts["unfinished"] += 1
        else:
            prompt = scored.prompts[responses[i]]
            records.append(Record(id=f"{name}-{i}", prompt=prompt, responses=(sample.response,)))
    if not records:
        raise UserError(
            f"{name}: wanted samples to train on, found {counts['empty']} empty and "
            f"{counts['unfinished']} cut at recipe.objectives.method.max_new_tokens"
        )
    return records, counts


def _good(
    setting: Setting,
    name: str,
    usable: list[Record],
    data: _Training,
    quantile: float,
) -> tuple[list[Record], dict[str, int]]:
    """Keeps samples with a high score, each with a prompt that states its own scores."""
    table = np.concatenate(rows.score_records(setting, usable, f"{name}-scores"))
    whole = np.isfinite(table).all(axis=1)  # a scorer may lack an objective
    if not whole.any():
        raise UserError(
            f"recipe.objectives.scorer: wanted scores on all objectives, found them for no sample "
            f"of {name}"
        )
    own = data.scale.z_scores(table[whole])
    kept = ric.keep(own, quantile=quantile)
    complete = [record for record, ok in zip(usable, whole, strict=True) if ok]
    records = [
        dataclasses.replace(record, prompt=condition(record.prompt, z))
        for record, z, good in zip(complete, own, kept, strict=True)
        if good
    ]
    return records, {"unscored": int((~whole).sum()), "kept": len(records)}


def _write_summary(setting: Setting, data: _Training, rounds: list[dict[str, int]]) -> None:
    from alignjax.runtime import storage

    content = {
        "objectives": list(setting.objectives.names),
        "mean": data.scale.mean.tolist(),
        "deviation": data.scale.deviation.tolist(),
        "low": data.low.tolist(),
        "high": data.high.tolist(),
        "rounds": rounds,
    }
    storage.keep_json(setting.run.workdir / "rewards_in_context.json", content)
