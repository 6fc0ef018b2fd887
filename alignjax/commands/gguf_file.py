"""An exported folder as one GGUF file, for llama.cpp and what builds on it."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from alignjax import gguf_files
from alignjax.data.tokenizer import gguf_save
from alignjax.data.tokenizer import load as tokenizers
from alignjax.errors import UserError
from alignjax.models.config import DTYPES, RopeScaling
from alignjax.models.hf import configjson, gguf
from alignjax.models.hf import load as hf
from alignjax.runtime import artifacts

# Words that every way of cutting text treats in its own way; ids are compared on them.
_SAMPLE = "It's 12,345 o'clock.\n\n  Où? Grüße  naïve:\tfoo_bar(x) <b>語</b> 🙂\n"


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
            write(folder, file, dtype or "f16")
        except UserError as error:  # of folders that are gone when it is read
            told = str(error).replace(str(file), to).replace(str(folder), to)
            raise type(error)(told) from None


def write(folder: pathlib.Path, file: pathlib.Path, kind: str) -> None:
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
