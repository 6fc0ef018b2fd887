"""What a run can be told: frozen dataclasses, checked when they are made.

A config file (see `alignjax.configfile`) imports the functions it uses and binds their
hyperparameters with `functools.partial`: the import is the registry and the signature is the
schema.
"""

import dataclasses
import functools
import inspect
import math
import typing
from collections.abc import Callable
from typing import Any

from alignjax.errors import UserError, did_you_mean
from alignjax.fields import fits, keywords, takes_function, type_name
from alignjax.models.config import LoraConfig, ModelConfig


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
    eval_every: int = 0  # steps between lines of the history, which has one at the end; 0: no line
    save_every: int = 200  # steps between checkpoints; one is always written at the end
    keep: int = 2  # checkpoints kept
    log_every: int = 10  # steps between lines of metrics.jsonl
    max_skipped: int = 5  # non-finite steps in a row before the run stops
    seed: int = 0  # of initialisation, shuffling and draws


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftConfig:
    """The stage that makes the starting policy, and with it the reference, from the same data."""

    loss: Callable[..., Any]  # objectives.sft.loss
    select: Callable[..., Any] | None = None  # sft.select: the chosen responses; None: all
    learning_rate: float = 1e-3  # peak; schedule and the rest as in optim
    epochs: float = 1.0
    steps: int = 0  # 0: from epochs
    batch_size: int = 32
    truth: Callable[..., Any] | None = None  # (prompt, response) -> nats, where it is known exactly


