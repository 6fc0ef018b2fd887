"""Published shapes: their numbers of parameters, and config.json of each in both directions."""

import inspect
import math
import re

import jax
import pytest

from alignjax.models import presets
from alignjax.models.hf import configjson
from alignjax.models.transformer import init_params

FAMILIES = {
    "llama": "llama",
    "mistral": "mistral",
    "qwen25": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
}
NAMES = [n for n, f in inspect.getmembers(presets, inspect.isfunction) if not n.startswith("_")]


@pytest.mark.parametrize("name", NAMES)
def test_the_number_of_parameters_is_the_published_one(name):
    preset = getattr(presets, name)
    shapes = jax.eval_shape(lambda: init_params(preset(), jax.random.key(0)))
    stated = re.search(r"([\d,]+) parameters", preset.__doc__)
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(shapes)) == int(
        stated[1].replace(",", "")
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_goes_through_config_json_unchanged(name):
    config = getattr(presets, name)()
    family = next(kind for start, kind in FAMILIES.items() if name.startswith(start))
    content = configjson.write(config, family)
    assert content["model_type"] == family
    assert configjson.read(content, "x") == config
