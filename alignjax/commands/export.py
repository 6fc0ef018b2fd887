"""A run's policy or reward model as a folder that transformers loads, with a model card."""

import dataclasses
import json
import logging
import pathlib
from typing import Any

import numpy as np

import alignjax
from alignjax.commands import finished_run, networks, policies
from alignjax.commands.finished_run import Trained
from alignjax.commands.policies import Choice, Policies
from alignjax.data.tokenizer import load as tokenizers
from alignjax.errors import UserError
from alignjax.models.config import DTYPES
from alignjax.models.hf.peft import save_adapters
from alignjax.models.hf.save import save_model, write_json
from alignjax.models.lora import merge
from alignjax.rewards import reward_models
from alignjax.runtime import artifacts, sharding, workdirs
from alignjax.runtime.storage import read_json
from alignjax.runtime.workdirs import versions
from alignjax.stages import pretrained
from alignjax.types import Params

log = logging.getLogger("alignjax")


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """What one folder holds."""

    params: Params
    identity: dict[str, str]  # digests of what it was made of
    step: int
    said: str = ""  # of a run of several objectives, what was chosen for the preference


def export(
    workdir: str, to: str, *, dtype: str = "", adapter: bool = False, preference: str = ""
) -> None:
    """Writes the policy, or the reward model, that a run has trained.

    Of a training that goes on, it is that of the newest checkpoint. Adapters are merged into their
    base, unless they are wanted by themselves.

    Args:
      workdir: a run's folder.
      to: a folder that does not exist yet; it appears when all is in it.
      dtype: of the stored tensors; empty: the parameters' own, which makes it bit-equal.
      adapter: write the adapters alone, in the format of PEFT.
      preference: of a run of several objectives, see `policies.choose_for`; or ``all``: those of
        the config, each in a folder of its own below ``to``.

    Raises:
      UserError: no such run, nothing trained yet, a model of no family, or ``to`` exists; adapters
        are wanted and there are none, or their base is no model that others have; or as
        `policies.choose_for`, or a preference that no single network responds to.
    """
    run = pathlib.Path(workdir)
    if not (run / "config.json").is_file():
        raise UserError(f"--workdir: {workdir} holds no run (no config.json)")
    config = read_json(run / "config.json")
    if dtype not in ("", *DTYPES):
        raise UserError(f"--dtype: wanted {' or '.join(DTYPES)}, found {dtype!r}")
    trained, made = finished_run.trained_in(run, config), policies.find(run, config)
    choices = _choices(made, workdir, preference, adapter=adapter)
    outputs = () if config["loss"] else _outputs(run)
    if adapter:
        _check_adapter(config, run, dtype)
    with artifacts.new_folder(to) as top, workdirs.owned(run):
        for name, choice in choices.items():
            if made is not None and choice is not None:
                network = chosen(trained, made, choice, merged=not adapter)
            elif config["loss"] or adapter:
                network = newest(trained, len(outputs), merged=not adapter)
            else:
                network = _reward_model(run)
            (top / name).mkdir(exist_ok=True)
            if adapter:
                assert trained.lora is not None  # see _check_adapter
                save_adapters(top / name, network.params, trained.lora, trained.model)
            else:
                dtype = dtype or trained.model.param_dtype
                _write(top / name, config, run, trained, network, dtype=dtype, outputs=outputs)
            log.info(
                "%s: %sstep %d of %s%s",
                pathlib.Path(to) / name,
                "the adapters of " if adapter else "",
                network.step,
                workdir,
                f", {network.said}" if network.said else "",
            )


def _choices(
    made: Policies | None, workdir: str, preference: str, *, adapter: bool
) -> dict[str, Choice | None]:
    """Chooses what is written, by the folder that it goes to below ``to``; empty: that itself."""
    choices: dict[str, Choice | None]
    if made is not None and preference == "all":
        if made.way == policies.PROMPT:
            raise UserError(
                "--preference: wanted one preference, found all: one network responds to all of "
                "them, and the prompt tells which"
            )
        choices = {
            policies.as_flag(wanted).replace(",", "-"): policies.choose(made, wanted)
            for wanted in made.preferences
        }
    else:
        choices = {"": policies.choose_for(made, workdir, preference)}
    for choice in choices.values():
        if choice is not None:
            policies.require_single(choice, adapter=adapter)
    return choices


def _write(
    folder: pathlib.Path,
    config: dict[str, Any],
    run: pathlib.Path,
    trained: Trained,
    network: Network,
    *,
    dtype: str,
    outputs: tuple[str, ...],
) -> None:
    """Writes a folder that transformers loads."""
    save_model(
        folder,
        network.params,
        trained.model,
        dtype=dtype,
        original=_tokenizer_and_config(config, run, folder, network.identity["tokenizer"]),
        outputs=outputs,
    )
    card = model_card(config, network.identity, network.step, run.resolve().name, network.said)
    (folder / "README.md").write_text(card, encoding="utf-8")


