"""Every recipe on SmolLM2 135M Instruct: a step or two, and then what it trained is used.

Sampled from by the run and by its exported folder, which have to say the same; reward models score
alike. `make test-real` fetches the model. `get_config` has the recipes that no short command has.
"""

import json
import math
import os
import pathlib
from functools import partial
from typing import Literal

import numpy as np
import pytest

from alignjax import recipes
from alignjax.config import (
    CandidatesConfig,
    Config,
    DataConfig,
    EvaluateConfig,
    OptimConfig,
    SamplingConfig,
    TrainConfig,
)
from alignjax.data import sources
from alignjax.losses import apo, grpo, paretohqd, sft
from alignjax.models.config import LoraConfig, ModelConfig
from alignjax.recipes.multi_objective import paretohqd as pareto_recipe
from alignjax.training import optim
from tests import runs
from tests.commands import real_model_test

pytestmark = pytest.mark.skipif(
    not os.environ.get("ALIGNJAX_REAL"),
    reason="SmolLM2 is left out: make test-real fetches it (93 MB)",
)
ROWS, TOKENS = 12, 12  # prompts, and tokens of a sampled response
ANSWERS = (
    *("Make a small plan, and begin with the easy part.", "I do not know.", "Yes."),
    "It depends on the weather, on your tools, and on how much time you have.",
)
NAMES = ("short", "varied")
SMALL = ("train.batch_size=4", "train.steps=2", "train.log_every=1", "train.eval_every=0")
SHORT = ("data.max_prompt_tokens=64", "data.max_response_tokens=64", "evaluate.during=0")
SAMPLED = ("evaluate.prompts=2", "evaluate.samples=1", f"evaluate.max_new_tokens={TOKENS}")


def judge(prompt: str, response: str) -> dict[str, float]:
    return {"short": -float(len(response)), "varied": float(len(set(response)))}


def score(records: list) -> list[np.ndarray]:
    """``[k, 2]`` of each record: prompts are conversations, which `scorers.judged` refuses."""
    return [
        np.array([[judge("", x)[name] for name in NAMES] for x in record.responses])
        for record in records
    ]


def get_config(recipe: Literal["rounds", "steps", "online", "pareto"]) -> Config:
    drawn = SamplingConfig(samples=2, max_new_tokens=TOKENS, batch_size=4)
    train = TrainConfig(steps=2, batch_size=4)
    adam = OptimConfig(learning_rate=1e-4, schedule=optim.constant)
    game = dict(optim=adam, train=train, sampling=drawn, max_drop_fraction=1.0)
    method = partial(
        pareto_recipe.train, size=4, prompts=6, max_new_tokens=48, at_once=1, two_stages=False
    )
    objectives = recipes.ObjectivesConfig(
        method=method, scorer=score, names=NAMES, preferences=((0.0, 1.0), (1.0, 0.0))
    )
    parts = {
        "rounds": dict(
            recipe=partial(recipes.play_rounds, game=recipes.RoundsConfig(rounds=1, **game)),
            **dict(loss=sft.loss, select=apo.select_best, reward_loss=apo.reward_loss),
        ),
        "steps": dict(
            recipe=partial(recipes.play_steps, game=recipes.StepsConfig(**game)),
            **dict(loss=partial(apo.loss, beta=0.1), reward_loss=apo.reward_loss),
        ),
        "online": dict(
            recipe=recipes.train_online,
            candidates=CandidatesConfig(scorers=(score,), samples=2, max_new_tokens=TOKENS),
            loss=grpo.loss,
        ),
        "pareto": dict(
            recipe=partial(recipes.trace_front, objectives=objectives), loss=paretohqd.loss
        ),
    }
    return Config(
        data=DataConfig(
            source=partial(sources.auto, chat=True), eval_fraction=0.2, pad_multiple=16
        ),
        model=ModelConfig(),
        lora=LoraConfig(rank=2),
        optim=adam,
        train=train,
        evaluate=EvaluateConfig(batch_size=4),
        **parts[recipe],
    )


