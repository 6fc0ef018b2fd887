"""Runs of several objectives: the frame that methods share, what is measured, what is refused."""

import dataclasses
import json
import shutil
import types
from functools import partial

import jax
import numpy as np
import pytest

from alignjax import recipes
from alignjax.data.records import Record
from alignjax.errors import UserError
from alignjax.evaluation import fronts
from alignjax.losses import dpo, sft
from alignjax.models.config import LoraConfig
from alignjax.recipes import ObjectivesConfig
from alignjax.recipes.multi_objective import mod, sampling, soups, supervised, training
from alignjax.recipes.multi_objective import rows as scored
from alignjax.recipes.multi_objective import run as recipe
from alignjax.recipes.multi_objective.method import normalise
from alignjax.rewards import scorers
from alignjax.runtime import checkpoint, metrics
from alignjax.sampling import generate
from alignjax.stages import adapters
from alignjax.world import sources as world
from tests import runs

pytestmark = pytest.mark.usefixtures("compiled_here")

NAMES = ("short", "first")


def judge(prompt, response):
    return {"short": -float(len(response)), "first": float(ord(response[:1] or "a")), "other": 0.0}


SCORER = partial(scorers.judged, judge=judge, name=("other", "first", "short"))


SEEN = []  # the settings that methods were given


def nearest(setting, *, size: int = 8):
    """Fine-tuning on the best responses by weighted sum, of the data and of samples."""
    SEEN.append(setting)
    policies = {}
    rows = scored.scored_rows(setting)
    questions = generate.take_questions(setting.run.data.train, 4)
    drawn = sampling.sample_to_train(
        setting,
        "nearest/drawn",
        setting.reference.load(),
        questions,
        settings=setting.run.config.evaluate,
        seed=1,
    )
    texts = [Record(id=f"d{i}", prompt=s.prompt, responses=(s.response,)) for i, s in
             enumerate(drawn) if s.response.strip()]  # fmt: skip
    for i, weights in enumerate(setting.objectives.preferences):
        best = np.argsort(-(rows.scores @ np.array(weights)))[:size]
        name = f"nearest/{i}"
        records = [*scored.single_records(rows, best), *texts]
        fitted = scored.prepare_rows(setting, records, name)
        policies[normalise(weights)] = training.fit(setting, name, fitted, stage(setting))
    return sampling.respond_if_trained(setting, policies.__getitem__)


def stage(setting, **changes):
    return training.stage_config(setting.run.config, **changes)


def changed(setting, **changes):
    """The setting of a run with another config or folder."""
    return dataclasses.replace(setting, run=dataclasses.replace(setting.run, **changes))


def config(*overrides, method=nearest, **changes):
    settings = dict(scorer=SCORER, names=NAMES, preferences=((2.0, 0.0), (1.0, 1.0)))
    return dataclasses.replace(
        runs.changed(
            *("data.source.size=60", "train.steps=2", "sft.steps=2", "optim.learning_rate=0.05"),
            *overrides,
        ),
        loss=sft.loss,
        recipe=partial(
            recipes.trace_front,
            objectives=ObjectivesConfig(method=method, **{**settings, **changes}),
        ),
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory, whole_run):
    workdir = tmp_path_factory.mktemp("front")
    return workdir, recipes.run_config(config(), workdir)


def told(workdir):
    return json.loads((workdir / "front.json").read_text())


def test_a_run_ends_in_the_scores_of_every_preference(base):
    workdir, summary = base
    found = told(workdir)
    assert found["objectives"] == list(NAMES)
    assert found["preferences"] == [[1.0, 0.0], [0.5, 0.5]]
    assert summary["method"]["function"].endswith("nearest")
    for i in range(2):
        said = json.loads((workdir / "said" / f"{i:02d}.json").read_text())["samples"]
        assert len(said) == 4  # evaluate.prompts x evaluate.samples
        for j in range(2):
            pair = [judge("", s["response"]) for s in said[2 * j : 2 * j + 2]]
            means = [np.mean([x[name] for x in pair]) for name in NAMES]
            np.testing.assert_allclose(found["scores"][i][j], means, rtol=1e-6)
    number = summary["fronts"][workdir.name]
    assert number["points"][1]["short"]["mean"] == pytest.approx(
        np.mean(found["scores"], axis=1)[1, 0]
    )
    assert number["collapsed"] == np.mean(found["collapsed"])


