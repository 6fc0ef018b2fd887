"""Loads a model's folder into parameters on their devices, one tensor at a time.

Tensors are copied from the file one layer, or some rows, at a time, and written into the
parameters on the devices: the host never holds the whole model. Names, shapes and dtypes are
checked before any tensor is read. Nothing is unpickled and no code of a model is run.
"""

import dataclasses
import functools
import json
import logging
import math
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from alignjax import digests, gguf_files
from alignjax.errors import UserError
from alignjax.models.config import ModelConfig
from alignjax.models.hf import configjson, gguf, tensorfile
from alignjax.models.hf.families import OTHER_TENSORS, tensor_name
from alignjax.models.hf.tensorfile import Tensor
from alignjax.types import Array, Params

log = logging.getLogger("alignjax")

PIECE = 2**27  # bytes of a parameter that are copied to each device at a time; or one layer
MAX_JSON = 16 * 2**20  # bytes of config.json or of an index
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


def is_classifier(path: str) -> bool:
    """Whether a path is the folder of a reward model saved by transformers."""
    if not path or gguf_files.is_gguf(path):
        return False
    file = pathlib.Path(path) / "config.json"
    return bool(configjson.labels(read_json(file), str(file)))


def resolve(config: ModelConfig, *, reward: bool = False) -> ModelConfig:
    """Fills in the shape of the model in ``config.path``, if a path is set.

    With ``reward`` the folder may hold a reward model.

    Raises:
      UserError: the folder's config.json is missing or not supported, or ``config`` sets a field
        of the shape to another value.
    """
    if not config.path:
        return config
    folder = pathlib.Path(config.path)
    classifier = reward and is_classifier(config.path)
    shape = configjson.shape_fields(read_config(folder, reward=classifier))
    given, default = configjson.shape_fields(config), configjson.shape_fields(ModelConfig())
    for name, value in given.items():
        if value not in (default[name], shape[name]):
            raise UserError(
                f"model.{name}: wanted it unset or {shape[name]!r}, as in {folder}/config.json, "
                f"found {value!r}"
            )
    return dataclasses.replace(config, **shape)


def read_config(folder: pathlib.Path, *, reward: bool = False) -> ModelConfig:
    """Reads the shape of a policy or a reward model from a folder's config.json or a GGUF file."""
    if gguf_files.is_gguf(folder):
        return configjson.read(gguf.config(str(folder)), str(folder), reward=reward)
    file = folder / "config.json"
    content = read_json(file)
    if content.get("auto_map"):
        log.warning("%s: auto_map is ignored: a model's code is never run", file)
    config = configjson.read(content, str(file), reward=reward)
    notes = configjson.notes(content)
    if notes:
        _log_once(f"{file}: fields without effect: {', '.join(notes)}")
    return config


@functools.cache  # a run reads the files several times
def _log_once(line: str) -> None:
    log.info("%s", line)


def read_json(file: pathlib.Path) -> dict[str, Any]:
    """Reads a JSON object from a file of at most `MAX_JSON` bytes.

    Raises:
      UserError: the file is missing, too large, or not a JSON object.
    """
    if not file.is_file():
        near = "" if file.parent.is_dir() else f" (no folder {file.parent})"
        raise UserError(f"{file}: no such file{near}; wanted a folder saved by transformers")
    if file.stat().st_size > MAX_JSON:
        raise UserError(f"{file}: wanted at most {MAX_JSON // 2**20} MiB, found more")
    try:
        content = json.loads(digests.read(file))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: wanted a JSON object, found {type(content).__name__}")
    return content


