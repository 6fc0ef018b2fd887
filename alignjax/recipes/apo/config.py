"""The settings of a game, for both of its forms."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from alignjax.config import OptimConfig, SamplingConfig, TrainConfig
from alignjax.config.ranges import (
    EVERY,
    NOT_NEGATIVE,
    SHARE,
    STEPS,
    Range,
    Rule,
    between,
    count,
    one_of,
    setting,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GameConfig:
    """The settings of a policy and a reward model that are trained against each other.

    ``loss``, ``select``, ``optim`` and ``train`` of the config are for the policy, ``reward_loss``
    and the fields here for the reward model.
    """

    optim: OptimConfig  # the reward model's
    train: TrainConfig = TrainConfig()  # the reward model's
    # a source of golden answers, one per prompt; None: the data's preferred responses
    golden: Callable[..., Any] | None = setting(None, later=("path",))
    golden_path: str = ""  # file or glob, for sources that read files
    max_missing_fraction: float = setting(0.01, SHARE)  # stop when a larger share of the reward
    # model's prompts has no golden answer
    policy_fraction: float = setting(0.5, between(0, 1, "()"))  # share of the training prompts for
    # the policy; the others, with their pairs and golden answers, are for the reward model
    sampling: SamplingConfig = SamplingConfig()  # of the policy, on all prompts
    max_drop_fraction: float = setting(0.1, SHARE)  # stop when a larger share of a round's prompts
    # gives no list of different samples
    max_empty_fraction: float = setting(0.5, between(0, 1, "[)"))  # stop when a larger share of the
    # samples is empty
    reward_model: str = ""  # workdir of a finished reward model of the same model and tokenizer,
    # instead of one trained on pairs only

    def rules(self) -> Iterator[Rule]:
        """See `config.validate.check`."""
        yield Rule(
            self.sampling.samples > 1,
            "sampling.samples",
            "at least 2: a policy learns from which of them is better",
        )
        yield Rule(
            self.sampling.temperature > 0,
            "sampling.temperature",
            "a number above 0: greedy samples are all the same",
        )

    def rules_of_run(self, config: Any) -> Iterator[Rule]:
        """See `config.validate.check`."""
        for field, whose in (("loss", "the policy's"), ("reward_loss", "the reward model's")):
            yield Rule(getattr(config, field) is not None, field, f"one with a game, {whose}")
        unread = config.candidates is None
        yield Rule(unread, "candidates", "none with a game, it would not be read")

    def _begins(self, config: Any) -> Rule:
        """Refuses adapters that would have to continue from a reward model of another base."""
        wanted = "none with lora, whose adapters need the game's supervised policy as their base"
        begins = config.lora is None or not self.reward_model
        return Rule(begins, "recipe.game.reward_model", wanted)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoundsConfig(GameConfig):
    """A game in rounds. Numbers of steps and epochs are of one round."""

    rounds: int = setting(3, count(1, 10_000))
    # the policy's peak in each round; later rounds use the last one; (): optim.learning_rate
    learning_rates: tuple[float, ...] = setting(
        (), Range("numbers >= 0", lambda rates: all(NOT_NEGATIVE.holds(x) for x in rates))
    )
    # the policy's reference: previous (the policy of the round before) | supervised
    reference: str = setting("previous", one_of("previous", "supervised"))
    adversarial: bool = True  # False: one reward model, of pairs only, in all rounds
    sequential: bool = False  # train each round's reward model from the previous one, not from base

    def rules_of_run(self, config: Any) -> Iterator[Rule]:
        """See `config.validate.check`."""
        yield from super().rules_of_run(config)
        if self.adversarial and self.sequential:
            yield self._begins(config)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepsConfig(GameConfig):
    """A game step by step, in one loop: ``reward_steps`` and ``policy_steps`` in turn.

    The reference is the supervised policy. The loop starts with the reward model of pairs only,
    which is trained with ``train``; the loop itself reads only its batch size.
    """

    reward_steps: int = setting(1, STEPS)  # of a cycle; 0: the reward model does not change
    policy_steps: int = setting(1, EVERY)  # of a cycle

    def rules_of_run(self, config: Any) -> Iterator[Rule]:
        """See `config.validate.check`."""
        yield from super().rules_of_run(config)
        yield self._begins(config)
        live = config.reference.mode in ("auto", "live")  # new samples cannot be in a cache
        yield Rule(live, "reference.mode", "auto or live for a game in one loop")
