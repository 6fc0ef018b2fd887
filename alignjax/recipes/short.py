"""Makes configs from a pretrained model, a file of preferences and the name of a loss.

The defaults are for a machine with little memory: it trains adapters of rank 16 and recomputes
activations. Lengths and the number of held-out rows are chosen from the data.
"""

import dataclasses
import functools
import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from alignjax import losses, recipes
from alignjax.config import (
    CandidatesConfig,
    Config,
    DataConfig,
    EvaluateConfig,
    OptimConfig,
    ReferenceConfig,
    TrainConfig,
    load,
)
from alignjax.config.fields import keywords, plain
from alignjax.data import sources
from alignjax.data.encode import encode, reasons
from alignjax.data.records import DataReport, Record
from alignjax.data.tokenizer import chat
from alignjax.data.tokenizer import load as tokenizers
from alignjax.data.tokenizer.load import Tokenizer
from alignjax.errors import UserError
from alignjax.losses import bradley_terry, grpo
from alignjax.models.config import LoraConfig, ModelConfig
from alignjax.rewards import answers, scorers
from alignjax.stages import check, pretrained
from alignjax.stages.data import read_source
from alignjax.training import optim
from alignjax.types import Batch

REWARD = "reward"  # the method that trains a reward model
ONLINE = "grpo"  # the method that trains a policy on its own samples
SAMPLED = 128  # tokens of such a sample at most; it may reason before it answers
LOOKED_AT = 500  # rows used to choose the lengths
LONGEST = 512  # tokens of a prompt, and of a response, at most
MOST_HELD_OUT = 64  # rows, about
FEWEST_SAMPLED, MOST_SAMPLED = 2, 8  # prompts, before and after; one per `STEPS_PER_PROMPT` steps
STEPS_PER_PROMPT = 4


@dataclasses.dataclass(frozen=True)
class _Kind:
    """The kind of a file's rows: K responses with M scores, or labels."""

    name: str  # for messages
    responses: int
    objectives: int = 0
    labels: bool = False


KINDS = (
    _Kind("pairs", 2),
    _Kind("lists of scored responses", 4, objectives=1),
    _Kind("lists scored on several objectives", 4, objectives=2),
    _Kind("single labelled responses", 1, labels=True),
    _Kind("single responses", 1),
)


def config(
    method: str,
    model: str,
    data: str,
    overrides: list[str],
    reward_models: Sequence[str] = (),
) -> Config:
    """Makes the config that a command like ``dpo`` runs.

    Args:
      method: a module of `alignjax.losses`, or ``reward``.
      model: folder, or GGUF file, of the model to start from.
      data: file, glob, folder or id of a data set.
      overrides: ``field=value`` changes; other settings are chosen from the data.
      reward_models: for ``grpo``: folders of reward models, whose mean is the score of a sample;
        without them a rule compares the samples with the data's answers.

    Raises:
      UserError: the model or the data cannot be read, or the method does not learn from such data.
    """
    start = load.override(_start(method, model, data, reward_models), overrides)
    tokenizer = _tokenizer(start)
    report = DataReport()
    first = next(read_source(start.data, start.data.path, report), None)
    if first is None:
        why = f": all {report.rows_in} were dropped: {reasons(report)}" if report.rows_in else ""
        raise UserError(f"data.path: {start.data.path}: wanted rows to train on, found none{why}")
    if method != ONLINE:  # that uses only the prompts and first responses of any rows
        _check_kind(method, start, first)
    start = dataclasses.replace(start, data=as_messages(start.data, first, tokenizer))
    rows = list(read_source(start.data, start.data.path, DataReport()))
    return load.override(_fitted(method, start, rows, tokenizer), overrides)


def _tokenizer(start: Config) -> Tokenizer:
    path = pretrained.resolve(start, runs=False).tokenizer.path
    return tokenizers.load(
        path, model=start.model.path, chat_template=start.tokenizer.chat_template
    )


def as_messages(data: DataConfig, first: Record, tokenizer: Tokenizer) -> DataConfig:
    """Turns plain-text prompts into user messages if the model has a chat template."""
    bound = getattr(data.source, "keywords", {})
    unset = plain(data.source) is sources.auto and not bound.keys() - {"prompts_alone"}
    plain_text = unset and isinstance(first.prompt, str)
    if not plain_text or tokenizer.chat_template == chat.PLAIN_TEMPLATE:
        return data
    return dataclasses.replace(data, source=functools.partial(data.source, chat=True))


def about(method: str, config: Config, workdir: str) -> str:
    """Writes the docstring of the config file of a method."""
    return (
        f"{method} from {config.model.path} on {config.data.path}.\n\n"
        f"Command:   python -m alignjax run --config=THIS_FILE.py --workdir={workdir}\n"
    )


