"""A run's policy or reward model as a folder that transformers loads, with a model card."""

import json
import logging
import pathlib
from typing import Any

import alignjax
from alignjax.commands.finished_run import policy_folder
from alignjax.data.tokenizer import load as tokenizers
from alignjax.errors import UserError
from alignjax.models import reward_head
from alignjax.models.config import DTYPES, LoraConfig, ModelConfig, model_from
from alignjax.models.hf.peft import save_adapters
from alignjax.models.hf.save import save_model, write_json
from alignjax.models.lora import merge
from alignjax.runtime import artifacts, checkpoint, sharding, workdirs
from alignjax.runtime.workdirs import read_json, versions
from alignjax.stages import adapters, pretrained
from alignjax.types import Params

log = logging.getLogger("alignjax")


def export(workdir: str, to: str, *, dtype: str = "", adapter: bool = False) -> None:
    """Writes the policy, or the reward model, of a run's newest checkpoint.

    Adapters are merged into their base, unless they are wanted by themselves.

    Args:
      workdir: a run's folder.
      to: a folder that does not exist yet; it appears when all is in it.
      dtype: of the stored tensors; empty: the parameters' own, which makes it bit-equal.
      adapter: write the adapters alone, in the format of PEFT.

    Raises:
      UserError: no such run, nothing trained yet, a model of no family, or ``to`` exists; adapters
        are wanted and there are none, or their base is no model that others have.
    """
    run = pathlib.Path(workdir)
    if not (run / "config.json").is_file():
        raise UserError(f"--workdir: {workdir} holds no run (no config.json)")
    config = read_json(run / "config.json")
    if dtype not in ("", *DTYPES):
        raise UserError(f"--dtype: wanted {' or '.join(DTYPES)}, found {dtype!r}")
    model = model_from(config, str(run / "config.json"))
    reward = config.get("reward_loss") is not None and config.get("game") is None
    outputs = _outputs(run) if reward else ()
    lora = _lora(config)
    if adapter:
        _check_adapter(config, run, dtype)
    # Opening the checkpoints removes what a killed save left, so no run may be saving.
    with (
        workdirs.owned(run),
        checkpoint.open_store(policy_folder(config, run) / "checkpoints", keep=10**9) as store,
    ):
        step = checkpoint.latest(store)
        if step is None:
            raise UserError(f"{workdir}: no checkpoint yet; run it first")
        record = checkpoint.read_record(store, step)
        mesh = sharding.make_mesh(1, 1, 1)
        if lora is None:
            shapes = pretrained.target(model, mesh, objectives=len(outputs))
        else:
            shapes = adapters.target(lora, model, mesh, objectives=len(outputs))
        params = checkpoint.restore_params(store, step, shapes)
        if lora is not None and not adapter:
            params = _merged(params, lora, model, config, run, record, len(outputs))
    if lora is not None and adapter:
        with artifacts.new_folder(to) as made:
            save_adapters(made, params, lora, model)
        log.info("%s: the adapters of step %d of %s", to, step, workdir)
        return
    with artifacts.new_folder(to) as made:
        kept = run / "pretrained"
        tokenizer = _tokenizer_files(config["tokenizer"], run, made)
        if kept.is_dir():
            original = read_json(kept / "config.json")
            pretrained.copy_files(kept, made, ("generation_config.json",))
        else:
            original = _own(config["data"], tokenizer)
        # transformers reads a score before the padding: an EOS that pads would be passed over.
        if reward and original.get("pad_token_id") == tokenizer.eos_id:
            original["pad_token_id"] = None
        save_model(
            made,
            params,
            model,
            dtype=dtype or model.param_dtype,
            original=original,
            outputs=outputs,
        )
        card = model_card(config, record, step, run.resolve().name)
        (made / "README.md").write_text(card, encoding="utf-8")
    log.info("%s: step %d of %s", to, step, workdir)


def _lora(config: dict[str, Any]) -> LoraConfig | None:
    """The LoraConfig in a run's config.json."""
    fields = config.get("lora")
    if not fields:
        return None
    return LoraConfig(**{**fields, "targets": tuple(fields["targets"])})


def _merged(
    trained: Params,
    lora: LoraConfig,
    model: ModelConfig,
    config: dict[str, Any],
    run: pathlib.Path,
    record: dict[str, Any],
    objectives: int,
) -> Params:
    """The whole network of a run's adapters."""
    base = adapters.load_base(
        lora,
        model,
        config["train"]["seed"],
        run,
        sharding.make_mesh(1, 1, 1),
        sft=config["sft"] is not None,
        digest=record["identity"]["reference"],
    )
    if objectives:
        base = reward_head.from_language_model(base, objectives=objectives)
    return merge(base, trained, lora)


