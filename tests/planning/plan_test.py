"""The verb plan: what it refuses, what it says, and that it reads neither data nor weights."""

import dataclasses
import importlib.util
import json
import math
import os
from functools import partial

import jax
import pytest

from alignjax import recipes
from alignjax.config import FollowConfig, MeshConfig, ReferenceConfig, SamplingConfig
from alignjax.config.load import load, override
from alignjax.errors import UserError
from alignjax.losses import apo, bradley_terry
from alignjax.models.config import LoraConfig, ModelConfig
from alignjax.planning import chips, measure, plan, programs, resolved
from alignjax.planning.measure import bytes_per_device
from alignjax.recipes.apo.config import GameConfig
from alignjax.runtime.sharding import make_mesh
from alignjax.stages import pretrained
from tests import runs, tiny


def config(file="configs/demo/dpo.py", **changes):
    """A config of the demo with a network of two small layers, its data and weights nowhere."""
    whole = load(file, ["data.max_prompt_tokens=16", "data.max_response_tokens=16"])
    model = tiny.model(path="nowhere", tied_embeddings=False)
    return dataclasses.replace(
        whole,
        model=model,
        data=dataclasses.replace(whole.data, path="nowhere/*.jsonl"),
        train=dataclasses.replace(whole.train, batch_size=8),
        **changes,
    )


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """The plan of a step on GPUs that are not here, as written."""
    out = tmp_path_factory.mktemp("plan") / "plan.json"
    found = plan.run(config(), "h100:4", price=2.0, out=str(out))
    assert json.loads(out.read_text()) == found
    return found


def test_a_plan_tells_memory_products_time_and_dollars(printed):
    [one] = printed["plans"]
    assert not printed["exact"]
    assert one["attention"] == "xla"
    assert one["mesh"] == {"data": 1, "fsdp": 4, "tensor": 1}
    found, took = one["measured"], one["seconds"]
    assert found["fits"]
    # The optimizer keeps two moments of every parameter.
    assert one["holds"]["params"] > 0
    assert one["holds"]["optimizer"] == pytest.approx(2 * one["holds"]["params"], rel=0.01)
    assert found["arguments"] >= one["holds"]["params"] + one["holds"]["optimizer"]
    assert found["total"] == found["arguments"] + found["temporary"] + found["output"]
    # Attention is computed in full and counted by half, and the head's chunks are computed twice.
    assert one["model_flops"] < found["flops"] < 2 * one["model_flops"]
    assert took["estimate"] <= took["at_most"]
    assert one["dollars_per_hour"] == 8.0
    assert one["tokens"] == 8 * (16 + 2 * 16)


def test_flops_of_the_model_by_hand():
    model = tiny.model()
    width, inner, kv, mlp = model.width, 32, 16, 48
    layer = width * inner * 2 + width * kv * 2 + 3 * width * mlp
    # One row, prompt of 2 tokens, two responses of 1: 3 + 2 x 3 pairs of a query and a key.
    by_hand = 2 * (4 * layer * 2 + 2 * width * 64 + 2 * 9 * inner * 2)
    assert measure.forward_flops(model, 1, 2, 2, 1) == by_hand


@pytest.mark.parametrize(
    ("topology", "mesh", "changes", "message"),
    [
        ("v9:2x2", "", [], r"found 'v9'.*known: v5e:2x2\|2x4"),
        ("h100:many", "", [], r"wanted a number of GPUs, such as h100:8"),
        ("v5e:four", "", [], r"wanted v5e:SHAPE; known"),
        ("h100:4", "fsdp=3", [], r"wanted the 4 devices of h100:4, found .*tensor=1 = 3"),
        ("h100:4", "rows=4", [], r"wanted data=..,fsdp=..,tensor=.. with positive numbers, found"),
        ("h100:3", "", [], r"train.batch_size: wanted rows .*mesh of 3 devices divides, found 8"),
        ("h100:4", "tensor=4", ["model.vocab_size=63"], r"mesh.tensor=4 does not divide 63"),
        (
            *("h100:4", "tensor=4", ["model.heads=6", "model.kv_heads=6"]),
            r"^mesh.tensor=4 does not divide model.heads=6$",
        ),
        (
            *("h100:8", "fsdp=8", ["evaluate.batch_size=12"]),
            r"evaluate.batch_size: wanted a multiple",
        ),
    ],
)
def test_what_does_not_divide_is_refused_in_one_line(topology, mesh, changes, message, monkeypatch):
    monkeypatch.setattr(measure, "measure_program", lambda *a, **k: pytest.fail("would compile"))
    with pytest.raises(UserError, match=message):
        plan.run(override(config(), changes), topology, mesh=mesh)


