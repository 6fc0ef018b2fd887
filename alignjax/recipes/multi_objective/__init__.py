"""Trains policies for several objectives: a way to respond for each preference between them.

A method is a module here with ``train(setting, *, ...) -> Policies``, which a config binds as
``method`` of `ObjectivesConfig`. `run` calls it and measures the result. Configs import methods, so
slow imports (the training loop, checkpoints, pictures) stand inside the functions that use them.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

from alignjax.config.ranges import SHARE, Rule, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectivesConfig:
    """The settings of a run with several objectives."""

    # recipes.multi_objective: (setting, ...) -> how to respond for a preference
    method: Callable[..., Any]
    # alignjax.rewards.scorers: M scores per response, for samples and for data without scores
    scorer: Callable[..., Any]
    names: tuple[str, ...]  # of the M objectives
    preferences: tuple[tuple[float, ...], ...]  # M weights each, >= 0, scaled to sum to 1
    max_missing_fraction: float = setting(0.01, SHARE)  # stop when more responses lack an objective
    # of the hypervolume, (low, high) of each objective; None: from the fronts
    box: tuple[tuple[float, float], ...] | None = setting(None, identity=False)
    # (prompts, names) -> [F, M] best possible mean scores, if they are known
    truth: Callable[..., Any] | None = setting(None, identity=False)

    def rules(self) -> Iterator[Rule]:
        """See `config.validate.check`."""
        names, box = self.names, self.box
        distinct = len(names) >= 2 and len(set(names)) == len(names)
        yield Rule(distinct, "names", "two or more different names")
        yield Rule(bool(self.preferences), "preferences", "at least one preference")
        for i, weights in enumerate(self.preferences):
            at, each = f"preferences[{i}]", ", ".join(names)
            yield Rule(len(weights) == len(names), at, f"{len(names)} weights, for {each}", weights)
            positive = all(0 <= w < math.inf for w in weights) and sum(weights) > 0
            yield Rule(positive, at, "weights >= 0 that are not all 0", weights)
        fits = box is None or (len(box) == len(names) and all(low < high for low, high in box))
        yield Rule(fits, "box", f"(low, high) with low < high for each of {', '.join(names)}")

    def rules_of_run(self, config: Any) -> Iterator[Rule]:
        """See `config.validate.check`."""
        yield Rule(config.loss is not None, "loss", "one, which the method trains with")
        yield Rule(
            config.reward_loss is None, "reward_loss", "none with objectives, it would not be read"
        )
        yield Rule(
            config.candidates is None,
            "candidates",
            "none with objectives, whose method samples what it needs, and would not read them",
        )
        yield Rule(
            config.evaluate.prompts > 0,
            "evaluate.prompts",
            "a positive number with objectives, whose front is measured on sampled responses",
        )
