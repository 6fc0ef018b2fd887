"""Lists of sampled responses, kept while they are made.

A folder of them holds:

    SIDE.jsonl      the lists, as `data.sources.lists` reads them
    record.json     what they are made of, digests, counts
    parts-*/        while they are made: what is done of it

The randomness of a response depends on the side's key and the prompt alone. Work that was killed
goes on with the batch that it was at; what is complete is recognised by its record and its
digests, and skipped.
"""

import dataclasses
import hashlib
import json
import logging
import pathlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from alignjax.config import SamplingConfig
from alignjax.data.batching import Bucketed
from alignjax.data.records import Prompt, Receipt, Record, check
from alignjax.data.sources import lists
from alignjax.data.tokenizer.load import Tokenizer
from alignjax.models.config import ModelConfig
from alignjax.runtime import workdirs
from alignjax.runtime.faults import fault_point
from alignjax.sampling.generate import Question, respond_in_batches
from alignjax.stages.data import rows_of
from alignjax.stages.run import Run
from alignjax.types import Array, Params

log = logging.getLogger("alignjax")

AT_ONCE = 512  # lists handed to a scorer at a time, and kept


@dataclasses.dataclass(frozen=True)
class Side:
    """Prompts to respond to; one entry per prompt in each of the sequences."""

    name: str  # of the file
    title: str  # of the progress bar
    key: Array  # of every draw
    asked: Sequence[Question]
    originals: Sequence[Record]  # the prompt as it was read, an id, the domain
    own: Sequence[Sequence[str]]  # responses that come before the samples


@dataclasses.dataclass(frozen=True)
class Drawing:
    """What the samples are drawn with."""

    load_policy: Callable[[], Params]
    model: ModelConfig
    tokenizer: Tokenizer
    mesh: Mesh


def complete(folder: pathlib.Path, key: dict[str, Any]) -> dict[str, Any] | None:
    """The record of finished lists of this key whose files are as they were written."""
    record = workdirs.find_json(folder / "record.json") or {}
    if record.get("key") != key:
        return None
    for side, digest in record["sha256"].items():
        file = folder / f"{side}.jsonl"
        if workdirs.sha256(file) != digest:
            log.warning("%s is not as it was written: making the lists again", file)
            return None
    log.info("%s: complete, nothing to do", folder.name)
    return dict(record)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def make(
    folder: pathlib.Path,
    key: dict[str, Any],
    sides: Sequence[Side],
    drawing: Drawing,
    settings: SamplingConfig,
    score: Callable[[list[Record]], list[np.ndarray]],
) -> dict[str, Any]:
    """Samples, scores and writes the lists.

    Args:
      folder: where to.
      key: JSON data that changes whenever the lists would.
      settings: how many responses to each prompt, and how to draw them.
      score: gives ``[k]`` for every record of k >= 1 responses.

    Returns:
      The record: ``key``; ``sha256`` of each side's file; ``counts`` of each side's prompts and of
      what became of their responses: own, sampled, unfinished, empty, unwritable, duplicate, kept.
    """
    parts = folder / f"parts-{_sha256(json.dumps(key, sort_keys=True).encode())[:16]}"
    _generate(parts, sides, drawing, settings)
    record: dict[str, Any] = {"key": key, "sha256": {}, "counts": {}}
    for side in sides:
        records, counts = _collect(parts, side)
        scores = _score(parts, side, records, score)
        content = "".join(line(r, scores.get(r.id, [])) for r in records).encode()
        workdirs.write(folder / f"{side.name}.jsonl", content)
        record["sha256"][side.name], record["counts"][side.name] = _sha256(content), counts
    fault_point("listed", "")
    workdirs.write_json(folder / "record.json", record)
    for left in workdirs.names(folder, "parts-*"):
        workdirs.remove(folder / left)
    return record


