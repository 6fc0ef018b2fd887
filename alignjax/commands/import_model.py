"""Imports a model: the folder that transformers saves becomes one that loads faster; and back."""

import dataclasses
import logging
import pathlib

import jax

from alignjax import digests, gguf_files
from alignjax.commands import gguf_file
from alignjax.data.tokenizer import load as tokenizers
from alignjax.errors import UserError
from alignjax.models.config import ModelConfig
from alignjax.models.hf import configjson
from alignjax.models.hf import load as hf
from alignjax.models.hf.save import save_model, write_json
from alignjax.runtime import artifacts, checkpoint, sharding
from alignjax.stages import pretrained

log = logging.getLogger("alignjax")


def import_model(source: str, to: str) -> None:
    """Reads a folder as transformers saves it and writes an imported one.

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
      source: an imported folder, one as transformers saves it, or a GGUF file.
      to: a folder, or a name that ends in ``.gguf``, that does not exist yet.
      dtype: of the stored tensors; empty: as they are stored there, or in a GGUF file ``f16``.

    Raises:
      UserError: the model is not supported or damaged; ``to`` exists or cannot hold the model.
    """
    gguf_file.check_dtype(to, dtype)
    folder = pathlib.Path(source)
    _refuse_reward_model(folder)
    config = _config(folder)
    stored = config.param_dtype if gguf_files.is_gguf(to) or not dtype else dtype
    with gguf_file.destination(to, dtype) as made:
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
