"""The whole recipe at the smallest size: what it writes, and that its ways to one result agree."""

import dataclasses
import json
import math
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax.commands import export, finished_run
from alignjax.config import Config, EvaluateConfig, MeshConfig
from alignjax.data import sources
from alignjax.data.records import DataReport
from alignjax.errors import CheckpointError, UserError
from alignjax.losses import dpo, hps, sft
from alignjax.models import logps
from alignjax.models.transformer import init_params
from alignjax.recipes import align
from alignjax.recipes.show_data import show_data
from alignjax.runtime import checkpoint, metrics, sharding, stores
from alignjax.stages import pretrained, reference
from alignjax.stages.data import prepare_data
from alignjax.training import offline, optim, progress
from alignjax.world import sources as world
from tests import runs

STEPS = 8
score, passes = align.held_out.logps, []  # the passes over held-out rows of `base`, by title


def config(*overrides: str, **changes) -> Config:
    return dataclasses.replace(runs.changed("reference.mode=cache", *overrides), **changes)


def test_rows_are_shown_with_the_names_of_their_scores(capsys):
    made = runs.get_config()
    source = partial(world.lists, size=9, seed=0, responses=2, objectives=("helpful", "concise"))
    data = dataclasses.replace(made.data, source=source)
    show_data(dataclasses.replace(made, data=data))
    record = next(source(DataReport()))
    helpful, concise = np.float32(record.scores[0])
    shown = f"  [0 helpful={helpful:.7g}, concise={concise:.7g}]{record.responses[0]}\n"
    assert shown in capsys.readouterr().out
    assert helpful != concise


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """One run with the reference's table on disk: its folder and what it returned."""
    workdir = tmp_path_factory.mktemp("base")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(align.held_out, "logps", lambda *args: passes.append(args[2]) or score(*args))
        return workdir, align.run(config("train.keep_best=eval/loss"), workdir)


def column(workdir, name):
    return [line[name] for line in metrics.read(workdir / "metrics.jsonl") if name in line]


def test_step_0_is_at_the_reference(base):
    first = metrics.read(base[0] / "metrics.jsonl")[0]
    assert first["step"] == 1
    # The table's rows lay in other streams than those of the step, beside other rows: each
    # log-probability, of some 300 nats, was summed in another order.
    assert abs(first["loss"] - math.log(2)) < 1e-5
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins"):
        assert abs(first[name]) < 1e-5
    # and does not stay there: the rate is not 0, the numbers are not constants
    # (the warm-up's first rate is 0: the first two steps are at the reference)
    assert len(set(column(base[0], "loss"))) >= STEPS - 1
    assert column(base[0], "loss")[-1] != pytest.approx(math.log(2), abs=1e-4)


def test_every_line_holds_the_numbers_that_dashboards_know(base):
    lines = metrics.read(base[0] / "metrics.jsonl")
    for line in [x for x in lines if "eval_loss" not in x]:
        assert {
            *("step", "epoch", "loss", "grad_norm", "learning_rate", "rewards/chosen"),
            *("rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen"),
            *("logps/rejected", "tokens_per_second", "prompts_per_second", "skipped"),
        } <= set(line)
    assert column(base[0], "epoch")[-1] == pytest.approx(
        STEPS * 8 / base[1]["data_report"]["train"]["kept"]
    )
    schedule = optim.learning_rate(config().optim, STEPS)
    wanted = [float(schedule(step)) for step in range(STEPS)]
    assert column(base[0], "learning_rate") == pytest.approx(wanted)
    board = list((base[0] / "tensorboard").glob("events*"))
    assert board
    assert b"rewards/margins" in b"".join(path.read_bytes() for path in board)


def test_the_summary_says_what_came_of_it(base):
    workdir, returned = base
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary == json.loads(json.dumps(returned))
    assert summary["steps"] == STEPS
    assert summary["skipped_steps"] == summary["resumed_from"] == 0
    assert summary["reference"]["mode"] == "cache"
    assert summary["versions"]["jax"] == jax.__version__
    assert summary["data_report"] == json.loads((workdir / "data_report.json").read_text())
    table = summary["table"]
    for name in ("rewards/accuracies", "rewards/margins", "true_score", "KL to reference, nats"):
        assert set(table[name]["after"]) == {"mean", "half_width", "count"}
    assert table["rewards/accuracies"]["before"] is None  # all tie
    assert table["true_score"]["after"]["count"] == 2  # prompts
    assert table["response tokens"]["after"]["mean"] <= 4
    rows = summary["data_report"]["held_out"]["kept"]
    assert 1 < table["rewards/margins"]["after"]["count"] <= rows


