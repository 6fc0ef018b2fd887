"""The policies of a multi-objective run: stores them, and chooses one for a preference.

A method returns `Policies`, and the run saves them in ``policies.json``. The run, `generate` and
`export` choose among them here; `networks` loads the choice.
"""

import dataclasses
import math
import pathlib
from typing import Any

import numpy as np

from alignjax.errors import UserError
from alignjax.losses import rewards_in_context as ric
from alignjax.runtime import storage

Preference = tuple[float, ...]  # M weights >= 0 that sum to 1

# Ways to respond to a preference:
TRAINED = "trained"  # a network for each trained preference; the nearest one responds
AVERAGE = "average"  # a network for each objective; their weights are averaged
MIXTURE = "mixture"  # a network for each objective; their next-token probabilities are mixed
PROMPT = "prompt"  # one network; prompts contain the scores to aim for


@dataclasses.dataclass(frozen=True)
class Network:
    """A trained network, or a set of adapters."""

    preference: Preference  # that it was trained for
    folder: str  # of its checkpoints, in the workdir; empty: the supervised policy itself
    member: int = 0  # its number among networks trained side by side in the folder
    members: int = 0  # their number; 0: it was trained alone


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policies:
    """The policies of a multi-objective run: the content of ``policies.json``."""

    objectives: tuple[str, ...]  # M names
    preferences: tuple[Preference, ...]  # the config's
    identity: dict[str, str]  # digests of the data, the tokenizer and the supervised policy
    way: str  # TRAINED | AVERAGE | MIXTURE | PROMPT
    networks: tuple[Network, ...]
    # PROMPT: the z-scores to aim for, for each of ``preferences``; the function that computes them,
    # and its limits
    scores: tuple[tuple[float, ...], ...] = ()
    target: str = ""
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Choice:
    """The networks that respond to a preference."""

    way: str
    networks: tuple[Network, ...]
    weights: tuple[float, ...]  # of the networks
    scores: tuple[float, ...]  # to put into prompts; () for none
    description: str  # for messages


def find(workdir: pathlib.Path, description: dict[str, Any]) -> Policies | None:
    """Reads the policies of a multi-objective run; None for other runs.

    Args:
      workdir: the run's folder.
      description: the content of its ``config.json``.

    Raises:
      UserError: the run has not trained all of its policies.
    """
    if "objectives" not in (description.get("recipe") or {}):
        return None
    content = storage.find_json(workdir / "policies.json")
    if content is None:
        raise UserError(
            f"--workdir: {workdir} has not trained all of its policies (no policies.json in it); "
            "finish it with run"
        )
    lists = {name: _tuples(x) for name, x in content.items() if isinstance(x, list)}
    networks = [
        Network(**{**fields, "preference": tuple(fields["preference"])})
        for fields in content["networks"]
    ]
    return Policies(**{**content, **lists, "networks": tuple(networks)})


def _tuples(value: Any) -> Any:
    return tuple(_tuples(x) for x in value) if isinstance(value, list) else value


def keep(workdir: pathlib.Path, policies: Policies) -> None:
    """Writes the policies of a run."""
    storage.keep_json(workdir / "policies.json", dataclasses.asdict(policies))


def choose_for(policies: Policies | None, workdir: object, text: str) -> Choice | None:
    """Chooses the networks for ``--preference``; None for a run of one policy.

    Args:
      policies: from `find`.
      workdir: the run, for messages.
      text: the flag's value, numbers separated by commas; empty: the flag is not set.

    Raises:
      UserError: the run has one policy and the flag is set, or several and it is not set; or see
        `parse`.
    """
    if policies is None:
        if text:
            raise UserError(f"--preference: {workdir} holds one policy, wanted none, found {text}")
        return None
    if not text:
        raise UserError(
            f"--preference: {workdir} holds policies for preferences between "
            f"{', '.join(policies.objectives)}: wanted one, e.g. "
            f"--preference={as_flag(policies.preferences[0])}, found none; trained for "
            f"{' '.join(map(as_flag, policies.preferences))}"
        )
    return choose(policies, parse(policies, text))