@pytest.mark.parametrize(
    ("topology", "mesh"),
    [("h100:8", "data=2,fsdp=2,tensor=2"), ("h100:4", "tensor=4")],  # which cuts heads of keys
)
def test_meshes_that_divide_are_compiled_for(topology, mesh, monkeypatch):
    class CompiledError(Exception):
        pass

    def compiling(*args, **options):
        raise CompiledError

    monkeypatch.setattr(measure, "measure_program", compiling)
    with pytest.raises(CompiledError):
        plan.run(config(), topology, mesh=mesh)


def test_without_libtpu_it_says_how_to_install(monkeypatch):
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -c requirements.txt -e \"\.\[tpu\]\""):
        chips.find_machine("v5e:2x2")


def measurement(**changes):
    names = ("arguments", "output", "temporary", "flops", "moved", "limit", "total")
    ones = dict.fromkeys(names, 1.0)
    return measure.Measurement(**{**ones, "collectives": {}, "compile_seconds": 0.0, **changes})


@pytest.fixture
def too_large(monkeypatch):
    """Programs of three, two and half a chip's memory, one after another; and their options."""
    sizes, seen = iter([3.0, 2.0, 0.5]), []

    def measured(function, *args, on, **static):
        total = next(sizes) * on.chip.memory
        seen.append((args, static))
        return measurement(fits=total <= on.chip.memory, limit=on.chip.memory, total=total)

    monkeypatch.setattr(measure, "measure_program", measured)
    return seen


def test_what_does_not_fit_is_made_smaller_until_it_does(too_large, capsys):
    found = plan.run(config(), "h100:2")["plans"]
    assert [x["measured"]["fits"] for x in found] == [False, False, True]
    assert (found[1]["remat"], found[1]["parts"]) == ("full", 1)
    assert (found[2]["remat"], found[2]["parts"]) == ("full", 2)
    assert "--set model.remat=full --set train.microbatch_tokens=96: " in capsys.readouterr().out


def test_sampling_that_does_not_fit_gathers_less_then_draws_less_at_once(too_large, capsys):
    found = plan.run(config(), "h100:2", parts=("sample",))["plans"]
    assert [(x["part"], x["measured"]["fits"]) for x in found] == [
        *[("sample", False)] * 2,
        ("sample", True),
    ]
    assert [static["settings"].gather_weights for _, static in too_large] == [True, False, False]
    first, _, last = (args[1].shape[0] for args, _ in too_large)
    assert last == first // 2
    text = f"--set evaluate.gather_weights=False --set evaluate.batch_size={last}: "
    assert text in capsys.readouterr().out


@pytest.mark.slow
def test_a_sweep_ranks_what_fits_by_time(monkeypatch):
    def measured(function, *args, on, **static):
        rows = args[2].prompt.sharding.mesh.shape
        return measurement(fits=rows["tensor"] == 1, flops=1e12 * rows["fsdp"])

    monkeypatch.setattr(measure, "measure_program", measured)
    found = plan.run(config(), "h100:4", sweep=True)["plans"]
    meshes = [tuple(x["mesh"].values()) for x in found if x["remat"] == "full"]
    assert meshes[:3] == [(4, 1, 1), (2, 2, 1), (1, 4, 1)]
    assert {m[2] for m in meshes[3:]} == {2}  # 4 does not divide the heads of keys and values
    assert {x["remat"] for x in found} == {"none", "dots", "kv", "full"}


@pytest.mark.parametrize(
    ("file", "part", "drawn"),
    [
        ("configs/demo/kto.py", "step", 2),
        ("configs/demo/rdro.py", "step", 1),
        ("configs/demo/hps.py", "step", 2),
        ("configs/demo/reward_model.py", "step", 2),
        ("configs/demo/apo.py", "step", 1),
        ("configs/demo/apo.py", "reward", 5),
        ("configs/demo/dpo.py", "sft", 2),
    ],
)
def test_rows_are_of_the_kind_that_the_objective_takes(file, part, drawn):
    mesh = make_mesh(1, 2, 1)
    of = dataclasses.replace(config(file), mesh=MeshConfig(fsdp=2))
    made = programs.make_learner(of, mesh, part)
    assert made.scored == drawn
    assert made.batch.prompt.shape[0] == made.config.train.batch_size
    reference = made.batch.ref_logps is not None or made.learner.ref_params is not None
    assert reference == (part == "step" and of.reward_loss is None)