def test_the_last_evaluation_is_the_result_and_is_not_made_twice(base):
    lines = [x for x in metrics.read(base[0] / "metrics.jsonl") if "eval_loss" in x]
    assert lines[-1]["step"] == STEPS
    assert passes == ["supervised, held out", *["  held-out rows"] * len(lines)]
    for name in ("rewards/margins", "rewards/accuracies", "RM_DPO"):
        assert base[1]["table"][name]["after"]["mean"] == lines[-1][f"eval_{name}"]


def test_it_writes_what_its_docstring_lists(base):
    names = {path.name for path in base[0].iterdir()}
    listed = align.__doc__.split("\n\n", 2)[2]
    for name in names - {".lock"}:
        assert name in listed, f"{name} is written and not listed"
    assert {"report.png", "summary.json", "before.json", "after.json"} <= names
    assert (base[0] / "report.png").read_bytes()[:4] == b"\x89PNG"


def test_one_compile_for_each_shape(base):
    assert base[1]["compiles"] == 1  # one bucket
    assert json.loads((base[0] / "sft" / "summary.json").read_text())["compiles"] == 1


@pytest.mark.long
def test_scoring_compiles_once_for_each_shape(tmp_path):
    settings = config("data.buckets=2", "data.pad_multiple=8", "model.layers=2")
    data = prepare_data(settings, tmp_path).train
    assert len(data.shapes) == 2
    params = init_params(settings.model, jax.random.key(0))
    before = logps.score_responses._cache_size()
    for _ in range(2):
        reference.dataset_logps(
            params,
            data,
            config=settings.model,
            batch_size=8,
            mesh=sharding.make_mesh(1, 1, 1),
            title="",
        )
    assert logps.score_responses._cache_size() - before == 2


@pytest.mark.long
def test_the_supervised_stage_starts_the_policy_and_is_its_reference(base, tmp_path):
    """Zero learning rate: whatever was trained before stays, and no reward ever appears."""
    workdir = tmp_path / "still"
    found = align.run(config("optim.learning_rate=0", "train.steps=2"), workdir)
    margins = found["table"]["rewards/margins"]["after"]
    assert abs(margins["mean"]) < 1e-6
    assert abs(found["table"]["KL to reference, nats"]["after"]["mean"]) < 1e-4
    nll = [line["nll"] for line in metrics.read(workdir / "sft" / "metrics.jsonl")]
    assert nll[-1] < nll[0]
    policy = runs.stored(workdir, config()).params
    start = runs.supervised(workdir, config())
    assert checkpoint.tree_digest(policy) == checkpoint.tree_digest(start)


LIVE = "reference.mode=live"


@pytest.mark.long
@pytest.mark.parametrize(
    "overrides",
    [
        [LIVE],
        [LIVE, "train.microbatch_tokens=128", "mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2"],
    ],
    ids=["live", "accumulated and sharded"],
)
def test_other_ways_to_the_same_numbers_agree(overrides, base, tmp_path):
    found = align.run(config("evaluate.prompts=0", *overrides), tmp_path)
    for name in ("loss", "rewards/margins", "grad_norm"):
        np.testing.assert_allclose(
            column(tmp_path, name), column(base[0], name), rtol=2e-4, atol=1e-5, err_msg=name
        )
    assert found["reference"]["mode"] == "live"
    assert len(list((tmp_path / "cache" / "ref_logps").glob("*.npy"))) == 1  # held out
    # The learning that the comparison is about is larger than its tolerance.
    assert np.abs(column(tmp_path, "rewards/margins")).max() > 1e-2
    sft_losses = [line["loss"] for line in metrics.read(tmp_path / "sft" / "metrics.jsonl")]
    wanted = [line["loss"] for line in metrics.read(base[0] / "sft" / "metrics.jsonl")]
    np.testing.assert_allclose(sft_losses, wanted, rtol=1e-5)


