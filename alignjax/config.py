"""Configs: frozen dataclasses, overrides from the command line, and their description as data.

A config file is Python with one function, ``get_config() -> Config``. It imports the functions it
uses and binds their hyperparameters with `functools.partial`: the import is the registry and the
signature is the schema. ``--set loss.beta=0.2`` reaches dataclass fields and bound keywords alike.
"""

import ast
import dataclasses
import functools
import importlib.util
import inspect
import pathlib
import types
import typing
from collections.abc import Callable
from typing import Any

from alignjax.errors import UserError, did_you_mean
from alignjax.models.config import ModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where records come from and how they become rows."""

    source: Callable[..., Any]  # (receipt, ...) -> records: a function of data.sources or .world
    path: str = ""  # file or glob, for sources that read files
    eval_path: str = ""  # file or glob of held-out rows; empty: split off the data, by prompt
    eval_fraction: float = 0.1  # share of prompts held out when eval_path is empty; in (0, 1)
    max_prompt_tokens: int = 512  # longer prompts lose their beginning
    max_response_tokens: int = 512  # longer responses lose their end
    max_drop_fraction: float = 0.01  # stop when a larger share of the rows is dropped; in [0, 1]
    buckets: int = 4  # shapes (P, R) that batches are padded to at most; each compiles once
    pad_multiple: int = 16  # token counts of a bucket are multiples of this
    cache_dir: str = ""  # prepared rows and reference log-probs; empty: workdir/cache


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Which tokenizer. Without a path, one is trained on the training records."""

    path: str = ""  # sentencepiece .model, tokenizer.json, or a folder with either
    vocab_size: int = 512  # ids of a tokenizer trained here, at most
    chat_template: str = ""  # jinja file; empty: the tokenizer's own, else plain "Role: text"


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and its learning rate."""

    learning_rate: float = 5e-7  # peak
    schedule: Callable[..., Any]  # optim.constant | optim.linear | optim.cosine
    warmup_fraction: float = 0.1  # share of the steps that warm up; in [0, 1)
    weight_decay: float = 0.0  # decoupled, on matrices only
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip_norm: float | None = 1.0  # global gradient norm; None: no clipping


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, in what batches, and what is kept. Steps are optimizer steps."""

    epochs: float = 1.0  # passes over the data, when steps is 0
    steps: int = 0  # optimizer steps; 0: from epochs
    batch_size: int = 8  # prompts per optimizer step, over all devices
    accumulate: int = 1  # micro-batches per step; divides batch_size
    eval_every: int = 0  # steps between evaluations; 0: at the end only
    save_every: int = 200  # steps between checkpoints; one is always written at the end
    keep: int = 2  # checkpoints kept
    log_every: int = 10  # steps between lines of metrics.jsonl
    max_skipped: int = 5  # non-finite steps in a row before the run stops
    seed: int = 0  # of initialisation, shuffling and draws


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftConfig:
    """The stage that makes the starting policy, and with it the reference, from the same data."""

    loss: Callable[..., Any]  # objectives.sft.loss, on all responses or the chosen ones
    learning_rate: float = 1e-3  # peak; schedule and the rest as in optim
    epochs: float = 1.0
    steps: int = 0  # 0: from epochs
    batch_size: int = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReferenceConfig:
    """How the reference's log-probabilities are had."""

    mode: str = "auto"  # auto (the cheaper) | cache | live | none (the loss uses no reference)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each axis; their product is the number of devices used."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What is measured before and after. Accuracy and margins need only held-out rows."""

    judge: Callable[..., Any] | None = None  # (prompt, response) -> {name: score}; needs samples
    prompts: int = 128  # held-out prompts that responses are sampled for; 0: no sampling
    samples: int = 4  # responses per prompt
    max_new_tokens: int = 64
    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0
    top_k: int = 0  # 0: all ids
    batch_size: int = 32  # prompts per batch when scoring and sampling


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One run: data, model, objective, optimizer, evaluation."""

    data: DataConfig
    loss: Callable[..., Any]  # (logps, batch) -> ([B] losses, metrics)
    optim: OptimConfig
    select: Callable[..., Any] | None = None  # (key, batch) -> batch with fewer responses
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig
    train: TrainConfig = TrainConfig()
    sft: SftConfig | None = None  # None: the policy starts from fresh parameters
    reference: ReferenceConfig = ReferenceConfig()
    mesh: MeshConfig = MeshConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    def __post_init__(self) -> None:
        train, data = self.train, self.data
        checks = (
            (train.batch_size > 0, "train.batch_size", "a positive number"),
            (
                train.accumulate > 0 and train.batch_size % train.accumulate == 0,
                "train.accumulate",
                f"a divisor of train.batch_size ({train.batch_size})",
            ),
            (train.steps > 0 or train.epochs > 0, "train.epochs", "a positive number"),
            (train.save_every > 0, "train.save_every", "a positive number"),
            (train.log_every > 0, "train.log_every", "a positive number"),
            (train.keep > 0, "train.keep", "a positive number"),
            (self.optim.learning_rate >= 0, "optim.learning_rate", "a number >= 0"),
            (0 <= self.optim.warmup_fraction < 1, "optim.warmup_fraction", "a number in [0, 1)"),
            (0 < data.eval_fraction < 1, "data.eval_fraction", "a number in (0, 1)"),
            (0 <= data.max_drop_fraction <= 1, "data.max_drop_fraction", "a number in [0, 1]"),
            (data.max_prompt_tokens > 1, "data.max_prompt_tokens", "a number above 1"),
            (data.max_response_tokens > 1, "data.max_response_tokens", "a number above 1"),
            (data.buckets > 0, "data.buckets", "a positive number"),
            (data.pad_multiple > 0, "data.pad_multiple", "a positive number"),
            (
                self.reference.mode in ("auto", "cache", "live", "none"),
                "reference.mode",
                "auto, cache, live or none",
            ),
            (min(dataclasses.astuple(self.mesh)) > 0, "mesh", "positive numbers"),
            (0 < self.evaluate.top_p <= 1, "evaluate.top_p", "a number in (0, 1]"),
            (self.evaluate.temperature >= 0, "evaluate.temperature", "a number >= 0"),
        )
        for ok, field, wanted in checks:
            if not ok:
                raise UserError(f"{field}: wanted {wanted}, found {get(self, field)!r}")
        rows = self.mesh.data * self.mesh.fsdp
        micro = train.batch_size // train.accumulate
        if micro % rows:
            raise UserError(
                f"train.batch_size: wanted {train.batch_size} / accumulate {train.accumulate} to "
                f"be a multiple of mesh.data x mesh.fsdp ({rows}), found {micro} rows"
            )
        if self.evaluate.batch_size % rows or (self.sft and self.sft.batch_size % rows):
            raise UserError(
                "evaluate.batch_size and sft.batch_size: wanted multiples of "
                f"mesh.data x mesh.fsdp ({rows}), found {self.evaluate.batch_size} and "
                f"{self.sft.batch_size if self.sft else '-'}"
            )
        for field in ("loss", "select", "data.source", "evaluate.judge", "sft.loss"):
            function = get(self, field)
            if function is not None:
                check_keywords(function, field)


def check_keywords(function: Callable[..., Any], field: str) -> None:
    """Finds keywords that a function does not take or misses, before anything is compiled.

    Raises:
      UserError: names the field, the function and the keyword, with the closest one it takes.
    """
    if not callable(function):
        raise UserError(f"{field}: wanted a function, found {function!r}")
    bound = function.keywords if isinstance(function, functools.partial) else {}
    plain = function.func if isinstance(function, functools.partial) else function
    known = keywords(plain)
    for name in bound:
        if name not in known:
            raise UserError(
                f"{field}.{name}: {plain.__module__}.{plain.__name__} takes no such "
                f"keyword{did_you_mean(name, known)}; it takes {', '.join(known)}"
            )
    for name, parameter in known.items():
        # A source's path is bound later, from data.path.
        if parameter.default is parameter.empty and name not in bound and name != "path":
            raise UserError(f"{field}.{name}: {plain.__name__} needs it; bind it with partial")


def keywords(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The keyword-only parameters of a function, by name."""
    parameters = inspect.signature(function).parameters
    return {n: p for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY}


