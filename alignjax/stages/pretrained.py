"""Loads models onto the mesh, and saves parameters and files of runs.

An imported folder holds the model's files (config.json, the tokenizer) and its parameters as an
alignjax checkpoint in ``params/``; ``imported.json`` has their dtype.
"""

import dataclasses
import functools
import logging
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from alignjax import digests, gguf_files
from alignjax.config import Config
from alignjax.data.tokenizer import gguf as gguf_tokenizer
from alignjax.data.tokenizer.files import MORE_TEMPLATES
from alignjax.errors import UserError
from alignjax.models import kernels, quantized, reward_head
from alignjax.models.config import ModelConfig, check_adapters
from alignjax.models.hf import gguf
from alignjax.models.hf import load as hf
from alignjax.models.hf.save import write_json
from alignjax.models.transformer import check_length, init_params
from alignjax.runtime import artifacts, checkpoint, sharding
from alignjax.runtime.distributed import run_on_main
from alignjax.runtime.storage import read_json
from alignjax.types import Array, Params

log = logging.getLogger("alignjax")

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "spiece.model", "tokenizer_config.json", "merges.txt"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "chat_template.jinja"),
)
# Files that are read with a tokenizer's file, if the config names the file and not its folder.
BESIDE_TOKENIZER = (
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    "chat_template.jinja",
)
IMPORTED = "imported.json"
MODEL_FILES = ("config.json", "generation_config.json")


def resolve(config: Config, *, runs: bool = True) -> Config:
    """Fills in the shape and, unless the config names another, the tokenizer of ``model.path``.

    Args:
      config: a run's.
      runs: whether its networks will run on this machine's devices.

    Raises:
      UserError: see `alignjax.models.hf.load.resolve`; or ``lora.rank`` is too large for the model,
        ``mesh.tensor`` does not divide its heads, or ``model.attention`` names a kernel that does
        not support the devices or the model.
    """
    rewards = config.reward_loss is not None and config.loss is None
    model = hf.resolve(config.model, reward=rewards)
    if rewards and config.sft is not None and hf.is_classifier(model.path):
        raise UserError(
            f"sft: {model.path} is a reward model, which has no language-model head; set sft=None "
            "to train it further"
        )
    check_length(model, config.data.max_prompt_tokens + config.data.max_response_tokens)
    tokenizer = config.tokenizer
    if model.path and not tokenizer.path:
        tokenizer = dataclasses.replace(tokenizer, path=model.path)
    if config.lora is not None:
        check_adapters(config.lora, model)
    if runs:
        sharding.check_heads(model, config.mesh.tensor)
    if runs and model.attention != "auto":
        kernels.choose(model, jax.default_backend(), config.mesh.tensor)
    return dataclasses.replace(config, model=model, tokenizer=tokenizer)


def target(config: ModelConfig, mesh: Mesh, *, objectives: int = 0) -> Params:
    """Returns shapes, dtypes and shardings of a policy's or a reward model's parameters."""
    init = functools.partial(init_params, config)
    if objectives:
        init = functools.partial(reward_head.init_params, config, objectives=objectives)
    shapes = jax.eval_shape(init, jax.random.key(0))
    return sharding.abstract(shapes, sharding.shard_tree(shapes, mesh))


def load(config: ModelConfig, mesh: Mesh, quantize: str = "") -> Params:
    """Loads the parameters in ``config.path``, in ``config.param_dtype``, on the mesh.

    Args:
      config: the network.
      mesh: the devices.
      quantize: `LoraConfig.quantize`. A folder of tensors is quantised one parameter at a time, so
        the devices never hold the whole unquantised network; an imported one after loading.
    """
    folder = pathlib.Path(config.path)
    if not (folder / IMPORTED).is_file():
        finish = functools.partial(_quantized_leaf, kind=quantize, mesh=mesh)
        return hf.load_params(folder, target(config, mesh), config, finish)
    stored = dataclasses.replace(config, param_dtype=stored_dtype(folder))
    params = checkpoint.load_params(folder / "params", target(stored, mesh))
    params = jax.tree.map(lambda x: x.astype(config.param_dtype), params)
    return quantize_params(params, quantize, mesh)


def stored_dtype(folder: pathlib.Path) -> str:
    """Reads the dtype of an imported folder's parameters."""
    return str(read_json(folder / IMPORTED)["param_dtype"])


def quantize_params(params: Params, kind: str, mesh: Mesh) -> Params:
    """Quantises projections to codes and scales; with an empty ``kind`` changes nothing."""

    def leaf(path: tuple[Any, ...], parameter: Array) -> Any:
        return _quantized_leaf(sharding.path_name(path), parameter, kind=kind, mesh=mesh)

    return jax.tree_util.tree_map_with_path(leaf, params)


