"""Makes lists of sampled, scored responses.

Their folder holds:

    SIDE.jsonl      lists that `data.sources.lists` reads
    record.json     their key, digests and counts

The randomness of a response depends only on the side's key and the prompt. Killed work continues
with its current batch; complete lists are reused (`runtime.artifacts`).
"""

import dataclasses
import functools
import hashlib
import json
import logging
import pathlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from alignjax.config import SamplingConfig
from alignjax.data.batching import Bucketed
from alignjax.data.records import DataReport, Record, check, prompt_as_json
from alignjax.data.sources import lists
from alignjax.rewards.scorers import Cuts
from alignjax.runtime import artifacts, storage
from alignjax.sampling.generate import Question, Sample
from alignjax.stages.data import rows_of
from alignjax.stages.run import Run
from alignjax.stages.samples import draw_samples
from alignjax.types import Array, Params

log = logging.getLogger("alignjax")

AT_ONCE = 512  # lists that are scored, and saved, at a time


@dataclasses.dataclass(frozen=True)
class Side:
    """Prompts to respond to; one entry per prompt in each of the sequences."""

    name: str  # of the file
    title: str  # of the progress bar
    key: Array  # PRNG key
    questions: Sequence[Question]
    originals: Sequence[Record]  # prompt as read, id, domain
    own: Sequence[Sequence[str]]  # responses of the data, which come before the samples
    repeats: bool = False  # keep repeated samples: their frequencies matter


def make(
    run: Run,
    folder: pathlib.Path,
    key: dict[str, Any],
    sides: Sequence[Side],
    load_policy: Callable[[], Params],
    settings: SamplingConfig,
    score: Callable[[list[Record], Cuts], list[np.ndarray]],
) -> dict[str, Any]:
    """Samples, scores and writes the lists, unless they exist.

    Args:
      run: the run.
      folder: of the lists.
      key: JSON data that changes whenever the lists would.
      sides: the prompts.
      load_policy: loads the parameters to sample from.
      settings: number of responses per prompt, temperature and so on.
      score: returns ``[k]`` for every record of k >= 1 responses; counts truncations.

    Returns:
      The record: ``key``; ``sha256`` of each side's file; ``counts`` of each side's prompts and
      responses: own, sampled, unfinished, empty, unwritable, duplicate, kept (with duplicates if
      the side ``repeats``); ``cuts`` of each side, see `scorers.Cuts`.
    """
    if artifacts.is_whole(folder, key):
        log.info("%s: complete, nothing to do", folder.name)

    def write(scratch: pathlib.Path) -> None:
        samples = _sample(run, scratch, sides, load_policy, settings)
        record: dict[str, Any] = {"key": key, "sha256": {}, "counts": {}, "cuts": {}}
        for side in sides:
            records, counts = collect(side, samples[side.name])
            scores, cuts = _score(scratch, side, records, score)
            content = "".join(line(r, scores.get(r.id, [])) for r in records).encode()
            storage.write(scratch / folder.name / f"{side.name}.jsonl", content)
            record["sha256"][side.name] = hashlib.sha256(content).hexdigest()
            record["counts"][side.name] = counts
            record["cuts"][side.name] = dict(cuts)
        storage.write_json(scratch / folder.name / "record.json", record)

    record: dict[str, Any] = artifacts.reuse(
        folder, key, write, lambda path: storage.read_json(path / "record.json")
    )
    return record


def _sample(
    run: Run,
    scratch: pathlib.Path,
    sides: Sequence[Side],
    load_policy: Callable[[], Params],
    settings: SamplingConfig,
) -> dict[str, list[list[Sample]]]:
    """Samples for all sides, by side and prompt; the policy is freed before scorers load."""
    policy = load_policy()
    samples = {}
    for side in sides:
        samples[side.name], _ = draw_samples(
            scratch,
            side.name,
            run.sampling(settings, side.title, side.key),
            policy,
            side.questions,
        )
    return samples


def collect(side: Side, samples: Sequence[Sequence[Sample]]) -> tuple[list[Record], dict[str, int]]:
    """Makes one record per prompt, and counts the responses; see `make`."""
    counts: Counter[str] = Counter(prompts=len(samples))
    records = []
    for original, own, sampled in zip(side.originals, side.own, samples, strict=True):
        counts.update(own=len(own), sampled=len(sampled))
        counts["unfinished"] += sum(not sample.ended for sample in sampled)
        kept: list[str] = []
        for response in (*own, *(sample.response for sample in sampled)):
            if not response.strip():
                counts["empty"] += 1
            elif "\0" in response:  # sources refuse it
                counts["unwritable"] += 1
            else:
                repeated = response in kept
                counts["duplicate"] += repeated
                if side.repeats or not repeated:
                    kept.append(response)
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
    scratch: pathlib.Path,
    side: Side,
    records: list[Record],
    score: Callable[[list[Record], Cuts], list[np.ndarray]],
) -> tuple[dict[str, list[float]], Cuts]:
    """Scores every response, by the record's id, and counts truncations.

    Prompts without a response have no scores.
    """
    scorable = [record for record in records if record.responses]
    scores: dict[str, list[float]] = {}
    cuts: Cuts = Counter()
    for start in range(0, len(scorable), AT_ONCE):
        chunk = scorable[start : start + AT_ONCE]
        name = f"scored-{side.name}-{start // AT_ONCE:06d}"
        part = artifacts.part(scratch, name, functools.partial(_scores, score, chunk))
        scores |= {record.id: x for record, x in zip(chunk, part["scores"], strict=True)}
        cuts.update(part["cuts"])
    return scores, cuts


def _scores(
    score: Callable[[list[Record], Cuts], list[np.ndarray]], records: list[Record]
) -> dict[str, Any]:
    cuts: Cuts = Counter()
    return {"scores": [scores.tolist() for scores in score(records, cuts)], "cuts": cuts}


def open_lists(
    run: Run, path: pathlib.Path, report: DataReport, identity: Any, *, repeats: bool = False
) -> Bucketed:
    """Opens one side's lists as rows, prepared like other data.

    Args:
      run: the run.
      path: the side's file.
      report: counts are added to it.
      identity: JSON data that changes whenever the lists would.
      repeats: `Side.repeats`.
    """
    records = lists(report, path=str(path), domain="domain")
    checked = check((dataclasses.replace(r, repeats=repeats) for r in records), report)
    return rows_of(run.config, run.workdir, checked, run.data.tokenizer, report, identity)


def line(
    record: Record, scores: list[float] | None = None, *, unfinished: int | None = None
) -> str:
    """Formats a record as a JSON line, which with scores `data.sources.lists` reads.

    Args:
      record: prompt and responses.
      scores: one per response; None: to be scored later.
      unfinished: number of responses that were cut at the token limit.
    """
    fields: dict[str, Any] = {
        "id": record.id,
        "prompt": prompt_as_json(record.prompt),
        "responses": record.responses,
        "domain": record.domain,
    }
    if scores is not None:
        fields["scores"] = scores
    if unfinished is not None:
        fields["unfinished"] = unfinished
    return json.dumps(fields, ensure_ascii=False) + "\n"
