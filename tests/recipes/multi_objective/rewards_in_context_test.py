"""RiC as a recipe: what prompts tell in every stage, what is kept, how it goes on if killed."""

import dataclasses
import json
import re
import shutil
from functools import partial

import numpy as np
import pytest

from alignjax import recipes
from alignjax.commands import export, policies
from alignjax.data.records import DataReport, Message
from alignjax.data.tokenizer import load
from alignjax.errors import UserError
from alignjax.losses import rewards_in_context as ric
from alignjax.recipes import ObjectivesConfig
from alignjax.recipes.multi_objective import rewards_in_context, sampling
from alignjax.recipes.multi_objective import rows as rows_of
from alignjax.rewards import scorers
from alignjax.sampling.generate import ask, take_questions
from alignjax.stages import data
from tests import runs, used

NAMES = ("short", "first")
PREFERENCES = ((3.0, 0.0), (1.0, 1.0))


def judge(prompt, response):
    del prompt
    return {"short": -float(len(response)), "first": float(ord(response.strip()[:1] or "a"))}


METHOD = partial(
    rewards_in_context.train,
    limits=ric.data_limits,
    online_rounds=2,
    online_samples=96,
    originals=8,
    quantile=0.8,
    online_steps=2,
    online_learning_rate=1e-3,
    max_new_tokens=40,
    temperature=1.0,
    top_p=1.0,
)


def config(*overrides, method=METHOD):
    return dataclasses.replace(
        runs.changed(
            *("data.source.size=60", "data.max_prompt_tokens=112", "data.pad_multiple=56"),
            *("sft.steps=12", "train.steps=2", "train.save_every=1"),
            *("evaluate.max_new_tokens=6", "evaluate.batch_size=48", *overrides),
        ),
        loss=ric.loss,
        recipe=partial(
            recipes.trace_front,
            objectives=ObjectivesConfig(
                method=method,
                scorer=partial(scorers.judged, judge=judge, name=NAMES),
                names=NAMES,
                preferences=PREFERENCES,
            ),
        ),
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory, whole_run):
    """One whole run, and what its stages were given: records to train on, prompts to sample for."""
    workdir, given = tmp_path_factory.mktemp("ric"), {}
    prepare, draw = rows_of.prepare_rows, sampling.sample_to_train

    def records_seen(setting, records, name):
        given[name] = list(records)
        return prepare(setting, records, name)

    def questions_seen(setting, name, params, questions, **rest):
        given[name] = list(questions)
        return draw(setting, name, params, questions, **rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_of, "prepare_rows", records_seen)
        patch.setattr(sampling, "sample_to_train", questions_seen)
        recipes.run_config(config(), workdir)
    return workdir, given


def test_configs_may_name_the_maps():
    for target in (ric.l2, ric.linf, ric.linear):
        for limits in (ric.data_limits, partial(ric.normal_limits, draws=9)):
            config(method=partial(METHOD, target=target, limits=limits))


def told(workdir, name="rewards_in_context"):
    return json.loads((workdir / f"{name}.json").read_text())


def numbers(text):
    return tuple(float(x) for x in re.findall(r"<rm\d_score> (-?\d+\.\d)", text))


@pytest.fixture(scope="module")
def rows():
    """(prompt, response, scores) of every training response."""
    reports = {side: DataReport() for side in ("train", "held_out")}
    records, _ = data.split(config(), reports)
    return [(r.prompt, y, [judge("", y)[n] for n in NAMES]) for r in records for y in r.responses]


def z_scores(rows):
    table = np.array([s for _, _, s in rows])
    return (table - table.mean(axis=0)) / table.std(axis=0), table


def test_offline_every_response_is_told_its_own_scores(base, rows):
    z, _ = z_scores(rows)
    records = base[1]["offline rows"]
    assert len(records) == len(rows)
    for record, (prompt, response, _), own in zip(records, rows, z, strict=True):
        assert record.responses == (response,)
        assert record.prompt == rewards_in_context.condition(prompt, own)
        np.testing.assert_allclose(numbers(record.prompt), own, atol=0.05 + 1e-9)
        assert not record.scores
    assert len({numbers(r.prompt) for r in records}) > 20


def test_samples_are_asked_for_all_but_one_objective(base, rows):
    z, _ = z_scores(rows)
    low, high = z.min(axis=0), z.max(axis=0)
    for name in ("online-1", "online-2"):
        questions = np.array([numbers(q.prompt) for q in base[1][name]])
        assert questions.shape == (96, 2)
        at_top = questions == high.round(1)
        assert at_top.any(axis=1).all()
        assert not at_top.all(axis=1).all()
        assert (questions >= low - 0.06).all()
    assert [q.prompt for q in base[1]["online-1"]] != [q.prompt for q in base[1]["online-2"]]