def _check_adapter(config: dict[str, Any], run: pathlib.Path, dtype: str) -> None:
    """Sees that a run's adapters mean something without the run."""
    if not config.get("lora"):
        raise UserError(f"--adapter: {run} trained a whole network, its config has no lora")
    if config["sft"] is not None or not config["model"]["path"]:
        began = "its own supervised stage" if config["sft"] is not None else "random parameters"
        raise UserError(
            f"--adapter: the adapters of {run} go beside the result of {began}, which nobody else "
            "has: export without --adapter merges them"
        )
    if dtype:
        raise UserError("--adapter: takes no --dtype; adapters are float32")


def _outputs(run: pathlib.Path) -> tuple[str, ...]:
    """Names of a reward model's outputs."""
    if not (run / "summary.json").is_file():
        raise UserError(f"{run}: holds a run that has not ended; go on with run")
    return tuple(read_json(run / "summary.json")["reward_model"]["objectives"]) or ("reward",)


def _own(data: dict[str, Any], tokenizer: tokenizers.Tokenizer) -> dict[str, Any]:
    """What config.json says beside the network's shape, for a model trained from nothing."""
    return {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
        # the longest text it has seen
        "max_position_embeddings": data["max_prompt_tokens"] + data["max_response_tokens"],
    }


def _tokenizer_files(
    settings: dict[str, Any], run: pathlib.Path, made: pathlib.Path
) -> tokenizers.Tokenizer:
    """The files the run's tokenizer was read from, and what tools need to read them alike."""
    kept = run / "pretrained"
    path = kept if kept.is_dir() else pathlib.Path(settings["path"] or run / "tokenizer.model")
    tokenizer = tokenizers.load(str(path), chat_template=settings["chat_template"])
    if path.is_dir():
        pretrained.copy_files(path, made, pretrained.TOKENIZER_FILES)
    else:
        pretrained.copy_files(path.parent, made, (path.name,))
    if settings["chat_template"]:
        (made / "chat_template.jinja").write_text(tokenizer.chat_template, encoding="utf-8")
    if not (made / "tokenizer_config.json").is_file():
        write_json(made / "tokenizer_config.json", _tokenizer_config(tokenizer))
    return tokenizer


def _tokenizer_config(tokenizer: tokenizers.Tokenizer) -> dict[str, Any]:
    return {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": False,
        "add_prefix_space": False,
        "add_bos_token": tokenizer.bos_id is not None,
        "add_eos_token": False,
        "chat_template": tokenizer.chat_template,
        **{k: v for k, v in tokenizer.special_tokens.items() if isinstance(v, str)},
    }


FOLDERS = ("path", "eval_path", "golden_path", "reward_model", "cache_dir", "chat_template")


def _without_folders(value: Any, key: str = "") -> Any:
    """A config without the folders of the machine it ran on: paths keep their last part."""
    if isinstance(value, dict):
        return {k: _without_folders(v, k) for k, v in value.items()}
    if key in FOLDERS and isinstance(value, str):
        return value if "{" in value else pathlib.PurePath(value).name
    return value


def model_card(config: dict[str, Any], record: dict[str, Any], step: int, name: str) -> str:
    """README.md: how the model was made, and of what."""
    loss = config.get("loss") or config.get("reward_loss") or {}
    kind = "CausalLM" if config.get("loss") else "SequenceClassification"
    config = _without_folders(config)
    identity = record["identity"]
    base = config["model"].get("path")
    told = "\n".join(f"- {key} {value}" for key, value in versions().items())
    return f"""---
library_name: transformers
tags: [alignjax]
---

# {name}

Aligned with alignjax {alignjax.__version__}: `{loss.get("function", "?")}`, {step:,} steps.

| | |
|---|---|
| method | `{json.dumps(loss)}` |
| started from | {f"`{base}`" if base else "random parameters"} |
| reference's parameters | `{identity["reference"]}` |
| training data | `{identity["data"]}` |
| tokenizer | `{identity["tokenizer"]}` |

The digests name contents: the same data, tokenizer and reference give the same ones.

```python
from transformers import AutoModelFor{kind}, AutoTokenizer

model = AutoModelFor{kind}.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```

## Versions

{told}

## Config

```json
{json.dumps(config, indent=2)}
```
"""
