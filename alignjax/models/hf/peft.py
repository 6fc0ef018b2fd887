"""Saves adapters in PEFT's format: adapter_config.json and adapter_model.safetensors."""

import functools
import pathlib

import numpy as np

from alignjax.models.config import LoraConfig, ModelConfig
from alignjax.models.hf import tensorfile
from alignjax.models.hf.families import tensor_name
from alignjax.models.hf.save import write_json
from alignjax.types import Params

PREFIX = "base_model.model."


def save_adapters(
    folder: pathlib.Path, adapters: Params, lora: LoraConfig, model: ModelConfig, base: str
) -> None:
    """Writes trained adapters, and a reward model's head if there is one.

    Args:
      folder: exists; the caller renames it when it is complete.
      adapters: in the tree of `lora.init`, on any devices of this process.
      lora: their rank, alpha and targets.
      model: the base model.
      base: the base model's name on a hub, or its folder.
    """
    tensors: dict[str, np.ndarray] = {}
    modules = []
    for name, own in adapters["layers"].items():
        tensor = tensor_name(f"layers/{name}/kernel", model)
        modules.append(tensor.split(".")[-2])
        for ours, theirs in (("lora_a", "lora_A"), ("lora_b", "lora_B")):
            to = PREFIX + tensor.removesuffix("weight") + f"{theirs}.weight"
            for i, matrix in enumerate(np.asarray(own[ours])):
                tensors[to.format(i)] = matrix.T
    reward = "reward" in adapters
    if reward:
        tensors[f"{PREFIX}score.weight"] = np.asarray(adapters["reward"]["kernel"]).T
    sources = [
        (name, x.dtype, x.shape, functools.partial(np.asarray, x))
        for name, x in sorted(tensors.items())
    ]
    tensorfile.write(folder / "adapter_model.safetensors", sources)
    content = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if reward else "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": sorted(modules),
        "modules_to_save": ["score"] if reward else None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
    }
    write_json(folder / "adapter_config.json", content)