def test_rounds_train_on_what_is_good_at_something_told_the_scores_it_got(base, rows):
    workdir, given = base
    z, table = z_scores(rows)
    frontier = {
        (rewards_in_context.condition(p, s), y)
        for (p, y, _), s, good in zip(rows, z, ric.keep(z, quantile=0.8), strict=True)
        if good
    }
    so_far = []
    for number, counts in enumerate(told(workdir)["rounds"], start=1):
        samples = told(workdir, f"online-{number}")["samples"]
        usable = [s for s in samples if s["response"].strip() and s["ended"]]
        got = np.array([[judge("", s["response"])[n] for n in NAMES] for s in usable])
        got = (got - table.mean(axis=0)) / table.std(axis=0)
        thresholds = np.quantile(got, 0.8, axis=0)
        for sample, own in zip(usable, got, strict=True):
            if (own >= thresholds).any():
                plain = re.sub(r" <rm1_score> \S+ <rm2_score> \S+", "", sample["prompt"])
                prompt = rewards_in_context.condition(plain, own)
                so_far.append((prompt, sample["response"]))
        records = [(r.prompt, r.responses[0]) for r in given[f"online-{number} rows"]]
        assert records[8:] == so_far
        assert len(set(records[:8])) == 8
        assert set(records[:8]) <= frontier
        assert counts["sampled"] == len(samples) == 96
        assert counts["empty"] + counts["unfinished"] == 96 - len(usable)
        lengths = [s["length"] for s in samples]
        assert max(lengths) == 40  # the method's own limit; what is measured has 6
        assert counts["unfinished"] == sum(
            not s["ended"] and bool(s["response"].strip()) for s in samples
        )
        assert counts["kept of all rounds"] == len(so_far)
        assert 0 < counts["kept"] < len(usable)
        assert counts["originals"] == 8
    assert len(so_far) > told(workdir)["rounds"][0]["kept"]  # those of the first round stay


def test_targets_are_of_the_training_responses(base, rows):
    z, table = z_scores(rows)
    found = told(base[0])
    np.testing.assert_allclose(found["mean"], table.mean(axis=0))
    np.testing.assert_allclose(found["deviation"], table.std(axis=0))
    np.testing.assert_allclose([found["low"], found["high"]], [z.min(axis=0), z.max(axis=0)])


def asked(run, wanted):
    """The held-out prompts as they ask for z-scores."""
    questions = take_questions(run.data.originals, run.config.evaluate.prompts)
    prompts = [rewards_in_context.condition(q.prompt, wanted) for q in questions]
    numbers = [q.number for q in questions]
    return questions, ask(prompts, numbers, run.data.tokenizer, run.config.data.max_prompt_tokens)


def test_a_preference_is_asked_for_and_the_samples_answer_the_plain_prompt(base, tmp_path, caplog):
    """While it runs, by `generate` afterwards, and by the one network that is exported."""
    workdir, run = base[0], used.run_of(config(), base[0])
    export.export(str(workdir), str(tmp_path / "out"), preference="1,0")
    network = used.exported(tmp_path / "out")
    limits = {k: np.array(told(workdir)[k]) for k in ("low", "high")}
    seen = []
    for i, preference in enumerate(((1.0, 0.0), (0.5, 0.5))):
        questions, with_scores = asked(run, ric.l2(preference, **limits))
        seen.append([q.ids.tolist() for q in with_scores])
        found = used.samples(run, network, with_scores)
        assert used.texts_and_nats(found) == used.texts_and_nats(workdir / f"samples/{i:02d}.json")
        said = json.loads((workdir / "samples" / f"{i:02d}.json").read_text())["samples"]
        assert [s["prompt"] for s in said] == [q.prompt for q in questions for _ in range(2)]
    assert seen[0] != seen[1]
    with pytest.raises(UserError, match=r"--preference: wanted one preference, found all: one net"):
        export.export(str(workdir), str(tmp_path / "all"), preference="all")
    new = ric.l2((0.25, 0.75), **limits)
    wanted = used.texts_and_nats(used.samples(run, network, asked(run, new)[1]))
    with caplog.at_level("INFO", logger="alignjax"):
        texts = used.generated(config(), workdir, tmp_path / "a.jsonl", preference="0.25,0.75")
    assert texts == used.written(wanted)
    assert f"with {ric.score_text(new)!r} at the end of every prompt" in caplog.text
    card = (tmp_path / "out" / "README.md").read_text()
    assert ric.score_text(ric.l2((1.0, 0.0), **limits)) in card


