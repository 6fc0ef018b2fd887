"""What must hold of a config, checked when it is made: types, ranges, what goes with what.

The dataclasses of `alignjax.config` call this, so nothing of them is imported here.
"""

import dataclasses
import functools
import inspect
import math
import typing
from collections.abc import Callable
from typing import Any

from alignjax.config.fields import fits, keywords, takes_function, type_name
from alignjax.errors import UserError, did_you_mean

Check = tuple[bool, str, str]  # holds, field, what was wanted


def check(config: Any) -> None:
    """Refuses a config that no run can follow.

    Raises:
      UserError: with the field, what was wanted and what was found.
    """
    _check_types(config, "")
    _check_task(config)
    _check_ranges(config)
    _check_rows(config)
    if config.objectives is not None:
        _check_several(config, config.objectives)
    functions = (
        *("loss", "reward_loss", "select", "baseline", "optim.schedule", "data.source"),
        *("evaluate.judge", "sft.loss", "sft.select", "sft.truth"),
        *("game.golden", "game.optim.schedule"),
        *("objectives.method", "objectives.scorer", "objectives.truth"),
    )
    for field in functions:
        function = get(config, field)
        if function is not None:
            check_keywords(function, field)
    for field in ("evaluate.scorers", "candidates.scorers"):
        for i, scorer in enumerate(get(config, field) or ()):
            check_keywords(scorer, f"{field}[{i}]")


def _check_task(config: Any) -> None:
    """A policy is trained, or a reward model, or with a game both."""
    losses = [name for name in ("loss", "reward_loss") if get(config, name) is not None]
    if config.game is not None:
        if len(losses) < 2:
            raise UserError(
                "game: wanted loss (the policy's) and reward_loss (the reward model's), found "
                f"{losses[0] if losses else 'none'}"
            )
        for field in ("candidates", "lora", "objectives"):
            if get(config, field) is not None:
                raise UserError(f"{field}: wanted none with game, it would not be read")
        return
    if len(losses) != 1:
        raise UserError(
            "loss, reward_loss: wanted one of them (loss trains a policy, reward_loss a reward "
            f"model; both need game), found {'both' if losses else 'none'}"
        )
    if config.reward_loss is not None:
        unread = ("baseline", "candidates", "objectives", "evaluate.judge", "evaluate.scorers")
        for field in unread:
            if get(config, field):
                raise UserError(
                    f"{field}: wanted none with reward_loss; it is for policies, and would not "
                    "be read"
                )


def _check_several(config: Any, several: Any) -> None:
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


def _check_ranges(config: Any) -> None:
    data, evaluate, sft = config.data, config.evaluate, config.sft
    checks = [
        *_train_checks("train", config.train),
        *_optim_checks("optim", config.optim),
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
            (bool(config.candidates.scorers), "candidates.scorers", "at least one scorer"),
            (0 <= share <= 1, "candidates.max_drop_fraction", "a number in [0, 1]"),
            *_sampling_checks("candidates", config.candidates),
        ]
    if config.game is not None:
        checks += _game_checks(config.game)
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


def _train_checks(at: str, train: Any) -> list[Check]:
    return [
        (train.batch_size > 0, f"{at}.batch_size", "a positive number"),
        (
            train.accumulate > 0 and train.batch_size % train.accumulate == 0,
            f"{at}.accumulate",
            f"a divisor of {at}.batch_size ({train.batch_size})",
        ),
        (train.steps >= 0, f"{at}.steps", "a number >= 0"),
        (train.steps > 0 or 0 < train.epochs < math.inf, f"{at}.epochs", "a positive number"),
        (train.eval_every >= 0, f"{at}.eval_every", "a number >= 0"),
        (train.save_every > 0, f"{at}.save_every", "a positive number"),
        (train.log_every > 0, f"{at}.log_every", "a positive number"),
        (train.keep > 0, f"{at}.keep", "a positive number"),
        (train.max_skipped > 0, f"{at}.max_skipped", "a positive number"),
        (train.stuck_after >= 0, f"{at}.stuck_after", "seconds, 0 or more"),
        (0 <= train.seed < 2**31, f"{at}.seed", "a number in [0, 2^31)"),
    ]


