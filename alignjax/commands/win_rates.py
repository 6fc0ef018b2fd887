"""Computes win rates between two files of responses: ``evaluate --records=A --against=B``."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from alignjax.config import Config
from alignjax.data.files import Row, read_rows
from alignjax.data.records import DataError, Prompt
from alignjax.data.sources.messages import read_responses
from alignjax.errors import UserError
from alignjax.evaluation.statistics import Interval
from alignjax.evaluation.tables import print_rows, say
from alignjax.evaluation.win_rate import WinRate, at_equal_length, compare, of_shares
from alignjax.rewards import endpoint
from alignjax.rewards.scorers import judged, judgements, open_scorer, open_scorers, reward_model
from alignjax.runtime import storage

Scores = dict[str, list[np.ndarray]]  # name of a score -> for each record [k]


def run(
    records: str,
    against: str,
    *,
    reward_models: Sequence[str] = (),
    config: Config | None = None,
    tie: float = 0.0,
    judge: str = "",
    out: str = "",
) -> dict[str, WinRate]:
    """Compares responses to the same prompts and prints a row per score.

    Args:
      records: rows with ``prompt``, ``responses`` and, unless a reward model, config or judge
        scores them, ``scores``: a number per response, or an object of numbers by name. Rows of one
        prompt are joined.
      against: the same for the other policy; the order of prompts may differ.
      reward_models: workdirs of reward models that score both files.
      config: its ``evaluate.judge`` and ``evaluate.scorers`` score both files.
      tie: scores that differ by at most this are ties.
      judge: a model with an OpenAI-compatible API that compares the first responses, in both
        orders; see `rewards.endpoint`. Its answers are stored beside ``records``.
      out: a JSON file for the numbers; empty: none.

    Raises:
      UserError: a row has no responses or scores, or the prompts or the names of scores differ
        between the files.
    """
    if not 0 <= tie < float("inf"):
        raise UserError(f"--tie: wanted a number >= 0, found {tie}")
    pairs = _pair(records, against)
    lengths = [[len(read_responses(row).responses[0]) for row in pair] for pair in pairs]
    if judge:
        rates, equal = _judged(records, pairs, lengths, judge)
    else:
        rates, equal = _by_scores(records, against, pairs, reward_models, config, tie), None
    print_rows(
        {name: [str(x) for x in _shares(rate).values()] for name, rate in rates.items()},
        ("score", "wins", "losses", "ties", "wins + ties / 2"),
        f"{records} against {against}: {len(pairs)} prompts",
    )
    cut = {
        path: _unfinished([pair[i] for pair in pairs]) for i, path in enumerate((records, against))
    }
    for path, count in cut.items():
        if count is not None:
            say(f"{path}: {count:,} responses were cut at the token limit.")
    mean = np.mean(lengths, axis=0)
    say(f"first responses are {mean[0]:,.0f} characters long, against {mean[1]:,.0f}.")
    if equal is not None:
        say(f"{equal:.3f} is the win rate at equal lengths, by a logistic regression.")
        return _written(rates, out, tie=0.0, unfinished=cut, lengths=mean, equal=equal)
    say(
        "Each response is compared with every response to the same prompt in the other file. "
        f"Scores that differ by at most {tie:g} are ties. In brackets: 95% bootstrap interval, "
        "2,000 resamples over prompts."
    )
    return _written(rates, out, tie=tie, unfinished=cut, lengths=mean)


def _by_scores(
    records: str,
    against: str,
    pairs: list[tuple[Row, Row]],
    reward_models: Sequence[str],
    config: Config | None,
    tie: float,
) -> dict[str, WinRate]:
    ours, theirs = (_scores([pair[i] for pair in pairs], reward_models, config) for i in (0, 1))
    if set(ours) != set(theirs):
        raise DataError(f"{against}: scores {', '.join(theirs)}, {records} has {', '.join(ours)}")
    return {name: compare(ours[name], theirs[name], tie=tie) for name in ours}


def _judged(
    records: str, pairs: list[tuple[Row, Row]], lengths: list[list[int]], judge: str
) -> tuple[dict[str, WinRate], float]:
    """Asks a judge about the first responses; prints the cost, and the judge's consistency.

    Returns:
      The win rate by the judge's name, and the win rate at equal lengths.
    """
    read = [tuple(read_responses(row) for row in pair) for pair in pairs]
    texts = [(_text(a.prompt), a.responses[0], b.responses[0]) for a, b in read]
    cache = pathlib.Path(f"{records}.judged.jsonl")
    result = endpoint.judge_pairs(texts, model=judge, cache=cache)
    say(
        f"{judge}: {result.asked} requests ({result.tokens['prompt']:,} + "
        f"{result.tokens['completion']:,} tokens), {2 * len(pairs) - result.asked} answers from "
        f"{cache}; {result.consistent:.0%} of the pairs get the same verdict in both orders"
        + (f"; {result.unread} answers could not be read and count as ties" * bool(result.unread))
    )
    longer = np.array([a - b for a, b in lengths], np.float64)
    return {judge: of_shares(result.wins)}, at_equal_length(result.wins, longer)


def _text(prompt: Prompt) -> str:
    """Formats a prompt for a judge: a conversation as turns."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{turn.role}: {turn.content}" for turn in prompt)