def newest(trained: Trained, objectives: int, *, merged: bool) -> Network:
    """Restores the newest checkpoint; adapters ``merged``, if asked to."""
    mesh = sharding.make_mesh(1, 1, 1)
    step = finished_run.newest_step(trained)
    params, record = finished_run.restore(trained, mesh, step, objectives=objectives)
    identity = record["identity"]
    if trained.lora is not None and merged:
        params = merge(
            finished_run.load_base(trained, mesh, finished_run.base_digest(identity)),
            params,
            trained.lora,
        )
    return Network(params, identity, step)


def chosen(trained: Trained, made: Policies, choice: Choice, *, merged: bool) -> Network:
    """Loads what responds to a preference."""
    source = networks.source(trained, made, sharding.make_mesh(1, 1, 1))
    steps = [networks.newest_step(source, network) for network in choice.networks]
    if merged:
        params = networks.load_whole(source, choice)
    else:
        params = networks.load_trained(source, choice.networks[int(np.argmax(choice.weights))])
    return Network(params, made.identity, max(steps), choice.said)


def _reward_model(run: pathlib.Path) -> Network:
    """Loads a trained reward model, whose adapters are merged already."""
    found = reward_models.find(str(run))
    params = reward_models.load_params(found, sharding.make_mesh(1, 1, 1))
    summary = read_json(run / "summary.json")
    if "identity" not in summary:
        raise UserError(f"--workdir: {run} is of an earlier version: export it with that one")
    return Network(params, summary["identity"], summary["steps"])


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
        raise UserError(f"--workdir: {run} holds a run that has not ended; go on with run")
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
        if (kept / "generation_config.json").is_file():
            sampling = read_json(kept / "generation_config.json")
            write_json(made / "generation_config.json", _with_ends(sampling, tokenizer))
        original = _with_ends(original, tokenizer)
    else:
        data = config["data"]
        original = {
            "bos_token_id": tokenizer.bos_id,
            "eos_token_id": tokenizer.eos_id,
            "pad_token_id": tokenizer.pad_id,
            # the longest text it has seen
            "max_position_embeddings": data["max_prompt_tokens"] + data["max_response_tokens"],
        }
        original = _with_ends(original, tokenizer)
    # transformers reads a score before the padding: an EOS that pads would be passed over.
    if not config["loss"] and original.get("pad_token_id") in tokenizer.ends:
        original["pad_token_id"] = None
    return original


def _with_ends(content: dict[str, Any], tokenizer: tokenizers.Tokenizer) -> dict[str, Any]:
    """Names every token that ends a response, so that transformers stops where we do."""
    given, ends = content.get("eos_token_id"), sorted(tokenizer.ends)
    if set(given if isinstance(given, list) else [given]) == set(ends):
        return content
    return {**content, "eos_token_id": ends if len(ends) > 1 else ends[0]}


def _tokenizer_files(
    settings: dict[str, Any], run: pathlib.Path, made: pathlib.Path
) -> tokenizers.Tokenizer:
    """Writes the files of the run's tokenizer, and what tools need to read them alike."""
    path, tokenizer = _kept_tokenizer(settings, run), tokenizer_of(settings, run)
    if path.is_dir():
        pretrained.copy_tokenizer(path, made)
    else:
        pretrained.copy_files(path.parent, made, (path.name,))
    if settings["chat_template"]:
        (made / "chat_template.jinja").write_text(tokenizer.chat_template, encoding="utf-8")
    if not (made / "tokenizer_config.json").is_file():
        write_json(made / "tokenizer_config.json", _tokenizer_config(tokenizer))
    return tokenizer


def _kept_tokenizer(settings: dict[str, Any], run: pathlib.Path) -> pathlib.Path:
    kept = run / "pretrained"
    return kept if kept.is_dir() else pathlib.Path(settings["path"] or run / "tokenizer.model")


def tokenizer_of(settings: dict[str, Any], run: pathlib.Path) -> tokenizers.Tokenizer:
    """Loads a run's tokenizer; the settings are ``tokenizer`` of its ``config.json``."""
    path = str(_kept_tokenizer(settings, run))
    return tokenizers.load(path, chat_template=settings["chat_template"])


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
| started from | {start} |{said}
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


def model_card(
    config: dict[str, Any], identity: dict[str, str], step: int, name: str, said: str = ""
) -> str:
    """Writes README.md's text: how the model was made, and of what."""
    loss = config.get("loss") or config.get("reward_loss") or {}
    config = _without_folders(config)
    base = config["model"].get("path")
    return CARD.format(
        name=name,
        version=alignjax.__version__,
        function=loss.get("function", "?"),
        step=step,
        loss=json.dumps(loss),
        start=f"`{base}`" if base else "random parameters",
        said=f"\n| preference | {said} |" if said else "",
        reference=identity["reference"],
        data=identity["data"],
        tokenizer=identity["tokenizer"],
        kind="CausalLM" if config.get("loss") else "SequenceClassification",
        versions="\n".join(f"- {key} {value}" for key, value in versions().items()),
        config=json.dumps(config, indent=2),
    )
