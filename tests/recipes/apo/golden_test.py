"""Golden answers: whose prompts are whose, what is missing, and rows of both kinds in one batch."""

import dataclasses
import json
from functools import partial

import numpy as np
import pytest

from alignjax.config import OptimConfig
from alignjax.config.load import load
from alignjax.config.validate import get
from alignjax.data import sources, store
from alignjax.data.batching import assemble, bucket, read
from alignjax.data.encode import encode
from alignjax.data.records import DataReport, Record, check
from alignjax.data.sources import trl
from alignjax.data.splits import prompt_digest, split_by_prompt
from alignjax.data.tokenizer import load as tokenizers
from alignjax.data.tokenizer import training
from alignjax.errors import UserError
from alignjax.losses import apo
from alignjax.recipes import RoundsConfig
from alignjax.recipes.apo import golden
from alignjax.stages.data import read_records
from alignjax.training import optim
from alignjax.world import sources as world
from tests import runs

SIZE = 40


DATA = runs.get_config().data


def game(**changes):
    settings = dict(
        optim=OptimConfig(schedule=optim.constant), golden=partial(world.golden, size=SIZE, seed=0)
    )
    return RoundsConfig(**{**settings, **changes})


@pytest.fixture(scope="module")
def records():
    return list(world.pairs(DataReport(), size=SIZE, seed=0))


@pytest.fixture(scope="module")
def tokenizer(records, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("tokenizer") / "t.model")
    texts = [text for record in records for text in (record.prompt, *record.responses)]
    training.train_sentencepiece(texts, vocab_size=320, path=path)
    return tokenizers.load(path)


def test_every_prompt_is_on_one_side(records):
    reward, policy = golden.split_sides(records, policy_fraction=0.3, seed=0)
    prompts = [{prompt_digest(r.prompt) for r in side} for side in (reward, policy)]
    assert not prompts[0] & prompts[1]
    assert len(reward) + len(policy) == len(records)
    # Binomial: 0.3 of 40 with a deviation of 2.9; held at five of them.
    assert 0 < len(policy) < 27
    held_out = split_by_prompt(records, seed=0, eval_fraction=0.3)[1]
    assert policy != held_out  # the two splits are independent
    with pytest.raises(UserError, match=r"game\.policy_fraction: wanted prompts for the policy"):
        golden.split_sides(records, policy_fraction=1e-9, seed=0)


def test_an_answer_is_the_source_s_or_what_the_data_prefer(records):
    found, report = golden.find_answers(DATA, game(), records)
    wanted = {r.prompt: r.responses[0] for r in world.golden(DataReport(), size=SIZE, seed=0)}
    assert found == {prompt_digest(p): y for p, y in wanted.items()}
    assert (report.rows_in, report.kept) == (SIZE, SIZE)
    settings = game(golden=None)
    own, _ = golden.find_answers(DATA, settings, records)
    assert own == {prompt_digest(r.prompt): r.responses[0] for r in records}


def test_missing_answers_are_counted_and_too_many_refused(records):
    few = partial(world.golden, size=SIZE - 4, seed=0)
    settings = game(golden=few, max_missing_fraction=0.1)
    found, report = golden.find_answers(DATA, settings, records)
    assert report.dropped == {"no_golden_answer": 4}
    assert len(found) == SIZE - 4
    settings = dataclasses.replace(settings, max_missing_fraction=0.09)
    message = (
        r"4 of 40 rows dropped \(10.0%\), more than .*game\.max_missing_fraction = 0\.09 allows"
    )
    with pytest.raises(UserError, match=message):
        golden.find_answers(DATA, settings, records)


def test_golden_answers_of_the_config_match_its_pairs(tmp_path):
    """Two rows of HH-RLHF, the second of several turns, and golden answers as messages."""
    turns = [["Hi"], ["Hi", "Yes?", "What is  2 + 2?"]]
    names = {"user": "Human", "assistant": "Assistant"}
    pairs, answers = [], []
    for texts in turns:
        messages = [
            dict(role=("user", "assistant")[i % 2], content=text) for i, text in enumerate(texts)
        ]
        ask = "".join(f"\n\n{names[m['role']]}: {m['content']}" for m in messages)
        pairs.append({side: f"{ask}\n\nAssistant: {side}" for side in ("chosen", "rejected")})
        golden_turn = dict(role="assistant", content=f"Golden {len(texts)}")
        answers.append(dict(prompt=messages, completion=[golden_turn]))
    paths = [tmp_path / "pairs.jsonl", tmp_path / "golden.jsonl"]
    for path, rows in zip(paths, (pairs, answers), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = load(
        str(runs.ROOT / "configs" / "apo.py"),
        [f"data.path={paths[0]}", f"recipe.game.golden_path={paths[1]}"],
    )
    settings = get(loaded, "recipe.game")
    rows = read_records(loaded.data, loaded.data.path, DataReport())
    found, _ = golden.find_answers(loaded.data, settings, rows)
    assert [found[prompt_digest(r.prompt)] for r in rows] == ["Golden 1", "Golden 3"]

    text = read_records(
        dataclasses.replace(loaded.data, source=sources.hh), str(paths[0]), DataReport()
    )
    with pytest.raises(
        UserError,
        match=r"2 of 2 rows dropped .* found text \(2 of these prompts\) and messages",
    ):
        golden.find_answers(loaded.data, settings, text)


def test_a_source_of_files_is_given_its_path(records):
    settings = game(golden=trl)
    with pytest.raises(UserError, match=r"^recipe\.game\.golden_path: auto reads files; name one"):
        golden.find_answers(DATA, settings, records)
    settings = game(golden=None, golden_path="x.jsonl")
    with pytest.raises(
        UserError,
        match=r"golden_path: wanted none .* game\.golden .*, found 'x\.jsonl'",
    ):
        golden.find_answers(DATA, settings, records)


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        (dict(responses=("a", "b")), "a"),
        (dict(responses=("a",)), "a"),
        (dict(responses=("a", "b"), scores=((1.0,), (2.0,)), objectives=("s",)), "b"),
        (dict(responses=("a", "b"), desirable=(False, True)), "b"),
        (dict(responses=("a",), desirable=(False,)), None),
    ],
)
def test_what_a_record_prefers(fields, wanted):
    assert golden.preferred_response(Record(id="x", prompt="p", **fields)) == wanted