def test_adapters_hold_a_frozen_base():
    kept = ReferenceConfig(mode="cache")
    made = programs.make(
        config(lora=LoraConfig(rank=2), reference=kept), make_mesh(1, 2, 1), "step"
    )
    assert made.holds["frozen params"] > 5 * made.holds["params"] > 0
    small = programs.make(
        config(lora=LoraConfig(rank=2, quantize="int8")), make_mesh(1, 2, 1), "step"
    )
    assert small.holds["frozen params"] < made.holds["frozen params"]
    whole = programs.make(config(reference=kept), make_mesh(1, 2, 1), "step")
    assert made.model_flops == pytest.approx(whole.model_flops * 2 / 3)
    assert math.isfinite(made.tokens)


def test_a_reference_that_follows_is_part_of_the_state_and_counted():
    mesh = make_mesh(1, 2, 1)
    fixed, moving = (
        programs.make(config(reference=ReferenceConfig(mode="live", follow=follow)), mesh, "step")
        for follow in (None, FollowConfig())
    )
    assert fixed.holds["reference that follows"] == 0
    assert fixed.holds["frozen params"] == moving.holds["reference that follows"] > 0
    assert moving.holds["frozen params"] == 0
    assert moving.model_flops == fixed.model_flops
    # As compiled: the state is all that is held, and its memory is used again.
    compiled = moving.function.lower(*moving.args).compile().memory_analysis()
    held = sum(moving.holds.values())
    assert held <= compiled.argument_size_in_bytes < held + moving.holds["params"] / 2
    assert compiled.alias_size_in_bytes > 0.95 * held


def test_networks_trained_side_by_side_are_planned_so():
    changes = ["recipe.objectives.method.at_once=3", "mesh.fsdp=2"]
    several = load("configs/demo/paretohqd.py", changes)
    one = load("configs/demo/paretohqd.py", ["recipe.objectives.method.at_once=1", "mesh.fsdp=2"])
    mesh = make_mesh(1, 2, 1)
    three, alone = (programs.make(x, mesh, "step") for x in (several, one))
    assert (three.name, alone.name) == ("the step of 3 networks", "the step")
    for kind in ("params", "optimizer"):
        assert three.holds[kind] == pytest.approx(3 * alone.holds[kind], rel=1e-3)
    assert three.holds["frozen params"] == alone.holds["frozen params"]  # one base for all
    assert three.tokens == 3 * alone.tokens
    assert three.model_flops == 3 * alone.model_flops
    jax.eval_shape(three.function, *three.args)


def in_one_loop(**changes):
    """The demo's game, step by step."""
    rounds = config("configs/demo/apo.py", loss=partial(apo.loss, beta=0.1), **changes)
    settings = dataclasses.replace(
        rounds.recipe.keywords["game"], sampling=SamplingConfig(samples=3, max_new_tokens=8)
    )
    shared = {f.name: getattr(settings, f.name) for f in dataclasses.fields(GameConfig)}
    recipe = partial(recipes.play_steps, game=recipes.StepsConfig(**shared))
    return dataclasses.replace(
        rounds, select=None, reference=ReferenceConfig(mode="live"), recipe=recipe
    )


def test_a_game_in_one_loop_holds_both_players_and_of_adapters_one_base():
    """Whole networks three times each, and a reference; adapters, and what they share."""
    mesh = make_mesh(1, 1, 1)
    thin = in_one_loop(lora=LoraConfig(rank=2))
    base = bytes_per_device(pretrained.target(thin.model, mesh))
    head = bytes_per_device(pretrained.target(thin.model, mesh)["head"])
    for part in ("step", "reward"):
        made = programs.make(in_one_loop(), mesh, part)
        both = made.holds["params of both players"]
        assert 2 * base - head < both < 2 * base
        assert made.holds["optimizer of both"] == pytest.approx(2 * both, rel=0.01)
        assert made.holds["frozen params"] == (base if part == "step" else 0)
        made = programs.make(thin, mesh, part)
        assert made.holds["frozen params"] == base
        assert made.holds["params of both players"] < base / 5
        # As compiled: these once, and rows; what is not read is left out, as the vocabulary's
        # projection by a reward model.
        compiled = made.function.lower(*made.args).compile().memory_analysis()
        rows = sum(math.prod(x.shape) * 4 for x in jax.tree.leaves(made.args[2:]))
        held = sum(made.holds.values())
        least = held - (head if part == "reward" else 0)
        assert least < compiled.argument_size_in_bytes <= held + rows + 64 < held + base / 2
        assert made.tokens > 0 < made.model_flops


