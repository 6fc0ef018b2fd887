"""The text of a model card: README.md of an exported folder."""

import json
import pathlib
from typing import Any

import alignjax
from alignjax.runtime.workdirs import versions

FOLDERS = ("path", "eval_path", "golden_path", "reward_model", "cache_dir", "chat_template")


def _without_folders(value: Any, key: str = "") -> Any:
    """Leaves out the folders of the machine a config ran on: paths keep their last part."""
    if isinstance(value, dict):
        return {k: _without_folders(v, k) for k, v in value.items()}
    if key in FOLDERS and isinstance(value, str):
        return value if "{" in value else pathlib.PurePath(value).name
    return value


CARD = """---
library_name: {library}
{base_line}tags: [alignjax]
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
{code}
```

## Versions

{versions}

## Config

```json
{config}
```
"""


WHOLE = """from transformers import AutoModelFor{kind}, AutoTokenizer

model = AutoModelFor{kind}.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")"""

ADAPTERS = """from peft import AutoPeftModelFor{kind}
from transformers import AutoTokenizer

# adapter_config.json names the base: {adapted}
model = AutoPeftModelFor{kind}.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")"""


def model_card(
    config: dict[str, Any],
    identity: dict[str, str],
    step: int,
    name: str,
    said: str = "",
    adapted: str = "",
) -> str:
    """Writes README.md's text: how the model was made, and of what.

    Args:
      config: of the run, as JSON.
      identity: digests of what it was made of.
      step, name: of the checkpoint, and of the run.
      said: of a run of several objectives, what was chosen for the preference.
      adapted: of a folder of adapters alone, the name of their base.
    """
    loss = config.get("loss") or config.get("reward_loss") or {}
    config = _without_folders(config)
    base = config["model"].get("path")
    kind = "CausalLM" if config.get("loss") else "SequenceClassification"
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
        library="peft" if adapted else "transformers",
        base_line=f"base_model: {json.dumps(adapted)}\n" if adapted else "",
        code=(ADAPTERS if adapted else WHOLE).format(kind=kind, adapted=adapted),
        versions="\n".join(f"- {key} {value}" for key, value in versions().items()),
        config=json.dumps(config, indent=2),
    )
