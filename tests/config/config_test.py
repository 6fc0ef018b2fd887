"""Config files and what they may hold: types, ranges, overrides, descriptions, no dead field."""

import ast
import copy
import dataclasses
import functools
import json
import math
import re
import sys
import typing
from collections.abc import Callable
from typing import Any

import numpy as np
import optax
import pytest

from alignjax import recipes
from alignjax.config import (
    CandidatesConfig,
    EvaluateConfig,
    OptimConfig,
    load,
    validate,
)
from alignjax.config import override as set_fields
from alignjax.config import schema as configs
from alignjax.config.fields import describe, differences, fits, parse, sections
from alignjax.config.validate import check_keywords
from alignjax.data import sources
from alignjax.errors import UserError
from alignjax.losses import apo, bradley_terry, dpo, grpo, hps, ipo, kto
from alignjax.models.config import LoraConfig, RopeScaling
from alignjax.recipes.multi_objective import supervised
from alignjax.rewards import scorers as score
from alignjax.training import optim
from alignjax.types import Array, Logps, RunSchedule, Schedule
from alignjax.world import sources as world
from tests import runs

CONFIGS = sorted((runs.ROOT / "configs").rglob("*.py"))


def beside(loss, beta, *, on=True, sizes: tuple[int, ...] = (), mode: str = "a", top: int = 1):
    """Takes every type of hyperparameter."""


def every_type(
    logps,
    batch,
    *,
    beta: float = 0.1,
    count: int = 1,
    on: bool = False,
    name: str = "x",
    sizes: tuple[int, ...] = (),
    pair: tuple[float, str] = (0.0, ""),
    limit: float | None = None,
    either: "bool | str | int" = 0,
    free=None,
    anything: Any = None,
    implicit: Callable[[Logps], Array] = dpo.implicit,
):
    """A loss with a hyperparameter of every type."""


def scaled(logps, *, scale: float, shift: float = 0.0):
    """An implicit reward with a hyperparameter that has to be bound."""


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("train.batch_size=16", 16),
        ("data.eval_fraction=0.5", 0.5),
        ("optim.learning_rate=1", 1.0),
        ("optim.learning_rate=1e-6", 1e-6),
        ("optim.clip_norm=None", None),
        ("optim.clip_norm=2", 2.0),
        ("model.qk_norm= TRUE", True),
        ("model.qk_norm=False", False),
        ("tokenizer.path=a b.model", "a b.model"),
        ("tokenizer.path='7'", "7"),
        ("tokenizer.path=7", "7"),
        ("data.path=/data/*.jsonl.gz", "/data/*.jsonl.gz"),
        ("evaluate.judge=None", None),
        ("loss.beta=0.25", 0.25),
        ("data.source.size=99", 99),
        ("data.source.world.trade_off=convex", "convex"),
        ("optim.schedule=None", UserError),
        ("train.batch_size=16.0", UserError),
        ("train.batch_size=True", UserError),
        ("train.batch_size=many", UserError),
        ("train.batch_size=", UserError),
        ("train.batch_size={[]: 1}", UserError),
        ("model.qk_norm=1", UserError),
        ("optim.learning_rate=nan", UserError),
        ("optim.learning_rate=1e999", UserError),
        ("sft=x", UserError),
    ],
)
def test_an_override_reaches_its_field_with_its_type(override, wanted):
    field = override.partition("=")[0]
    if wanted is UserError:
        with pytest.raises(UserError, match=rf"{field}: wanted .*, found ") as caught:
            runs.changed(override)
        assert "\n" not in str(caught.value)
        return
    found = validate.get(runs.changed(override), field)
    assert found == wanted
    assert type(found) is type(wanted)


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("sizes", "(1, 2)", (1, 2)),
        ("sizes", "[1]", (1,)),
        ("sizes", "()", ()),
        ("sizes", "1", UserError),
        ("sizes", "(1, 2.5)", UserError),
        ("sizes", "(True,)", UserError),
        ("pair", "(1, 'a')", (1.0, "a")),
        ("pair", "(1,)", UserError),
        ("pair", "(1, 'a', 2)", UserError),
        ("limit", "none at all", UserError),
        ("either", "3", 3),
        ("either", "three", "three"),
        ("free", "{'a': 1}", {"a": 1}),
        ("free", "text", "text"),
        ("anything", "(1, 'a')", (1, "a")),
        ("on", "yes", UserError),
    ],
)
def test_text_becomes_a_value_of_the_annotated_type(name, text, wanted):
    hint = validate.keywords(every_type)[name].annotation
    if wanted is UserError:
        with pytest.raises(UserError, match=rf"loss.{name}: wanted .*, found "):
            parse(text, hint, f"loss.{name}")
    else:
        found = parse(text, hint, "")
        assert found == wanted
        assert type(found) is type(wanted)


