"""Configs: the mesh divides the network, and at the papers' sizes every step has shapes.

Nothing is allocated: a network of 70 billion parameters is traced like one of a million. Smaller
configs are for running; here only their network is looked at.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from alignjax.config import Config, load
from alignjax.config.fields import keywords, plain
from alignjax.config.validate import get
from alignjax.errors import UserError
from alignjax.models import reward_head
from alignjax.models.config import check_adapters
from alignjax.models.logps import response_logps
from alignjax.models.transformer import init_params
from alignjax.runtime import sharding
from alignjax.stages import adapters, pretrained
from alignjax.training import optim
from alignjax.training.step import (
    Update,
    init_state,
    reward_scores,
    score,
    train_step,
    with_adapters,
)
from alignjax.types import Batch
from tests import runs

SIZES = {"1.5b": 1.5e9, "8b": 8e9, "70b": 70e9}
FOLDER = runs.ROOT / "configs"
PAPERS = ("hps", "apo", "rdro", "paretohqd")
LABELLED = ("bco", "ddro", "kto", "rdro")
SCORED = ("apo",)  # on samples, which a reward model scores
LARGE = {f"{paper}:{size}": f"{FOLDER / paper}.py:{size}" for paper in PAPERS for size in SIZES}
CONFIGS = LARGE | {
    str(path.relative_to(FOLDER).with_suffix("")): str(path)
    for path in sorted(FOLDER.rglob("*.py"))
    if path.stem not in PAPERS or path.parent != FOLDER
}


def size_of(name: str) -> float:
    """Parameters that a config's name tells, 0 where it tells none."""
    return SIZES.get(name.partition(":")[2], 0.0)


def batch_of(config: Config, size: int) -> Any:
    """Rows with all that a loss may read: scores or labels, by what its data have."""
    k, p, r = 3, config.data.max_prompt_tokens, config.data.max_response_tokens
    function = config.loss or config.reward_loss
    extra = {}
    file = plain(function).__module__.rpartition(".")[2]
    if file in LABELLED:
        k, extra = 1, {"desirable": jax.ShapeDtypeStruct((size, 1), jnp.bool_)}
    elif "preference" in keywords(plain(function)):
        m = len(get(config, "recipe.objectives").names)
        k, extra = 2, {"scores": jax.ShapeDtypeStruct((size, 2, m), jnp.float32)}
    elif config.select is not None or config.candidates is not None or file in SCORED:
        extra = {"scores": jax.ShapeDtypeStruct((size, k), jnp.float32)}
    else:
        k = 2

    def ints(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.int32)

    return Batch(
        prompt=ints(size, p),
        prompt_length=ints(size),
        response=ints(size, k, r),
        response_length=ints(size, k),
        weight=jax.ShapeDtypeStruct((size,), jnp.float32),
        prompt_id=ints(size),
        **extra,
    )


def players(config: Config) -> list[Config]:
    """The config itself, or of a game those of the policy and of the reward model."""
    game = get(config, "recipe.game")
    if game is None:
        return [config]
    parts = dict(recipe=None, candidates=None)
    own = dict(optim=game.optim, train=game.train)
    evaluate = dataclasses.replace(config.evaluate, judge=None, scorers=())
    return [
        dataclasses.replace(config, **parts, reward_loss=None),
        dataclasses.replace(
            config, **parts, **own, loss=None, select=None, baseline=None, evaluate=evaluate
        ),
    ]


def shapes_of(config: Config) -> tuple[Any, Any]:
    """The network's parameters, and what is trained."""
    mesh = AbstractMesh(
        (config.mesh.data, config.mesh.fsdp, config.mesh.tensor),
        sharding.AXES,
        axis_types=(AxisType.Auto,) * 3,
    )
    reward = config.loss is None
    network = pretrained.target(config.model, mesh, objectives=int(reward))
    if config.lora is None:
        return network, network
    check_adapters(config.lora, config.model)
    return network, adapters.target(config.lora, config.model, mesh, objectives=int(reward))


