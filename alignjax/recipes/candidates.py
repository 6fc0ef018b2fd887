"""The stage between supervised fine-tuning and alignment: lists of sampled, scored responses.

What it writes into the workdir:

    candidates/train.jsonl  held_out.jsonl    the lists, as `data.sources.lists` reads them
    candidates/record.json                    what they are made of, digests, counts
    candidates/parts-*/                       while the stage runs: what is done of it

Responses are drawn from the supervised policy, with randomness that depends on the seed and the
prompt alone. A stage that was killed goes on with the batch that it was at; one that is complete
is recognised by its record and its digests, and skipped.
"""

import dataclasses
import functools
import hashlib
import json
import logging
import pathlib
import shutil
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from alignjax import checkpoint, score
from alignjax.config import Config
from alignjax.data.batching import Bucketed, bucket
from alignjax.data.prepare import enforce, prepare
from alignjax.data.records import Prompt, Receipt, Record, check
from alignjax.data.sources import lists
from alignjax.faults import fault_point
from alignjax.fields import describe
from alignjax.generate import questions, respond_in_batches
from alignjax.recipes import scored, workdirs
from alignjax.recipes.prepared import Prepared, cache_dir, split
from alignjax.types import Params

log = logging.getLogger("alignjax")

SIDES = ("train", "held_out")
AT_ONCE = 512  # lists handed to a scorer at a time, and kept


def make(
    config: Config,
    workdir: pathlib.Path,
    data: Prepared,
    mesh: Mesh,
    load_policy: Callable[[], Params],
) -> Prepared:
    """Makes the lists, unless they are there, and opens them.

    Args:
      config: ``candidates`` says how.
      data: the prompts, on both sides.
      load_policy: gives the supervised policy.

    Returns:
      The lists to train and to evaluate on; what is asked of the policies stays as it was.

    Raises:
      UserError: a scorer gives something else than finite scores, or too many prompts gave no list
        (``candidates.max_drop_fraction``).
    """
    folder = workdir / "candidates"
    folder.mkdir(exist_ok=True)
    policy = load_policy()
    key = {
        "policy": checkpoint.tree_digest(policy),
        "data": {"train": data.train.dataset.digest, "held_out": data.held_out.dataset.digest},
        "tokenizer": data.tokenizer.digest,
        "seed": config.train.seed,
        "candidates": describe(config.candidates),
        "reward_models": _reward_models(config),
    }
    record = _complete(folder, key)
    if record is None:
        record = _make(config, folder, key, data, mesh, policy)
    del policy
    return _open(config, workdir, folder, record, data)


def _reward_models(config: Config) -> list[str]:
    """Digests of the parameters that the scorers use: a path says nothing of what is there."""
    assert config.candidates is not None
    found = []
    for scorer in config.candidates.scorers:
        if isinstance(scorer, functools.partial) and scorer.func is score.reward_model:
            found.append(score.find_reward_model(scorer.keywords["path"]).digest)
    return found


def _complete(folder: pathlib.Path, key: dict[str, Any]) -> dict[str, Any] | None:
    """The record of finished lists of this key whose files are as they were written."""
    path = folder / "record.json"
    record = workdirs.read_json(path) if path.is_file() else {}
    if record.get("key") != key:
        return None
    for side in SIDES:
        file = folder / f"{side}.jsonl"
        if not file.is_file() or _sha256(file.read_bytes()) != record["sha256"][side]:
            log.warning("%s is not as it was written: making the lists again", file)
            return None
    log.info("candidates: complete, nothing to do")
    return record


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _make(
    config: Config,
    folder: pathlib.Path,
    key: dict[str, Any],
    data: Prepared,
    mesh: Mesh,
    policy: Params,
) -> dict[str, Any]:
    parts = folder / f"parts-{_sha256(json.dumps(key, sort_keys=True).encode())[:16]}"
    parts.mkdir(exist_ok=True)
    for side, rows in zip(SIDES, (data.train, data.held_out), strict=True):
        _generate(config, parts, side, rows, data, mesh, policy)
    del policy  # scorers may be models, too
    train, held_out = split(config, {side: Receipt() for side in SIDES})
    texts = {record.id: record for record in (*train, *held_out)}
    record: dict[str, Any] = {"key": key, "sha256": {}, "counts": {}}
    for side, rows in zip(SIDES, (data.train, data.held_out), strict=True):
        records, counts = _collect(config, parts, side, rows, texts)
        scores = _score(config, parts, side, records)
        content = "".join(line(r, scores.get(r.id, [])) for r in records).encode()
        temporary = folder / f"{side}.jsonl.tmp"
        temporary.write_bytes(content)
        temporary.replace(folder / f"{side}.jsonl")
        record["sha256"][side], record["counts"][side] = _sha256(content), counts
    fault_point("listed", "")
    workdirs.write_json(folder / "record.json", record)
    for left in folder.glob("parts-*"):
        shutil.rmtree(left)
    return record


