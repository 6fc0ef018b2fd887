"""Saves records in a file, so that a run can resume when its data are gone; digests them."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from typing import Any

from alignjax.data.records import Message, Prompt, Record


def write(records: Iterable[Record]) -> bytes:
    """Writes one JSON line per record."""
    lines = (json.dumps(dataclasses.asdict(x), ensure_ascii=False) + "\n" for x in records)
    return "".join(lines).encode(errors="surrogatepass")


def read(content: bytes) -> list[Record]:
    """Reads the records of `write`."""
    lines = content.decode(errors="surrogatepass").split("\n")[:-1]
    return [_record(json.loads(line)) for line in lines]


def digest(records: list[Record]) -> str:
    """Digests the fields of records that rows depend on."""
    total = hashlib.sha256()
    for r in records:
        fields = (r.id, r.prompt, r.responses, r.scores, r.objectives, r.desirable)
        more = (r.more,) if r.more else ()
        total.update(repr((*fields, r.adversarial, r.domain, *more)).encode())
        if r.repeats:
            total.update(b"repeats")
    return f"{len(records)} with digest {total.hexdigest()[:16]}"


def _record(fields: dict[str, Any]) -> Record:
    prompts = {name: _prompt(fields[name]) for name in ("prompt", "root")}
    scores = tuple(map(tuple, fields["scores"]))
    lists = {name: tuple(x) for name, x in fields.items() if isinstance(x, list)}
    return Record(**{**fields, **lists, **prompts, "scores": scores})


def _prompt(prompt: str | list[dict[str, str]]) -> Prompt:
    return prompt if isinstance(prompt, str) else tuple(Message(**turn) for turn in prompt)