def test_a_plain_function_becomes_a_partial():
    config = runs.get_config(loss=dpo.loss)
    changed = load.override(config, ["loss.beta=0.3", "train.seed=4"])
    assert changed.loss.func is dpo.loss
    assert changed.loss.keywords == {"beta": 0.3}
    assert changed.train.seed == 4
    assert config.loss is dpo.loss  # the first one is as it was


def test_overrides_of_one_partial_add_up_and_the_last_of_a_field_wins():
    loss = runs.changed("loss.beta=0.3", "loss.label_smoothing=0.1", "loss.beta=0.4").loss
    assert loss.keywords == {"beta": 0.4, "label_smoothing": 0.1}


def test_overrides_are_checked_together():
    # Alone, 12 rows do not divide by 8 devices.
    assert runs.changed("mesh.data=4", "train.batch_size=12").train.batch_size == 12
    with pytest.raises(UserError, match=r"train\.batch_size: wanted .* multiple of .*\(8\)"):
        runs.changed("mesh.data=8", "train.batch_size=12")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.bach_size=3", r"train\.bach_size: no such field \(did you mean 'batch_size'\?\)"),
        ("trian.steps=3", r"trian: no such field \(did you mean 'train'\?\)"),
        ("loss.betta=3", r"loss\.betta: no such field \(did you mean 'beta'\?\); loss has beta, "),
        ("data.source.sise=3", r"data\.source\.sise: no such field \(did you mean 'size'\?\)"),
        ("sft.loss.beta=3", r"sft\.loss\.beta: no such field .*; sft\.loss has none"),
        ("select.gamma=3", r"select: it is None and has no fields"),
        ("train.steps.more=3", r"train\.steps: it is 8 and has no fields"),
        ("train.steps", r"--set: wanted field=value, found 'train\.steps'"),
    ],
)
def test_an_override_that_fits_nothing_says_what_would(override, message):
    with pytest.raises(UserError, match=message):
        runs.changed(override)


def test_a_field_and_a_part_of_it_are_not_both_set():
    for overrides in (["sft.steps=3", "sft=None"], ["sft=None", "sft.steps=3"]):
        with pytest.raises(UserError, match=r"--set sft"):
            runs.changed(*overrides)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (functools.partial(dpo.loss, betta=1), r"loss\.betta: alignjax\.losses\.dpo\.loss "
         r"takes no such keyword \(did you mean 'beta'\?\); it takes beta, label_smoothing"),
        (functools.partial(dpo.loss, beta="0.1"), r"loss\.beta: wanted float, found '0\.1'"),
        (functools.partial(dpo.loss, 0.1), r"loss: wanted .*by keyword, found \(0\.1"),
        (hps.select, r"loss\.gamma: select needs it; bind it with partial"),
        ("dpo", r"loss: wanted a function.*, found 'dpo'"),
        (functools.partial(every_type, count=1.0), r"loss\.count: wanted int, found 1\.0"),
        (functools.partial(dpo.loss, implicit=0.5),
         r"loss\.implicit: wanted a function, found 0\.5"),
        (functools.partial(dpo.loss, implicit=scaled),
         r"loss\.implicit\.scale: scaled needs it; bind it with partial"),
        (functools.partial(dpo.loss, implicit=functools.partial(scaled, scale=1.0, sift=2.0)),
         r"loss\.implicit\.sift: .*scaled takes no such keyword \(did you mean 'shift'\?\)"),
        (functools.partial(dpo.loss, implicit=functools.partial(scaled, scale="1")),
         r"loss\.implicit\.scale: wanted float, found '1'"),
        (functools.partial(beside, loss=1), r"loss\.loss: .* takes no such keyword"),
    ],
)  # fmt: skip
def test_a_bound_function_is_checked(function, message):
    with pytest.raises(UserError, match=message):
        check_keywords(function, "loss")
    with pytest.raises(UserError, match=message):
        runs.get_config(loss=function)


def test_schedules_fit_any_hyperparameter():
    schedule = Schedule(optax.constant_schedule(0.1))
    check_keywords(functools.partial(dpo.loss, beta=schedule), "loss")
    nested = functools.partial(scaled, scale=schedule)
    check_keywords(functools.partial(dpo.loss, implicit=nested), "loss")
    bare = functools.partial(dpo.loss, beta=schedule.at)
    with pytest.raises(UserError, match=r"loss\.beta: wanted float, found .*types\.Schedule"):
        check_keywords(bare, "loss")
    with pytest.raises(UserError, match=r"loss\.implicit: wanted a function"):
        check_keywords(functools.partial(dpo.loss, implicit=schedule), "loss")