def say(method: str, config: Config, overrides: list[str]) -> str:
    """Describes the settings in a few lines, and how to change them."""
    thin = config.lora is not None
    train, data, optimizer = config.train, config.data, config.optim
    epochs = "1 epoch" if train.epochs == 1 else f"{train.epochs:g} epochs"
    long = f"{train.steps} steps" if train.steps else epochs
    return (
        f"{method}: {f'adapters of rank {config.lora.rank}' if config.lora else 'all parameters'}, "
        f"{long} of {train.batch_size} prompts, learning rate {optimizer.learning_rate:g}, "
        f"prompts of up to {data.max_prompt_tokens} and responses of up to "
        f"{data.max_response_tokens} tokens, {config.model.dtype}"
        + ("; --set lora=none trains all parameters" if thin else "")
        + ". Change settings with --set field=value; --print_config writes all of them"
        + _say_online(config)
        + _say_samples(config, overrides)
    )


def _say_online(config: Config) -> str:
    """Describes how the policy's samples are drawn and scored."""
    settings = config.candidates
    if settings is None:
        return ""
    bound = [getattr(score, "keywords", {}) for score in settings.scorers]
    rules = {
        answers.same_number: "1 if the last number of the response is the last one of the answer",
        answers.same_text: "1 if the response is the answer, apart from case and spaces",
    }
    if "check" in bound[0]:
        by = f"score: {rules[bound[0]['check']]}, else 0"
    else:
        by = f"scored by {', '.join(x['path'] for x in bound)}"
    return (
        f"\nevery step samples {settings.samples} responses to each prompt, of up to "
        f"{settings.max_new_tokens} tokens; {by}"
    )


def _say_samples(config: Config, overrides: list[str]) -> str:
    """Describes in a line how many responses are sampled before and after, and their length."""
    settings = config.evaluate
    if config.reward_loss is not None or not settings.prompts:
        return ""
    fewer = settings.prompts < MOST_SAMPLED and not _sets(overrides, "prompts")
    short = (
        settings.max_new_tokens < 64
        and config.candidates is None
        and not _sets(overrides, "max_new_tokens")
    )
    return (
        f"\nsamples before and after: {settings.prompts} prompts"
        + (" (few, as the run is short; --set evaluate.prompts=8)" if fewer else "")
        + f", up to {settings.max_new_tokens} tokens"
        + (
            " (the responses of the data are short; --set evaluate.max_new_tokens=128)"
            if short
            else ""
        )
    )


def _sets(overrides: list[str], name: str) -> bool:
    return any(x.partition("=")[0].strip() == f"evaluate.{name}" for x in overrides)


def _start(method: str, model: str, data: str, reward_models: Sequence[str] = ()) -> Config:
    if method == ONLINE:
        trained = _online(reward_models)
    else:
        trained = _reward_model() if method == REWARD else _policy(method)
    # No rule reads the data's answers where reward models score.
    source = functools.partial(sources.auto, prompts_alone=True) if reward_models else sources.auto
    return Config(
        data=DataConfig(path=data, source=source, max_drop_fraction=0.1),
        model=ModelConfig(path=model, remat="full"),
        lora=LoraConfig(),
        optim=OptimConfig(schedule=optim.cosine),
        train=TrainConfig(),
        evaluate=EvaluateConfig(prompts=8, samples=1, during=0, batch_size=8),
        **trained,
    )


def _reward_model() -> dict[str, Any]:
    return {"recipe": recipes.train_reward_model, "reward_loss": bradley_terry.reward_loss}


def _online(paths: Sequence[str]) -> dict[str, Any]:
    """Makes GRPO without a KL term, as in DAPO and Dr. GRPO; `_fitted` chooses the rule."""
    rule = functools.partial(scorers.checked, check=answers.same_text)
    models = [functools.partial(scorers.reward_model, path=path) for path in paths]
    return {
        "recipe": recipes.train_online,
        "loss": functools.partial(grpo.loss, beta=0.0, scale="std", length="response"),
        "candidates": CandidatesConfig(scorers=tuple(models) or (rule,), max_new_tokens=SAMPLED),
    }


def _policy(method: str) -> dict[str, Any]:
    """Finds the ``loss`` of a method's module, and its ``select`` and ``baseline``, if any."""
    module = importlib.import_module(f"alignjax.losses.{method}")
    beside = {name: getattr(module, name, None) for name in ("select", "baseline")}
    found: dict[str, Any] = {name: x for name, x in beside.items() if x is not None}
    select = found.get("select")
    if select is not None and keywords(select).get("gamma") and hasattr(module, "curriculum"):
        found["select"] = functools.partial(select, gamma=module.curriculum())
    numbers = {
        name: parameter.default
        for name, parameter in keywords(module.loss).items()
        if isinstance(parameter.default, float)
    }
    loss = functools.partial(module.loss, **numbers) if numbers else module.loss
    return {"loss": loss, **found}