def test_a_reward_model_projects_to_no_vocabulary():
    made = programs.make(config("configs/demo/reward_model.py"), make_mesh(1, 2, 1), "step")
    counted = dataclasses.replace(config().model, vocab_size=1)
    assert made.model_flops == 3 * measure.forward_flops(counted, 8, 2, 16, 16)


@pytest.mark.parametrize(
    ("file", "field"),
    [
        ("configs/demo/apo.py", "recipe.game.sampling"),
        ("configs/demo/hps.py", "candidates"),
        ("configs/demo/dpo.py", "evaluate"),
    ],
)
def test_sampling_is_that_of_training_where_there_is_one(file, field):
    sizes = [f"{field}.batch_size=6", f"{field}.samples=3", f"{field}.max_new_tokens=5"]
    config = load(file, ["data.max_prompt_tokens=16", "data.max_response_tokens=16", *sizes])
    made = programs.make(config, make_mesh(1, 1, 1), "sample")
    assert made.args[1].shape == (6, 16)
    assert made.static["settings"].samples == 3
    assert made.tokens == 6 * (16 + 3 * 5)


def in_each_step(samples, **bound):
    """A plan of a step's samples, as a run on its own samples draws them."""
    whole = config("configs/demo/grpo.py", recipe=partial(recipes.train_online, **bound))
    drawn = dataclasses.replace(
        whole.candidates, samples=samples, max_new_tokens=48, batch_size=64, gather_weights=False
    )
    made = programs.make(dataclasses.replace(whole, candidates=drawn), make_mesh(1, 1, 1), "sample")
    memory = made.function.lower(*made.args).compile().memory_analysis()
    return made, memory


def test_the_samples_of_a_step_are_planned_beside_the_optimizer_and_an_opponent_s_cache():
    (own, alone), (both, mixed) = in_each_step(4), in_each_step(8, opponent=0.5)
    assert own.args[2].shape == (8, 16)  # a step's prompts, not candidates.batch_size
    assert (own.tokens, both.tokens) == (8 * (16 + 4 * 48), 8 * (16 + 8 * 48))
    assert "opponent" in both.name
    for made, memory in ((own, alone), (both, mixed)):
        held = sum(made.holds.values())
        assert made.holds["frozen params"] == made.holds["params"] > 0
        assert held <= memory.argument_size_in_bytes < held + 2**12
    # Four samples are the policy's, the others the mixture's of two networks, each with a cache.
    of = tiny.model()
    cache = 8 * (16 + 4 * 48) * 2 * of.layers * of.kv_heads * of.head_dim * 4
    assert mixed.temp_size_in_bytes - alone.temp_size_in_bytes > 0.8 * cache


def test_the_reference_of_a_policy_s_own_samples_is_in_no_cache():
    of = config("configs/demo/grpo.py", loss=partial(bradley_terry.loss, beta=0.1))
    made = programs.make_learner(of, make_mesh(1, 1, 1), "step")
    assert made.choice.mode == "live"
    assert made.learner.ref_params is not None


