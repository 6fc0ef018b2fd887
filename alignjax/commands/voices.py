"""Loads networks that respond: from a finished run, a model's folder or a GGUF file."""

import dataclasses
import pathlib
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from alignjax import gguf_files
from alignjax.commands import finished_run, policies
from alignjax.config import SamplingConfig
from alignjax.config.fields import describe
from alignjax.data.records import Message
from alignjax.data.tokenizer import load as tokenizers
from alignjax.data.tokenizer.load import Tokenizer
from alignjax.errors import UserError
from alignjax.models.config import ModelConfig
from alignjax.models.hf import load as hf
from alignjax.runtime import distributed, sharding, workdirs
from alignjax.sampling import decode
from alignjax.sampling.generate import ask, prompts_only
from alignjax.stages import pretrained
from alignjax.stages.data import load_tokenizer
from alignjax.types import Array, Params

LONGEST = 2048  # tokens of a conversation; a longer one loses its beginning
SHORTEST = 64  # prompts are padded to this many tokens, or to 2, 4, ... times as many


@dataclasses.dataclass(frozen=True, eq=False)
class Voice:
    """A network on the devices, with its tokenizer."""

    name: str
    model: ModelConfig
    tokenizer: Tokenizer
    mesh: Mesh
    params: Params


def is_run(path: str) -> bool:
    """Whether a folder is a run's."""
    config = pathlib.Path(path) / "config.json"
    return config.is_file() and "model_type" not in hf.read_json(config)


def load(path: str, overrides: Sequence[str] = (), checkpoint: str = "last") -> Voice:
    """Loads a network.

    Args:
      path: workdir of a policy's finished run, a model's folder, or a GGUF file.
      overrides: changes to a run's config, such as ``model.path`` and ``mesh.fsdp``.
      checkpoint: of a run, last or best, see `finished_run.at_checkpoint`.

    Raises:
      UserError: the path is none of these.
    """
    folder = pathlib.Path(path)
    if not gguf_files.is_gguf(folder) and not (folder / "config.json").is_file():
        raise UserError(f"{path}: wanted a run, a folder with a config.json or a GGUF file")
    name = folder.resolve().name
    if not is_run(path):
        if overrides:
            raise UserError(
                f"--set {overrides[0]}: {path} is not a run and has no config to change"
            )
        if checkpoint != "last":
            raise UserError(f"--checkpoint={checkpoint}: {path} is not a run")
        model, tokenizer = of_folder(path)
        mesh = sharding.make_mesh(1, 1, 1)
        return Voice(name, model, tokenizer, mesh, pretrained.load(model, mesh))
    config = finished_run.config_of(path, "", list(overrides))
    if policies.find(folder, describe(config)) is not None:
        raise UserError(f"{path} has a policy for each preference: export one of them first")
    with workdirs.owned(folder):
        tokenizer = load_tokenizer(config, folder, [])
        mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
        params = finished_run.load_policy(config, path, checkpoint)
        return Voice(name, config.model, tokenizer, mesh, params)


def of_folder(path: str) -> tuple[ModelConfig, Tokenizer]:
    """Reads the shape and tokenizer of a folder or GGUF file; in bfloat16 on accelerators."""
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    model = hf.resolve(ModelConfig(path=path, dtype=dtype, param_dtype=dtype))
    tokenizer = tokenizers.load(path, model=path)
    tokenizers.check_ids(path, tokenizer.vocab_size, model.vocab_size)
    return model, tokenizer


def respond(
    voice: Voice, turns: Sequence[Message], settings: SamplingConfig, key: Array
) -> tuple[str, bool]:
    """Samples a response to a conversation; returns the text, and whether it ended.

    Prompts are padded to `SHORTEST` times a power of two, so that few lengths are compiled.
    """
    question = ask([tuple(turns)], [0], voice.tokenizer, LONGEST)[0]
    length = SHORTEST
    while length < len(question.ids):
        length *= 2
    rows = voice.mesh.shape["data"] * voice.mesh.shape["fsdp"]
    batch = sharding.put_rows(prompts_only([question], np.zeros(rows, int), length), voice.mesh)
    ids, lengths, _ = distributed.fetch(
        decode.sample(
            voice.params,
            batch.prompt,
            batch.prompt_length,
            batch.prompt_id,
            key,
            config=voice.model,
            settings=settings,
            eos=tuple(voice.tokenizer.ends),
        )
    )
    response = ids[0, 0, : lengths[0, 0]]
    return voice.tokenizer.decode(response.tolist()), int(response[-1]) in voice.tokenizer.ends