def _generate(
    parts: pathlib.Path, sides: Sequence[Side], drawing: Drawing, settings: SamplingConfig
) -> None:
    """Writes one part for every batch that has none; the policy is freed before scorers load."""
    policy = drawing.load_policy()
    for side in sides:
        for number, found in respond_in_batches(
            policy,
            None,
            side.asked,
            model=drawing.model,
            tokenizer=drawing.tokenizer,
            settings=settings,
            key=side.key,
            mesh=drawing.mesh,
            title=side.title,
            done={_number(name) for name in workdirs.names(parts, f"{side.name}-*.json")},
        ):
            said = {i: [(s.response, s.ended) for s in samples] for i, samples in found.items()}
            workdirs.write_json(parts / f"{side.name}-{number:06d}.json", said)
            fault_point("generated", f"{side.name}-{number:06d}")


def _number(name: str) -> int:
    return int(name.removesuffix(".json").rpartition("-")[2])


def _collect(parts: pathlib.Path, side: Side) -> tuple[list[Record], dict[str, int]]:
    """One record per prompt, its responses distinct, and what became of every response."""
    said: dict[int, list[tuple[str, bool]]] = {}
    for name in workdirs.names(parts, f"{side.name}-*.json"):
        part = workdirs.read_json(parts / name)
        said |= {int(i): responses for i, responses in part.items()}
    counts: Counter[str] = Counter(prompts=len(said))
    records = []
    for i, (original, mine) in enumerate(zip(side.originals, side.own, strict=True)):
        drawn = said[i]
        counts.update(own=len(mine), sampled=len(drawn))
        counts["unfinished"] += sum(not ended for _, ended in drawn)
        kept: dict[str, None] = {}
        for response in (*mine, *(text for text, _ in drawn)):
            if not response.strip():
                counts["empty"] += 1
            elif "\0" in response:  # a text file cannot hold it
                counts["unwritable"] += 1
            elif response in kept:
                counts["duplicate"] += 1
            else:
                kept[response] = None
        counts["kept"] += len(kept)
        records.append(
            Record(
                id=original.id,
                prompt=original.prompt,
                responses=tuple(kept),
                domain=original.domain,
            )
        )
    return records, dict(counts)


def _score(
    parts: pathlib.Path,
    side: Side,
    records: list[Record],
    score: Callable[[list[Record]], list[np.ndarray]],
) -> dict[str, list[float]]:
    """Scores of every response by the record's id; prompts without a response have none."""
    some = [record for record in records if record.responses]
    out: dict[str, list[float]] = {}
    for start in range(0, len(some), AT_ONCE):
        name = f"scores-{side.name}-{start // AT_ONCE:06d}"
        path = parts / f"{name}.json"
        chunk = some[start : start + AT_ONCE]
        found = workdirs.find_json(path)
        if found is None:
            found = [x.tolist() for x in score(chunk)]
            workdirs.write_json(path, found)
            fault_point("scored", name)
        out |= {r.id: x for r, x in zip(chunk, found, strict=True)}
    return out


def opened(run: Run, path: pathlib.Path, receipt: Receipt, identity: Any) -> Bucketed:
    """One side's lists as rows to train on: checked, prepared and bucketed like any other data."""
    records = check(lists(receipt, path=str(path), domain="domain"), receipt)
    return rows_of(run.config, run.workdir, records, run.data.tokenizer, receipt, identity)


def line(record: Record, scores: list[float] | None = None) -> str:
    """A record as a line of JSON that `data.sources.lists` reads; without scores, to be scored."""
    fields: dict[str, Any] = {
        "id": record.id,
        "prompt": _plain(record.prompt),
        "responses": record.responses,
        "domain": record.domain,
    }
    if scores is not None:
        fields["scores"] = scores
    return json.dumps(fields, ensure_ascii=False) + "\n"


def _plain(prompt: Prompt) -> Any:
    return prompt if isinstance(prompt, str) else [dataclasses.asdict(turn) for turn in prompt]
