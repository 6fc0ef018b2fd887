"""Models that were not trained here, in and out: folders, and GGUF files for llama.cpp."""

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

# Words that every way of cutting text treats in its own way; ids are compared on them.
_SAMPLE = "It's 12,345 o'clock.\n\n  Où? Grüße  naïve:\tfoo_bar(x) <b>語</b> 🙂\n"


def import_model(source: str, to: str) -> None:
    """Reads a folder saved by transformers and writes an imported one.

    Args:
      source: config.json, safetensors, tokenizer files; or a GGUF file.
      to: a folder that does not exist yet; it appears when all is in it.

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
    """Writes a model that was not trained here, as it is: the reverse of `import_model`.

    Args:
      source: an imported folder, one saved by transformers, or a GGUF file.
      to: a folder, or a name that ends in ``.gguf``, that does not exist yet.
      dtype: of the stored tensors; empty: as they are stored there, or in a GGUF file ``f16``.

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
        # It says the same of the network, in the words that it came with.
        kept = {key: value for key, value in original.items() if key != "auto_map"}
        name = "dtype" if "dtype" in original else "torch_dtype"
        write_json(made / "config.json", {**kept, name: stored})
    log.info("%s: the model of %s", to, source)


def _refuse_reward_model(folder: pathlib.Path) -> None:
    if not gguf_files.is_gguf(folder) and configjson.labels(
        hf.read_json(folder / "config.json"), str(folder)
    ):
        raise UserError(
            f"{folder}: holds a reward model: give the folder itself to score.reward_model or "
            "--reward_model"
        )


def _config(folder: pathlib.Path) -> ModelConfig:
    """The network of a folder, with the dtype that its tensors are stored in."""
    config = dataclasses.replace(hf.read_config(folder), path=str(folder))
    if (folder / pretrained.IMPORTED).is_file():
        return dataclasses.replace(config, param_dtype=pretrained.stored_dtype(folder))
    kinds = {tensor.dtype for tensor in hf.find_tensors(folder).values()}
    return dataclasses.replace(config, param_dtype="bfloat16" if kinds == {"BF16"} else "float32")


def _copy_files(folder: pathlib.Path, made: pathlib.Path, config: ModelConfig) -> None:
    """Copies what came with a model beside its tensors."""
    pretrained.copy_model(folder, made)
    pretrained.copy_tokenizer(folder, made)
    if any((made / name).is_file() for name in pretrained.TOKENIZER_FILES[:3]):
        ids = tokenizers.load(str(made)).vocab_size
        tokenizers.check_ids(config.path, ids, config.vocab_size)
    else:
        log.info("%s: holds no tokenizer; set tokenizer.path in configs", folder)


def check_dtype(to: str, dtype: str) -> None:
    """Refuses a type that a folder, or a GGUF file, cannot have."""
    known = tuple(gguf_files.KINDS) if gguf_files.is_gguf(to) else DTYPES
    if dtype not in ("", *known):
        raise UserError(f"--dtype: wanted {' or '.join(known)} for {to}, found {dtype!r}")


@contextlib.contextmanager
def destination(to: str, dtype: str) -> Iterator[pathlib.Path]:
    """Gives a folder to fill, which becomes ``to``, or the GGUF file of this name.

    Raises:
      UserError: ``to`` exists; or the model is one that a GGUF file cannot hold.
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
        except UserError as error:  # of folders that are gone when it is read
            told = str(error).replace(str(file), to).replace(str(folder), to)
            raise type(error)(told) from None


def write_gguf(folder: pathlib.Path, file: pathlib.Path, kind: str) -> None:
    """Writes a GGUF file of a folder as `save_model` and the tokenizer's files make it.

    Args:
      folder: config.json, tensors, the tokenizer's files.
      file: written in place.
      kind: see `gguf_files.write`.

    Raises:
      UserError: the network or the tokenizer is one that llama.cpp does not have.
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
    """Reads the file again, and compares it with what it was made of."""
    wanted, found = (configjson.shape_fields(hf.read_config(x)) for x in (folder, file))
    for name, value in wanted.items():
        if not _same(value, found[name]):
            raise UserError(
                f"model.{name}: GGUF files of such a network cannot say {value!r}; llama.cpp would "
                f"compute with {found[name]!r}"
            )
    given, read = (tokenizers.load(str(x)) for x in (folder, file))
    ids, again = (x.encode(_SAMPLE, [_SAMPLE]) for x in (given, read))
    same = ids.prompt_ids.tolist() == again.prompt_ids.tolist()
    same &= ids.response_ids[0].tolist() == again.response_ids[0].tolist()
    if not same or set(given.ends) != set(read.ends):
        raise UserError(
            f"{folder}: GGUF files have no kind of tokenizer that gives the same ids as this one"
        )


def _same(one: Any, other: Any) -> bool:
    """Whether two values are equal, in float32, which GGUF files have for numbers."""
    if isinstance(one, RopeScaling) and isinstance(other, RopeScaling):
        return all(map(_same, dataclasses.astuple(one), dataclasses.astuple(other)))
    if isinstance(one, float) and isinstance(other, float):
        return bool(np.float32(one) == np.float32(other))
    return bool(one == other)
