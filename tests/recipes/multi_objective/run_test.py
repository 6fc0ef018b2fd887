"""Runs of several objectives: the frame that methods share, what is measured, what is refused."""

import dataclasses
import json
import re
import shutil
import types
from functools import partial

import jax
import numpy as np
import pytest

from alignjax import recipes
from alignjax.commands import export, policies
from alignjax.commands import generate as generate_command
from alignjax.commands.policies import TRAINED, Network
from alignjax.data.records import Record
from alignjax.errors import UserError
from alignjax.evaluation import fronts
from alignjax.losses import dpo, sft
from alignjax.models import mixture
from alignjax.models.config import LoraConfig
from alignjax.recipes import ObjectivesConfig
from alignjax.recipes.multi_objective import mod, sampling, soups, supervised, training
from alignjax.recipes.multi_objective import rows as scored
from alignjax.recipes.multi_objective import run as recipe
from alignjax.recipes.multi_objective.method import normalise
from alignjax.rewards import scorers
from alignjax.runtime import checkpoint, metrics, workdirs
from alignjax.sampling import generate
from alignjax.stages import adapters
from alignjax.world import sources as world
from tests import runs, used

NAMES = ("short", "first")


def judge(prompt, response):
    return {"short": -float(len(response)), "first": float(ord(response[:1] or "a")), "other": 0.0}


SCORER = partial(scorers.judged, judge=judge, name=("other", "first", "short"))


SEEN = []  # the settings that methods were given


def nearest(setting, *, size: int = 8):
    """Fine-tuning on the best responses by weighted sum, of the data and of samples."""
    SEEN.append(setting)
    networks = []
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
        training.fit(setting, name, fitted, stage(setting))
        networks.append(Network(normalise(weights), name))
    return setting.policies(TRAINED, networks)


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
        said = json.loads((workdir / "samples" / f"{i:02d}.json").read_text())["samples"]
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
    cut = [not s["ended"] for s in said]  # of the last preference
    assert found["unfinished"][1] == np.mean(cut)


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
    assert {"samples/00.json", "nearest/0/checkpoints/2"} <= set(before)
    assert recipes.run_config(config(), workdir)["fronts"] == base[1]["fronts"]
    assert runs.stamps(workdir) == before


@pytest.mark.long
def test_killed_while_a_policy_is_trained_it_ends_the_same(base, tmp_path):
    workdir = shutil.copytree(base[0], tmp_path / base[0].name)
    for name in ("nearest/0", "nearest/1", "samples"):
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
    own = config(method=supervised.train)
    export.export(str(tmp_path), str(tmp_path / "out"), preference="1,0")
    texts = used.texts_and_nats(used.samples(used.run_of(own, tmp_path), used.exported(
        tmp_path / "out")))  # fmt: skip
    assert texts == used.texts_and_nats(tmp_path / "samples" / "00.json")
    assert summary["fronts"][tmp_path.name]["hypervolume"] is None  # one point spans no box


def test_afterwards_a_preference_chooses_the_nearest_policy(base, tmp_path, caplog):
    workdir, _ = base
    said = used.texts_and_nats(workdir / "samples" / "01.json")
    with caplog.at_level("INFO", logger="alignjax"):
        found = used.generated(config(), workdir, tmp_path / "a.jsonl", preference="0.6,0.4")
    assert found == used.written(said)
    assert "--preference=0.6,0.4: the policy trained for 0.5,0.5, at a distance of 0.1414" in (
        caplog.text
    )
    export.export(str(workdir), str(tmp_path / "out"), preference="0.34,0.67")
    run = used.run_of(config(), workdir)
    assert used.texts_and_nats(used.samples(run, used.exported(tmp_path / "out"))) == said
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| preference | the policy trained for 0.5,0.5, at a distance of 0.2" in card
    assert "2 steps" in card


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("", r"short, first: wanted one, e\.g\. --preference=1,0, found none; .* 1,0 0.5,0.5"),
        ("--preference=0.3,0.3,0.4", r"wanted 2 numbers, the weights of short, first, .*'0.3,0.3,"),
        ("--preference=1.5,-0.5", r"not negative and with sum 1, .* found '1.5,-0.5'"),
        ("--preference=0.3,0.6", r"with sum 1, e\.g\. --preference=1,0, found '0.3,0.6'"),
        ("--preference=half,half", r"found 'half,half'"),
        ("--preference=nan,1", r"found 'nan,1'"),
    ],
)
def test_a_preference_is_checked_before_anything_is_compiled(base, tmp_path, flag, message):
    for name in ("config.json", "policies.json"):
        (tmp_path / "w").mkdir(exist_ok=True)
        shutil.copy(base[0] / name, tmp_path / "w")
    given = [f"--workdir={tmp_path / 'w'}", f"--to={tmp_path / 'out'}", *filter(None, [flag])]
    assert re.search(r"--preference: .*" + message, runs.refused("export", *given))
    with pytest.raises(UserError, match=message):
        generate_command.run(
            config(), str(tmp_path / "w"), "x.jsonl", preference=flag.rpartition("=")[2]
        )