@dataclasses.dataclass(frozen=True, kw_only=True)
class CandidatesConfig:
    """Lists to align on: responses of the supervised policy to every prompt, and their scores."""

    scorers: tuple[Callable[..., Any], ...]  # alignjax.score; a response gets their mean
    samples: int = 8  # responses per prompt
    keep_own: bool = False  # the data's own responses come first in the list
    max_new_tokens: int = 64  # one cut for lack of room is kept as it stands, and counted
    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0
    top_k: int = 0  # 0: all ids
    batch_size: int = 32  # prompts per batch; what is kept when a run is killed is whole batches
    max_drop_fraction: float = 0.1  # stop when a larger share of prompts gives no list; in [0, 1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectivesConfig:
    """Several objectives at once: a way to respond for each preference between them."""

    method: Callable[..., Any]  # recipes.fronts: (setting, ...) -> how to respond for a preference
    scorer: Callable[..., Any]  # alignjax.score: M scores a response, of samples and bare data
    names: tuple[str, ...]  # of the M objectives
    preferences: tuple[tuple[float, ...], ...]  # M weights each, >= 0, scaled to sum to 1
    max_missing_fraction: float = 0.01  # stop when more responses lack an objective; in [0, 1]
    box: tuple[tuple[float, float], ...] | None = (
        None  # (low, high) each; None: of what is compared
    )
    truth: Callable[..., Any] | None = None  # (prompts, names) -> [F, M] best mean scores there are


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
    scorers: tuple[Callable[..., Any], ...] = ()  # alignjax.score: models not trained against
    prompts: int = 128  # held-out prompts that responses are sampled for; 0: no sampling
    samples: int = 4  # responses per prompt
    best_of: int = 0  # the best of a prompt's first so many samples is reported; 0: of all
    during: int = 16  # prompts sampled at every evaluation during training; 0: none
    max_new_tokens: int = 64
    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0
    top_k: int = 0  # 0: all ids
    batch_size: int = 32  # prompts per batch when scoring and sampling


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One run: data, model, objective, optimizer, evaluation."""

    data: DataConfig
    loss: Callable[..., Any] | None = None  # (logps, batch) -> ([B] losses, metrics): a policy
    reward_loss: Callable[..., Any] | None = None  # the same of (scores, batch): a reward model
    optim: OptimConfig
    select: Callable[..., Any] | None = None  # (key, batch) -> batch with other responses
    baseline: Callable[..., Any] | None = None  # (logps, batch) -> [B], averaged for the loss
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig
    lora: LoraConfig | None = None  # None: all parameters are trained; else adapters alone
    train: TrainConfig = TrainConfig()
    sft: SftConfig | None = None  # None: the policy starts from fresh parameters
    candidates: CandidatesConfig | None = None  # None: aligned on the data as they are
    objectives: ObjectivesConfig | None = None  # None: one objective, the run ends in one policy
    reference: ReferenceConfig = ReferenceConfig()
    mesh: MeshConfig = MeshConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @property
    def objective(self) -> Callable[..., Any]:
        """What the run minimises: the loss of its policy or of its reward model."""
        function = self.reward_loss if self.loss is None else self.loss
        assert function is not None  # see __post_init__
        return function

    def __post_init__(self) -> None:
        _check_types(self, "")
        if (self.loss is None) == (self.reward_loss is None):
            found = "none" if self.loss is None else "both"
            raise UserError(
                "loss, reward_loss: wanted one of them (loss trains a policy, reward_loss a reward "
                f"model), found {found}"
            )
        if self.reward_loss is not None:
            unread = ("baseline", "candidates", "objectives", "evaluate.judge", "evaluate.scorers")
            for field in unread:
                if get(self, field):
                    raise UserError(
                        f"{field}: wanted none with reward_loss; it is for policies, and would not "
                        "be read"
                    )
        _check_ranges(self)
        _check_rows(self)
        if self.objectives is not None:
            _check_several(self, self.objectives)
        functions = (
            "loss",
            "reward_loss",
            "select",
            "baseline",
            "optim.schedule",
            "data.source",
            "evaluate.judge",
        )
        several = ("objectives.method", "objectives.scorer", "objectives.truth")
        for field in (*functions, "sft.loss", "sft.select", "sft.truth", *several):
            function = get(self, field)
            if function is not None:
                check_keywords(function, field)
        for field in ("evaluate.scorers", "candidates.scorers"):
            for i, scorer in enumerate(get(self, field) or ()):
                check_keywords(scorer, f"{field}[{i}]")


def _check_types(value: Any, at: str) -> None:
    """Python does not check annotations; a wrong type would surface far from the config."""
    hints = typing.get_type_hints(type(value))
    for field in dataclasses.fields(value):
        path = f"{at}.{field.name}" if at else field.name
        found, wanted = getattr(value, field.name), hints[field.name]
        if not fits(found, wanted):
            raise UserError(f"{path}: wanted {type_name(wanted)}, found {found!r}")
        if dataclasses.is_dataclass(found):
            _check_types(found, path)


def _check_ranges(config: Config) -> None:
    train, data, optim = config.train, config.data, config.optim
    evaluate, sft = config.evaluate, config.sft
    checks = [
        (train.batch_size > 0, "train.batch_size", "a positive number"),
        (
            train.accumulate > 0 and train.batch_size % train.accumulate == 0,
            "train.accumulate",
            f"a divisor of train.batch_size ({train.batch_size})",
        ),
        (train.steps >= 0, "train.steps", "a number >= 0"),
        (train.steps > 0 or 0 < train.epochs < math.inf, "train.epochs", "a positive number"),
        (train.eval_every >= 0, "train.eval_every", "a number >= 0"),
        (train.save_every > 0, "train.save_every", "a positive number"),
        (train.log_every > 0, "train.log_every", "a positive number"),
        (train.keep > 0, "train.keep", "a positive number"),
        (train.max_skipped > 0, "train.max_skipped", "a positive number"),
        (0 <= train.seed < 2**31, "train.seed", "a number in [0, 2^31)"),
        (0 <= optim.learning_rate < math.inf, "optim.learning_rate", "a number >= 0"),
        (0 <= optim.warmup_fraction < 1, "optim.warmup_fraction", "a number in [0, 1)"),
        (0 <= optim.weight_decay < math.inf, "optim.weight_decay", "a number >= 0"),
        (0 <= optim.b1 < 1, "optim.b1", "a number in [0, 1)"),
        (0 <= optim.b2 < 1, "optim.b2", "a number in [0, 1)"),
        (optim.eps > 0, "optim.eps", "a positive number"),
        (optim.clip_norm is None or optim.clip_norm > 0, "optim.clip_norm", "a positive number"),
        (0 < data.eval_fraction < 1, "data.eval_fraction", "a number in (0, 1)"),
        (0 <= data.max_drop_fraction <= 1, "data.max_drop_fraction", "a number in [0, 1]"),
        (data.max_prompt_tokens > 1, "data.max_prompt_tokens", "a number above 1"),
        (data.max_response_tokens > 1, "data.max_response_tokens", "a number above 1"),
        (data.buckets > 0, "data.buckets", "a positive number"),
        (data.pad_multiple > 0, "data.pad_multiple", "a positive number"),
        (config.tokenizer.vocab_size > 0, "tokenizer.vocab_size", "a positive number"),
        (
            config.reference.mode in ("auto", "cache", "live", "none"),
            "reference.mode",
            "auto, cache, live or none",
        ),
        (min(dataclasses.astuple(config.mesh)) > 0, "mesh", "positive numbers"),
        (evaluate.prompts >= 0, "evaluate.prompts", "a number >= 0"),
        (
            0 <= evaluate.best_of <= evaluate.samples,
            "evaluate.best_of",
            f"a number in [0, {evaluate.samples}], evaluate.samples",
        ),
        (evaluate.during >= 0, "evaluate.during", "a number >= 0"),
        *_sampling_checks("evaluate", evaluate),
    ]
    if config.candidates is not None:
        share = config.candidates.max_drop_fraction
        checks += [
            (0 <= share <= 1, "candidates.max_drop_fraction", "a number in [0, 1]"),
            (bool(config.candidates.scorers), "candidates.scorers", "at least one scorer"),
            *_sampling_checks("candidates", config.candidates),
        ]
    if sft is not None:
        checks += [
            (0 <= sft.learning_rate < math.inf, "sft.learning_rate", "a number >= 0"),
            (sft.steps >= 0, "sft.steps", "a number >= 0"),
            (sft.steps > 0 or 0 < sft.epochs < math.inf, "sft.epochs", "a positive number"),
            (sft.batch_size > 0, "sft.batch_size", "a positive number"),
        ]
    for ok, field, wanted in checks:
        if not ok:
            raise UserError(f"{field}: wanted {wanted}, found {get(config, field)!r}")


def _sampling_checks(
    field: str, settings: EvaluateConfig | CandidatesConfig
) -> list[tuple[bool, str, str]]:
    return [
        (settings.samples > 0, f"{field}.samples", "a positive number"),
        (settings.max_new_tokens > 0, f"{field}.max_new_tokens", "a positive number"),
        (0 <= settings.temperature < math.inf, f"{field}.temperature", "a number >= 0"),
        (0 < settings.top_p <= 1, f"{field}.top_p", "a number in (0, 1]"),
        (settings.top_k >= 0, f"{field}.top_k", "a number >= 0"),
        (settings.batch_size > 0, f"{field}.batch_size", "a positive number"),
    ]


def _check_several(config: Config, several: ObjectivesConfig) -> None:
    """Names, preferences and box fit each other; a front's run samples, and makes its own lists."""
    names, preferences = several.names, several.preferences
    if len(names) < 2 or len(set(names)) < len(names):
        raise UserError(f"objectives.names: wanted two or more different names, found {names!r}")
    if not preferences:
        raise UserError("objectives.preferences: wanted at least one preference, found none")
    for i, weights in enumerate(preferences):
        at = f"objectives.preferences[{i}]"
        if len(weights) != len(names):
            raise UserError(
                f"{at}: wanted {len(names)} weights, for {', '.join(names)}, found {weights!r}"
            )
        if not all(0 <= w < math.inf for w in weights) or not sum(weights):
            raise UserError(f"{at}: wanted weights >= 0 that are not all 0, found {weights!r}")
    if not 0 <= several.max_missing_fraction <= 1:
        raise UserError(
            "objectives.max_missing_fraction: wanted a number in [0, 1], found "
            f"{several.max_missing_fraction!r}"
        )
    box = several.box
    if box is not None and (len(box) != len(names) or not all(low < high for low, high in box)):
        raise UserError(
            f"objectives.box: wanted (low, high) with low < high for each of {', '.join(names)}, "
            f"found {box!r}"
        )
    if config.candidates is not None:
        raise UserError(
            "candidates: wanted none with objectives, whose method samples what it needs, and "
            "would not read them"
        )
    if not config.evaluate.prompts:
        raise UserError(
            "evaluate.prompts: wanted a positive number with objectives, whose front is measured "
            "on sampled responses, found 0"
        )


