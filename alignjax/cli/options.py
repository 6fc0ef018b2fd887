"""Defines the flags of the command line; `cli.table` lists the flags of each command."""

import dataclasses
from typing import Any

from absl import flags

VALUES = flags.FLAGS


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag and its help text."""

    name: str
    text: str
    kind: str = "text"  # text | texts (may be repeated) | list (commas) | int | float | bool
    default: Any = ""
    low: float | None = None  # smallest number


TABLE = (
    Flag("config", "Python file with get_config(), e.g. configs/hps.py:8b"),
    Flag("model", "model folder saved by transformers, or a GGUF file"),
    Flag("data", "preference data (docs/data.md): .jsonl, .json, .parquet, ...; or a glob"),
    Flag("print_config", "print the config as a Python file to edit, and stop", "bool", False),
    Flag("workdir", "folder of the run; resumes if it contains one"),
    Flag("set", "changes a field of the config, e.g. --set loss.beta=0.2", "texts"),
    Flag("allow_config_change", "resume although the config has changed", "bool", False),
    Flag("allow_fallback", "resume from the newest undamaged checkpoint", "bool", False),
    Flag("show", "show rows as text, or as tokens with the trained ones marked", default="text"),
    Flag("records", "JSON lines with prompt and responses"),
    Flag("reward_model", "workdir of a reward model", "texts"),
    Flag("max_prompt_tokens", "longer prompts lose their beginning", "int", None, 2),
    Flag("max_response_tokens", "longer responses lose their end", "int", None, 2),
    Flag("out", "output file"),
    Flag("format", "of --out: jsonl | alpaca_eval, which alpaca_eval reads", default="jsonl"),
    Flag("against", "responses to the same prompts as --records"),
    Flag("judge", "model at $OPENAI_BASE_URL that compares responses, e.g. gpt-4.1-mini"),
    Flag("tie", "scores that differ by at most this are ties", "float", 0.0),
    Flag(
        "prompts", "JSON lines with prompt, .txt or - (stdin); default: the run's held-out prompts"
    ),
    Flag("max_new_tokens", "longer responses are cut and counted", "int", None, 1),
    Flag("overwrite", "overwrite an existing file", "bool", False),
    Flag("samples", "responses per prompt", "int", None, 1),
    Flag("temperature", "sampling temperature; 0: greedy", "float", None, 0.0),
    Flag("preference", "weights of the objectives, e.g. 0.3,0.7; for export also: all"),
    Flag("checkpoint", "which checkpoint: last, or best (train.keep_best)", default="last"),
    Flag("runs", "workdirs, separated by commas", "list", ()),
    Flag(
        "from", "model folder saved by transformers, or a GGUF file; export: or an imported folder"
    ),
    Flag("to", "new folder to write; export: or FILE.gguf"),
    Flag("adapter", "export only the LoRA adapters, in PEFT's format", "bool", False),
    Flag("base", "export --adapter: name of the base model, on a hub or a folder"),
    Flag("dtype", "float32 | bfloat16, default: that of the parameters; for FILE.gguf: f16 | q8_0"),
    Flag("topology", "machines to compile for, e.g. v5p:4x4x4 or h100:8"),
    Flag("mesh", "data=..,fsdp=..,tensor=..; default: the config's, or the first that fits"),
    Flag("parts", "what to compile: step, sft, reward, score, sample", "list", ("step",)),
    Flag("responses", "responses per prompt in the data", "int", 0, 0),
    Flag("price", "dollars per device and hour", "float", 0.0, 0.0),
    Flag("sweep", "try meshes and remat policies, and rank them", "bool", False),
)
BY_NAME = {flag.name: flag for flag in TABLE}


def _define(flag: Flag) -> None:
    name, default, text, low = flag.name, flag.default, flag.text, flag.low
    if flag.kind == "text":
        flags.DEFINE_string(name, default, text)
    elif flag.kind == "texts":
        flags.DEFINE_multi_string(name, [], text)
    elif flag.kind == "list":
        flags.DEFINE_list(name, list(default), text)
    elif flag.kind == "int":
        flags.DEFINE_integer(name, default, text, lower_bound=None if low is None else int(low))
    elif flag.kind == "float":
        flags.DEFINE_float(name, default, text, lower_bound=low)
    else:
        flags.DEFINE_bool(name, default, text)


for _flag in TABLE:
    _define(_flag)


def reset() -> None:
    """Resets all flags, for a program that parses several command lines."""
    for name in BY_NAME:
        VALUES[name].unparse()


def given(*names: str) -> dict[str, Any]:
    """Returns the values of flags by name."""
    return {name: VALUES[name].value for name in names}