def test_an_override_reaches_the_keywords_of_a_bound_function():
    nested = functools.partial(scaled, scale=1.0)
    config = runs.get_config(loss=functools.partial(dpo.loss, beta=0.2, implicit=nested))
    changed = load.override(config, ["loss.implicit.scale=3", "loss.beta=0.5"])
    assert validate.get(changed, "loss.implicit.scale") == 3.0
    assert changed.loss.keywords["beta"] == 0.5
    assert changed.loss.keywords["implicit"].func is scaled
    assert differences(describe(config), describe(changed)) == [
        "loss.beta: 0.2 -> 0.5",
        "loss.implicit.scale: 1.0 -> 3.0",
    ]
    # The keywords of a default are reached as well.
    for override, message in (
        ("loss.implicit.scale=x", r"--set loss\.implicit\.scale: no such field; .* has none"),
    ):
        with pytest.raises(UserError, match=message):
            runs.changed(override)
    unbound = functools.partial(every_type, implicit=scaled)
    found = set_fields.apply(unbound, set_fields.tree_of(["implicit.shift=2"]))
    assert found.keywords["implicit"].keywords == {"shift": 2.0}


def leaves(config):
    """Every field that is no group, by its dotted path."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from ((f"{field.name}.{path}", v) for path, v in leaves(value))
        else:
            yield field.name, value


def with_leaf(config, path, value):
    name, _, rest = path.partition(".")
    new = with_leaf(getattr(config, name), rest, value) if rest else value
    return dataclasses.replace(config, **{name: new})


def unchecked(config, path, value):
    """As `with_leaf`, of a config that need not make sense."""
    name, _, rest = path.partition(".")
    changed = copy.copy(config)
    new = unchecked(getattr(config, name), rest, value) if rest else value
    object.__setattr__(changed, name, new)
    return changed


@pytest.mark.parametrize("path", [path for path, _ in leaves(runs.get_config())])
def test_every_field_refuses_a_wrong_type(path):
    wrong = object()
    with pytest.raises((UserError, TypeError), match=rf"{path}: wanted|not supported between"):
        with_leaf(runs.get_config(), path, wrong)


def playing(**changes):
    settings = {"optim": OptimConfig(schedule=optim.constant), **changes}
    return functools.partial(recipes.play_rounds, game=recipes.RoundsConfig(**settings))


def several(**changes):
    settings = dict(
        method=supervised.train,
        scorer=functools.partial(score.judged, judge=world.judge, name=("helpful", "harmless")),
        names=("helpful", "harmless"),
        preferences=((1.0, 0.0), (0.5, 0.5)),
    )
    objectives = recipes.ObjectivesConfig(**{**settings, **changes})
    return functools.partial(recipes.trace_front, objectives=objectives)


def whole_configs():
    """Configs that between them have every section."""
    scorers = (several().keywords["objectives"].scorer,)
    steps = recipes.StepsConfig(optim=OptimConfig(schedule=optim.constant))
    both = dict(reward_loss=apo.reward_loss)
    return {
        "align": runs.get_config(candidates=CandidatesConfig(scorers=scorers)),
        "rounds": runs.get_config(recipe=playing(), **both),
        "steps": runs.get_config(recipe=functools.partial(recipes.play_steps, game=steps), **both),
        "front": runs.get_config(recipe=several()),
    }


# Never a number that a run can use, whatever the field; of whole numbers neither the next two.
NEVER = ("nan", "1e999", "-1e999", "1e39", "-1e39", "9" * 40, "true", "some")
LONG = (str(2**31), str(2**63))
MAYBE = ("-1", "0", "0.5", "1")


def numbers():
    """Every numeric field of every section: which config it is in, its path, what holds of it."""
    found = {}
    for name, config in whole_configs().items():
        for at, section in sections(config):
            hints = typing.get_type_hints(type(section))
            for field in dataclasses.fields(section):
                hint, path = hints[field.name], f"{at}.{field.name}".strip(".")
                if fits(1, hint) and not fits(True, hint):
                    found.setdefault(path, (name, section, field))
    return found


def test_every_number_of_every_section_refuses_14_values_that_it_cannot_use():
    """In one line that names its section and field, before anything is made of the config."""
    configs, taken, lines = whole_configs(), set(), []
    for path, (name, section, field) in numbers().items():
        ours = type(section).__module__ != "alignjax.models.config"
        assert not ours or field.metadata.get("range"), f"{path} has no range"
        for text in (*NEVER, *LONG, *MAYBE):
            try:
                load.override(configs[name], [f"{path}={text}"])
            except UserError as error:
                lines.append((path, str(error)))
            else:
                whole = not fits(0.5, typing.get_type_hints(type(section))[field.name])
                assert text not in NEVER, f"{path}={text} was taken"
                assert text not in LONG or not whole, f"{path}={text} was taken"
                taken.add((path, text))
    parts = [(path.rpartition(".")[0], x) for path, x in lines]
    strange = [x for path, x in parts if path not in x or ": wanted " not in x or "\n" in x]
    assert strange == []
    assert len(lines) > 1000
    for field, text in (  # what hung, or ended in a traceback
        *(("model.norm_eps", "-1"), ("model.rope_theta", "-1"), ("model.norm_eps", "0")),
        *(("train.steps", str(2**31)), ("train.batch_size", str(2**31)), ("optim.eps", "0")),
        *(("data.max_prompt_tokens", str(2**31)), ("sft.steps", str(2**31))),
    ):
        assert (field, text) not in taken


def test_without_the_ranges_such_values_would_be_taken(monkeypatch):
    monkeypatch.setattr(validate, "_ranges", lambda section: ())
    taken = load.override(runs.get_config(), ["optim.learning_rate=1e39", "train.keep=-1"])
    assert taken.train.keep == -1


@pytest.mark.parametrize("value", ["-1", "0", "-1e999", "1e999", "1e39"])
def test_a_keyword_of_a_loss_has_a_range_too(value):
    with pytest.raises(UserError, match=r"loss\.beta: wanted a positive number"):
        load.override(runs.get_config(), [f"loss.beta={value}"])


def test_a_loss_s_own_default_is_in_its_range():
    config = runs.get_config(loss=functools.partial(grpo.loss, beta=0.0))
    assert config.loss.keywords == {"beta": 0.0}
    with pytest.raises(UserError, match=r"loss\.beta: wanted a positive number"):
        load.override(config, ["loss.beta=-1"])


def test_tables_that_do_not_fit_in_memory_are_refused():
    with pytest.raises(UserError, match=r"train\.steps: wanted steps \* batch_size of 268,435,456"):
        load.override(runs.get_config(), ["train.steps=100000", "train.batch_size=10000"])


def test_what_may_change_between_two_starts_of_a_run():
    """Whatever decides when, where or how it is measured, and not what is trained."""
    free = {
        f"{at}.{field.name}".strip(".")
        for config in whole_configs().values()
        for at, section in sections(config)
        for field in dataclasses.fields(section)
        if not field.metadata.get("identity", True)
    }
    saving = ("eval_every", "save_every", "keep", "log_every", "max_skipped", "stuck_after")
    saving += ("loggers", "microbatch_tokens", "keep_best")
    assert free == {
        *(f"{at}.{name}" for at in ("train", "recipe.game.train") for name in saving),
        *("mesh", "evaluate", "reference.mode", "data.cache_dir", "tokenizer.path"),
        "evaluate.held_out",
        *(f"model.{name}" for name in ("path", "remat", "attention", "logits_chunk")),
        *(f"{at}.gather_weights" for at in ("candidates", "evaluate", "recipe.game.sampling")),
        *("recipe.objectives.box", "recipe.objectives.truth"),
    }


OUTSIDE = {
    "align": (
        *("train.microbatch_tokens=-1", "model.width=0", "model.kv_heads=3", "model.dtype=float16"),
        *("model.remat=some", "data.eval_fraction=0", "data.eval_fraction=1", "optim.b1=1"),
    ),
    "rounds": (
        *("rounds=0", "policy_fraction=1.0", "policy_fraction=0.0", "reference=none"),
        *("max_missing_fraction=1.1", "max_empty_fraction=1.0", "max_drop_fraction=2.0"),
        *("learning_rates=(1e-4, -1.0)", "sampling.samples=1", "sampling.temperature=0.0"),
        *("sampling.top_p=0.0", "train.steps=-1", "optim.b1=1.0"),
    ),
    "steps": ("policy_steps=0",),
}


@pytest.mark.parametrize(
    ("name", "override"), [(name, x) for name, overrides in OUTSIDE.items() for x in overrides]
)
def test_a_value_outside_its_range_names_its_field(name, override):
    override = override if name == "align" else f"recipe.game.{override}"
    field = re.escape(override.partition("=")[0])
    with pytest.raises(UserError, match=rf"{field}: wanted .*, found "):
        load.override(whole_configs()[name], [override])


def test_beams_are_as_many_as_responses_and_nothing_is_drawn():
    assert runs.changed("evaluate.num_beams=4", "evaluate.samples=4").evaluate.num_beams == 4
    with pytest.raises(UserError, match=r"evaluate\.num_beams: wanted 1, or at least .* \(4\)"):
        runs.changed("evaluate.num_beams=3", "evaluate.samples=4")
    for other in ("temperature=0", "top_k=5", "top_p=0.9", "min_p=0.1", "repetition_penalty=1.1"):
        with pytest.raises(UserError, match=r"num_beams: wanted 1 with temperature.*found 4"):
            runs.changed("evaluate.num_beams=4", f"evaluate.{other}")


def test_the_best_of_n_needs_something_that_says_which_is_the_best():
    nothing = runs.changed("evaluate=none").evaluate
    assert (nothing.prompts, nothing.during, nothing.judge, nothing.held_out) == (0, 0, None, False)
    assert runs.changed("evaluate.best_of=2").evaluate.best_of == 2  # by the judge
    with pytest.raises(UserError, match=r"evaluate\.best_of: wanted 0 without .*, found 2"):
        runs.changed("evaluate.best_of=2", "evaluate.judge=None")
    runs.get_config(evaluate=EvaluateConfig(samples=2, best_of=2, scorers=SCORERS))


SCORERS = (functools.partial(score.reward_model, path="runs/rm"),)
CANDIDATES = dict(candidates=CandidatesConfig(scorers=SCORERS))
REWARD_MODEL = dict(loss=None, reward_loss=every_type, evaluate=EvaluateConfig())
GAME = dict(reward_loss=apo.reward_loss, recipe=playing())
FRONT = dict(recipe=several())


def test_a_run_trains_a_policy_a_reward_model_or_both():
    assert runs.get_config(**REWARD_MODEL).trained_loss is every_type
    assert runs.get_config().trained_loss.func is dpo.loss
    assert runs.get_config(**GAME).trained_loss.func is dpo.loss


@pytest.mark.parametrize(
    ("parts", "changes", "message"),
    [
        ({}, dict(loss=None), r"loss, reward_loss: wanted one .*, found none$"),
        ({}, dict(reward_loss=every_type), r"loss, reward_loss: wanted one .*, found both$"),
        *(
            (REWARD_MODEL, changes, rf"{field}: wanted none with reward_loss")
            for field, changes in (
                ("baseline", dict(baseline=kto.baseline)),
                ("candidates", CANDIDATES),
                (r"evaluate\.judge", dict(evaluate=EvaluateConfig(judge=world.judge))),
                (r"evaluate\.scorers", dict(evaluate=EvaluateConfig(scorers=SCORERS))),
            )
        ),
        (GAME, dict(loss=None), "loss: wanted one with a game, .*, found None$"),
        (GAME, dict(reward_loss=None), "reward_loss: wanted one with a game, .*, found None$"),
        (GAME, CANDIDATES, "candidates: wanted none with a game"),
        (
            {},
            dict(
                evaluate=EvaluateConfig(
                    scorers=(
                        functools.partial(score.several, scorers=(*SCORERS, score.reward_model)),
                    )
                )
            ),
            r"evaluate\.scorers\[0\]\.scorers\[1\]\.path: reward_model needs it",
        ),
        (
            GAME,
            dict(recipe=playing(golden=functools.partial(world.golden, sise=1))),
            r"recipe\.game\.golden\.sise: .*golden takes no such keyword",
        ),
        (
            FRONT,
            REWARD_MODEL | dict(reward_loss=bradley_terry.reward_loss),
            "loss: wanted one, which the method trains with",
        ),
        (FRONT, CANDIDATES, "candidates: wanted none with objectives"),
        (
            FRONT,
            dict(evaluate=EvaluateConfig(prompts=0)),
            r"evaluate\.prompts: wanted a positive number",
        ),
    ],
)
def test_parts_that_do_not_go_together_are_refused(parts, changes, message):
    with pytest.raises(UserError, match=f"^{message}"):
        runs.get_config(**{**parts, **changes})


def test_a_section_is_reached_through_its_recipe():
    config = runs.get_config(reward_loss=apo.reward_loss, recipe=playing())
    changed = load.override(config, ["recipe.game.rounds=2", "recipe.game.sampling.top_k=5"])
    assert changed.recipe.keywords["game"].rounds == 2
    assert describe(changed)["recipe"]["game"]["sampling"]["top_k"] == 5
    with pytest.raises(
        UserError, match=r"recipe\.game\.ronds: no such field \(did you mean 'rounds"
    ):
        load.override(config, ["recipe.game.ronds=2"])
    with pytest.raises(UserError, match=r"recipe\.gane: no such field \(did you mean 'game'"):
        load.override(config, ["recipe.gane.rounds=2"])
    with pytest.raises(UserError, match=r"^recipe\.game: play_rounds needs it"):
        runs.get_config(reward_loss=apo.reward_loss, recipe=recipes.play_rounds)


def test_epochs_count_only_without_steps():
    assert runs.changed("train.epochs=0").train.steps == 8
    with pytest.raises(UserError, match=r"train\.epochs"):
        runs.changed("train.steps=0", "train.epochs=0")


@pytest.mark.parametrize("field", ["train.batch_size", "evaluate.batch_size", "sft.batch_size"])
def test_a_batch_divides_by_the_mesh(field):
    with pytest.raises(UserError, match=rf"{field}: wanted .*mesh\.data x mesh\.fsdp \(4\)"):
        runs.changed("mesh.data=2", "mesh.fsdp=2", f"{field}=6")


# --- descriptions


def test_equal_configs_have_equal_descriptions_that_are_json():
    one, other = describe(runs.get_config()), describe(runs.get_config())
    assert one == other
    assert json.loads(json.dumps(one)) == one
    assert differences(one, other) == []


def another(value):
    """A value of the same type that differs."""
    if value is None:
        return 0.5
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value * 2 if value else 1
    if isinstance(value, str):
        return "other"
    return optim.linear if value is not optim.linear else optim.cosine


@pytest.mark.parametrize("path", [path for path, _ in leaves(runs.get_config())])
def test_a_changed_field_changes_the_description_at_its_path(path):
    config = runs.get_config()
    old = describe(config)
    new = describe(unchecked(config, path, another(dict(leaves(config))[path])))
    changes = differences(old, new)
    assert changes
    assert all(change.startswith(path) for change in changes)


def test_bound_keywords_and_schedules_are_described_by_value():
    def described(**keywords):
        return json.dumps(describe(functools.partial(hps.select, **keywords)))

    values = [
        described(gamma=1.0),
        described(gamma=1.5),
        described(gamma=Schedule(optax.linear_schedule(-5, 5, 100))),
        described(gamma=Schedule(optax.linear_schedule(-5, 6, 100))),
        described(gamma=Schedule(optax.linear_schedule(-5, 5, 101))),
        described(gamma=Schedule(optax.constant_schedule(1.0))),
        described(gamma=Schedule(optax.piecewise_constant_schedule(1.0, {10: 0.5}))),
        described(gamma=Schedule(optax.piecewise_constant_schedule(1.0, {11: 0.5}))),
        described(gamma=Schedule(optax.join_schedules([optax.constant_schedule(1.0)] * 2, [3]))),
        described(gamma=Schedule(optax.join_schedules([optax.constant_schedule(1.0)] * 2, [4]))),
        described(gamma=Schedule(optax.warmup_cosine_decay_schedule(0, 1, 5, 50))),
        described(gamma=Schedule(optax.warmup_cosine_decay_schedule(0, 1, 5, 51))),
        described(gamma=Schedule(optax.piecewise_interpolate_schedule("linear", 1.0, {10: 0.5}))),
        described(gamma=Schedule(optax.piecewise_interpolate_schedule("linear", 1.0, {10: 0.6}))),
        described(gamma=hps.curriculum()),
        described(gamma=hps.curriculum(stop=5.0)),
        described(gamma=RunSchedule(functools.partial(optax.linear_schedule, -5, 5))),
        described(gamma=RunSchedule(functools.partial(optax.linear_schedule, -5, 6))),
        described(gamma=np.linspace(0, 1, 3000)),
        described(gamma=np.linspace(0, 1, 3000) + 1e-12),
    ]
    assert len(set(values)) == len(values)
    # No address, which every process has of its own.
    assert not [v for v in values if " at 0x" in v]


class Weighted:
    """A callable with state, as some libraries make schedules."""

    def __init__(self, scale):
        self.scale = scale

    def at(self, step):
        return self.scale * step

    __call__ = at


def test_objects_and_methods_are_described_without_addresses():
    assert describe(Weighted(1.0)) == describe(Weighted(1.0)) != describe(Weighted(2.0))
    assert describe(Weighted(1.0).at) == describe(Weighted(1.0).at) != describe(Weighted(2.0).at)
    partial = functools.partial(optim.cosine, 0.1)
    assert describe(partial) != describe(functools.partial(optim.cosine, 0.2))
    assert describe(math.inf) == "inf"


def test_differences_name_every_leaf():
    old, new = describe(runs.get_config()), describe(runs.changed("loss.beta=0.2", "sft=None"))
    beta, sft = differences(old, new)
    assert beta == "loss.beta: 0.1 -> 0.2"
    assert sft.startswith("sft: {")
    assert sft.endswith("-> None")


# --- no dead field


def attributes_read(source: str) -> set[str]:
    """Names read as attributes of anything in a source file."""
    return {
        node.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


def config_classes():
    return [
        value
        for value in vars(configs).values()
        if dataclasses.is_dataclass(value) and value.__module__ != "alignjax.config.ranges"
    ] + [RopeScaling, recipes.RoundsConfig, recipes.StepsConfig, recipes.ObjectivesConfig]


def dead_fields(classes) -> list[str]:
    """Fields that no file reads, the checks of the config itself not counted."""
    files = [
        path.read_text(encoding="utf-8")
        for path in (runs.ROOT / "alignjax").rglob("*.py")
        if path.parent.name != "config" and path.name != "config.py"
    ]
    read = set().union(*map(attributes_read, files))
    # The sizes that are needed by what is around the model are read in the model's own folder.
    return [
        f"{cls.__name__}.{field.name}"
        for cls in classes
        for field in dataclasses.fields(cls)
        if field.name not in read
    ]


def test_every_config_field_is_read_somewhere():
    classes = config_classes()
    assert {"Config", "DataConfig", "ModelConfig", "MeshConfig"} <= {c.__name__ for c in classes}
    assert dead_fields(classes) == []


# --- config files


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(runs.ROOT)))
def test_a_config_of_ours_loads_and_says_what_to_expect(path):
    config = load.load(str(path), [])
    assert json.loads(json.dumps(describe(config))) == describe(config)
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    # A config of several sizes has a table of them in the place of two lines.
    of_sizes = re.search(r"^size +model +hardware.* seconds a step", text, re.M)
    for line in ("Command:", "Expect:", *(() if of_sizes else ("Hardware:", "Time:"))):
        assert f"\n{line}" in text, f"{path}: its docstring has no line {line}"
    assert len(path.read_text().splitlines()) <= 90


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(:\n", r"c\.py:1: SyntaxError: "),
        ("\n\n1 +\n", r"c\.py:3: SyntaxError: "),
        ("import nothing_of_that_name\n", r"c\.py:1: ModuleNotFoundError: No module named "),
        ("x = 1\ny = x / 0\n", r"c\.py:2: ZeroDivisionError: "),
        ("def get_config():\n    return {}['a']\n", r"c\.py:2: KeyError: 'a'"),
        ("get_confg = 1\n", r"c\.py: defines no get_config\(\)"),
        (
            "def get_config():\n    return None\n",
            r"c\.py: get_config\(\): wanted a Config, found NoneType",
        ),
        ("def get_config(*, size):\n    return None\n", r"c\.py: TypeError: .*'size'"),
        (
            "from alignjax.config import *\ndef get_config():\n    return DataConfig(bufets=1)\n",
            r"c\.py:3: TypeError: .*'bufets' ?.*[Dd]id you mean 'buckets'\?",
        ),
        (
            "from tests import runs\nfrom functools import partial\n"
            "from alignjax.losses import dpo\n"
            "def get_config():\n    return runs.get_config(loss=partial(dpo.loss, betta=1))\n",
            r"c\.py: loss\.betta: .* takes no such keyword \(did you mean 'beta'\?\)",
        ),
        (
            "from tests import runs\n"
            "def get_config():\n    return runs.get_config(select=runs.dpo.loss)\n",
            "",
        ),
        (
            "from tests import runs\nfrom alignjax.config import TrainConfig\n"
            "def get_config():\n    return runs.get_config(train=TrainConfig(batch_size='8'))\n",
            r"c\.py: train\.batch_size: wanted int, found '8'",
        ),
        (
            "from alignjax.models.config import ModelConfig\n"
            "def get_config():\n    return ModelConfig(heads=3, kv_heads=2)\n",
            r"c\.py: model\.kv_heads: wanted a divisor of heads \(3\), found 2",
        ),
    ],
)
def test_a_config_file_that_fails_says_where_in_one_line(tmp_path, text, message):
    path = tmp_path / "c.py"
    path.write_text(text, encoding="utf-8")
    if not message:
        load.load(str(path), [])  # what a select does is found out on the data's shapes
        return
    with pytest.raises(UserError, match=rf"--config: .*{message}") as caught:
        load.load(str(path), [])
    assert "\n" not in str(caught.value)


def test_a_missing_config_file_names_the_closest(tmp_path):
    (tmp_path / "small.py").write_text("")
    with pytest.raises(UserError, match=r"no file .*smal\.py \(did you mean '.*small\.py'\?\)"):
        load.load(str(tmp_path / "smal.py"), [])
    with pytest.raises(UserError, match=r"no file .*nowhere"):
        load.load(str(tmp_path / "nowhere" / "c.py"), [])


def test_a_config_imports_the_files_beside_it_and_no_others(tmp_path):
    before = list(sys.path)
    for folder, beta in (("one", 0.3), ("two", 0.7)):
        (tmp_path / folder).mkdir()
        runs.write(tmp_path / folder / "neighbour.py", f"BETA = {beta}\n")
        runs.write(
            tmp_path / folder / "c.py",
            """
            from functools import partial
            import neighbour
            from alignjax.losses import dpo
            from tests import runs

            def get_config():
                return runs.get_config(loss=partial(dpo.loss, beta=neighbour.BETA))
            """,
        )
    found = [load.load(str(tmp_path / f / "c.py"), []) for f in ("one", "two", "one")]
    assert [config.loss.keywords["beta"] for config in found] == [0.3, 0.7, 0.3]
    assert "neighbour" not in sys.modules
    assert sys.path == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(preferences=((1.0, -0.5),)), r"preferences\[0\]: wanted weights >= 0 that"),
        (dict(preferences=((1.0, 0.0), (0.0, 0.0))), r"preferences\[1\]: .* found \(0\.0, 0\.0\)"),
        (dict(preferences=((1.0, math.inf),)), r"preferences\[0\]: wanted weights >= 0"),
        (dict(preferences=((1.0, math.nan),)), r"preferences\[0\]: wanted weights >= 0"),
        (dict(preferences=((1.0, 0.0, 0.0),)), r"preferences\[0\]: wanted 2 weights, for helpful"),
        (dict(preferences=()), r"preferences: wanted at least one"),
        (dict(names=("helpful",)), r"names: wanted two or more different names"),
        (dict(names=("helpful", "helpful")), r"names: wanted two or more different names"),
        (dict(box=((0.0, 1.0),)), r"box: wanted \(low, high\) .* for each of helpful, harmless"),
        (dict(box=((0.0, 1.0), (1.0, 1.0))), r"box: wanted \(low, high\) with low < high"),
        (dict(max_missing_fraction=2.0), r"max_missing_fraction: wanted a number in \[0, 1\]"),
        (dict(method=functools.partial(supervised.train, size=3)), r"method\.size: .* no such"),
    ],
)  # fmt: skip
def test_several_objectives_that_do_not_fit_each_other_are_refused(changes, message):
    assert runs.get_config(recipe=several()).recipe is not None
    with pytest.raises(UserError, match=rf"^recipe\.objectives\.{message}"):
        runs.get_config(recipe=several(**changes))


def test_a_group_of_fields_that_is_not_there_begins_with_its_defaults():
    """Adapters by the command line alone; a stage whose fields have no defaults is not made up."""
    found = runs.changed("lora.rank=4", "lora.quantize=nf4").lora
    assert found == LoraConfig(rank=4, quantize="nf4")
    with pytest.raises(UserError, match=r"--set sft: it is None and has no fields"):
        load.override(dataclasses.replace(runs.get_config(), sft=None), ["sft.steps=3"])


def test_a_function_is_set_by_its_name():
    """Beside the one that is there, or by its module; keywords of both texts are of the new one."""
    changed = runs.changed("optim.schedule=linear", "loss=kto.loss", "loss.desirable_weight=2")
    assert changed.optim.schedule is optim.linear
    assert changed.loss.func is kto.loss
    assert changed.loss.keywords == {"desirable_weight": 2.0}
    assert runs.changed("loss=alignjax.losses.ipo.loss_mean").loss is ipo.loss_mean
    assert runs.changed("select=hps.select", "select.gamma=1").select.func is hps.select
    assert runs.changed("data.source=sources.hh").data.source is sources.hh
    auto = dataclasses.replace(runs.get_config().data, source=sources.auto)
    config = dataclasses.replace(runs.get_config(), data=auto)
    assert load.override(config, ["data.source=hh"]).data.source is sources.hh
    assert runs.changed("evaluate.judge=none").evaluate.judge is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("optim.schedule=cosin", r"optim\.schedule: wanted the name of a function.*mean 'cosine'"),
        ("loss=kto.los", r"--set loss: wanted the name of a function, .*found 'kto\.los'"),
        ("loss=os.system", r"--set loss: wanted the name of a function"),
        ("loss=ipo._anything", r"--set loss: wanted the name of a function"),
        ("loss=types.jax", r"--set loss: wanted the name of a function"),
        (
            "train.learning_rate=1",
            r"train\.learning_rate: .* \(did you mean 'optim\.learning_rate'",
        ),
        ("beta=1", r"--set beta: no such field \(did you mean 'loss\.beta'\?\)"),
        ("train.rank=1", r"--set train\.rank: no such field \(did you mean 'lora\.rank'\?\)"),
        ("optim.lr=1", r"--set optim\.lr: no such field; optim has learning_rate"),
        ("optm.schedule=linear", r"--set optm: no such field \(did you mean 'optim'\?\)"),
    ],
)
def test_a_wrong_change_is_told_the_right_field_or_function(change, message):
    with pytest.raises(UserError, match=message):
        runs.changed(change)


def test_short_names_of_types_are_read():
    model = runs.changed("model.dtype=bf16", "model.param_dtype=fp32").model
    assert (model.dtype, model.param_dtype) == ("bfloat16", "float32")