@pytest.mark.parametrize(
    ("file", "size", "samples", "temperature"),
    [
        ("configs/demo/paretohqd.py", "evaluate.batch_size=6", 1, 0.5),
        ("configs/multi_objective.py:morlhf", "train.batch_size=6", 3, 1.0),
        ("configs/multi_objective.py:soups", "train.batch_size=6", 3, 1.0),
    ],
)
def test_sampling_for_several_objectives_is_that_of_the_method(file, size, samples, temperature):
    """Not that of evaluation, which has a length and a number of samples of its own."""
    of = "recipe.objectives.method" + (".expert" if file.endswith("soups") else "")
    own = [f"{of}.max_new_tokens=5", "evaluate.max_new_tokens=9", "evaluate.samples=2"]
    if samples == 1:
        own.append(f"{of}.temperature={temperature}")
    else:
        own.append(f"{of}.samples={samples}")
    limits = ["data.max_prompt_tokens=16", "data.max_response_tokens=16"]
    made = programs.make(load(file, [*limits, *own, size]), make_mesh(1, 1, 1), "sample")
    settings = made.static["settings"]
    assert made.args[1].shape == (6, 16)
    assert (settings.samples, settings.max_new_tokens) == (samples, 5)
    assert settings.temperature == temperature


def folder(tmp_path, **shape):
    """A model's folder with a config.json alone: nothing else may be read of it."""
    content = dict(
        architectures=["LlamaForCausalLM"],
        model_type="llama",
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        rms_norm_eps=1e-6,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    (tmp_path / "config.json").write_text(json.dumps({**content, **shape}))
    return str(tmp_path)


def test_the_models_folder_decides_what_is_planned_and_described(tmp_path, monkeypatch, capsys):
    """By hand: 64 x 32, 3 layers of 2 x 32 x 32 + 2 x 32 x 16 + 3 x 32 x 48 + 2 x 32, and 32."""
    monkeypatch.setattr(measure, "measure_program", lambda *a, on, **k: measurement(fits=True))
    path = folder(tmp_path)
    of = dataclasses.replace(config(), model=ModelConfig(path=path))
    plan.run(of, "h100:1")
    first = capsys.readouterr().out.splitlines()[0]
    count = 64 * 32 + 3 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48 + 2 * 32) + 32
    assert first == f"model: 25.3k parameters ({count:,}; the shape is that of {path})"
    config_file = runs.write(
        tmp_path / "mine.py",
        f"""
        from alignjax.models.config import ModelConfig
        from tests import runs

        def get_config():
            return runs.get_config(model=ModelConfig(path={path!r}))
        """,
    )
    runs.here("describe", f"--config={config_file}")
    told = capsys.readouterr()
    assert json.loads(told.out)["model"]["layers"] == 3
    assert told.err.startswith(first[:22])


def test_a_model_that_is_not_here_is_planned_by_a_shape_of_the_config_or_not_at_all(caplog):
    of = config()
    assert resolved.resolve(of) is of
    assert "nowhere does not exist; the model's shape is the config's" in caplog.text
    shapeless = dataclasses.replace(config(), model=ModelConfig(path="nowhere"))
    with pytest.raises(UserError, match=r"^model.path: wanted .* found neither: nowhere does not"):
        resolved.resolve(shapeless)


@pytest.mark.parametrize(
    ("changes", "responses", "scored", "choice"),
    [
        (
            ["train.epochs=1"],
            2,
            2,
            ("cache", "forward passes per row: 2 to precompute, 2 on the fly"),
        ),
        (
            ["train.epochs=0.5"],
            2,
            2,
            ("live", "forward passes per row: 2 to precompute, 1 on the fly"),
        ),
        (
            ["train.epochs=2"],
            5,
            2,
            ("live", "forward passes per row: 5 to precompute, 4 on the fly"),
        ),
        (
            *(["train.steps=100", "train.batch_size=8"], 4, 2),
            ("live", "depends on the data: precomputed for at most 400 rows"),
        ),
        (["reference.mode=cache", "train.steps=9"], 2, 2, ("cache", "reference.mode=cache")),
    ],
)
def test_the_reference_is_seen_as_a_run_decides(changes, responses, scored, choice):
    of = load("configs/demo/dpo.py", changes)
    found = resolved.choose_reference(of, responses=responses, scored=scored, cacheable=True)
    assert (found.mode, found.reason) == choice


def test_what_a_cpu_holds_is_this_machines_memory_and_the_process_counts():
    two = chips.find_machine("cpu:2")
    assert two.chip.memory == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2
    twice = jax.jit(lambda x: 2 * x)
    shape = jax.ShapeDtypeStruct((1000,), "float32")
    found = measure.measure_program(twice, shape, on=two)
    assert found.total == found.arguments + found.output + found.temporary + chips.PROCESS / 2
    with pytest.raises(UserError, match=r"wanted a number of devices, such as cpu:1"):
        chips.find_machine("cpu:x")