def _generate(
    config: Config,
    parts: pathlib.Path,
    side: str,
    rows: Bucketed,
    data: Prepared,
    mesh: Mesh,
    policy: Params,
) -> None:
    """Writes one part for every batch that has none."""
    assert config.candidates is not None
    key = jax.random.fold_in(jax.random.key(config.train.seed), 1 + SIDES.index(side))
    for number, found in respond_in_batches(
        policy,
        None,
        questions(rows, len(rows.dataset)),
        model=config.model,
        tokenizer=data.tokenizer,
        settings=config.candidates,
        key=key,
        mesh=mesh,
        title=f"candidates, {side.replace('_', ' ')}",
        done={_number(path) for path in parts.glob(f"{side}-*.json")},
    ):
        said = {i: [(s.response, s.ended) for s in samples] for i, samples in found.items()}
        workdirs.write_json(parts / f"{side}-{number:06d}.json", said)
        fault_point("generated", f"{side}-{number:06d}")


def _number(path: pathlib.Path) -> int:
    return int(path.stem.rpartition("-")[2])


def _collect(
    config: Config, parts: pathlib.Path, side: str, rows: Bucketed, texts: dict[str, Record]
) -> tuple[list[Record], dict[str, int]]:
    """One record per prompt, its responses distinct, and what became of every response."""
    assert config.candidates is not None
    said: dict[int, list[tuple[str, bool]]] = {}
    for path in sorted(parts.glob(f"{side}-*.json")):
        said |= {int(i): responses for i, responses in workdirs.read_json(path).items()}
    own: dict[str, list[str]] = {}
    if config.candidates.keep_own:
        for row in range(len(rows.dataset)):
            example = rows.dataset[row]
            own.setdefault(example.prompt, []).extend(texts[example.id].responses)
    counts: Counter[str] = Counter(prompts=len(said))
    records = []
    for i, question in enumerate(questions(rows, len(rows.dataset))):
        original = texts[rows.dataset[question.number].id]
        mine = own.get(question.prompt, [])
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
    config: Config, parts: pathlib.Path, side: str, records: list[Record]
) -> dict[str, list[float]]:
    """Scores of every response by the record's id; prompts without a response have none."""
    assert config.candidates is not None
    some = [record for record in records if record.responses]
    out: dict[str, list[float]] = {}
    for start in range(0, len(some), AT_ONCE):
        name = f"scores-{side}-{start // AT_ONCE:06d}"
        path = parts / f"{name}.json"
        chunk = some[start : start + AT_ONCE]
        if not path.is_file():
            found = scored.mean_scores(config.candidates.scorers, chunk, "candidates.scorers")
            workdirs.write_json(path, [x.tolist() for x in found])
            fault_point("scored", name)
        out |= {r.id: x for r, x in zip(chunk, workdirs.read_json(path), strict=True)}
    return out


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


def _open(
    config: Config,
    workdir: pathlib.Path,
    folder: pathlib.Path,
    record: dict[str, Any],
    data: Prepared,
) -> Prepared:
    """Prepares the lists like any other data; extends the receipt."""
    assert config.candidates is not None
    settings, sides, receipts = config.data, {}, {}
    for side in SIDES:
        receipt = Receipt()
        source = lists(receipt, path=str(folder / f"{side}.jsonl"), domain="domain")
        dataset = prepare(
            check(source, receipt),
            data.tokenizer,
            cache_dir=str(cache_dir(config, workdir)),
            max_prompt_tokens=settings.max_prompt_tokens,
            max_response_tokens=settings.max_response_tokens,
            receipt=receipt,
            identity={"candidates": record["sha256"][side], "side": side},
        )
        counts = record["counts"][side]
        told = ", ".join(f"{count:,} {name}" for name, count in counts.items())
        log.info("candidates, %s: %s\n%s", side.replace("_", " "), told, receipt.render())
        sides[side] = bucket(dataset, count=settings.buckets, multiple=settings.pad_multiple)
        receipts[side] = {**receipt.as_dict(), "responses": counts}
        enforce(
            receipt,
            max_drop_fraction=config.candidates.max_drop_fraction,
            field="candidates.max_drop_fraction",
        )
    receipt_file = workdir / "receipt.json"
    told_all = {**data.receipt, "candidates": receipts}
    workdirs.write_json(receipt_file, told_all)
    return dataclasses.replace(
        data, train=sides["train"], held_out=sides["held_out"], receipt=told_all
    )