def load(path: str, overrides: list[str]) -> Config:
    """Runs a config file's ``get_config()`` and applies ``field=value`` overrides.

    Raises:
      UserError: the file is missing or has no ``get_config``, or an override does not fit.
    """
    file = pathlib.Path(path)
    if not file.is_file():
        there = [str(p) for p in file.parent.glob("*.py")] if file.parent.is_dir() else []
        raise UserError(f"--config: no file {path}{did_you_mean(path, there)}")
    spec = importlib.util.spec_from_file_location(f"alignjax_config_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (SyntaxError, ImportError, AttributeError, NameError, TypeError) as error:
        raise UserError(f"--config: {path}: {type(error).__name__}: {error}") from error
    if not hasattr(module, "get_config"):
        raise UserError(f"--config: {path} defines no get_config()")
    try:
        config = module.get_config()
    except (TypeError, AttributeError) as error:  # a field that does not exist, say
        raise UserError(f"--config: {path}: {error}") from error
    if not isinstance(config, Config):
        raise UserError(
            f"--config: {path}: get_config() returned {type(config).__name__}, wanted Config"
        )
    changes = []
    for override in overrides:
        field, found, text = override.partition("=")
        if not found:
            raise UserError(f"--set {override}: wanted field=value")
        changes.append((field.strip(), text))
    return _override(config, changes)


def get(config: Any, field: str) -> Any:
    """The value at a dotted path, None where a part on the way is None."""
    for name in field.split("."):
        if config is None:
            return None
        is_partial = isinstance(config, functools.partial)
        config = config.keywords[name] if is_partial else getattr(config, name)
    return config


def _override(config: Config, changes: list[tuple[str, str]]) -> Config:
    """All overrides at once: what must hold of a config must hold of the result only."""
    tree: dict[str, Any] = {}
    for field, text in changes:
        node = tree
        *parents, last = field.split(".")
        for name in parents:
            node = node.setdefault(name, {})
            if not isinstance(node, dict):
                raise UserError(f"--set {field}: {name} is already set to {node!r}")
        node[last] = text
    return _apply(config, tree, "")


def _apply(value: Any, tree: dict[str, Any], at: str) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = typing.get_type_hints(type(value))
        known: Any = {f.name: hints[f.name] for f in dataclasses.fields(value)}
        current = {name: getattr(value, name) for name in known}
    elif isinstance(value, functools.partial) or inspect.isfunction(value):
        function = value.func if isinstance(value, functools.partial) else value
        bound = value.keywords if isinstance(value, functools.partial) else {}
        parameters = keywords(function)
        known = {name: p.annotation for name, p in parameters.items()}
        current = {name: bound.get(name, p.default) for name, p in parameters.items()}
    else:
        raise UserError(f"--set {at}: it is {value!r} and has no fields")
    changed = {}
    for name, new in tree.items():
        path = f"{at}.{name}" if at else name
        if name not in known:
            raise UserError(
                f"--set {path}: no such field{did_you_mean(name, known)}; "
                f"{at or 'the config'} has {', '.join(known)}"
            )
        if isinstance(new, dict):
            changed[name] = _apply(current[name], new, path)
        else:
            changed[name] = _parse(new, known[name], path)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **changed)
    if isinstance(value, functools.partial):
        return functools.partial(value.func, *value.args, **{**value.keywords, **changed})
    return functools.partial(value, **changed)