@pytest.fixture(scope="module")
def model():
    """The folder of the imported model, made once and kept."""
    folder = pathlib.Path("runs/smollm2")
    try:
        file = real_model_test.real_demo().fetch(folder)
    except OSError as error:
        pytest.skip(f"SmolLM2 is left out: {error}")
    if not (folder / "model").is_dir():
        assert runs.here("import", f"--from={file}", f"--to={folder / 'model'}") == 0
    return folder / "model"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Files of pairs, of lists and of labelled responses to twelve prompts, by name."""
    folder = tmp_path_factory.mktemp("data")
    text = (runs.ROOT / "configs/demo/smollm2_prompts.txt").read_text(encoding="utf-8")
    prompts = text.splitlines()[:ROWS]
    rows = {
        "pairs": [dict(chosen=ANSWERS[0], rejected=ANSWERS[1])] * ROWS,
        "lists": [dict(responses=ANSWERS, scores=[3.0, 1.0, 0.0, 2.0])] * ROWS,
        "unscored": [dict(responses=ANSWERS)] * ROWS,
        "labels": [dict(completion=ANSWERS[i % 2], label=i % 2 == 0) for i in range(ROWS)],
        "rated": [dict(responses=ANSWERS, scores=[judge("", x) for x in ANSWERS])] * ROWS,
    }
    for name, fields in rows.items():
        lines = [json.dumps({"prompt": p} | x) for p, x in zip(prompts, fields, strict=True)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "prompts.txt").write_text("\n".join(prompts[:2]) + "\n", encoding="utf-8")
    return folder


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def assert_used(workdir, data, out, *flags):
    """The run's policy and its exported folder say the same to the same prompts."""
    out.mkdir()
    shared = (f"--prompts={data / 'prompts.txt'}", "--samples=1", "--temperature=0")
    shared += (f"--max_new_tokens={TOKENS}",)
    assert (
        runs.here("generate", f"--workdir={workdir}", f"--out={out}/a.jsonl", *shared, *flags) == 0
    )
    assert runs.here("export", f"--workdir={workdir}", f"--to={out}/model", *flags) == 0
    assert runs.here("generate", f"--model={out}/model", f"--out={out}/b.jsonl", *shared) == 0
    mine, its = (
        [row["responses"] for row in lines_of(out / name)] for name in ("a.jsonl", "b.jsonl")
    )
    assert mine == its
    assert all(text.strip() for row in mine for text in row)


def assert_scores(folder, data, out):
    """A reward model and its exported folder give the same scores, which tell responses apart."""
    out.mkdir()
    assert runs.here("export", f"--workdir={folder}", f"--to={out}/model") == 0
    found = []
    for name, path in (("a", folder), ("b", out / "model")):
        records = f"--records={data / 'unscored.jsonl'}"
        flags = (records, f"--reward_model={path}", f"--out={out}/{name}.jsonl")
        assert runs.here("score", *flags) == 0
        found.append(np.array([row["scores"] for row in lines_of(out / f"{name}.jsonl")]))
    np.testing.assert_allclose(*found, rtol=0, atol=1e-4)
    assert (np.ptp(found[0], axis=1) > 0).all()


def sets(*overrides):
    return [f"--set={x}" for x in (*SMALL, *SHORT, *overrides)]


# method: its data, the loss before the first step of T = 0, or None
SHORT_COMMANDS = {
    "dpo": ("pairs", math.log(2)),
    "hps": ("lists", math.log(4)),  # log(1 + N), N = 3 negatives
    "rdro": ("labels", None),
    "reward": ("pairs", math.log(2)),
}


@pytest.mark.parametrize("method", SHORT_COMMANDS)
def test_a_short_command_trains_adapters_that_are_used(method, model, data, tmp_path):
    kind, first = SHORT_COMMANDS[method]
    workdir = tmp_path / "run"
    flags = (f"--model={model}", f"--data={data / kind}.jsonl", f"--workdir={workdir}")
    assert runs.here(method, *flags, *sets(*(SAMPLED if method != "reward" else ()))) == 0
    told = lines_of(workdir / "metrics.jsonl")
    losses = [line["loss"] for line in told if "loss" in line]
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))
    if first is not None:
        assert losses[0] == pytest.approx(first, abs=2e-3)
    assert losses[1] != losses[0]
    use = assert_scores if method == "reward" else assert_used
    use(workdir, data, tmp_path / "used")


@pytest.mark.parametrize("recipe", ["rounds", "steps", "online", "pareto"])
def test_a_recipe_trains_adapters_that_are_used(recipe, model, data, tmp_path):
    workdir = tmp_path / "run"
    kind = {"online": "pairs", "pareto": "rated"}.get(recipe, "pairs")
    paths = (f"model.path={model}", f"data.path={data / kind}.jsonl")
    flags = (f"--config={__file__}:{recipe}", f"--workdir={workdir}")
    assert runs.here("run", *flags, *sets(*SAMPLED, *paths)) == 0
    if recipe == "pareto":
        for number, preference in enumerate(("1,0", "0.2,0.8")):
            assert_used(workdir, data, tmp_path / f"used{number}", f"--preference={preference}")
        return
    assert_used(workdir, data, tmp_path / "used")
    rewards = {"rounds": "round-1/reward", "steps": "reward"}
    if recipe in rewards:
        assert_scores(workdir / rewards[recipe], data, tmp_path / "scores")