def test_the_time_is_that_of_steps_and_sampling(base):
    found = told(base[0])
    parts = found["seconds_by_part"]
    assert set(parts) == {"nearest-0", "nearest-1", "nearest-drawn"}
    assert all(seconds > 0 for seconds in parts.values())
    assert found["seconds"] == sum(parts.values())
    for i in range(2):
        lines = (base[0] / "nearest" / str(i) / "metrics.jsonl").read_text().splitlines()
        assert len(lines) == 2  # the steps it is the time of


def test_compiling_is_not_timed(monkeypatch):
    """By a clock of its own; what JAX tells of spans lies inside one another where jits do."""
    now = [0.0]
    monkeypatch.setattr(metrics, "time", types.SimpleNamespace(time=lambda: now[0]))
    tell = jax.monitoring.record_event_time_span
    with metrics.timed() as took:
        now[0] = 10.0
        for start, end in ((3.0, 4.0), (2.0, 5.0), (4.5, 6.0), (-3.0, 1.0)):
            tell("/jax/core/compile/some_duration", start, end)
        tell("/jax/something/else", 7.0, 9.0)
    assert took == [10.0 - (6.0 - 2.0) - (1.0 - 0.0)]
    tell("/jax/core/compile/some_duration", 0.0, 10.0)  # nobody listens any more
    assert took == [5.0]


def test_jax_tells_when_it_traces_and_compiles():
    told = []

    def note(event, start_time, end_time, **_):
        told.append((event, start_time <= end_time))

    jax.monitoring.register_event_time_span_listener(note)
    try:
        jax.jit(lambda x: x * 3 + 1)(2.0).block_until_ready()
    finally:
        jax.monitoring.unregister_event_time_span_listener(note)
    compiling = {event for event, ordered in told if ordered and "/jax/core/compile/" in event}
    assert {event.rpartition("/")[2] for event in compiling} >= {
        *("jaxpr_trace_duration", "jaxpr_to_mlir_module_duration", "backend_compile_duration"),
    }


def test_started_again_it_trains_and_samples_nothing(base, tmp_path):
    workdir = shutil.copytree(base[0], tmp_path / base[0].name)
    before = runs.stamps(workdir)
    assert {"said/00.json", "nearest/0/checkpoints/2"} <= set(before)
    assert recipes.run_config(config(), workdir)["fronts"] == base[1]["fronts"]
    assert runs.stamps(workdir) == before


def test_killed_while_a_policy_is_trained_it_ends_the_same(base, tmp_path):
    workdir = shutil.copytree(base[0], tmp_path / base[0].name)
    for name in ("nearest/0", "nearest/1", "said"):
        shutil.rmtree(workdir / name)
    (workdir / "front.json").unlink()
    runs.end_at("step:nearest/0-2", lambda: recipes.run_config(config(), workdir))
    recipes.run_config(config(), workdir)
    same = ("scores", "collapsed", "reference")
    assert {k: told(workdir)[k] for k in same} == {k: told(base[0])[k] for k in same}


def test_the_supervised_policy_answers_alike_for_every_preference(base, tmp_path):
    shutil.copytree(base[0] / "sft", tmp_path / "sft")
    shutil.copy(base[0] / "tokenizer.model", tmp_path)
    summary = recipes.run_config(config(method=supervised.train), tmp_path)
    found = told(tmp_path)
    assert found["reference"] == told(base[0])["reference"]
    assert found["scores"][0] == found["scores"][1]
    assert found["seconds"] == 0
    assert summary["fronts"][tmp_path.name]["hypervolume"] is None  # one point spans no box


@pytest.fixture(scope="module")
def setting(base):
    """The base run's, as its method saw it."""
    return next(seen for seen in SEEN if seen.run.workdir == base[0])