def find_tensors(folder: pathlib.Path) -> dict[str, Tensor]:
    """Lists the tensors in ``model.safetensors``, else in the files that the index names.

    If both exist, the index is not read, as in transformers.

    Raises:
      UserError: no such file (pickles are not opened), a damaged file, a file outside the folder,
        or an index that does not match the files.
    """
    if gguf_files.is_gguf(folder):
        return gguf.tensors(str(folder))
    weights = None
    if (folder / SINGLE).is_file():
        names = [SINGLE]
        if (folder / INDEX).is_file():
            _log_once(f"{folder}: reading {SINGLE}; ignoring the files that {INDEX} names")
    elif (folder / INDEX).is_file():
        weights = _weight_map(folder)
        names = sorted(set(weights.values()))
    else:
        there = sorted(f.name for f in folder.glob("*")) if folder.is_dir() else []
        pickles = [name for name in there if name.endswith(PICKLES)]
        if pickles:
            raise UserError(
                f"{folder}: {pickles[0]} is a pickle, which can run code, and is not opened; "
                'if you trust it, convert it: python -c "from transformers import '
                f"AutoModelForCausalLM as M; M.from_pretrained('{folder}').save_pretrained('NEW')\""
            )
        raise UserError(f"{folder}: wanted {SINGLE} or {INDEX}, found neither")
    tensors: dict[str, Tensor] = {}
    for name in names:
        for tensor, entry in tensorfile.read_header(inside(folder, name)).items():
            if tensor in tensors:
                raise UserError(
                    f"{entry.file}: tensor {tensor!r}: is also in {tensors[tensor].file}"
                )
            tensors[tensor] = entry
    if weights is not None:
        for tensor in sorted(set(weights) | set(tensors)):
            found = tensors[tensor].file.name if tensor in tensors else "none"
            if found != weights.get(tensor):
                raise UserError(
                    f"{folder / INDEX}: tensor {tensor!r}: wanted in {weights.get(tensor)}, found "
                    f"in {found}: the index does not match the files"
                )
    return tensors


def _weight_map(folder: pathlib.Path) -> dict[str, str]:
    """Reads the file of every tensor from the index."""
    weights = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weights, dict) or not all(isinstance(x, str) for x in weights.values()):
        raise UserError(f"{folder / INDEX}: weight_map: wanted a file name for each tensor")
    return weights


def inside(folder: pathlib.Path, name: str) -> pathlib.Path:
    """Returns the path of a file that lies in the folder itself.

    Links that leave the folder are followed only in a hub cache, into its ``blobs``.

    Raises:
      UserError: the name or a link leaves the folder, or there is no such file.
    """
    file = folder / name
    plain = name == pathlib.PurePath(name).name and name not in ("", ".", "..") and "\\" not in name
    homes = [folder.resolve()]
    if folder.resolve().parent.name == "snapshots":  # files there are links to ../../blobs
        homes.append(folder.resolve().parent.parent / "blobs")
    if not plain or file.resolve().parent not in homes:
        raise UserError(f"{folder}: {name!r:.200}: shard path leaves the model directory")
    if not file.is_file():
        raise UserError(f"{folder}: {name!r:.200}: the index names this file, but it is missing")
    return file


def load_params(
    folder: pathlib.Path,
    target: Params,
    config: ModelConfig,
    finish: Callable[[str, Array], Any] = lambda path, parameter: parameter,
) -> Params:
    """Loads a model's parameters, with the shapes, dtypes and shardings of ``target``.

    Args:
      folder: a model saved by transformers, or a GGUF file.
      target: `jax.ShapeDtypeStruct` with shardings, in the tree of ``init_params``. Values are
        converted to its dtypes; to float32 this is exact.
      config: the network, from `resolve`.
      finish: (path, parameter) -> the value to keep, a quantised one for example; called before
        the next parameter is read.

    Raises:
      UserError: tensors are missing, unexpected, or of another shape or dtype (one error lists
        them all), or a tensor holds NaN or infinity.
    """
    tensors = find_tensors(folder)
    head, embedding = OTHER_TENSORS["head"], OTHER_TENSORS["embed/embedding"]
    if config.tied_embeddings and embedding not in tensors and head in tensors:
        tensors[embedding] = tensors.pop(head)  # tied weights are stored under either name
    check_tensors(folder, tensors, target, config)

    def leaf(path: tuple[Any, ...], like: jax.ShapeDtypeStruct) -> Any:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        read = _read_leaf(tensors, tensor_name(name, config), name.endswith("kernel"), like)
        return finish(name, read)

    return jax.tree_util.tree_map_with_path(leaf, target)