def test_policies_that_are_not_all_trained_are_not_used(base, tmp_path):
    shutil.copy(base[0] / "config.json", tmp_path)
    given = [f"--workdir={tmp_path}", f"--to={tmp_path / 'out'}", "--preference=1,0"]
    assert "has not trained all of its policies" in runs.refused("export", *given)


def test_weights_rounded_to_two_digits_are_scaled():
    three = ((1.0, 0.0, 0.0),)
    made = policies.Policies(
        objectives=("a", "b", "c"), preferences=three, identity={}, way=TRAINED, networks=()
    )
    assert policies.parse(made, "0.33,0.33,0.33") == pytest.approx((1 / 3,) * 3)
    with pytest.raises(UserError, match="with sum 1"):
        policies.parse(made, "0.32,0.33,0.33")


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


@pytest.mark.long
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
    one, other = (
        used.samples(rank2.run, sampling.whole_network(rank2, x), questions)
        for x in (first, further)
    )
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
    training.fit(setting, name, made, stage(setting, learning_rate=rate))
    return Network(preference, name)


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 2])
def test_soups_and_mixtures_of_experts_while_they_run_and_afterwards(
    base, setting, tmp_path, rank, caplog
):
    lora = LoraConfig(rank=rank) if rank else None
    own = changed(
        setting, config=dataclasses.replace(setting.run.config, lora=lora), workdir=tmp_path
    )
    run = own.run
    questions = generate.take_questions(run.data.originals, run.config.evaluate.prompts)
    both = {m: m.train(own, expert=one_objective) for m in (soups, mod)}
    experts = own.policies(policies.TRAINED, both[soups].networks)

    def said(trained, preference):
        return used.texts_and_nats(sampling.respond(own, trained, preference, questions))

    def nats(found):
        return np.array([x for _, x in found])

    alone = {unit: said(experts, unit) for unit in ((1.0, 0.0), (0.0, 1.0))}
    assert alone[1.0, 0.0] != alone[0.0, 1.0]
    for unit, wanted in alone.items():
        for method, trained in both.items():
            found = said(trained, unit)
            assert [x for x, _ in found] == [x for x, _ in wanted], method
            # Of adapters beside a kernel, and of them merged, the sums round differently.
            np.testing.assert_allclose(nats(found), nats(wanted), rtol=1e-4)
    middle = {m: said(trained, (0.5, 0.5)) for m, trained in both.items()}
    assert not np.allclose(*map(nats, middle.values()), rtol=1e-3)
    assert not np.allclose(nats(middle[soups]), nats(alone[1.0, 0.0]), rtol=1e-3)

    if not rank:  # afterwards adapters are more than whole networks
        return
    shutil.copytree(base[0] / "sft", tmp_path / "sft")
    shutil.copy(base[0] / "tokenizer.model", tmp_path)
    workdirs.write_config(tmp_path, run.config, allow_change=False)
    for method, trained in both.items():
        policies.keep(tmp_path, trained)
        with caplog.at_level("INFO", logger="alignjax"):
            found = used.generated(
                run.config, tmp_path, tmp_path / f"{method.__name__}.jsonl", preference="0.5,0.5"
            )
        assert found == used.written(middle[method])
        how = {soups: "average of the weights", mod: "mixture of the probabilities"}[method]
        assert f"the {how} of the 2 policies trained for 1,0 and 0,1, weighted 0.5,0.5" in (
            caplog.text
        )
        to = tmp_path / f"{method.__name__}-unit"
        export.export(str(tmp_path), str(to), preference="0,1")
        assert used.texts_and_nats(used.samples(run, used.exported(to))) == alone[0.0, 1.0]
    with pytest.raises(UserError, match=r"--preference: wanted all weight on one .* no single net"):
        export.export(str(tmp_path), str(tmp_path / "no"), preference="0.5,0.5")
    policies.keep(tmp_path, both[soups])
    export.export(str(tmp_path), str(tmp_path / "all"), preference="all")
    assert sorted(x.name for x in (tmp_path / "all").iterdir()) == ["0.5-0.5", "1-0"]
    found = used.samples(run, used.exported(tmp_path / "all" / "0.5-0.5"))
    assert used.texts_and_nats(found) == middle[soups]


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
    found = mixture.average([sampling.merged_network(own, expert) for expert in experts], weights)
    for name, expert in experts[0]["layers"].items():
        kernel = np.asarray(base["layers"][name]["kernel"], np.float64)
        for w, parts in zip(weights, (expert, experts[1]["layers"][name]), strict=True):
            a, b = (np.asarray(parts[x], np.float64) for x in ("lora_a", "lora_b"))
            kernel = kernel + w * (lora.alpha / lora.rank) * (a @ b)
        np.testing.assert_allclose(found["layers"][name]["kernel"], kernel, rtol=1e-5, atol=1e-5)
    unit = mixture.average([base, found], (1.0, 0.0))
    assert checkpoint.tree_digest(unit) == checkpoint.tree_digest(base)
