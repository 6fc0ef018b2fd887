"""The settings of a run: frozen dataclasses, checked when they are made.

A config file (see `alignjax.config.load`) imports the functions it uses and binds their
hyperparameters with `functools.partial`: the import is the registry and the signature is the
schema. Settings that only one recipe reads are bound to it, see `alignjax.recipes`.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from alignjax.config import validate
from alignjax.config.ranges import (
    BATCH,
    EVERY,
    FEW,
    FEW_OR_NONE,
    FINITE,
    NOT_NEGATIVE,
    POSITIVE,
    ROWS,
    SEED,
    SHARE,
    STEPS,
    TOKENS,
    Range,
    Rule,
    between,
    count,
    one_of,
    setting,
)
from alignjax.data import sources
from alignjax.models.config import LoraConfig, ModelConfig

MOST_ROWS = 2**28  # rows of all steps of a training: their schedule is a table in memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where records come from and how they become rows."""

    # (report, ...) -> records: a function of data.sources or world; the default reads the columns
    source: Callable[..., Any] = setting(sources.auto, later=("path", "columns"))
    # for sources that read files: file, glob, folder of a data set, or its id on the Hub
    path: str = ""
    split: str = ""  # of a folder, such as train; empty if it has only one
    # for sources.auto: names of columns, if it does not know the data's own
    columns: sources.Columns = dataclasses.field(default_factory=sources.Columns)
    limit: int = setting(0, ROWS)  # rows read of each path, at most; 0: all
    eval_path: str = ""  # file or glob of held-out rows; empty: split off the data, by prompt
    eval_fraction: float = setting(0.1, between(0, 1, "()"))  # of prompts held out, by default
    max_prompt_tokens: int = setting(512, TOKENS)  # longer prompts lose their beginning
    max_response_tokens: int = setting(512, TOKENS)  # longer responses lose their end
    max_drop_fraction: float = setting(0.01, SHARE)  # stop when a larger share is dropped
    # number of shapes (P, R) of batches at most, each with a program of its own; more than one pays
    # where padding passes through the network: with a fused kernel (model.attention), on TPUs
    buckets: int = setting(1, FEW)
    pad_multiple: int = setting(16, FEW)  # token counts of a shape are multiples of this
    cache_dir: str = setting("", identity=False)  # prepared rows and reference log-probabilities;
    # empty: workdir/cache


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Which tokenizer. Without a path, one is trained on the training records."""

    # Its content counts instead: the digest is part of every key.
    path: str = setting("", identity=False)  # sentencepiece .model, tokenizer.json, or a folder
    vocab_size: int = setting(512, count(1, 2**24))  # ids of a tokenizer trained here, at most
    chat_template: str = ""  # jinja file; empty: the tokenizer's own, else plain "Role: text"


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and its learning rate."""

    learning_rate: float = setting(5e-7, NOT_NEGATIVE)  # peak
    schedule: Callable[..., Any]  # optim.constant | optim.linear | optim.cosine
    warmup_fraction: float = setting(0.1, between(0, 1, "[)"))  # share of the steps that warm up
    weight_decay: float = setting(0.0, NOT_NEGATIVE)  # decoupled, on matrices only
    b1: float = setting(0.9, between(0, 1, "[)"))
    b2: float = setting(0.999, between(0, 1, "[)"))
    eps: float = setting(1e-8, POSITIVE)
    # global gradient norm; None: no clipping
    clip_norm: float | None = setting(1.0, POSITIVE)


def _length_rules(steps: int, epochs: float, batch_size: int) -> Iterator[Rule]:
    few = steps * batch_size <= MOST_ROWS
    yield Rule(few, "steps", f"steps * batch_size of {MOST_ROWS:,} at most")
    yield Rule(steps > 0 or epochs > 0, "epochs", "a positive number if steps = 0")


