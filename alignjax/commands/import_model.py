"""Imports and exports models that alignjax did not train: folders and GGUF files."""

import contextlib
import dataclasses
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from alignjax import digests, gguf_files
from alignjax.data.tokenizer import gguf_save
from alignjax.data.tokenizer import load as tokenizers
from alignjax.errors import UserError
from alignjax.models.config import DTYPES, ModelConfig, RopeScaling
from alignjax.models.hf import configjson, gguf
from alignjax.models.hf import load as hf
from alignjax.models.hf.save import save_model, write_json
from alignjax.runtime import artifacts, checkpoint, sharding
from alignjax.stages import pretrained

log = logging.getLogger("alignjax")

# Text that different tokenizers split differently; ids are compared on it.
_SAMPLE = "It's 12,345 o'clock.\n\n  Où? Grüße  naïve:\tfoo_bar(x) <b>語</b> 🙂\n"


def import_model(source: str, to: str) -> None:
    """Imports a model saved by transformers into a folder of alignjax's format.

    Args:
      source: a folder with config.json, safetensors and tokenizer files; or a GGUF file.
      to: a folder that does not exist yet; it appears when it is complete.

    Raises:
      UserError: the model is not supported or damaged; the tokenizer has more ids than the
        embedding has rows; ``to`` exists.
    """
    folder = pathlib.Path(source)
    _refuse_reward_model(folder)
    config = _config(folder)
    with artifacts.new_folder(to) as made:
        _copy_files(folder, made, config)
        params = pretrained.load(config, sharding.make_mesh(1, 1, 1))
        checkpoint.save_params(made / "params", params)
        write_json(made / pretrained.IMPORTED, {"format": 1, "param_dtype": config.param_dtype})
        digests.seal(made)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    log.info("%s: %s parameters in %s", to, f"{count:,}", config.param_dtype)


def export_model(source: str, to: str, *, dtype: str = "") -> None:
    """Exports a model that alignjax did not train, unchanged: the reverse of `import_model`.

    Args:
      source: an imported folder, a folder saved by transformers, or a GGUF file.
      to: a folder, or a name that ends in ``.gguf``, that does not exist yet.
      dtype: dtype of the stored tensors; empty: the source's, or ``f16`` in a GGUF file.

    Raises:
      UserError: the model is not supported or damaged; ``to`` exists or cannot hold the model.
    """
    check_dtype(to, dtype)
    folder = pathlib.Path(source)
    _refuse_reward_model(folder)
    config = _config(folder)
    stored = config.param_dtype if gguf_files.is_gguf(to) or not dtype else dtype
    with destination(to, dtype) as made:
        _copy_files(folder, made, config)
        original = hf.read_json(made / "config.json")
        params = pretrained.load(config, sharding.make_mesh(1, 1, 1))
        save_model(made, params, config, dtype=stored, original=original)
        # The original config.json describes the same network; keep its form.
        kept = {key: value for key, value in original.items() if key != "auto_map"}
        name = "dtype" if "dtype" in original else "torch_dtype"
        write_json(made / "config.json", {**kept, name: stored})
    log.info("%s: the model of %s", to, source)


def _refuse_reward_model(folder: pathlib.Path) -> None:
    if not gguf_files.is_gguf(folder) and configjson.labels(
        hf.read_json(folder / "config.json"), str(folder)
    ):
        raise UserError(
            f"{folder}: wanted a policy, found a reward model; use the folder itself as "
            "score.reward_model or --reward_model"
        )


def _config(folder: pathlib.Path) -> ModelConfig:
    """Reads the network's config from a folder, with the dtype of its stored tensors."""
    config = dataclasses.replace(hf.read_config(folder), path=str(folder))
    if (folder / pretrained.IMPORTED).is_file():
        return dataclasses.replace(config, param_dtype=pretrained.stored_dtype(folder))
    kinds = {tensor.dtype for tensor in hf.find_tensors(folder).values()}
    return dataclasses.replace(config, param_dtype="bfloat16" if kinds == {"BF16"} else "float32")