def _written(
    rates: dict[str, WinRate],
    out: str,
    *,
    tie: float,
    unfinished: dict[str, int | None],
    lengths: np.ndarray,
    equal: float | None = None,
) -> dict[str, WinRate]:
    """Writes the numbers if a file is named; returns the rates."""
    if out:
        numbers = {
            name: {**{k: x.as_dict() for k, x in _shares(rate).items()}, "prompts": rate.prompts}
            for name, rate in rates.items()
        }
        rest: dict[str, Any] = {"tie": tie, "unfinished": unfinished}
        rest["characters"] = lengths.tolist()
        if equal is not None:
            rest["win_rate_at_equal_length"] = equal
        storage.write_json(pathlib.Path(out), {"scores": numbers, **rest})
    return rates


def _shares(rate: WinRate) -> dict[str, Interval]:
    return {name: getattr(rate, name) for name in ("wins", "losses", "ties", "win_rate")}


def _pair(records: str, against: str) -> list[tuple[Row, Row]]:
    """Pairs the rows of both files by their prompts, in the order of the first one."""
    ours, theirs = _read(records), _read(against)
    for path, one, other in ((against, ours, theirs), (records, theirs, ours)):
        missing = [row for prompt, row in one.items() if prompt not in other]
        if missing:
            raise DataError(
                f"{path}: wanted the same prompts as in the other file; {len(missing)} are "
                f"missing, the first of them from {missing[0].origin}"
            )
    return [(row, theirs[prompt]) for prompt, row in ours.items()]


def _read(path: str) -> dict[str, Row]:
    """Reads rows by their prompt; joins the responses of several rows of one prompt."""
    out: dict[str, Row] = {}
    for row in read_rows(path):
        if not row.items("responses"):
            raise DataError(f"{row.origin}: field 'responses' is empty")
        prompt = json.dumps(row.get("prompt"), sort_keys=True)
        out[prompt] = _joined(out[prompt], row) if prompt in out else row
    return out


def _joined(first: Row, second: Row) -> Row:
    """Joins the responses of two rows, and their scores and counts if both rows have them."""
    fields = {**first.fields, "responses": first.items("responses") + second.items("responses")}
    if all(_check_scores(row) for row in (first, second)):
        fields["scores"] = first.items("scores") + second.items("scores")
    else:
        fields.pop("scores", None)
    counts = [row.fields.get("unfinished") for row in (first, second)]
    fields["unfinished"] = sum(counts) if all(isinstance(x, int) for x in counts) else None
    return dataclasses.replace(first, fields=fields)


def _check_scores(row: Row) -> bool:
    """Whether a row has scores; refuses a number of scores that differs from the responses'."""
    if "scores" not in row.fields:
        return False
    values, responses = row.items("scores"), row.items("responses")
    if len(values) != len(responses):
        raise DataError(
            f"{row.origin}: field 'scores' has {len(values)} entries for {len(responses)} responses"
        )
    return True


def _unfinished(rows: list[Row]) -> int | None:
    """Counts the responses that were cut, if all rows have this number, as `generate` writes it."""
    values = (row.fields.get("unfinished") for row in rows)
    counts = [x for x in values if isinstance(x, int)]
    return sum(counts) if len(counts) == len(rows) else None


def _scores(rows: list[Row], reward_models: Sequence[str], config: Config | None) -> Scores:
    if not reward_models and config is None:
        return _own_scores(rows)
    records = [read_responses(row) for row in rows]
    out: Scores = {}
    for path in reward_models:
        scorer = open_scorer(functools.partial(reward_model, path=path), "--reward_model", None)
        out[pathlib.Path(path).resolve().name] = scorer.means(records)
    if config is not None:
        settings = config.evaluate
        if settings.judge is not None:
            first = (str(records[0].prompt), records[0].responses[0])
            for name in judgements(settings.judge, [first]):
                by_judge = functools.partial(judged, judge=settings.judge, name=name)
                out[name] = open_scorer(by_judge, "evaluate.judge", None).means(records)
        scorers = open_scorers(settings.scorers, "evaluate.scorers", config)
        out |= {f"reward_{i}": scorer.means(records) for i, scorer in enumerate(scorers)}
        if not out:
            raise UserError("--config: wanted evaluate.judge or evaluate.scorers, found neither")
    return out


def _own_scores(rows: list[Row]) -> Scores:
    """Reads the scores in the rows; all responses need the names of the first one's scores."""
    out: Scores = {}
    names: tuple[str, ...] = ()
    for row in rows:
        if not _check_scores(row):
            raise DataError(
                f"{row.origin}: field 'scores' is missing; use the command score first, or "
                "--reward_model, --config or --judge"
            )
        entries = [x if isinstance(x, dict) else {"scores": x} for x in row.items("scores")]
        names = names or tuple(entries[0])
        for name in names:
            numbers = [_number(entry.get(name), name, row) for entry in entries]
            out.setdefault(name, []).append(np.array(numbers))
    return out


def _number(x: object, name: str, row: Row) -> float:
    if isinstance(x, bool) or not isinstance(x, int | float) or not np.isfinite(x):
        raise DataError(
            f"{row.origin}: field 'scores': wanted a finite number {name!r} for every response, "
            f"found {x!r}"
        )
    return x