def _are_loggers(names: tuple[str, ...]) -> bool:
    return set(names) <= {"tensorboard", "wandb", "trackio", "mlflow"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length of the training, batches, and what is kept. Steps are optimizer steps."""

    epochs: float = setting(1.0, between(0, 1e6, "[]"))  # passes over the data, when steps is 0
    steps: int = setting(0, STEPS)  # optimizer steps; 0: from epochs
    batch_size: int = setting(8, BATCH)  # prompts per optimizer step, over all devices
    # tokens of a device that pass through the network at a time, at least those of one prompt with
    # its responses; changes memory use, not the result of a step. 0: chosen from the data
    microbatch_tokens: int = setting(0, count(0, 2**24), identity=False)
    # steps between evaluations, with one at the end; 0: none; None: up to ten, only of held-out
    # rows, which together cost at most a tenth of the training
    eval_every: int | None = setting(None, STEPS, identity=False)
    # metric of the held-out rows, such as eval/loss, by which best/ keeps the best evaluation's
    # parameters: the lowest loss, or the highest of another metric; empty: only the last are kept
    keep_best: str = setting("", identity=False)
    # where metrics go besides metrics.jsonl: some of tensorboard, wandb, trackio, mlflow
    loggers: tuple[str, ...] = setting(
        ("tensorboard",),
        Range("some of tensorboard, wandb, trackio, mlflow", _are_loggers),
        identity=False,
    )
    save_every: int = setting(200, EVERY, identity=False)  # steps between checkpoints; one is
    # always written at the end
    keep: int = setting(2, EVERY, identity=False)  # checkpoints kept
    log_every: int = setting(10, EVERY, identity=False)  # steps between lines of metrics.jsonl
    max_skipped: int = setting(5, EVERY, identity=False)  # non-finite steps in a row before the
    # run stops
    # seconds without compiling that a step, a batch to score or sample, or a row to read may take
    # before the run ends with exit code 5; 0: no limit
    stuck_after: float = setting(
        1800.0, Range("seconds in [0, 1e9]", lambda x: 0 <= x <= 1e9), identity=False
    )
    seed: int = setting(0, SEED)  # of initialisation, shuffling and draws

    def rules(self) -> Iterator[Rule]:
        """See `validate.check`."""
        yield from _length_rules(self.steps, self.epochs, self.batch_size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftConfig:
    """The supervised stage, which trains the initial policy and the reference on the same data."""

    loss: Callable[..., Any]  # losses.sft.loss
    select: Callable[..., Any] | None = None  # sft.select: the chosen responses; None: all
    learning_rate: float = setting(1e-3, NOT_NEGATIVE)  # peak; schedule and the rest as in optim
    epochs: float = setting(1.0, between(0, 1e6, "[]"))
    steps: int = setting(0, STEPS)  # 0: from epochs
    batch_size: int = setting(32, BATCH)
    truth: Callable[..., Any] | None = None  # (prompt, response) -> exact nats, if they are known

    def rules(self) -> Iterator[Rule]:
        """See `validate.check`."""
        yield from _length_rules(self.steps, self.epochs, self.batch_size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How responses are sampled, with Hugging Face's names.

    The log-probabilities of samples are the policy's own, for any settings.
    """

    samples: int = setting(4, FEW)  # responses per prompt
    max_new_tokens: int = setting(64, count(1, 2**20))  # a longer response is cut, and counted
    temperature: float = setting(1.0, NOT_NEGATIVE)  # 0: greedy
    top_k: int = setting(0, count(0, 2**24))  # 0: all ids
    top_p: float = setting(1.0, between(0, 1, "(]"))  # the likeliest ids that reach this
    # probability together
    min_p: float = setting(0.0, SHARE)  # drops ids less likely than this share of the likeliest one
    repetition_penalty: float = setting(1.0, POSITIVE)  # of ids in prompt or response so far; above
    # 1 discourages
    num_beams: int = setting(1, FEW)  # above 1: the best responses of a beam search with this
    # number of beams, not random samples
    length_penalty: float = setting(1.0, FINITE)  # of beams: the best has the highest nats /
    # tokens ** this
    batch_size: int = setting(32, BATCH)  # prompts per batch
    gather_weights: bool = setting(True, identity=False)  # copy weights split over mesh.fsdp to
    # every device once per batch, in model.dtype; False needs less memory, but sends, or casts, the
    # weights at every token

    def rules(self) -> Iterator[Rule]:
        """See `validate.check`."""
        if self.num_beams > 1:
            wide = self.num_beams >= self.samples
            yield Rule(wide, "num_beams", f"1, or at least samples ({self.samples})")
            unused = (self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty)
            yield Rule(
                unused == (1, 0, 1, 0, 1),
                "num_beams",
                "1 with temperature, top_k, top_p, min_p or repetition_penalty, which beams do not "
                "use",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CandidatesConfig(SamplingConfig):
    """Lists to align on: responses of the supervised policy to every prompt, and their scores.

    A killed run keeps its complete batches.
    """

    # alignjax.rewards.scorers; a response gets their mean
    scorers: tuple[Callable[..., Any], ...] = setting(range=Range("at least one scorer", bool))
    samples: int = setting(8, FEW)  # responses per prompt
    keep_own: bool = False  # the data's own responses come first in the list
    max_drop_fraction: float = setting(0.1, SHARE)  # stop when a larger share of prompts gives no
    # list


@dataclasses.dataclass(frozen=True, kw_only=True)
class FollowConfig:
    """How a reference follows the policy: TR-DPO, arXiv 2404.09656.

    After every so many steps it becomes alpha * policy + (1 - alpha) * reference, by parameters.
    """

    every: int = setting(512, EVERY)  # optimizer steps
    alpha: float = setting(0.6, between(0, 1, "(]"))  # 1: the reference becomes the policy


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReferenceConfig:
    """What the policy is compared with in training: its start, or what follows the policy."""

    # auto (the cheaper) | cache | live | none (the loss uses no reference)
    mode: str = setting("auto", one_of("auto", "cache", "live", "none"), identity=False)
    follow: FollowConfig | None = None  # None: the reference stays as it is

    def rules(self) -> Iterator[Rule]:
        """See `validate.check`."""
        live = self.follow is None or self.mode in ("auto", "live")
        wanted = f"none with reference.mode={self.mode!r}: only a reference that steps score moves"
        yield Rule(live, "follow", wanted)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each axis; their product is the number of devices used."""

    data: int = setting(1, FEW)
    fsdp: int = setting(1, FEW)
    tensor: int = setting(1, FEW)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig(SamplingConfig):
    """The evaluation before and after. Accuracy and margins need only held-out rows.

    ``batch_size`` is also the number of rows scored at a time.
    """

    judge: Callable[..., Any] | None = None  # (prompt, response) -> {name: score}; needs samples
    scorers: tuple[
        Callable[..., Any], ...
    ] = ()  # alignjax.rewards.scorers: models not trained against
    prompts: int = setting(128, ROWS)  # held-out prompts that responses are sampled for; 0:
    # no sampling
    best_of: int = setting(0, FEW_OR_NONE)  # N of best-of-N: the best of a prompt's first N samples
    # is reported; 0: of all
    # whether held-out rows are scored before and after, of policies only
    held_out: bool = setting(True, identity=False)
    during: int = setting(16, ROWS)  # prompts sampled at every evaluation during training;
    # 0: none

    def none(self) -> "EvaluateConfig":
        """Returns the settings without any measurement: ``--set evaluate=none``."""
        nothing: dict[str, Any] = dict(judge=None, scorers=(), prompts=0, best_of=0, during=0)
        return dataclasses.replace(self, **nothing, held_out=False)

    def rules(self) -> Iterator[Rule]:
        """See `validate.check`."""
        yield from super().rules()
        few = self.best_of <= self.samples
        yield Rule(few, "best_of", f"a number in [0, {self.samples}], evaluate.samples")
        chosen = not self.best_of or self.judge is not None or bool(self.scorers)
        unknown = "0 without evaluate.scorers or evaluate.judge, which choose the best sample"
        yield Rule(chosen, "best_of", unknown)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One run: data, model, loss, optimizer, evaluation."""

    # (config, workdir, allow_config_change, ...) -> summary: a function of alignjax.recipes, with
    # the settings that only it reads; None: recipes.align_policy
    recipe: Callable[..., Any] | None = None
    data: DataConfig
    loss: Callable[..., Any] | None = None  # a policy's: (logps, batch) -> ([B] losses, metrics)
    # a reward model's: (scores, batch) -> ([B] losses, metrics)
    reward_loss: Callable[..., Any] | None = None
    optim: OptimConfig
    select: Callable[..., Any] | None = None  # (key, batch) -> batch with other responses
    baseline: Callable[..., Any] | None = None  # (logps, batch) -> [B], averaged for the loss
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig
    lora: LoraConfig | None = None  # None: all parameters are trained; else only adapters
    train: TrainConfig = TrainConfig()
    sft: SftConfig | None = None  # None: no supervised stage
    candidates: CandidatesConfig | None = None  # None: the policy is aligned on the data itself
    reference: ReferenceConfig = ReferenceConfig()
    mesh: MeshConfig = setting(MeshConfig(), identity=False)
    evaluate: EvaluateConfig = setting(EvaluateConfig(), identity=False)

    @property
    def trained_loss(self) -> Callable[..., Any]:
        """The loss that is minimised: the policy's, or without one the reward model's."""
        function = self.reward_loss if self.loss is None else self.loss
        assert function is not None  # see `validate.check`
        return function

    def __post_init__(self) -> None:
        validate.check(self)