def _parse(text: str, hint: Any, path: str) -> Any:
    """A value of the annotated type from its text; numbers, booleans, None, text and tuples."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    for option in options:
        plain = typing.get_origin(option) or option
        if option in (None, type(None)) and value is None:
            return None
        if plain is str:
            return value if isinstance(value, str) else text
        if plain is bool and (isinstance(value, bool) or text.lower() in ("true", "false")):
            return text.lower() == "true"
        if plain is int and isinstance(value, int) and not isinstance(value, bool):
            return value
        if plain is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        if plain is tuple and isinstance(value, (tuple, list)):
            return tuple(value)
        if plain is inspect.Parameter.empty:
            return value
    names = " | ".join(getattr(o, "__name__", str(o)) for o in options)
    raise UserError(f"--set {path}: wanted {names}, found {text!r}")


def describe(value: Any) -> Any:
    """A config as JSON data: dataclasses as dicts, functions by name with what they bind.

    Two configs that train differently describe differently; a closure (an optax schedule, say) is
    described by its name and the values it closes over.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, functools.partial):
        return {**describe(value.func), **{k: describe(v) for k, v in value.keywords.items()}}
    if inspect.isfunction(value):
        name = {"function": f"{value.__module__}.{value.__qualname__}"}
        closed = inspect.getclosurevars(value).nonlocals
        return {**name, **{k: describe(v) for k, v in sorted(closed.items())}}
    if isinstance(value, (list, tuple)):
        return [describe(v) for v in value]
    if isinstance(value, dict):
        return {str(k): describe(v) for k, v in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return repr(value)


def differences(old: Any, new: Any, at: str = "") -> list[str]:
    """``field: old -> new`` for every leaf at which two descriptions differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        out = []
        for name in sorted(set(old) | set(new)):
            path = f"{at}.{name}" if at else name
            out += differences(old.get(name), new.get(name), path)
        return out
    return [] if old == new else [f"{at}: {old!r} -> {new!r}"]