def evaluate_step(config: Config) -> None:
    network, trained = shapes_of(config)
    optimizer = optim.make(config.optim, 10)
    state = jax.eval_shape(lambda p: init_state(p, optimizer, jax.random.key(0)), trained)
    reward = config.loss is None
    loss, baseline = config.trained_loss, config.baseline
    if "desirable_fraction" in keywords(plain(loss)):
        loss = functools.partial(loss, desirable_fraction=0.4)
        if baseline is not None and "desirable_fraction" in keywords(plain(baseline)):
            baseline = functools.partial(baseline, desirable_fraction=0.4)
    if "preference" in keywords(plain(loss)):  # the method binds each of the config's
        names = get(config, "recipe.objectives").names
        loss = functools.partial(loss, preference=(1.0,) * len(names))
    apply = reward_head.response_scores if reward else response_logps
    forward: Any = reward_scores if reward else score
    if config.lora is not None:
        forward = functools.partial(
            with_adapters, forward=forward, config=config.lora, live=not reward
        )
    base = network if config.lora is not None or not reward else None
    step = functools.partial(
        train_step,
        update=Update(
            apply=functools.partial(apply, config=config.model),
            optimizer=optimizer,
            loss=loss,
            forward=forward,
            select=config.select,
            baseline=baseline,
            accumulate=config.train.accumulate,
        ),
    )
    found, scalars = jax.eval_shape(step, state, base, batch_of(config, config.train.batch_size))
    assert jax.tree.structure(found.params) == jax.tree.structure(trained)
    assert scalars["loss"].shape == ()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_mesh_divides_the_network(name):
    config = load.load(CONFIGS[name], [])
    network, _ = shapes_of(config)
    if size := size_of(name):
        count = sum(x.size for x in jax.tree.leaves(network))
        assert 0.95 < count / size < 1.1


@pytest.mark.parametrize("name", [name for name in CONFIGS if size_of(name)])
def test_a_step_has_shapes(name):
    for player in players(load.load(CONFIGS[name], [])):
        evaluate_step(player)


def test_a_mesh_that_does_not_divide_is_seen():
    config = runs.changed("mesh.tensor=3", "model.vocab_size=384")
    with pytest.raises(UserError, match=r"mesh\.tensor=3 does not divide \d+, a dimension of "):
        shapes_of(config)


def test_nothing_is_allocated():
    before = {id(x) for x in jax.live_arrays()}
    config = load.load(CONFIGS["rdro:70b"], [])
    network, _ = shapes_of(config)
    assert {type(x) for x in jax.tree.leaves(network)} == {jax.ShapeDtypeStruct}
    new = [x for x in jax.live_arrays() if id(x) not in before]
    assert sum(x.nbytes for x in new) < 2**20
    assert np.prod(network["head"].shape) * 4 > 2**31
    assert jax.tree.structure(jax.eval_shape(lambda: init_params(config.model, jax.random.key(0))))


def test_a_path_tells_the_size(tmp_path):
    models = {size: load.load(f"{FOLDER / 'hps.py'}:{size}", []).model for size in SIZES}
    assert [model.width for model in models.values()] == [1536, 4096, 8192]
    assert load.load(str(FOLDER / "hps.py"), []).model == models["8b"]
    odd = tmp_path / "my:config.py"  # a colon in a file's own name is none before a size
    odd.write_text((FOLDER / "demo" / "dpo.py").read_text())
    load.load(str(odd), [])


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("hps.py:9b", r"--config: \S*hps\.py:9b: .*1\.5b, 8b, 70b, found '9b'"),
        ("demo/dpo.py:8b", r"--config: \S*dpo\.py:8b: found size '8b'"),
        ("hsp.py:8b", r"no file \S*hsp\.py.*hps\.py"),
        ("hps.py:", r"no file \S*hps\.py:"),
    ],
)
def test_a_size_that_is_not_there_is_refused(path, wanted):
    with pytest.raises(UserError, match=wanted):
        load.load(str(FOLDER / path), [])
