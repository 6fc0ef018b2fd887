"""Configs: the mesh divides the network, and at the papers' sizes every step has shapes.

Nothing is allocated: a network of 70 billion parameters is traced like one of a million. Smaller
configs are for running; here only their network is looked at.
"""

from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from alignjax.config import Config, load
from alignjax.config.validate import get
from alignjax.errors import UserError
from alignjax.models.config import check_adapters
from alignjax.models.transformer import init_params
from alignjax.planning import programs
from alignjax.runtime import sharding
from alignjax.stages import adapters, pretrained
from tests import runs

SIZES = {"1.5b": 1.5e9, "8b": 8e9, "70b": 70e9}
FOLDER = runs.ROOT / "configs"
PAPERS = ("hps", "apo", "rdro", "paretohqd")
LARGE = {f"{paper}:{size}": f"{FOLDER / paper}.py:{size}" for paper in PAPERS for size in SIZES}
CONFIGS = LARGE | {
    str(path.relative_to(FOLDER).with_suffix("")): str(path)
    for path in sorted(FOLDER.rglob("*.py"))
    if path.stem not in PAPERS or path.parent != FOLDER
}


def size_of(name: str) -> float:
    """Parameters that a config's name tells, 0 where it tells none."""
    return SIZES.get(name.partition(":")[2], 0.0)


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


@pytest.mark.parametrize("name", CONFIGS)
def test_a_mesh_divides_the_network(name):
    config = load.load(CONFIGS[name], [])
    network, _ = shapes_of(config)
    if size := size_of(name):
        count = sum(x.size for x in jax.tree.leaves(network))
        assert 0.95 < count / size < 1.1


@pytest.mark.parametrize("name", [name for name in CONFIGS if size_of(name)])
def test_a_step_has_shapes(name):
    config = load.load(CONFIGS[name], [])
    for part in ("step", "reward") if get(config, "recipe.game") else ("step",):
        made = programs.make(config, sharding.make_mesh(1, 1, 1), part)
        found, scalars = jax.eval_shape(made.function, *made.args)
        assert jax.tree.structure(found.params) == jax.tree.structure(made.args[0].params)
        assert scalars["loss"].shape == ()


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


def test_a_size_may_be_annotated_by_text(tmp_path):
    text = (FOLDER / "hps.py").read_text()
    later = tmp_path / "later.py"
    later.write_text("from __future__ import annotations\n" + text)
    assert load.load(f"{later}:70b", []).model.width == 8192


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("hps.py:9b", r"--config: \S*hps\.py:9b: .*1\.5b, 8b, 70b, found '9b'"),
        ("demo/dpo.py:8b", r"--config: \S*dpo\.py:8b: wanted no size, found '8b'"),
        ("hsp.py:8b", r"no file \S*hsp\.py.*hps\.py"),
        ("hps.py:", r"no file \S*hps\.py:"),
    ],
)
def test_a_size_that_is_not_there_is_refused(path, wanted):
    with pytest.raises(UserError, match=wanted):
        load.load(str(FOLDER / path), [])