def _copy_files(folder: pathlib.Path, made: pathlib.Path, config: ModelConfig) -> None:
    """Copies a model's files other than its tensors."""
    pretrained.copy_model(folder, made)
    pretrained.copy_tokenizer(folder, made)
    if any((made / name).is_file() for name in pretrained.TOKENIZER_FILES[:3]):
        ids = tokenizers.load(str(made)).vocab_size
        tokenizers.check_ids(config.path, ids, config.vocab_size)
    else:
        log.info("%s: found no tokenizer; set tokenizer.path in configs", folder)


def check_dtype(to: str, dtype: str) -> None:
    """Refuses a dtype that a folder, or a GGUF file, cannot have."""
    known = tuple(gguf_files.KINDS) if gguf_files.is_gguf(to) else DTYPES
    if dtype not in ("", *known):
        raise UserError(f"--dtype: wanted {' or '.join(known)} for {to}, found {dtype!r}")


@contextlib.contextmanager
def destination(to: str, dtype: str) -> Iterator[pathlib.Path]:
    """Yields a folder to fill, which becomes ``to``, or is converted to a GGUF file.

    Raises:
      UserError: ``to`` exists, or a GGUF file cannot hold the model.
    """
    if not gguf_files.is_gguf(to):
        with artifacts.new_folder(to) as made:
            yield made
        return
    with artifacts.new_file(to) as file:
        folder = file.with_name("folder")
        folder.mkdir()
        yield folder
        try:
            write_gguf(folder, file, dtype or "f16")
        except UserError as error:  # it names temporary files: name ``to`` instead
            message = str(error).replace(str(file), to).replace(str(folder), to)
            raise type(error)(message) from None


def write_gguf(folder: pathlib.Path, file: pathlib.Path, kind: str) -> None:
    """Converts a folder to a GGUF file.

    Args:
      folder: config.json and tensors from `save_model`, and the tokenizer's files.
      file: written in place.
      kind: see `gguf_files.write`.

    Raises:
      UserError: llama.cpp does not support the network or the tokenizer.
    """
    original = hf.read_json(folder / "config.json")
    config = hf.read_config(folder)
    family = original["model_type"]
    content = {**original, **configjson.write(config, family)}
    fields = gguf.fields_of(content, family)
    tokenizer = tokenizers.load(str(folder))
    tokenizers.check_ids(str(folder), tokenizer.vocab_size, config.vocab_size)
    fields |= gguf_save.fields(str(folder), tokenizer, config.vocab_size)
    sources = gguf.sources_of(hf.find_tensors(folder), fields, config.rope_scaling)
    gguf_files.write(str(file), fields, sources, kind)
    _check(folder, file)


def _check(folder: pathlib.Path, file: pathlib.Path) -> None:
    """Reads the file back, and compares it with the folder."""
    wanted, found = (configjson.shape_fields(hf.read_config(x)) for x in (folder, file))
    for name, value in wanted.items():
        if not _same(value, found[name]):
            raise UserError(
                f"model.{name}: GGUF files of this network cannot express {value!r}; llama.cpp "
                f"would compute with {found[name]!r}"
            )
    old, new = (tokenizers.load(str(x)) for x in (folder, file))
    wanted_ids, ids = (x.encode(_SAMPLE, [_SAMPLE]) for x in (old, new))
    same = wanted_ids.prompt_ids.tolist() == ids.prompt_ids.tolist()
    same &= wanted_ids.response_ids[0].tolist() == ids.response_ids[0].tolist()
    if not same or set(old.ends) != set(new.ends):
        raise UserError(f"{folder}: GGUF has no kind of tokenizer that gives the same ids")


def _same(one: Any, other: Any) -> bool:
    """Whether two values are equal in float32, the type of numbers in GGUF files."""
    if isinstance(one, RopeScaling) and isinstance(other, RopeScaling):
        return all(map(_same, dataclasses.astuple(one), dataclasses.astuple(other)))
    if isinstance(one, float) and isinstance(other, float):
        return bool(np.float32(one) == np.float32(other))
    return bool(one == other)
