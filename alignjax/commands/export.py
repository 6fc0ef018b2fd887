"""A run's policy or reward model as a folder that transformers loads, with a model card."""

import json
import logging
import pathlib
from typing import Any

import alignjax
from alignjax.commands import finished_run
from alignjax.commands.finished_run import Trained
from alignjax.data.tokenizer import load as tokenizers
from alignjax.errors import UserError
from alignjax.models import reward_head
from alignjax.models.config import DTYPES
from alignjax.models.hf.peft import save_adapters
from alignjax.models.hf.save import save_model, write_json
from alignjax.models.lora import merge
from alignjax.runtime import artifacts, checkpoint, sharding, workdirs
from alignjax.runtime.storage import read_json
from alignjax.runtime.workdirs import versions
from alignjax.stages import pretrained
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
    trained = finished_run.trained_in(run, config)
    outputs = () if config["loss"] else _outputs(run)
    if adapter:
        _check_adapter(config, run, dtype)
    params, record, step = _newest(trained, workdir, run, len(outputs), merged=not adapter)
    with artifacts.new_folder(to) as made:
        if adapter:
            assert trained.lora is not None  # see _check_adapter
            save_adapters(made, params, trained.lora, trained.model)
        else:
            save_model(
                made,
                params,
                trained.model,
                dtype=dtype or trained.model.param_dtype,
                original=_tokenizer_and_config(config, run, made, record["identity"]["tokenizer"]),
                outputs=outputs,
            )
            card = model_card(config, record, step, run.resolve().name)
            (made / "README.md").write_text(card, encoding="utf-8")
    log.info("%s: %sstep %d of %s", to, "the adapters of " if adapter else "", step, workdir)


def _newest(
    trained: Trained, workdir: str, run: pathlib.Path, objectives: int, *, merged: bool
) -> tuple[Params, dict[str, Any], int]:
    """Restores the newest checkpoint, its record and its step; adapters ``merged``, if asked to."""
    mesh = sharding.make_mesh(1, 1, 1)
    with workdirs.owned(run):
        with trained.checkpoints as store:
            step = checkpoint.latest(store)
        if step is None:
            raise UserError(f"{workdir}: no checkpoint yet; run it first")
        params, record = finished_run.restore(trained, mesh, step, objectives=objectives)
        if trained.lora is not None and merged:
            base = finished_run.load_base(trained, mesh, record)
            if objectives:
                base = reward_head.from_language_model(base, objectives=objectives)
            params = merge(base, params, trained.lora)
    return params, record, step


def _check_adapter(config: dict[str, Any], run: pathlib.Path, dtype: str) -> None:
    """Refuses adapters that mean nothing without their run."""
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


def _tokenizer_and_config(
    config: dict[str, Any], run: pathlib.Path, made: pathlib.Path, digest: str
) -> dict[str, Any]:
    """Writes the tokenizer's files; returns what config.json says beside the network's shape.

    Raises:
      UserError: the tokenizer is no longer the one of this digest, which was trained with.
    """
    kept = run / "pretrained"
    tokenizer = _tokenizer_files(config["tokenizer"], run, made)
    if tokenizer.digest != digest:
        path = kept if kept.is_dir() else config["tokenizer"]["path"] or run / "tokenizer.model"
        raise UserError(
            f"{path}: wanted the tokenizer that the run was trained with ({digest[:12]}), found "
            f"another ({tokenizer.digest[:12]}): put it back"
        )
    if kept.is_dir():
        original: dict[str, Any] = read_json(kept / "config.json")
        pretrained.copy_files(kept, made, ("generation_config.json",))
    else:
        data = config["data"]
        original = {
            "bos_token_id": tokenizer.bos_id,
            "eos_token_id": tokenizer.eos_id,
            "pad_token_id": tokenizer.pad_id,
            # the longest text it has seen
            "max_position_embeddings": data["max_prompt_tokens"] + data["max_response_tokens"],
        }
    # transformers reads a score before the padding: an EOS that pads would be passed over.
    if not config["loss"] and original.get("pad_token_id") == tokenizer.eos_id:
        original["pad_token_id"] = None
    return original


def _tokenizer_files(
    settings: dict[str, Any], run: pathlib.Path, made: pathlib.Path
) -> tokenizers.Tokenizer:
    """Writes the files of the run's tokenizer, and what tools need to read them alike."""
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
    """Leaves out the folders of the machine a config ran on: paths keep their last part."""
    if isinstance(value, dict):
        return {k: _without_folders(v, k) for k, v in value.items()}
    if key in FOLDERS and isinstance(value, str):
        return value if "{" in value else pathlib.PurePath(value).name
    return value


CARD = """---
library_name: transformers
tags: [alignjax]
---

# {name}

Aligned with alignjax {version}: `{function}`, {step:,} steps.

| | |
|---|---|
| method | `{loss}` |
| started from | {start} |
| reference's parameters | `{reference}` |
| training data | `{data}` |
| tokenizer | `{tokenizer}` |

The digests name contents: the same data, tokenizer and reference give the same ones.

```python
from transformers import AutoModelFor{kind}, AutoTokenizer

model = AutoModelFor{kind}.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```

## Versions

{versions}

## Config

```json
{config}
```
"""


def model_card(config: dict[str, Any], record: dict[str, Any], step: int, name: str) -> str:
    """Writes README.md's text: how the model was made, and of what."""
    loss = config.get("loss") or config.get("reward_loss") or {}
    config, identity = _without_folders(config), record["identity"]
    base = config["model"].get("path")
    return CARD.format(
        name=name,
        version=alignjax.__version__,
        function=loss.get("function", "?"),
        step=step,
        loss=json.dumps(loss),
        start=f"`{base}`" if base else "random parameters",
        reference=identity["reference"],
        data=identity["data"],
        tokenizer=identity["tokenizer"],
        kind="CausalLM" if config.get("loss") else "SequenceClassification",
        versions="\n".join(f"- {key} {value}" for key, value in versions().items()),
        config=json.dumps(config, indent=2),
    )
