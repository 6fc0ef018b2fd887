"""The recipe of a policy's own samples: what it learns from, leaves, resumes from and refuses."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax import recipes
from alignjax.commands import export
from alignjax.config import CandidatesConfig, FollowConfig, ReferenceConfig, TokenizerConfig
from alignjax.config.load import load
from alignjax.data import sources
from alignjax.data.records import DataError, Record
from alignjax.errors import UserError
from alignjax.losses import bradley_terry, nash_md, xpo
from alignjax.models import lora
from alignjax.models.config import LoraConfig
from alignjax.models.transformer import init_params
from alignjax.recipes.multi_objective import run as multi_objective_run
from alignjax.rewards import scorers
from alignjax.rewards.scorers import Scorer
from alignjax.runtime import metrics
from alignjax.runtime.faults import FaultError
from alignjax.stages import check, fresh_samples
from alignjax.stages.data import prepare_data
from tests import runs, tiny, used

STEPS = 3


def longest(response, answer):
    """A rule by which the texts of a network of few steps differ."""
    return float(len(response)) - 0.01 * len(answer)


def config(**changes):
    base = runs.changed("data.source.size=60", "sft.steps=2", f"train.steps={STEPS}")
    rule = functools.partial(scorers.checked, check=longest)
    parts = dict(
        recipe=recipes.train_online,
        # Online DPO: unlike GRPO's, its implicit reward of the held-out rows reads the reference.
        loss=functools.partial(bradley_terry.loss, beta=0.1),
        candidates=CandidatesConfig(scorers=(rule,), samples=3, max_new_tokens=4),
        train=dataclasses.replace(
            base.train, batch_size=4, save_every=1, log_every=1, eval_every=2
        ),
        evaluate=dataclasses.replace(base.evaluate, judge=None, prompts=4),
    )
    return dataclasses.replace(base, **{**parts, **changes})


@pytest.fixture(scope="module")
def clean(tmp_path_factory, whole_run):
    workdir = tmp_path_factory.mktemp("online")
    return workdir, recipes.run_config(config(), workdir)


def test_every_step_is_scored_by_the_answers_of_its_prompts(clean):
    workdir, summary = clean
    lines = metrics.read(workdir / "metrics.jsonl")
    steps = [line for line in lines if "scores" in line]
    assert [line["step"] for line in steps] == list(range(1, STEPS + 1))
    assert all(-1 < line["scores"] < 30 for line in steps)  # no answer is longer than 100 letters
    assert [line["step"] for line in lines if "eval_rewards/accuracies" in line] == [2, STEPS]
    assert {"reward", "win rate/reward", "KL to reference, nats"} <= set(summary["table"])


def test_what_it_leaves_is_exported_and_sampled_from(clean, tmp_path):
    workdir, _ = clean
    export.export(str(workdir), str(tmp_path / "exported"))
    said = used.samples(used.run_of(config(), workdir), used.exported(tmp_path / "exported"))
    assert used.texts_and_nats(said) == used.texts_and_nats(workdir / "after.json")


@pytest.mark.long
def test_a_run_that_was_stopped_ends_with_the_same_bits(clean, tmp_path, monkeypatch):
    wanted, summary = clean
    monkeypatch.setenv("ALIGNJAX_FAULT", "step:online-2=raise")
    with pytest.raises(FaultError):
        recipes.run_config(config(), tmp_path)
    found = recipes.run_config(config(), tmp_path)
    assert found["resumed_from"] == 1
    assert (tmp_path / "after.json").read_bytes() == (wanted / "after.json").read_bytes()
    assert runs.lines(tmp_path) == runs.lines(wanted)
    assert found["table"] == summary["table"]


@pytest.mark.long
def test_against_a_mixture_adapters_are_trained_and_the_opponent_is_part_of_the_run(tmp_path):
    settings = dict(
        recipe=functools.partial(recipes.train_online, opponent=0.5),
        loss=functools.partial(nash_md.loss, tau=0.1),
        candidates=dataclasses.replace(config().candidates, samples=4),
        lora=LoraConfig(rank=2),
        evaluate=dataclasses.replace(config().evaluate, held_out=False),
    )
    recipes.run_config(config(**settings), tmp_path)
    lines = [x for x in metrics.read(tmp_path / "metrics.jsonl") if "preferred" in x]
    assert len(lines) == STEPS
    assert all(0 < x["preferred"] < 1 and 0 <= x["wins"] <= 1 for x in lines)
    other = functools.partial(recipes.train_online, opponent=1.0)
    with pytest.raises(UserError, match=r"opponent"):
        recipes.run_config(config(**{**settings, "recipe": other}), tmp_path)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_the_opponent_is_between_the_policy_and_the_reference(weight):
    policy, reference = {"w": jnp.array(2.0)}, {"w": jnp.array(5.0)}
    found = fresh_samples._mixed(config(), weight, policy, reference)
    if weight == 1:
        assert found is reference
    else:
        assert [x["w"] for x in found.policies] == [2.0, 5.0]
        np.testing.assert_allclose(found.weights, [1 - weight, weight])


def test_beside_adapters_the_reference_is_the_base_with_adapters_of_0():
    thin, base = LoraConfig(rank=2), init_params(config().model, jax.random.key(0))
    adapters = jax.tree.map(jnp.ones_like, lora.init(thin, base, jax.random.key(1)))
    found = fresh_samples._mixed(config(lora=thin), 0.5, adapters, base)
    for policy, wanted in zip(found.policies, (1.0, 0.0), strict=True):
        same = lora.join(base, jax.tree.map(lambda x, w=wanted: w * x, adapters), thin)
        jax.tree.map(np.testing.assert_array_equal, policy, same)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"candidates": None}, r"^candidates: wanted CandidatesConfig.*, found none$"),
        (
            {"loss": None, "reward_loss": bradley_terry.loss, "candidates": None},
            r"^loss: wanted one with train_online",
        ),
        (
            {"recipe": functools.partial(recipes.train_online, updates=2)},
            r"^updates: 2 updates .* such as grpo.loss_clipped; found .*bradley_terry.loss$",
        ),
        (
            {"recipe": functools.partial(recipes.train_online, updates=0)},
            r"^updates: wanted a positive number, found 0$",
        ),
        (
            {"recipe": functools.partial(recipes.train_online, opponent=1.5)},
            r"^opponent: wanted a number in \[0, 1\], found 1.5$",
        ),
        (
            {"recipe": functools.partial(recipes.train_online, opponent=1.0)},
            r"^candidates.samples: wanted an even number, .* found 3$",
        ),
        (
            {
                "recipe": functools.partial(recipes.train_online, opponent=1.0),
                "reference": ReferenceConfig(follow=FollowConfig()),
            },
            r"^opponent: wanted none with reference.follow, .* found 1.0$",
        ),
        (
            {"loss": functools.partial(xpo.loss, beta=0.1)},
            r"^opponent: .*xpo.loss compares .* wanted a number in \[0, 1\], .* found none$",
        ),
        (
            {"candidates": dataclasses.replace(config().candidates, keep_own=True)},
            r"^candidates.keep_own: wanted False",
        ),
    ],
)
def test_a_config_that_it_cannot_do_is_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        recipes.run_config(config(**changes), tmp_path)


def test_a_rule_compares_with_the_first_answer():
    record = Record(id="a", prompt="1 + 1 =", responses=("2", "3", "2"), answers=("2", "3"))
    found = scorers.checked([record], check=lambda x, answer: float(x == answer))
    np.testing.assert_array_equal(found, [[1.0, 0.0, 1.0]])
    with pytest.raises(DataError, match=r"^a: has no answer to compare with$"):
        scorers.checked([dataclasses.replace(record, answers=())], check=lambda x, y: 0.0)


def test_several_reward_models_count_alike_whatever_their_objectives(monkeypatch):
    """One of one objective and one of two: the mean of their means, not of all three scores."""
    tables = {"a": jnp.full((2, 2, 1), 4.0), "b": jnp.asarray([0.0, 2.0]) * jnp.ones((2, 2, 2))}
    monkeypatch.setattr(
        fresh_samples, "by_reward_models", lambda models, *rest: lambda batch: tables[models[0]]
    )
    one, two = (Scorer(name, list, reward_models=(name,), only_reward_models=True) for name in "ab")
    run = type("Run", (), {"data": type("Data", (), {"tokenizer": None}), "mesh": None})
    found = fresh_samples.score_by([one, two], run, {})(tiny.ragged(k=2, b=2))
    np.testing.assert_array_equal(found, np.full((2, 2), 2.5))


def letters(records):
    """A scorer that needs no answer."""
    return [np.array([float(len(x)) for x in record.responses]) for record in records]


def prompts_alone(folder, **changes):
    """A run on prompts without responses: half of them text, half conversations."""
    rows = [{"prompt": f"Please say {i} times hello and goodbye."} for i in range(20)]
    turns = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    rows += [{"messages": [*turns, {"role": "user", "content": f"Why {i}?"}]} for i in range(20)]
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = functools.partial(sources.auto, prompts_alone=True)
    data = dataclasses.replace(config().data, source=source, path=str(path), eval_fraction=0.2)
    scored = dataclasses.replace(config().candidates, scorers=(letters,))
    parts = dict(data=data, candidates=scored, sft=None, tokenizer=TokenizerConfig(vocab_size=310))
    return config(**{**parts, **changes})


@pytest.mark.long
def test_lists_are_sampled_to_prompts_alone(tmp_path):
    """By the offline recipe: once, from the policy that training starts from."""
    lists = dataclasses.replace(config().candidates, scorers=(letters,), max_drop_fraction=0.9)
    offline = dict(recipe=None, candidates=lists)
    summary = recipes.run_config(prompts_alone(tmp_path, **offline), tmp_path / "run")
    assert "rewards/accuracies" in summary["table"]
    assert summary["steps"] == STEPS


@pytest.mark.slow
def test_prompts_alone_are_sampled_scored_and_measured(tmp_path):
    summary = recipes.run_config(prompts_alone(tmp_path), tmp_path / "run")
    lines = metrics.read(tmp_path / "run" / "metrics.jsonl")
    assert [x["step"] for x in lines if "scores" in x] == list(range(1, STEPS + 1))
    assert {"reward", "KL to reference, nats"} <= set(summary["table"])
    assert not any(name.startswith("rewards/") for name in summary["table"])
    assert summary["data_report"]["train"]["kept"] == 33


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sft": config().sft}, r"^data: 33 of 33 rows, .* the supervised stage learns from"),
        (
            {"candidates": None, "recipe": None},
            r"^data: 33 of 33 rows, such as \S+, are prompts alone, and .*y_terry.loss learns",
        ),
        (
            {"candidates": config().candidates},
            r"prompts\.jsonl:\d+: has no answer to compare with$",
        ),
        (
            {"train": dataclasses.replace(config().train, keep_best="eval/loss")},
            r"^train\.keep_best: wanted empty, because the data are prompts alone$",
        ),
    ],
)
def test_what_needs_responses_refuses_prompts_alone(changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        recipes.run_config(prompts_alone(tmp_path, **changes), tmp_path / "run")


def test_recipes_that_learn_from_the_data_s_responses_refuse_prompts_alone(tmp_path):
    rows = prepare_data(prompts_alone(tmp_path), tmp_path / "run").train
    game, several = (load(f"configs/demo/{name}.py", ["sft=none"]) for name in ("apo", "paretohqd"))
    with pytest.raises(UserError, match=r"^data: 33 of 33 rows, .*recipes.play_rounds learns"):
        check.check_game(game, rows, samples=2)
    with pytest.raises(UserError, match=r"^data: 33 of 33 rows, .*recipes.trace_front learns"):
        multi_objective_run._check(several, rows)