def test_what_is_no_comparison_is_refused():
    one = Record(id="x", prompt="p", responses=("a",), origin="f:1")
    with pytest.raises(UserError, match=r"^f:1: wanted pairs or scored lists .* one response"):
        golden.score_comparison(one)
    two = dict(responses=("a", "b"), scores=((1.0, 2.0), (0.0, 1.0)), objectives=("s", "t"))
    with pytest.raises(UserError, match=r"^f:1: wanted one objective for a game, found s, t"):
        golden.score_comparison(dataclasses.replace(one, **two))


def mixed(records):
    """Comparisons, and rows of a golden answer with 3 samples, of which some repeat."""
    samples = (" Yes.", " No.", " Yes.", "  ")
    rows = [
        golden.adversarial_row(r, " Golden." if i else " No.", samples)
        for i, r in enumerate(records)
    ]
    return [*map(golden.score_comparison, records), *rows]


def stored(records, tokenizer, folder, report):
    """The records as a dataset, from the disk."""
    limits = dict(max_prompt_tokens=64, max_response_tokens=64)
    store.write(encode(records, tokenizer, report=report, **limits), folder, report)
    return store.open_dataset(folder)


def test_rows_of_both_kinds_share_batches(records, tokenizer, tmp_path):
    report = DataReport(rows_in=12)
    data = stored(check(mixed(records[:6]), report), tokenizer, tmp_path / "mixed", report)
    assert report.kept == 12
    assert "removed_repeated_responses" not in report.warned
    assert report.warned["removed_empty_responses"] == 6
    assert data.adversarial.tolist() == [False] * 6 + [True] * 6
    rows = bucket(data, count=1, multiple=8)
    batch = assemble(data, np.array([0, 7, 6, -1]), rows.shapes[0])
    assert batch.adversarial.tolist() == [False, True, True, False]
    assert batch.present.tolist() == [
        [True, True, False, False],
        [True] * 4,
        [True] * 4,  # one sample is the golden answer itself
        [False] * 4,
    ]
    assert batch.scores.tolist() == [[1, 0, 0, 0]] * 3 + [[0] * 4]
    # The loss of a row is its own, whatever lies beside it.
    scores = [[1, -1, 9, 9], [0.5, 1, 2, 1], [1, 0, 1, 0], [3, 2, 1, 0]]
    losses, metrics = apo.reward_loss(
        np.array(scores, np.float32), batch, pair_weight=2.0, sample_weight=0.5
    )
    softplus = lambda x: np.log1p(np.exp(x))  # noqa: E731
    wanted = [
        2 * softplus(-2.0),
        0.5 * (2 * softplus(0.5) + softplus(1.5)) / 3,
        0.5 * (2 * softplus(-1.0) + softplus(0.0)) / 3,
        0,
    ]
    np.testing.assert_allclose(losses, wanted, rtol=1e-5)
    assert metrics["adversarial"].tolist() == [0, 1, 1, 0]
    assert next(read(data, rows.in_order(4))).adversarial.shape == (4,)


def test_data_without_such_rows_are_prepared_as_before(records, tokenizer, tmp_path):
    made = {}
    for name, flag in (("plain", False), ("marked", True)):
        rows = [
            dataclasses.replace(golden.score_comparison(r), adversarial=flag) for r in records[:3]
        ]
        made[name] = stored(rows, tokenizer, tmp_path / name, DataReport())
    assert made["plain"].adversarial is None
    shapes = bucket(made["plain"], count=1, multiple=8).shapes
    assert assemble(made["plain"], np.arange(2), shapes[0]).adversarial is None
    assert made["plain"].digest != made["marked"].digest
