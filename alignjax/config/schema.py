"""What a run can be told: frozen dataclasses, checked when they are made.

A config file (see `alignjax.config.load`) imports the functions it uses and binds their
hyperparameters with `functools.partial`: the import is the registry and the signature is the
schema.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from alignjax.config import validate
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
    stuck_after: float = 1800.0  # seconds, compiling aside, that a step may hang before the run
    # ends with exit code 5; 0: for ever
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
class SamplingConfig:
    """How responses are drawn: the fields that all who sample share, under the names HF gives them.

    Log-probabilities of what was drawn are the policy's own, whatever is set here.
    """

    samples: int = 4  # responses per prompt
    max_new_tokens: int = 64  # a response that is not over by then is cut, and counted
    temperature: float = 1.0  # 0: greedy
    top_k: int = 0  # 0: all ids
    top_p: float = 1.0  # the likeliest ids that reach this probability together; in (0, 1]
    min_p: float = 0.0  # drops ids less likely than this share of the likeliest one; in [0, 1]
    repetition_penalty: float = 1.0  # of ids in prompt or response so far; > 0, above 1 discourages
    num_beams: int = 1  # above 1: the best responses of a beam search this wide, nothing is drawn
    length_penalty: float = 1.0  # of beams: the best has the highest nats / tokens ** this
    batch_size: int = 32  # prompts per batch
    gather_weights: bool = True  # copy what mesh.fsdp splits to every device once a batch, in
    # model.dtype; False saves that memory and sends, or casts, the weights at every token


@dataclasses.dataclass(frozen=True, kw_only=True)
class CandidatesConfig(SamplingConfig):
    """Lists to align on: responses of the supervised policy to every prompt, and their scores.

    What is kept when a run is killed is whole batches.
    """

    scorers: tuple[Callable[..., Any], ...]  # alignjax.rewards.scorers; a response gets their mean
    samples: int = 8  # responses per prompt
    keep_own: bool = False  # the data's own responses come first in the list
    max_drop_fraction: float = 0.1  # stop when a larger share of prompts gives no list; in [0, 1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GameConfig:
    """A policy and a reward model trained against each other, in turns.

    ``loss``, ``select``, ``optim`` and ``train`` of the config are the policy's, ``reward_loss``
    and what is here the reward model's. Numbers of steps and epochs are of one round.
    """

    optim: OptimConfig  # the reward model's
    train: TrainConfig = TrainConfig()  # the reward model's
    golden: Callable[..., Any] | None = None  # a source of golden answers, one per prompt; None:
    # the responses that the data prefer
    golden_path: str = ""  # file or glob, for sources that read files
    max_missing_fraction: float = 0.01  # stop when a larger share of the reward model's prompts
    # has no golden answer; in [0, 1]
    policy_fraction: float = 0.5  # share of the training prompts that the policy answers; the
    # others, with their pairs and golden answers, are the reward model's; in (0, 1)
    rounds: int = 3
    sampling: SamplingConfig = SamplingConfig()  # of the policy, on both kinds of prompts
    max_drop_fraction: float = 0.1  # stop when a larger share of a round's prompts gives no list of
    # different samples; in [0, 1]
    max_empty_fraction: float = 0.5  # stop when a larger share of a round's samples is empty;
    # in [0, 1)
    learning_rates: tuple[float, ...] = ()  # the policy's peak in each round, the last one in all
    # later ones; (): optim.learning_rate
    reference: str = "previous"  # the policy's: previous (of the round before) | supervised
    adversarial: bool = True  # False: one reward model, of the pairs alone, in all rounds
    sequential: bool = False  # a round's reward model goes on from the one before, not from base
    reward_model: str = ""  # workdir of a finished reward model, in the place of the one that is
    # fitted to the pairs alone; of the same model and tokenizer
    reward_steps: int = 0  # in a cycle of one loop, then policy_steps of the policy; 0, 0: rounds
    policy_steps: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectivesConfig:
    """Several objectives at once: a way to respond for each preference between them."""

    method: Callable[..., Any]  # recipes.fronts: (setting, ...) -> how to respond for a preference
    scorer: Callable[
        ..., Any
    ]  # alignjax.rewards.scorers: M scores a response, of samples and bare data
    names: tuple[str, ...]  # of the M objectives
    preferences: tuple[tuple[float, ...], ...]  # M weights each, >= 0, scaled to sum to 1
    max_missing_fraction: float = 0.01  # stop when more responses lack an objective; in [0, 1]
    box: tuple[tuple[float, float], ...] | None = None  # (low, high) each; None: from the fronts
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
class EvaluateConfig(SamplingConfig):
    """What is measured before and after. Accuracy and margins need only held-out rows.

    Rows are scored ``batch_size`` at a time, too.
    """

    judge: Callable[..., Any] | None = None  # (prompt, response) -> {name: score}; needs samples
    scorers: tuple[
        Callable[..., Any], ...
    ] = ()  # alignjax.rewards.scorers: models not trained against
    prompts: int = 128  # held-out prompts that responses are sampled for; 0: no sampling
    best_of: int = 0  # the best of a prompt's first so many samples is reported; 0: of all
    during: int = 16  # prompts sampled at every evaluation during training; 0: none


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
    game: GameConfig | None = None  # with loss and reward_loss: both are trained, in turns
    reference: ReferenceConfig = ReferenceConfig()
    mesh: MeshConfig = MeshConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @property
    def objective(self) -> Callable[..., Any]:
        """What is minimised: the loss of the policy, where there is one, or of the reward model."""
        function = self.reward_loss if self.loss is None else self.loss
        assert function is not None  # see config_checks
        return function

    def __post_init__(self) -> None:
        validate.check(self)