def _read_leaf(
    tensors: dict[str, Tensor], name: str, transposed: bool, like: jax.ShapeDtypeStruct
) -> Array:
    """Loads one parameter: one layer at a time if layers are stacked, else some rows at a time."""
    sharding: Any = like.sharding
    shape, stacked = like.shape, "{}" in name
    share = sharding.shard_shape(shape)[0]  # rows, or layers, on one device
    row_bytes = math.prod(shape[1:]) * (shape[0] // share) * like.dtype.itemsize
    step = 1 if stacked else min(share, max(1, PIECE // row_bytes))

    def piece(begin: int) -> Array:
        """Reads rows ``begin`` to ``begin + step`` of every device's share."""

        def part(index: Any) -> np.ndarray:
            tensor = tensors[name.format(begin)]
            view = tensor.open()
            view = view.T if transposed else view
            if stacked:
                rows = index[1:]
            else:
                first = (index[0].start or 0) // step * share + begin
                rows = (slice(first, first + step), *index[1:])
            with np.errstate(over="ignore"):  # overflow gives infinity, which is refused below
                copy = np.array(view[rows], like.dtype, order="C")  # no longer mapped
            if not np.isfinite(copy).all():
                raise UserError(
                    f"{tensor.file}: tensor {name.format(begin)!r}: holds numbers that are not "
                    f"finite in {like.dtype}"
                )
            return copy[None] if stacked else copy

        size = (shape[0] // share * step, *shape[1:])
        return jax.make_array_from_callback(size, sharding, part)

    if step == share:
        return piece(0)
    whole = jnp.zeros(shape, like.dtype, device=sharding)
    for begin in range(0, share, step):
        begin = min(begin, share - step)  # the last piece may overlap the one before
        whole = _writer(sharding)(whole, piece(begin), begin)
    return whole


@functools.cache
def _writer(sharding: NamedSharding) -> Any:
    """Compiles ``(whole, piece, begin) -> whole``: every device writes the piece into its share."""
    write = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=0)
    spec = sharding.spec
    shared = jax.shard_map(write, mesh=sharding.mesh, in_specs=(spec, spec, P()), out_specs=spec)
    return jax.jit(shared, donate_argnums=0)


def wanted_tensors(target: Params, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Returns every tensor's name and shape, as in the files: kernels are transposed."""
    wanted: dict[str, tuple[int, ...]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(target):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        tensor, shape = tensor_name(name, config), tuple(leaf.shape)
        stacked = "{}" in tensor
        shape = shape[1:] if stacked else shape
        shape = shape[::-1] if name.endswith("kernel") else shape
        wanted.update({tensor.format(i): shape for i in range(leaf.shape[0] if stacked else 1)})
    return wanted


def check_tensors(
    folder: pathlib.Path, tensors: dict[str, Tensor], target: Params, config: ModelConfig
) -> None:
    """Compares a folder's tensors with the network's; one error lists every difference.

    Raises:
      UserError: see `load_params`.
    """
    wanted = wanted_tensors(target, config)
    head, embedding = OTHER_TENSORS["head"], OTHER_TENSORS["embed/embedding"]
    # Files may also hold a tied head, and old ones rotary frequencies: neither is needed.
    redundant = {name for name in tensors if name.endswith("rotary_emb.inv_freq")}
    if config.tied_embeddings and head in tensors and embedding in tensors:
        if not _equal(tensors[head], tensors[embedding]):
            raise UserError(
                f"{folder}: config.json ties the head to the embedding, and {head} differs from "
                f"{embedding}"
            )
        redundant.add(head)
    faults = []
    for name in sorted(set(wanted) | set(tensors) - redundant, key=_by_number):
        found = tensors.get(name)
        have = "none" if found is None else f"{found.dtype} {list(found.shape)}"
        want = f"a float {list(wanted[name])}" if name in wanted else "none"
        if found is None or name not in wanted or found.shape != wanted[name]:
            transposed = found and name in wanted and found.shape == wanted[name][::-1]
            note = " (transposed)" if transposed else ""
            faults.append(f"{name}: wanted {want}, found {have}{note}")
        elif found.dtype not in tensorfile.FLOATS:
            faults.append(f"{name}: wanted {want}, found {have}")
    if faults:
        more = f"; and {len(faults) - 20} more" if len(faults) > 20 else ""
        raise UserError(
            f"{folder}: {len(faults)} tensors do not fit config.json: "
            f"{'; '.join(faults[:20])}{more}"
        )


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same numbers, after rounding to the narrower dtype."""
    both = {a.dtype, b.dtype}
    if a.shape != b.shape or not both <= set(tensorfile.FLOATS):
        return False
    x, y = a.open(), b.open()
    if x.dtype.itemsize < y.dtype.itemsize:
        x, y = y, x
    # bfloat16 and float16 are each exact in float32, and neither in the other.
    common = np.dtype(np.float32) if both == {"F16", "BF16"} else y.dtype
    with np.errstate(over="ignore"):
        return all(
            bool((x[i : i + 1024].astype(common) == y[i : i + 1024].astype(common)).all())
            for i in range(0, len(x), 1024)
        )


def _by_number(name: str) -> list[tuple[int, str]]:
    """Returns a key that sorts layer 10 after layer 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
