"""Imports a model: the folder that transformers saves becomes one that loads faster."""

import dataclasses
import logging
import pathlib

import jax

from alignjax import digests, gguf_files
from alignjax.data.tokenizer import load as tokenizers
from alignjax.errors import UserError
from alignjax.models.hf import configjson
from alignjax.models.hf import load as hf
from alignjax.models.hf.save import write_json
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
    if not gguf_files.is_gguf(folder) and configjson.labels(
        hf.read_json(folder / "config.json"), source
    ):
        raise UserError(
            f"{source}: holds a reward model: give the folder itself to score.reward_model or "
            "--reward_model"
        )
    config = dataclasses.replace(hf.read_config(folder), path=source)
    kinds = {tensor.dtype for tensor in hf.find_tensors(folder).values()}
    config = dataclasses.replace(config, param_dtype="bfloat16" if kinds == {"BF16"} else "float32")
    with artifacts.new_folder(to) as made:
        pretrained.copy_model(folder, made)
        pretrained.copy_tokenizer(folder, made)
        if any((made / name).is_file() for name in pretrained.TOKENIZER_FILES[:3]):
            ids = tokenizers.load(str(made)).vocab_size
            tokenizers.check_ids(source, ids, config.vocab_size)
        else:
            log.info("%s: holds no tokenizer; set tokenizer.path in configs", folder)
        params = pretrained.load(config, sharding.make_mesh(1, 1, 1))
        checkpoint.save_params(made / "params", params)
        write_json(made / "imported.json", {"format": 1, "param_dtype": config.param_dtype})
        digests.seal(made)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    log.info("%s: %s parameters in %s", to, f"{count:,}", config.param_dtype)
