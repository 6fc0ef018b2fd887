"""Scores responses with classifiers that run in transformers only: DeBERTa, GPT-2 and others.

Only the command ``score`` uses them; networks that run in JAX are in `reward_models`. Weights are
read from safetensors only, and no code in the folder is run.
"""

import dataclasses
import glob
import hashlib
import importlib
import importlib.util
import json
import logging
import pathlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from alignjax.data.files import fingerprint
from alignjax.data.records import Message, Prompt, Record
from alignjax.errors import UserError
from alignjax.models.hf import configjson
from alignjax.models.hf.families import FAMILIES
from alignjax.runtime import storage
from alignjax.runtime.loggers.bars import progress

log = logging.getLogger("alignjax")

BATCH = 16  # responses at a time
# Not in pyproject.toml: how to install torch depends on the machine.
NEEDED = ("torch", "transformers")
CLASSIFIER = "ForSequenceClassification"


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A classifier that transformers can run."""

    path: pathlib.Path  # its folder
    objectives: tuple[str, ...]  # names of its scores; () for one score without a name
    labels: tuple[str, str] | None  # a score is the second one's logit minus the first one's
    digest: str  # of its weights, settings and tokenizer


def find(path: str) -> Classifier | None:
    """Describes the classifier in a folder; None if it is none, or of a family that runs in JAX.

    Raises:
      UserError: torch or transformers are not installed, or there are no safetensors.
    """
    folder = pathlib.Path(path)
    file = folder / "config.json"
    content = dict(storage.read_here(file)) if file.is_file() else {}
    kind, classes = content.get("model_type"), content.get("architectures") or [""]
    if kind is None or kind in FAMILIES or not str(classes[0]).endswith(CLASSIFIER):
        return None
    missing = [x for x in NEEDED if importlib.util.find_spec(x) is None]
    if missing:
        raise UserError(
            f"{file}: model_type: {kind!r:.80} is scored through transformers, and "
            f"{' and '.join(missing)} cannot be imported: pip install torch transformers"
        )
    weights = glob.glob(str(pathlib.Path(glob.escape(path)) / "*.safetensors"))
    if not weights:
        raise UserError(f"{folder}: holds no .safetensors; pickled weights are never opened")
    names = configjson.labels(content, str(file))
    labels = configjson.two_labels(content, names)
    texts = sorted(x for x in folder.iterdir() if x.suffix in (".json", ".jinja", ".model", ".txt"))
    parts = [fingerprint(glob.escape(x)) for x in sorted(weights)]
    parts += [hashlib.sha256(x.read_bytes()).hexdigest() for x in texts]
    digest = hashlib.sha256(":".join(parts).encode()).hexdigest()
    return Classifier(folder, names if len(names) > 1 and labels is None else (), labels, digest)


def score(
    classifier: Classifier, records: Sequence[Record], cuts: Counter[str]
) -> list[np.ndarray]:
    """Scores responses in float32, on the CPU.

    The input is the conversation as the tokenizer's chat template writes it, or without a template
    the pair (prompt, response), as such models are trained. A text over the model's maximum length
    loses its beginning, in a pair the prompt's; the number of cut texts is logged and counted.

    Args:
      records: prompts, with any number of responses.
      cuts: the numbers of texts and of cut texts are added to it.

    Returns:
      For each record ``[k]`` float32, or ``[k, M]`` where the model has M > 1 objectives.

    Raises:
      UserError: transformers cannot load the folder, or a response alone is over the maximum.
    """
    tokenizer, model = _load(classifier.path)
    name, longest = classifier.path.resolve().name, _longest(tokenizer, model.config)
    texts = [_text(tokenizer, r, i) for r in records for i in range(len(r.responses))]
    encoded = [_encode(tokenizer, text, longest, name) for text in texts]
    cut = sum(was_cut for _, was_cut in encoded)
    cuts.update({f"{name}: texts": len(texts), f"{name}: texts cut": cut})
    if cut:
        log.info(
            "scoring, %s: %s of %s texts cut to the model's maximum length, %s tokens, their "
            "beginning is lost",
            *(name, f"{cut:,}", f"{len(texts):,}", longest),
        )
    out = _logits(model, [row for row, _ in encoded], f"scoring, {name}")
    if classifier.labels is not None:
        log.info(
            "scoring, %s: two labels: a score is the logit of %r minus that of %r",
            *(name, classifier.labels[1], classifier.labels[0]),
        )
        out = out[:, 1:] - out[:, :1]
    if out.shape[1] == 1:
        out = out[:, 0]
    ends = np.cumsum([len(record.responses) for record in records])[:-1]
    return np.split(out, ends) if records else []


def _load(folder: pathlib.Path) -> tuple[Any, Any]:
    """Loads the tokenizer and the network."""
    torch, transformers = map(importlib.import_module, NEEDED)
    own: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    network = transformers.AutoModelForSequenceClassification
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **own)
        model = network.from_pretrained(folder, use_safetensors=True, dtype=torch.float32, **own)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{folder}: transformers cannot load it: {reason}") from error
    return tokenizer, model.eval()


def _logits(model: Any, rows: list[dict[str, list[int]]], title: str) -> np.ndarray:
    """Runs the network on rows of token ids, shortest first: ``[N, outputs]``."""
    torch = importlib.import_module("torch")
    # Without a padding token a network cannot find where a shorter row ends: one row at a time.
    padding = getattr(model.config, "pad_token_id", None)
    at_once = 1 if padding is None else BATCH
    out = np.zeros((len(rows), model.config.num_labels), np.float32)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    with torch.no_grad(), progress(title, len(rows)) as advance:
        for start in range(0, len(order), at_once):
            some = order[start : start + at_once]
            longest = max(len(rows[i]["input_ids"]) for i in some)
            fill = {"input_ids": padding}
            batch = {
                name: torch.tensor(
                    [
                        x + [fill.get(name, 0)] * (longest - len(x))
                        for x in (rows[i][name] for i in some)
                    ]
                )
                for name in rows[some[0]]
            }
            out[some] = model(**batch).logits.float().numpy()
            advance(len(some))
    return out


def _longest(tokenizer: Any, config: Any) -> int:
    """Finds the model's maximum length in tokens; 10^9 if neither file has one."""
    given = (tokenizer.model_max_length, getattr(config, "max_position_embeddings", None))
    return min((x for x in given if isinstance(x, int) and 2 < x < 10**9), default=10**9)