def test_rows_come_from_the_data_where_they_have_the_objectives(setting):
    names = ("harmless", "helpful")
    source = partial(
        world.lists, size=6, seed=0, responses=3, objectives=("true_score", "helpful", "harmless")
    )
    several = dataclasses.replace(setting.objectives, names=names)
    data = dataclasses.replace(setting.run.config.data, source=source)
    other = dataclasses.replace(setting.run.config, data=data)
    other = changed(dataclasses.replace(setting, objectives=several), config=other)
    rows = scored.scored_rows(other)
    assert rows.scores.shape == (len(rows.ids), 2)
    for prompt, text, row in zip(rows.prompts, rows.responses, rows.scores, strict=True):
        judged = world.judge(prompt, text)
        np.testing.assert_allclose(row, [judged[n] for n in names], rtol=1e-6)


def test_rows_of_the_scorer_are_in_the_order_of_the_names(setting):
    rows = scored.scored_rows(setting)
    wanted = [[judge("", text)[n] for n in NAMES] for text in rows.responses]
    np.testing.assert_array_equal(rows.scores, wanted)


def some_lack(records):
    out = [np.array([[judge("", y)[n] for n in NAMES] for y in r.responses]) for r in records]
    out[0][0, 1] = np.nan
    return out


def test_a_missing_objective_is_counted_and_refused_above_the_limit(setting, caplog):
    def with_limit(limit):
        several = dataclasses.replace(
            setting.objectives, scorer=some_lack, max_missing_fraction=limit
        )
        return dataclasses.replace(setting, objectives=several)

    whole = len(scored.scored_rows(setting).ids)
    with caplog.at_level("INFO", logger="alignjax"):
        rows = scored.scored_rows(with_limit(0.5))
    assert len(rows.ids) == whole - 1
    assert "1 lack an objective" in caplog.text
    with pytest.raises(UserError, match=rf"1 of {whole} responses .* lack one of short, first"):
        scored.scored_rows(with_limit(0.0))


def test_adapters_are_trained_from_the_reference_or_from_others(setting):
    config = dataclasses.replace(setting.run.config, lora=LoraConfig(rank=2))
    rank2 = changed(setting, config=config)
    rows = scored.scored_rows(setting)
    made = scored.prepare_rows(rank2, scored.single_records(rows, range(8)), "rows")
    first = training.fit(rank2, "lora/a", made, stage(rank2))
    assert "embed" not in first
    further = training.fit(
        rank2, "lora/b", made, stage(rank2, steps=1, learning_rate=0.0), start=first
    )
    assert checkpoint.tree_digest(further) == checkpoint.tree_digest(first)
    questions = generate.take_questions(setting.run.data.originals, 1)
    one, other = (sampling.respond(rank2, x, questions) for x in (first, further))
    assert [(s.response, s.logps) for s in one] == [(s.response, s.logps) for s in other]


def test_a_loss_may_read_the_reference(setting):
    """At the start policy and reference are equal: DPO's loss is log 2."""
    rows = setting.run.data.train
    config = stage(setting, loss=partial(dpo.loss, beta=0.1), steps=1, reference=True)
    training.fit(setting, "pairs", rows, config)
    line = json.loads((setting.run.workdir / "pairs" / "metrics.jsonl").read_text().splitlines()[0])
    assert line["loss"] == pytest.approx(np.log(2), rel=1e-5)


@pytest.mark.parametrize(
    ("scorer", "names", "message"),
    [
        (SCORER, ("short", "frist"), r"objectives\.scorer: .*judged: .*found no 'frist' \(did you "
         r"mean 'first'\?\); it has other, first, short"),
        (lambda records: [np.zeros((len(r.responses), 3)) for r in records], NAMES,
         r"wanted scores \[2, 2\], for short, first, found shape \[2, 3\]"),
        (lambda records: [np.full((len(r.responses), 2), np.inf) for r in records], NAMES,
         r"wanted finite scores"),
        (lambda records: [], NAMES, r"wanted scores of 1 records, found 0"),
        (lambda records: 1 / 0, NAMES, r"ZeroDivisionError"),
    ],
)  # fmt: skip
def test_a_scorer_that_does_not_fit_is_refused_before_training(scorer, names, message, tmp_path):
    with pytest.raises(UserError, match=message):
        recipes.run_config(config(scorer=scorer, names=names), tmp_path)
    assert not (tmp_path / "sft").exists()