def hps_with_gamma(logps, batch, *, gamma):
    losses, metrics = hps.loss(logps, batch)
    return losses, metrics | {"gamma": jnp.full(len(losses), gamma)}


@pytest.mark.long
def test_lists_with_a_draw_from_a_curriculum(tmp_path):
    """HPS end to end; gamma ramps over the run's steps, and live passes are the cheaper ones."""
    data = dataclasses.replace(
        runs.get_config().data, source=partial(world.lists, size=120, seed=0, responses=4)
    )
    gamma = hps.curriculum()
    settings = config(
        "reference.mode=auto", "train.steps=0", "train.epochs=0.4", "evaluate.prompts=0",
        sft=None, data=data, select=partial(hps.select, gamma=gamma),
        loss=partial(hps_with_gamma, gamma=gamma),
    )  # fmt: skip
    found = align.run(settings, tmp_path)
    every = metrics.read(tmp_path / "metrics.jsonl")
    lines = [line for line in every if "loss" in line]
    assert len(lines) == 6  # 0.4 of 108 lists, 8 a step
    # Nobody asked for an evaluation: one is a tenth of the cost of training. It draws no samples.
    [held_out] = [line for line in every if "loss" not in line]
    assert (held_out["step"], "eval_kl" in held_out) == (6, False)
    assert 0 < held_out["eval_loss"] < 2
    assert all(np.isfinite(line["loss"]) for line in lines)
    np.testing.assert_allclose([line["gamma"] for line in lines], [-5, -5, -3, -1, 1, 3], rtol=1e-6)
    # Two of three negatives would be more than uniform draws from so few steps could hide.
    assert lines[0]["negatives/effective"] < 2 > lines[-1]["negatives/effective"]
    assert lines[0]["negatives/p_hardest"] < 0.2 < 0.5 < lines[-1]["negatives/p_hardest"]
    # 43 rows x 2 drawn passes against all rows x 4 responses.
    assert found["reference"]["mode"] == "live"
    assert "86 on the fly" in found["reference"]["reason"]
    described = json.loads((tmp_path / "config.json").read_text())["select"]
    assert described["gamma"]["start"] == -5.0
    assert 0 <= found["table"]["rewards/accuracies"]["after"]["mean"] <= 1
    best, ties = (found["table"][f"rewards/best_{x}"] for x in ("accuracies", "ties"))
    assert best["before"] is None  # all tie
    assert ties["before"]["mean"] == 1.0 > ties["after"]["mean"]
    assert 0 <= held_out["eval_rewards/best_accuracies"] <= 1


@pytest.mark.long
def test_without_stages_that_nobody_asked_for(tmp_path):
    """Supervised only, no reference, no judge, no samples."""
    settings = config(
        "train.steps=2", "reference.mode=none", "evaluate.prompts=0",
        loss=sft.loss, sft=None, select=sft.select,
        evaluate=EvaluateConfig(prompts=0, batch_size=8),
    )  # fmt: skip
    settings = dataclasses.replace(
        settings, reference=dataclasses.replace(settings.reference, mode="none")
    )
    found = align.run(settings, tmp_path)
    assert found["reference"]["mode"] == "none"
    assert "KL to reference, nats" not in found["table"]
    # the reward that there is without a reference: here the log-probability
    rows = prepare_data(settings, tmp_path).held_out
    start = init_params(settings.model, jax.random.key(settings.train.seed))
    nats = reference.dataset_logps(
        start, rows, config=settings.model, batch_size=8,
        mesh=sharding.make_mesh(1, 1, 1), title="",
    )  # fmt: skip
    margins = found["table"]["rewards/margins"]
    assert margins["before"]["mean"] == pytest.approx((nats[:, 0] - nats[:, 1]).mean(), rel=1e-4)
    assert margins["after"] != margins["before"]
    names = {path.name for path in tmp_path.iterdir()}
    assert not names & {"sft", "before.json", "after.json"}
    assert not (tmp_path / "cache" / "ref_logps").exists()
    assert metrics.read(tmp_path / "metrics.jsonl")[0]["nll"] > 0