def test_scores_that_a_function_of_ones_own_asks_for_are_known_of_the_trained_preferences(base):
    made = policies.find(base[0], json.loads((base[0] / "config.json").read_text()))
    own = dataclasses.replace(made, target="mine.target")
    assert policies.choose(own, (0.5, 0.5)).scores == made.scores[1]
    with pytest.raises(UserError, match=r"mine\.target, which .* wanted one of 1,0 0.5,0.5, found"):
        policies.choose(own, (0.25, 0.75))


@pytest.mark.long
def test_killed_in_its_first_round_it_ends_the_same(base, tmp_path):
    workdir = shutil.copytree(base[0], tmp_path / base[0].name)
    later = (
        "online-1",
        "online-2*",
        "samples",
        "front.json",
        "rewards_in_context.json",
        "summary*",
    )
    for path in (path for name in later for path in workdir.glob(name)):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    runs.end_at("logged:online-1-2", lambda: recipes.run_config(config(), workdir))
    recipes.run_config(config(), workdir)
    for name in ("online-2", "online-2-scores"):
        assert told(workdir, name) == told(base[0], name)
    assert told(workdir, "front")["scores"] == told(base[0], "front")["scores"]
    assert told(workdir) == told(base[0])


def test_the_prompt_with_scores_comes_through_the_tokenizer(base):
    tokens = load.load(str(base[0] / "tokenizer.model"))
    for record in base[1]["offline rows"][:20]:
        encoded = tokens.encode(record.prompt, record.responses)
        assert tokens.decode(encoded.prompt_ids) == record.prompt
        assert numbers(tokens.decode(encoded.prompt_ids)) == numbers(record.prompt)
        assert len(encoded.prompt_ids) <= 112  # the run's limit: nothing of it was cut
    turns = (Message("system", "Be brief."), Message("user", "Why?"))
    encoded = tokens.encode(rewards_in_context.condition(turns, (0.5, -1.0)), ())
    assert tokens.decode(encoded.prompt_ids).endswith(
        "User: Why? <rm1_score> 0.5 <rm2_score> -1.0\nAssistant:"
    )


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("\n\nHuman: Why?\n\nAssistant:", "\n\nHuman: Why?{}\n\nAssistant:"),
        ("User: Why?\nAssistant:", "User: Why?{}\nAssistant:"),
        ("### Input: x \n### Response:", "### Input: x{} \n### Response:"),
        ("Answer all of the following three:", "Answer all of the following three:{}"),
        ("A list\nanswer all of the following:", "A list\nanswer all of the following:{}"),
        ("Once upon a time", "Once upon a time{}"),
    ],
)
def test_where_the_scores_go_in_plain_text(prompt, wanted):
    found = rewards_in_context.condition(prompt, (1.0, -2.0))
    assert found == wanted.format(" <rm1_score> 1.0 <rm2_score> -2.0")


def test_in_a_conversation_the_scores_end_the_last_message():
    turns = (Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Why?"))
    found = rewards_in_context.condition(turns, (1.0,))
    assert found == (*turns[:2], Message("user", "Why? <rm1_score> 1.0"))


def test_an_objective_with_one_value_is_told_as_0(caplog):
    with caplog.at_level("WARNING", logger="alignjax"):
        scale = rewards_in_context._fit_scale("ab", np.array([[1.0, 7.0], [3.0, 7.0]]))
    assert "objective b has one value, 7.0, in all rows" in caplog.text
    np.testing.assert_array_equal(scale.z_scores(np.array([[3.0, 9.0]])), [[1.0, 0.0]])


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"online_rounds": -1}, "online_rounds: wanted a number >= 0, found -1"),
        ({"online_samples": 0}, "online_samples: wanted a positive number"),
        ({"quantile": 1.5}, r"quantile: wanted a number in \[0, 1\]"),
        ({"max_new_tokens": 0}, "max_new_tokens: wanted a positive number, found 0"),
        ({"top_p": 0.0}, r"top_p: wanted a number in \(0, 1\]"),
    ],
)
def test_keywords_out_of_range_are_refused(keywords, message):
    with pytest.raises(UserError, match=f"recipe.objectives.method.{message}"):
        rewards_in_context.train(None, **keywords)


def test_a_round_without_a_usable_sample_is_refused(base, tmp_path):
    workdir = tmp_path / "again"
    shutil.copytree(base[0], workdir)
    with pytest.raises(UserError, match=r"online-1: wanted samples .* recipe.*max_new_tokens"):
        recipes.run_config(
            config(method=partial(METHOD, max_new_tokens=1)), workdir, allow_config_change=True
        )