def test_a_truth_of_another_shape_is_refused(base, tmp_path):
    workdir = tmp_path / base[0].name
    shutil.copytree(base[0], workdir)
    with pytest.raises(UserError, match=r"recipe\.objectives\.truth: .*wanted points \[F, 2\]"):
        recipes.run_config(config(truth=lambda prompts, names: np.zeros((4, 3))), workdir)


def test_the_rule_of_collapse_reads_the_tokenizers_tokens(base, setting):
    said = [" aaaaaaaaaaaaaaaaaaaaaaaaaaaa", " How do I clean the hat on a tight budget?", " a"]
    samples = [generate.Sample("", text, 9, True, 0.0, 0.0, 0.0) for text in said]
    found = recipe._collapsed_share(setting.run.data.tokenizer, samples)
    ids = [setting.run.data.tokenizer.encode_text(text, False) for text in said]
    assert found == np.mean([fronts.is_collapsed(x) for x in ids])
    assert 0 < found < 1


def one_objective(setting, preference, *, rate: float = 0.05):
    """An expert as cheap as can be: fine-tuning on responses that are best for its objective."""
    rows = scored.scored_rows(setting)
    best = np.argsort(-(rows.scores @ np.array(preference)))[:8]
    made = scored.prepare_rows(setting, scored.single_records(rows, best), "best")
    name = f"expert-{preference.index(1.0)}"
    return training.fit(setting, name, made, stage(setting, learning_rate=rate))


@pytest.mark.parametrize("rank", [0, 2])
def test_soups_and_mixtures_of_one_expert_are_that_expert(setting, tmp_path, rank):
    lora = LoraConfig(rank=rank) if rank else None
    own = changed(
        setting, config=dataclasses.replace(setting.run.config, lora=lora), workdir=tmp_path
    )
    experts = soups.train_experts(own, one_objective)
    questions = generate.take_questions(setting.run.data.originals, 2)

    def said(respond, preference=()):
        samples = respond(preference, questions)
        return [s.response for s in samples], np.array([s.logps for s in samples])

    both = {m: m.train(own, expert=one_objective) for m in (soups, mod)}
    alone = [said(lambda _, questions, e=e: sampling.respond(own, e, questions)) for e in experts]
    assert alone[0][0] != alone[1][0]
    for k, unit in enumerate(((1.0, 0.0), (0.0, 1.0))):
        for method, respond in both.items():
            texts, logps = said(respond, unit)
            assert texts == alone[k][0], method
            # Of adapters beside a kernel, and of them merged, the sums round differently.
            np.testing.assert_allclose(logps, alone[k][1], rtol=1e-4)
    middle = [said(respond, (0.5, 0.5))[1] for respond in both.values()]
    assert not np.allclose(*middle, rtol=1e-3)
    assert not np.allclose(middle[0], alone[0][1], rtol=1e-3)


def test_a_soup_is_the_weighted_mean_of_networks_and_of_the_products_of_adapters(setting, tmp_path):
    lora = LoraConfig(rank=2)
    own = changed(
        setting, config=dataclasses.replace(setting.run.config, lora=lora), workdir=tmp_path
    )
    base = setting.reference.load()
    rng = np.random.default_rng(0)
    fresh = [adapters.init(lora, setting.run.config.model, jax.random.key(k)) for k in range(2)]
    experts = [jax.tree.map(lambda x: x + rng.normal(size=x.shape).astype("f4"), a) for a in fresh]
    weights = (0.3, 0.7)
    found = soups.average([sampling.merged_network(own, expert) for expert in experts], weights)
    for name, expert in experts[0]["layers"].items():
        kernel = np.asarray(base["layers"][name]["kernel"], np.float64)
        for w, parts in zip(weights, (expert, experts[1]["layers"][name]), strict=True):
            a, b = (np.asarray(parts[x], np.float64) for x in ("lora_a", "lora_b"))
            kernel = kernel + w * (lora.alpha / lora.rank) * (a @ b)
        np.testing.assert_allclose(found["layers"][name]["kernel"], kernel, rtol=1e-5, atol=1e-5)
    unit = soups.average([base, found], (1.0, 0.0))
    assert checkpoint.tree_digest(unit) == checkpoint.tree_digest(base)
