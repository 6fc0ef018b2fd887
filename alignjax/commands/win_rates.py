"""Win rates between two files of responses: what ``evaluate --records=A --against=B`` does."""

import functools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from alignjax.config import Config
from alignjax.data.files import Row, read_rows
from alignjax.data.records import DataError
from alignjax.data.sources import responses_of
from alignjax.errors import UserError
from alignjax.evaluation import report
from alignjax.evaluation.win_rate import WinRate, win_rate
from alignjax.rewards.scorers import judged, judgements, open_scorer, open_scorers, reward_model
from alignjax.runtime import workdirs

Scores = dict[str, list[np.ndarray]]  # name of a score -> for each record [k]


def run(
    records: str,
    against: str,
    *,
    reward_models: Sequence[str] = (),
    config: Config | None = None,
    tie: float = 0.0,
    out: str = "",
) -> dict[str, WinRate]:
    """Compares responses to the same prompts and prints a row per score.

    Args:
      records: rows with ``prompt``, ``responses`` and, unless the next two give them, ``scores``:
        a number per response, or an object of numbers by name.
      against: the same for the other policy; prompts may come in another order.
      reward_models: workdirs of reward models that score both files.
      config: its ``evaluate.judge`` and ``evaluate.scorers`` score both files.
      tie: scores that differ by at most this tie.
      out: a JSON file for the numbers, or none.

    Raises:
      UserError: a row without responses or scores, prompts that are not the same in both files, or
        scores that are not.
    """
    if not 0 <= tie < float("inf"):
        raise UserError(f"--tie: wanted a number >= 0, found {tie}")
    ours, theirs = _read(records), _read(against)
    for path, here, there in ((against, ours, theirs), (records, theirs, ours)):
        missing = [row for prompt, row in here.items() if prompt not in there]
        if missing:
            raise DataError(
                f"{path}: wanted the prompts of the other file and no more; {len(missing)} are "
                f"missing, the first that of {missing[0].origin}"
            )
    pairs = [(row, theirs[prompt]) for prompt, row in ours.items()]
    sides = [_scores([pair[i] for pair in pairs], reward_models, config) for i in (0, 1)]
    if set(sides[0]) != set(sides[1]):
        raise DataError(
            f"{against}: scores {', '.join(sides[1])}, {records} has {', '.join(sides[0])}"
        )
    found = {name: win_rate(sides[0][name], sides[1][name], tie=tie) for name in sides[0]}
    rows = {
        name: [str(x) for x in (won.wins, won.losses, won.ties, won.win_rate)]
        for name, won in found.items()
    }
    title = f"{records} against {against}: {len(pairs)} prompts"
    report.print_rows(rows, ("score", "wins", "losses", "ties", "wins + ties / 2"), title)
    report.say(
        "Every response is compared with every one of the other file to its prompt; scores that "
        f"differ by at most {tie:g} tie. In brackets: 95%, by drawing prompts with replacement."
    )
    if out:
        numbers = {name: _numbers(won) for name, won in found.items()}
        workdirs.write_json(pathlib.Path(out), {"tie": tie, "scores": numbers})
    return found


def _numbers(won: WinRate) -> dict[str, Any]:
    shares = {name: vars(getattr(won, name)) for name in ("wins", "losses", "ties", "win_rate")}
    return {**shares, "prompts": won.prompts}


def _read(path: str) -> dict[str, Row]:
    """Rows by their prompt."""
    out: dict[str, Row] = {}
    for row in read_rows(path):
        if not row.items("responses"):
            raise DataError(f"{row.origin}: field 'responses' is empty")
        prompt = json.dumps(row.get("prompt"), sort_keys=True)
        if prompt in out:
            raise DataError(f"{row.origin}: the prompt is that of {out[prompt].origin}")
        out[prompt] = row
    return out


def _scores(rows: list[Row], reward_models: Sequence[str], config: Config | None) -> Scores:
    if not reward_models and config is None:
        return _own_scores(rows)
    records = [responses_of(row) for row in rows]
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
        scorers = open_scorers(settings.scorers, "evaluate.scorers", config.mesh)
        out |= {f"reward_{i}": scorer.means(records) for i, scorer in enumerate(scorers)}
        if not out:
            raise UserError("--config: it has neither evaluate.judge nor evaluate.scorers")
    return out


def _own_scores(rows: list[Row]) -> Scores:
    out: Scores = {}
    names: tuple[str, ...] = ()
    for row in rows:
        if "scores" not in row.fields:
            raise DataError(
                f"{row.origin}: field 'scores' is missing: score the file first (verb score), or "
                "give --reward_model or --config"
            )
        values = row.items("scores")
        if len(values) != len(row.items("responses")):
            raise DataError(
                f"{row.origin}: field 'scores' has {len(values)} entries for "
                f"{len(row.items('responses'))} responses"
            )
        entries = [x if isinstance(x, dict) else {"scores": x} for x in values]
        names = names or tuple(entries[0])
        for entry in entries:
            for name in names:
                x = entry.get(name)
                if isinstance(x, bool) or not isinstance(x, int | float) or not np.isfinite(x):
                    raise DataError(
                        f"{row.origin}: field 'scores': wanted a finite number {name!r} for every "
                        f"response, found {x!r}"
                    )
        for name in names:
            out.setdefault(name, []).append(np.array([entry[name] for entry in entries]))
    return out