@pytest.mark.slow
def test_held_out_rewards_are_those_of_the_loss(base, tmp_path):
    """A reward with a length term orders held-out rows before the first step already."""
    reward = partial(dpo.loss, beta=0.1, implicit=shorter_is_better)
    settings = config("train.steps=1", "evaluate.prompts=0", loss=reward, sft=None)
    before = align.run(settings, tmp_path)["table"]["rewards/margins"]["before"]["mean"]
    rows = prepare_data(settings, tmp_path).held_out.dataset.response_length
    assert before == pytest.approx(0.1 * float((rows[:, 1] - rows[:, 0]).mean()), rel=1e-5)
    assert base[1]["table"]["rewards/margins"]["before"]["mean"] == 0.0


def shorter_is_better(logps):
    return logps.log_ratio - logps.length


@pytest.mark.slow
def test_held_out_rows_of_ones_own(tmp_path):
    def write(name, numbers):
        rows = [
            {"prompt": f"Question {i}?", "chosen": f" Yes, {i}.", "rejected": f" No, {i}."}
            for i in numbers
        ]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    base = runs.get_config()
    data = dataclasses.replace(
        base.data, source=sources.trl, path=write("a.jsonl", range(40)),
        eval_path=write("b.jsonl", range(40, 46)),
    )  # fmt: skip
    settings = config("train.steps=2", "evaluate.prompts=0", data=data, sft=None)
    settings = dataclasses.replace(
        settings, tokenizer=dataclasses.replace(settings.tokenizer, vocab_size=300)
    )
    found = align.run(settings, tmp_path / "w")
    assert found["data_report"]["held_out"]["rows_in"] == 6
    assert found["table"]["rewards/accuracies"]["after"]["count"] == 6


# --- the reference stays


@pytest.mark.slow
def test_a_reference_that_changes_is_noticed(base, tmp_path, monkeypatch):
    # Loaded to be scored and to start from; where they are loaded again at the end, others come.
    real, loads = align.checkpoint.load_params, [0]

    def load_params(path, target):
        loads[0] += 1
        params = real(path, target)
        return jax.tree.map(lambda x: x * 1.001, params) if loads[0] == 3 else params

    monkeypatch.setattr(align.checkpoint, "load_params", load_params)
    with pytest.raises(AssertionError, match="reference's parameters changed"):
        align.run(config("evaluate.prompts=0"), tmp_path)


def test_the_reference_is_what_it_was(base):
    digest = checkpoint.tree_digest(runs.supervised(base[0], config()))
    with stores.open_store(base[0] / "checkpoints", keep=9) as store:
        record = checkpoint.read_record(store, STEPS)
    assert record["identity"]["reference"] == digest
    assert checkpoint.tree_digest(runs.stored(base[0], config()).params) != digest


def test_it_ends_with_what_it_keeps_and_the_supervised_stage_keeps_its_parameters_once(base):
    """Its checkpoint is the record alone; the last lines say what is on the disk."""
    (step,) = (base[0] / "sft" / "checkpoints").iterdir()
    assert not (step / "state").exists()
    assert (step / "record").is_dir()


def test_the_best_checkpoint_is_what_commands_read_on_request(base, tmp_path):
    evaluated = [x for x in metrics.read(base[0] / "metrics.jsonl") if "eval_loss" in x]
    best = min(evaluated, key=lambda line: line["eval_loss"])["step"]
    exported = tmp_path / "best"
    export.export(str(base[0]), str(exported), checkpoint="best")
    with stores.open_store(base[0] / progress.BEST, keep=1) as store:
        assert stores.list_steps(store) == [best]
        target = pretrained.target(config().model, sharding.make_mesh(1, 1, 1))
        kept = checkpoint.restore_params(store, best, target)
    read = finished_run.load_policy(config(), str(base[0]), "best")
    assert checkpoint.tree_digest(read) == checkpoint.tree_digest(kept)
    last = checkpoint.tree_digest(runs.stored(base[0], config()).params)
    assert checkpoint.tree_digest(finished_run.load_policy(config(), str(base[0]))) == last
    assert (checkpoint.tree_digest(kept) == last) == (best == STEPS)
    with pytest.raises(UserError, match="wanted last or best, found 'newest'"):
        export.export(str(base[0]), str(tmp_path / "none"), checkpoint="newest")


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        (["train.keep_best=eval/los"], r"wanted one of .*eval/loss, found 'eval/los'"),
        (["train.keep_best=eval/loss", "train.eval_every=0"], "empty where nothing is evaluated"),
    ],
)
def test_a_best_checkpoint_by_what_nobody_measures_is_refused(overrides, wanted, base, tmp_path):
    shutil.copytree(base[0], tmp_path / "again")
    with pytest.raises(UserError, match=wanted):
        align.run(config(*overrides), tmp_path / "again")