def parse(policies: Policies, text: str) -> Preference:
    """Parses a preference, and scales it to sum to 1 exactly.

    Raises:
      UserError: there is not one number per objective, one is negative, or their sum differs from
        1 by more than rounding to two digits explains.
    """
    count = len(policies.objectives)
    try:
        weights = [float(x) for x in text.split(",")]
    except ValueError:
        weights = []
    # NaN compares as False. Rounding to two digits changes a weight by at most 0.005.
    valid = all(x >= 0 for x in weights) and abs(sum(weights) - 1) <= 0.005 * count + 1e-9
    if len(weights) != count or not valid:
        raise UserError(
            f"--preference: wanted {count} numbers, the weights of "
            f"{', '.join(policies.objectives)}, not negative and with sum 1, e.g. "
            f"--preference={as_flag(policies.preferences[0])}, found {text!r}"
        )
    return tuple(x / sum(weights) for x in weights)


def as_flag(preference: Preference) -> str:
    """Formats a preference for ``--preference``: ``0.3,0.7``."""
    return ",".join(f"{w:.4g}" for w in preference)


def choose(policies: Policies, wanted: Preference) -> Choice:
    """Chooses the networks for a preference, see the ways above.

    Raises:
      UserError: the preference is new, and the function that computes scores is not alignjax's.
    """
    networks, count = policies.networks, len(policies.networks)
    trained_for = " and ".join(as_flag(network.preference) for network in networks)
    if policies.way == TRAINED:
        distances = [math.dist(network.preference, wanted) for network in networks]
        nearest = networks[int(np.argmin(distances))]
        trained = as_flag(nearest.preference)
        text = f"the policy trained for {trained}, at a distance of {min(distances):.4g}"
        return Choice(TRAINED, (nearest,), (1.0,), (), text)
    if policies.way == PROMPT:
        scores = _scores(policies, wanted)
        text = (
            "the one policy that was trained for all preferences, with "
            f"{ric.score_text(scores)!r} at the end of every prompt"
        )
        return Choice(PROMPT, networks, (1.0,), scores, text)
    way = "average of the weights" if policies.way == AVERAGE else "mixture of the probabilities"
    text = (
        f"the {way} of the {count} policies trained for {trained_for}, weighted {as_flag(wanted)}"
    )
    return Choice(policies.way, networks, wanted, (), text)


def require_single(choice: Choice, *, adapter: bool = False) -> None:
    """Refuses a choice that is not a single network, or not a single set of adapters.

    Raises:
      UserError: it is not.
    """
    several = max(choice.weights) < 1
    if choice.way == MIXTURE and several:
        raise UserError(
            f"--preference: wanted all weight on one objective, found {choice.description}: no "
            "single network has these probabilities; use generate to sample from them"
        )
    if adapter and (several or not all(network.folder for network in choice.networks)):
        raise UserError(
            f"--adapter: wanted one set of adapters, found {choice.description}; export "
            "without --adapter"
        )


def _scores(policies: Policies, wanted: Preference) -> tuple[float, ...]:
    """Finds the scores to aim for, or computes those of a new preference."""
    for preference, scores in zip(policies.preferences, policies.scores, strict=True):
        if math.dist(preference, wanted) < 1e-6:
            return scores
    module, _, name = policies.target.rpartition(".")
    if module != ric.__name__:
        raise UserError(
            f"--preference: {policies.target}, which computes the scores, is not alignjax's: "
            f"wanted one of {' '.join(map(as_flag, policies.preferences))}, found {as_flag(wanted)}"
        )
    target = getattr(ric, name)(wanted, np.array(policies.low), np.array(policies.high))
    return tuple(target.tolist())
