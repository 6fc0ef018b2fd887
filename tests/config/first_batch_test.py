"""Every config, of every size, comes from made rows to its first batch; no network is built.

What is between them is what a reproduction trips over: the source and the form of its prompts, the
chat template, the split, labels, golden answers and own responses found by their prompts, scorers,
the shapes that each loss reads.
"""

import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from alignjax.config import Config, load
from alignjax.config.fields import plain
from alignjax.config.validate import get
from alignjax.data import sources
from alignjax.data.batching import Bucketed, assemble
from alignjax.models import reward_head
from alignjax.models.hf.save import save_model
from alignjax.recipes.apo import golden, setup
from alignjax.recipes.multi_objective import rows as scored_rows
from alignjax.recipes.multi_objective.method import Setting
from alignjax.rewards import scorers
from alignjax.runtime import artifacts, sharding
from alignjax.stages import candidates, check, pretrained
from alignjax.stages.data import prepare_data
from alignjax.stages.reference import Reference
from alignjax.stages.run import Run
from tests import runs, tiny

FOLDER = runs.ROOT / "configs"
# A tokenizer of 352 ids with a chat template, in the place of a model's own.
STORY = runs.ROOT / "tests" / "parity" / "data" / "story"
ROWS = {"train": range(12), "held_out": range(12, 16)}


def every_config() -> dict[str, str]:
    """The argument of ``--config`` for each file, once for each size or method that it takes."""
    out = {}
    for path in sorted(FOLDER.rglob("*.py")):
        name = str(path.relative_to(FOLDER).with_suffix(""))
        choices = re.search(r"def get_config\(\s*\w+: Literal\[(.*?)\]", path.read_text(), re.S)
        found = re.findall(r'"(.+?)"', choices[1]) if choices else []
        out |= {f"{name}:{x}": f"{path}:{x}" for x in found} or {name: str(path)}
    return out


CONFIGS = every_config()


def pair(i: int) -> dict[str, Any]:
    start = f"\n\nHuman: Question {i}?\n\nAssistant:"
    return {"chosen": f"{start} Yes, {i}.", "rejected": f"{start} No."}


def messages(i: int, **more: Any) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": f"Question {i}?"}],
        "completion": [{"role": "assistant", "content": f"Gold, {i}."}],
        **more,
    }


def rated(i: int) -> dict[str, Any]:
    # Two responses to a prompt, in the field names of the file.
    scores = {"informativeness": 1.0 + i % 2, "naturalness": 2.0 - i % 2}
    return {"source": f"Question {i // 2}?", "system_output": f"Yes, {i}.", "scores": scores}


# A made row of each source that configs read files with, in the fields that they name.
MADE: dict[Callable[..., Any], Callable[[int], dict[str, Any]]] = {
    sources.hh: pair,
    sources.trl: lambda i: messages(i, label=i % 3 > 0),
    sources.persona: lambda i: {
        "question": f"Question {i}?",
        "answer_matching_behavior": " Yes",
        "answer_not_matching_behavior": " No",
    },
    sources.unpaired: lambda i: {
        "user_query": f"Question {i}?",
        "chatgpt_response": f"Yes, {i}.",
        "hallucination": "yes" if i % 3 else "no",
    },
    sources.lists: lambda i: {
        "prompt": f"Question {i}?",
        "responses": ["No.", f"Yes, {i}.", "Perhaps."],
        "judge_preference": [0.0, 2.0, 1.0],
    },
    sources.rated: rated,
}


def write(path: pathlib.Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def changes(config: Config, folder: pathlib.Path) -> list[str]:
    """The ``--set``s under which a config reads made data, on one device."""
    out = ["mesh.data=1", "mesh.fsdp=1", "mesh.tensor=1"]
    make = MADE.get(plain(config.data.source))
    if make is None:  # the embedded world makes its own rows
        out += ["data.source.size=24", "data.eval_fraction=0.3"]
    else:
        for side, field in (("train", "path"), ("held_out", "eval_path")):
            file = write(folder / f"rows-{side}.jsonl", [make(i) for i in ROWS[side]])
            out.append(f"data.{field}={file}")
    if plain(get(config, "recipe.game.golden")) is sources.trl:
        file = write(folder / "golden.jsonl", [messages(i) for i in ROWS["train"]])
        out.append(f"recipe.game.golden_path={file}")
    # A model from a folder has a tokenizer; others have one of their own data.
    if config.model.vocab_size > config.tokenizer.vocab_size:
        out.append(f"tokenizer.path={STORY}")
    return out


def with_reward_models(value: Any, path: str) -> Any:
    """The same config, its reward models all read from one folder."""
    if isinstance(value, tuple):
        return tuple(with_reward_models(x, path) for x in value)
    if isinstance(value, functools.partial):
        bound = {name: with_reward_models(x, path) for name, x in value.keywords.items()}
        of_folder = {"path": path} if value.func is scorers.reward_model else {}
        return functools.partial(value.func, **{**bound, **of_folder})
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        new = {name: with_reward_models(x, path) for name, x in fields.items()}
        return dataclasses.replace(value, **new)
    return value


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory) -> str:
    """A folder of a tiny reward model with one output, of nobody's training."""
    config = tiny.model(vocab_size=352)
    params = reward_head.from_language_model(tiny.params(config), objectives=1)
    kernel = np.random.default_rng(0).normal(size=(config.width, 1)).astype(np.float32)
    params["reward"] = {"kernel": kernel}
    path = tmp_path_factory.mktemp("reward") / "model"
    with artifacts.new_folder(str(path)) as made:
        original = {"max_position_embeddings": 512}
        save_model(made, params, config, dtype="float32", original=original, outputs=("reward",))
        pretrained.copy_files(STORY, made, pretrained.TOKENIZER_FILES)
    return str(path)