def _fitted(method: str, start: Config, rows: list[Record], tokenizer: Tokenizer) -> Config:
    """Chooses the settings that depend on the model, the loss and the data."""
    looked_at = rows[:: max(1, len(rows) // LOOKED_AT)]
    no_limit = dict(max_prompt_tokens=2**30, max_response_tokens=2**30)
    encoded = list(encode(looked_at, tokenizer, **no_limit, report=DataReport()))
    prompts = [len(x.prompt_ids) for x in encoded] or [0]  # without rows the run explains why
    responses = [len(ids) for x in encoded for ids in x.response_ids] or [0]
    train, count = start.train, len(rows)
    steps = train.steps or int(train.epochs * count / train.batch_size)
    candidates, longest = start.candidates, min(128, _limit(int(np.quantile(responses, 0.9))))
    if candidates is not None:
        candidates, longest = _by_rule(candidates, looked_at), candidates.max_new_tokens
    return dataclasses.replace(
        start,
        candidates=candidates,
        data=dataclasses.replace(
            start.data,
            max_prompt_tokens=_limit(max(prompts)),
            max_response_tokens=_limit(max(responses)),
            eval_fraction=round(min(0.3, max(0.1, 4 / count), MOST_HELD_OUT / count), 6),
        ),
        optim=dataclasses.replace(start.optim, learning_rate=_learning_rate(method, start)),
        train=dataclasses.replace(train, eval_every=max(10, steps // 4)),
        reference=ReferenceConfig(mode="auto" if _reads_reference(start, rows[0]) else "none"),
        evaluate=dataclasses.replace(
            start.evaluate,
            prompts=min(MOST_SAMPLED, max(FEWEST_SAMPLED, steps // STEPS_PER_PROMPT)),
            max_new_tokens=longest,
        ),
    )


def _by_rule(candidates: CandidatesConfig, rows: list[Record]) -> CandidatesConfig:
    """Makes the rule compare numbers if every answer has one; keeps reward models."""
    if plain(candidates.scorers[0]) is not scorers.checked:
        return candidates
    if any(answers.last_number(row.responses[0]) is None for row in rows):
        return candidates
    rule = functools.partial(scorers.checked, check=answers.same_number)
    return dataclasses.replace(candidates, scorers=(rule,))


def _limit(longest: int) -> int:
    """Rounds a number of tokens up to a multiple of 16, at most `LONGEST`."""
    return min(LONGEST, max(16, -(-longest // 16) * 16))


def _learning_rate(method: str, start: Config) -> float:
    """Chooses 10x for adapters what whole networks get, and more for sft and reward models."""
    rate = 2e-4 if method in (REWARD, "sft") else 5e-5
    return rate if start.lora is not None else rate / 10


def _kind(record: Record) -> _Kind:
    scored, labelled = len(record.objectives), bool(record.desirable)
    for kind in KINDS:
        alike = (min(scored, 2), labelled) == (kind.objectives, kind.labels)
        if alike and (scored or labelled or len(record.responses) == kind.responses):
            return kind
    return _Kind(f"lists of {len(record.responses)} responses without scores", 3)


def _check_kind(method: str, start: Config, first: Record) -> None:
    """Refuses data that do not fit the method, and names methods that fit them."""
    kind = _kind(first)
    if _takes(start, kind):
        return
    wanted = " or ".join(x.name for x in KINDS if _takes(start, x)) or "no single file"
    fits = [name for name in (*losses.methods(), REWARD) if _takes(_start(name, "", ""), kind)]
    raise UserError(
        f"{start.data.path}: wanted {wanted} for {method}, found {kind.name} ({first.origin})"
        f"; losses for these data: {', '.join(fits) or 'none'}"
    )


def _reads_reference(start: Config, first: Record) -> bool:
    if start.reward_loss is not None or start.candidates is not None:
        return True
    without = dataclasses.replace(start, reference=ReferenceConfig(mode="none"))
    return not _takes(without, _kind(first))


def _takes(config: Config, kind: _Kind) -> bool:
    """Tells whether the functions of a config fit rows of a kind, by tracing them on shapes."""
    try:
        check.check_trained(_with_fraction(config), _shapes(kind))
    except UserError:
        return False
    return True


def _with_fraction(config: Config) -> Config:
    """Binds a placeholder for the desirable fraction to functions that take it; a run counts it."""
    changes: dict[str, Any] = {}
    for name in ("loss", "baseline"):
        function = getattr(config, name)
        if function is not None and "desirable_fraction" in keywords(plain(function)):
            changes[name] = functools.partial(function, desirable_fraction=0.5)
    return dataclasses.replace(config, **changes)


def _shapes(kind: _Kind) -> Batch:
    """Makes a batch of two rows of a kind, with one token each."""
    k, m = kind.responses, kind.objectives
    arrays: dict[str, Any] = dict(
        prompt=np.zeros((2, 1), np.int32),
        prompt_length=np.ones(2, np.int32),
        response=np.zeros((2, k, 1), np.int32),
        response_length=np.ones((2, k), np.int32),
        weight=np.ones(2, np.float32),
        prompt_id=np.arange(2, dtype=np.int32),
        scores=np.zeros((2, k, m)[: 2 + (m > 1)], np.float32) if m else None,
        desirable=np.zeros((2, k), bool) if kind.labels else None,
    )
    return Batch(**arrays)