# --- started again with something else


@pytest.fixture(scope="module")
def first_stage(tmp_path_factory):
    """A run that ended after its first stage."""
    workdir = tmp_path_factory.mktemp("first_stage")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(align, "_align", lambda *a: None)
        align.run(config("evaluate.prompts=0"), workdir)
    return workdir


@pytest.fixture
def stopped(first_stage, tmp_path):
    return shutil.copytree(first_stage, tmp_path / "copy")


def test_another_config_is_refused_or_told_to_be_taken(stopped, monkeypatch):
    other = config("evaluate.prompts=0", "loss.beta=0.3", "train.steps=3")
    message = r"loss\.beta: 0\.1 -> 0\.3; train\.steps: 8 -> 3\): .*--allow_config_change"
    with pytest.raises(UserError, match=message) as caught:
        align.run(other, stopped)
    assert caught.value.exit_code == 2
    monkeypatch.setattr(align, "_align", lambda run, *rest: run.config)
    assert align.run(other, stopped, allow_config_change=True) == other
    assert json.loads((stopped / "config.json").read_text())["loss"]["beta"] == 0.3


def test_other_data_or_another_tokenizer_are_refused(stopped, monkeypatch):
    settings = config("evaluate.prompts=0", "data.source.size=201")
    with pytest.raises(UserError, match=r"belongs to another run: data '\w+' ") as caught:
        align.run(settings, stopped, allow_config_change=True)
    assert caught.value.exit_code == 2
    assert not isinstance(caught.value, CheckpointError)
    assert "\n" not in str(caught.value)

    (stopped / "config.json").unlink()
    model = stopped / "tokenizer.model"
    from alignjax.data.tokenizer.training import train_sentencepiece

    model.unlink()
    texts = (f"{world.prompt_text(1, i)} and other words {i}" for i in range(300))
    train_sentencepiece(texts, vocab_size=310, path=str(model))
    with pytest.raises(UserError, match=r"belongs to another run: .*tokenizer '\w+' "):
        align.run(config("evaluate.prompts=0"), stopped)
    # Without the guard the parameters of one vocabulary go on with the ids of another.
    monkeypatch.setattr(checkpoint, "refuse_other", lambda *a: None)
    monkeypatch.setattr(align, "_align", lambda *a: "went on")
    assert align.run(config("evaluate.prompts=0"), stopped) == "went on"


@pytest.mark.long
def test_more_steps_of_the_first_stage_make_another_reference(stopped, monkeypatch, tmp_path):
    monkeypatch.setattr(align, "_align", lambda *a: None)
    before = checkpoint.tree_digest(runs.supervised(stopped, config()))
    longer = config("evaluate.prompts=0", "sft.steps=5")
    align.run(longer, stopped, allow_config_change=True)
    after = checkpoint.tree_digest(runs.supervised(stopped, longer))
    align.run(longer, tmp_path / "new")
    assert before != after == checkpoint.tree_digest(runs.supervised(tmp_path / "new", longer))


def test_mesh_of_the_config_is_the_mesh_of_the_run(tmp_path, monkeypatch):
    meshes = []
    monkeypatch.setattr(offline, "fit", lambda job, *rest: meshes.append(job.mesh) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        align.run(config(mesh=MeshConfig(data=2, fsdp=2, tensor=2)), tmp_path)
    assert dict(meshes[0].shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert dpo.loss is config().loss.func