def opened(name: str, folder: pathlib.Path, reward_model: str) -> Run:
    """The run of a config on made data, up to what it trains."""
    config = load.load(CONFIGS[name], [])
    config = load.load(CONFIGS[name], changes(config, folder))
    config = pretrained.resolve(with_reward_models(config, reward_model), runs=False)
    data = prepare_data(config, folder)
    config = check.bind_fraction(config, data.train)
    check.check_scorers(config, data)
    return Run(config, folder, data, sharding.make_mesh(1, 1, 1))


def rows_of_game(run: Run) -> Bucketed:
    """Checks both players' functions; gives the rows of a reward model's first round."""
    settings = get(run.config, "recipe.game")
    check.check_game(run.config, run.data.train, samples=settings.sampling.samples)
    game = setup.set_up(run, settings)
    assert len(game.answers) == len(game.reward.originals) > 0
    if settings.golden_path:
        numbers = [re.findall(r"\d+", str(r.prompt))[-1] for r in game.reward.originals]
        assert game.answers == [f"Gold, {number}." for number in numbers]
    both = zip(game.reward.originals, game.answers, strict=True)
    adversarial = [golden.adversarial_row(r, answer, ("A sample.",)) for r, answer in both]
    return setup.prepare_rows(game, [*game.pairs, *adversarial], {}, "comparisons, golden answers")


def rows_of_objectives(run: Run) -> Bucketed:
    """Scores the training responses; gives them as the rows that policies imitate."""
    objectives = get(run.config, "recipe.objectives")
    reference = Reference(lambda: None, "")  # not read: nothing is trained
    setting = Setting(run, reference, objectives)
    scored = scored_rows.scored_rows(setting)
    assert np.ptp(scored.scores, axis=0).all()
    records = scored_rows.single_records(scored, range(len(scored.ids)))
    return scored_rows.prepare_rows(setting, records, "rows")


def rows_of_policy(run: Run) -> Bucketed:
    """Checks the losses, and that candidates find the prompts' own responses."""
    check.check_losses(run.config, run.data.train)
    settings = run.config.candidates
    if settings is not None:
        for side in candidates.sides(run.config, settings, run.data):
            assert all(len(own) >= 2 * settings.keep_own for own in side.own)
    return run.data.train


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_reaches_its_first_batch(name, tmp_path, reward_model):
    run = opened(name, tmp_path, reward_model)
    parts = {"recipe.game": rows_of_game, "recipe.objectives": rows_of_objectives}
    rows_of = next((parts[x] for x in parts if get(run.config, x) is not None), rows_of_policy)
    rows = rows_of(run)
    one = dataclasses.replace(run.config, train=dataclasses.replace(run.config.train, steps=1))
    batches = dataclasses.replace(run, config=one).on(rows).batches()
    batch = assemble(rows.dataset, batches.rows[0], batches.shapes[batches.shape[0]])
    real = batch.weight > 0
    assert len(real) == run.config.train.batch_size
    assert real.any()
    assert (batch.prompt_length[real] > 1).all()
    assert batch.response_length[real].any(axis=1).all()
    start = batch.prompt[real][0][-int(batch.prompt_length[real][0]) :]
    words = re.findall(r"\w+", run.data.tokenizer.decode(start))
    prompt = rows.dataset[int(batches.rows[0][0])].prompt
    assert words
    assert all(word in prompt for word in words)
    of_a_model = run.config.tokenizer.path == str(STORY)
    assert ("<|im_start|>user\nQuestion" in prompt) == of_a_model  # its chat template


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.py")), ids=lambda path: path.stem)
def test_a_config_says_where_its_loss_s_settings_are_from(path):
    lines = path.read_text().splitlines()
    bound = [i for i, line in enumerate(lines) if re.match(r" {8}(reward_)?loss=partial\(", line)]
    without = [lines[i] for i in bound if not ("#" in lines[i] or lines[i - 1].strip()[:1] == "#")]
    assert not without


def test_a_reward_model_is_replaced_wherever_a_config_names_one(reward_model):
    named = re.compile(r"/models/[\w.-]+")
    for name in ("hps:8b", "apo:8b", "paretohqd:8b"):
        config = load.load(CONFIGS[name], [])
        assert named.search(repr(config))
        assert not named.search(repr(with_reward_models(config, reward_model)))
