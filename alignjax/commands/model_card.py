"""Writes the text of a model card: README.md of an exported folder."""

import json
import pathlib
from typing import Any

import alignjax
from alignjax.data.tokenizer.load import Tokenizer
from alignjax.runtime.workdirs import versions

FOLDERS = ("path", "eval_path", "golden_path", "reward_model", "cache_dir", "chat_template")


def _without_folders(value: Any, key: str = "") -> Any:
    """Removes the folders of this machine from a config: paths keep their last part."""
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
| started from | {start} |{note}
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


WHOLE = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")"""

# Code for transformers that gives the same scores as alignjax; a test runs it.
REWARDS = """import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained("FOLDER", dtype="float32").eval()
tokenizer = AutoTokenizer.from_pretrained("FOLDER", padding_side="right")
BOS, END = {bos}, {end}  # what a text begins and ends with
tokenizer.pad_token = {padding}  # fills up batches; not END, which is read


def score(conversations):
    \"\"\"Scores the last answer of each list of messages: [N, outputs].\"\"\"
    texts = [tokenizer.apply_chat_template(x, tokenize=False) for x in conversations]
    # Nothing may follow the answer's end: many templates write a line break there.
    texts = [x[: x.rindex(END) + len(END)] if END in x else x + END for x in texts]
    texts = [x if x.startswith(BOS) else BOS + x for x in texts]
    batch = tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        return model(**batch).logits
```

In training prompts were cut to their last {max_prompt_tokens} tokens, responses to their first
{max_response_tokens}; `reward_model.json` says so to alignjax.

```python
model.config.id2label  # what each output is"""

ADAPTERS = """from peft import AutoPeftModelFor{kind}
from transformers import AutoTokenizer

# adapter_config.json names the base: {base}
model = AutoPeftModelFor{kind}.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")"""


def code_of_rewards(tokenizer: Tokenizer, padding: int | None, limits: dict[str, int]) -> str:
    """Returns the card's code for a reward model.

    Args:
      tokenizer: the model's.
      padding: the pad id in config.json.
      limits: the most tokens of prompts and responses in training.
    """
    texts = {index: text for text, index in tokenizer.specials.items()}
    ends = [i for i, where in tokenizer.ends.items() if "chat template" in where]
    return REWARDS.format(
        bos=repr("" if tokenizer.bos_id is None else texts[tokenizer.bos_id]),
        end=repr(texts[ends[0] if ends else tokenizer.eos_id]),
        padding=repr(None if padding is None else texts[padding]),
        **limits,
    )


def code_of_adapters(base: str, *, rewards: bool) -> str:
    """Returns the card's code for adapters, with the name of their base."""
    kind = "SequenceClassification" if rewards else "CausalLM"
    return ADAPTERS.format(kind=kind, base=base)


def model_card(
    config: dict[str, Any],
    identity: dict[str, str],
    step: int,
    name: str,
    note: str,
    *,
    code: str = WHOLE,
    adapted: str = "",
) -> str:
    """Returns the text of README.md: how the model was trained, and how to load it.

    Args:
      config: the run's, as JSON.
      identity: digests of data, tokenizer and reference.
      step, name: the checkpoint's step, the run's name.
      note: in a multi-objective run, the networks chosen for the preference.
      code: Python code that loads the model.
      adapted: for a folder of adapters, the name of their base.
    """
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
        note=f"\n| preference | {note} |" if note else "",
        reference=identity["reference"],
        data=identity["data"],
        tokenizer=identity["tokenizer"],
        library="peft" if adapted else "transformers",
        base_line=f"base_model: {json.dumps(adapted)}\n" if adapted else "",
        code=code,
        versions="\n".join(f"- {key} {value}" for key, value in versions().items()),
        config=json.dumps(config, indent=2),
    )