def _optim_checks(at: str, optim: Any) -> list[Check]:
    return [
        (0 <= optim.learning_rate < math.inf, f"{at}.learning_rate", "a number >= 0"),
        (0 <= optim.warmup_fraction < 1, f"{at}.warmup_fraction", "a number in [0, 1)"),
        (0 <= optim.weight_decay < math.inf, f"{at}.weight_decay", "a number >= 0"),
        (0 <= optim.b1 < 1, f"{at}.b1", "a number in [0, 1)"),
        (0 <= optim.b2 < 1, f"{at}.b2", "a number in [0, 1)"),
        (optim.eps > 0, f"{at}.eps", "a positive number"),
        (optim.clip_norm is None or optim.clip_norm > 0, f"{at}.clip_norm", "a positive number"),
    ]


def _sampling_checks(at: str, settings: Any) -> list[Check]:
    s, beams = settings, settings.num_beams > 1
    drawn = (s.temperature, s.top_k, s.top_p, s.min_p, s.repetition_penalty)
    checks = [
        (s.samples > 0, "samples", "a positive number"),
        (s.max_new_tokens > 0, "max_new_tokens", "a positive number"),
        (0 <= s.temperature < math.inf, "temperature", "a number >= 0"),
        (s.top_k >= 0, "top_k", "a number >= 0"),
        (0 < s.top_p <= 1, "top_p", "a number in (0, 1]"),
        (0 <= s.min_p <= 1, "min_p", "a number in [0, 1]"),
        (0 < s.repetition_penalty < math.inf, "repetition_penalty", "a positive number"),
        (s.num_beams > 0, "num_beams", "a positive number"),
        (
            not beams or s.num_beams >= s.samples,
            "num_beams",
            f"1, or at least {at}.samples ({s.samples})",
        ),
        (
            not beams or drawn == (1, 0, 1, 0, 1),
            "num_beams",
            "1 with temperature, top_k, top_p, min_p or repetition_penalty, which beams do not use",
        ),
        (math.isfinite(s.length_penalty), "length_penalty", "a finite number"),
        (s.batch_size > 0, "batch_size", "a positive number"),
    ]
    return [(ok, f"{at}.{name}", wanted) for ok, name, wanted in checks]


def _game_checks(game: Any) -> list[Check]:
    sampling = game.sampling
    alternates = game.reward_steps > 0
    return [
        (game.rounds > 0, "game.rounds", "a positive number"),
        (0 < game.policy_fraction < 1, "game.policy_fraction", "a number in (0, 1)"),
        (0 <= game.max_missing_fraction <= 1, "game.max_missing_fraction", "a number in [0, 1]"),
        (0 <= game.max_drop_fraction <= 1, "game.max_drop_fraction", "a number in [0, 1]"),
        (0 <= game.max_empty_fraction < 1, "game.max_empty_fraction", "a number in [0, 1)"),
        (
            all(0 <= rate < math.inf for rate in game.learning_rates),
            "game.learning_rates",
            "numbers >= 0",
        ),
        (game.reference in ("previous", "supervised"), "game.reference", "previous or supervised"),
        (game.reward_steps >= 0, "game.reward_steps", "a number >= 0"),
        (
            game.policy_steps > 0 if alternates else game.policy_steps >= 0,
            "game.policy_steps",
            "a number above 0 beside game.reward_steps" if alternates else "a number >= 0",
        ),
        (
            sampling.samples > 1,
            "game.sampling.samples",
            "2 at least: a policy learns from which of them is better",
        ),
        (
            sampling.temperature > 0,
            "game.sampling.temperature",
            "a number above 0: greedy samples are all the same",
        ),
        *_sampling_checks("game.sampling", sampling),
        *_train_checks("game.train", game.train),
        *_optim_checks("game.optim", game.optim),
    ]


def _check_rows(config: Any) -> None:
    """Every batch splits evenly over the devices that hold rows."""
    rows = config.mesh.data * config.mesh.fsdp
    for at in ("train", "game.train"):
        train = get(config, at)
        micro = 0 if train is None else train.batch_size // train.accumulate
        if micro % rows:
            raise UserError(
                f"{at}.batch_size: wanted {train.batch_size} / accumulate {train.accumulate} to "
                f"be a multiple of mesh.data x mesh.fsdp ({rows}), found {micro} rows"
            )
    fields = ("evaluate", "sft", "candidates", "game.sampling")
    for field in (f"{at}.batch_size" for at in fields):
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
        # A source's path is bound later, from data.path or game.golden_path.
        later = field in ("data.source", "game.golden") and name == "path"
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