def _check_rows(config: Config) -> None:
    """Every batch splits evenly over the devices that hold rows."""
    rows = config.mesh.data * config.mesh.fsdp
    micro = config.train.batch_size // config.train.accumulate
    if micro % rows:
        raise UserError(
            f"train.batch_size: wanted {config.train.batch_size} / accumulate "
            f"{config.train.accumulate} to be a multiple of mesh.data x mesh.fsdp ({rows}), found "
            f"{micro} rows"
        )
    for field in ("evaluate.batch_size", "sft.batch_size", "candidates.batch_size"):
        found = get(config, field)
        if found is not None and found % rows:
            raise UserError(
                f"{field}: wanted a multiple of mesh.data x mesh.fsdp ({rows}), found {found}"
            )


def check_keywords(function: Callable[..., Any], field: str) -> None:
    """Finds keywords that a function does not take or misses, before anything is compiled.

    Raises:
      UserError: names the field, the function and the keyword, with the closest one it takes.
    """
    plain, args, bound = function, (), {}
    if isinstance(function, functools.partial):
        plain, args, bound = function.func, function.args, function.keywords
    if not inspect.isfunction(plain):
        raise UserError(f"{field}: wanted a function or a partial of one, found {function!r}")
    if args:
        raise UserError(
            f"{field}: {plain.__name__} is bound to {args!r} by position; bind hyperparameters "
            "by keyword"
        )
    known = keywords(plain)
    for name, value in bound.items():
        if name not in known:
            takes = ", ".join(known) or "none (keywords are what follows a * in its signature)"
            raise UserError(
                f"{field}.{name}: {plain.__module__}.{plain.__name__} takes no such "
                f"keyword{did_you_mean(name, known)}; it takes {takes}"
            )
        wanted = known[name].annotation
        is_schedule = callable(value) and not takes_function(wanted)
        if not is_schedule and not fits(value, wanted):
            raise UserError(f"{field}.{name}: wanted {type_name(wanted)}, found {value!r}")
        if takes_function(wanted) and (
            inspect.isfunction(value) or isinstance(value, functools.partial)
        ):
            check_keywords(value, f"{field}.{name}")
    for name, parameter in known.items():
        # A source's path is bound later, from data.path.
        later = field == "data.source" and name == "path"
        if parameter.default is parameter.empty and name not in bound and not later:
            raise UserError(f"{field}.{name}: {plain.__name__} needs it; bind it with partial")


def get(config: Any, field: str) -> Any:
    """The value at a dotted path, None where a part on the way is None."""
    for name in field.split("."):
        if config is None:
            return None
        is_partial = isinstance(config, functools.partial)
        config = config.keywords[name] if is_partial else getattr(config, name)
    return config