def _quantized_leaf(path: str, parameter: Array, *, kind: str, mesh: Mesh) -> Any:
    if not kind or not quantized.kernel_name(path):
        return parameter
    encode = functools.partial(quantized.encode, kind=kind)
    shapes = jax.eval_shape(encode, parameter)
    # Codes and scales are separate arrays with their own sharding rules.
    named = {f"{path}/{name}": shape for name, shape in shapes.items()}
    shards = sharding.shard_tree(named, mesh)
    layout = {name: shards[f"{path}/{name}"] for name in shapes}
    return jax.jit(encode, out_shardings=layout)(parameter)


def fresh(model: ModelConfig, seed: int, mesh: Mesh, quantize: str = "") -> Callable[[], Params]:
    """Makes a loader of a run's initial parameters, from ``model.path`` or the seed."""
    if model.path:
        return functools.partial(load, model, mesh, quantize)
    init = functools.partial(init_params, model, jax.random.key(seed))
    shards = sharding.shard_tree(jax.eval_shape(init), mesh)
    initialise = jax.jit(init, out_shardings=shards)
    return lambda: quantize_params(initialise(), quantize, mesh)


def supervised_params(workdir: pathlib.Path) -> pathlib.Path:
    """Returns the folder of the supervised stage's parameters."""
    return workdir / "sft" / "params"


def supervised(
    model: ModelConfig, workdir: pathlib.Path, mesh: Mesh, quantize: str = ""
) -> Callable[[], Params]:
    """Makes a loader of the supervised parameters."""
    layout, folder = target(model, mesh), supervised_params(workdir)
    return lambda: quantize_params(checkpoint.load_params(folder, layout), quantize, mesh)


def keep_params(path: pathlib.Path, params: Params) -> str:
    """Saves parameters, unless they exist undamaged; returns their digest."""
    digest = checkpoint.tree_digest(params)
    artifacts.reuse(
        path,
        {"params": digest},
        lambda scratch: checkpoint.save_params(scratch / path.name, params),
        lambda path: None,
    )
    return digest


def keep_files(config: Config, workdir: pathlib.Path) -> None:
    """Copies the model's files other than tensors, and its tokenizer, to the run's ``pretrained/``.

    A tokenizer without a model goes to ``tokenizer/``.
    """
    model, path = config.model.path, config.tokenizer.path
    if not path:
        return
    folder = workdir / ("pretrained" if model else "tokenizer")
    tokenizer = pathlib.Path(path)

    def copy(to: pathlib.Path) -> None:
        to.mkdir()
        if model:
            copy_model(pathlib.Path(model), to)
        if tokenizer.is_dir() or gguf_files.is_gguf(tokenizer):
            copy_tokenizer(tokenizer, to)
        else:
            copy_files(tokenizer.parent, to, (tokenizer.name, *BESIDE_TOKENIZER))
            copy_templates(tokenizer.parent, to)
        digests.seal(to)

    artifacts.reuse(
        folder,
        {"model": model, "tokenizer": path},
        lambda scratch: run_on_main("pretrained", lambda: copy(scratch / folder.name)),
        lambda path: None,
    )


def copy_tokenizer(source: pathlib.Path, to: pathlib.Path) -> None:
    """Copies a tokenizer's files and its chat templates, or writes those of a GGUF file."""
    if gguf_files.is_gguf(source):
        for name, content in gguf_tokenizer.files(str(source)).items():
            if name != "generation_config.json":
                (to / name).write_bytes(content)
        return
    copy_files(source, to, TOKENIZER_FILES)
    copy_templates(source, to)


def copy_model(source: pathlib.Path, to: pathlib.Path) -> None:
    """Copies a model's files other than its tensors, or writes them from a GGUF file."""
    if not gguf_files.is_gguf(source):
        copy_files(source, to, MODEL_FILES)
        return
    write_json(to / "config.json", gguf.config(str(source)))
    ends = {"eos_token_id": list(gguf_tokenizer.ends_of(str(source)))}
    write_json(to / "generation_config.json", ends)


def copy_templates(source: pathlib.Path, to: pathlib.Path) -> None:
    """Copies the named chat templates."""
    folder = source / MORE_TEMPLATES
    names = tuple(sorted(file.name for file in folder.glob("*.jinja")))
    if names:
        (to / MORE_TEMPLATES).mkdir()
        copy_files(folder, to / MORE_TEMPLATES, names)


def copy_files(source: pathlib.Path, to: pathlib.Path, names: tuple[str, ...]) -> None:
    """Copies the files that exist; refuses links that leave the folder."""
    for name in names:
        if os.path.lexists(source / name):
            shutil.copyfile(hf.inside(source, name), to / name)