def _text(tokenizer: Any, record: Record, i: int) -> tuple[str, ...]:
    """Writes the input for a response: one text by the chat template, or prompt and response."""
    prompt, response = record.prompt, record.responses[i]
    if getattr(tokenizer, "chat_template", None):
        turns = (Message("user", prompt),) if isinstance(prompt, str) else prompt
        messages = [x.fields() for x in (*turns, Message("assistant", response))]
        tools = None  # of the first message, if it has that role
        if messages[0]["role"] == "tools":
            tools, messages = json.loads(messages[0]["content"]), messages[1:]
        written = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
        return (str(written),)
    return (_plain(prompt), response)


def _plain(prompt: Prompt) -> str:
    """Writes a prompt as text, several messages as a line each."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return prompt[0].content
    return "\n".join(f"{message.role}: {message.content}" for message in prompt)


def _encode(
    tokenizer: Any, text: tuple[str, ...], longest: int, name: str
) -> tuple[dict[str, list[int]], bool]:
    """Tokenises a text up to the limit; also returns whether it was cut."""
    special = len(text) > 1  # a template has written its own
    row = tokenizer(*text, add_special_tokens=special)
    if len(row["input_ids"]) <= longest:
        return dict(row), False
    tokenizer.truncation_side = "left"
    limited = {"truncation": "only_first", "max_length": longest}
    if len(text) > 1 and len(tokenizer("", text[1])["input_ids"]) >= longest:
        raise UserError(
            f"{name}: wanted at most {longest:,} tokens for prompt and response, found a response "
            f"of {len(tokenizer(text[1])['input_ids']):,}"
        )
    return dict(tokenizer(*text, add_special_tokens=special, **limited)), True
