"""The command ``score``: scores responses with reward models.

It writes ``OUT``, JSON lines that `sources.lists` reads, and ``OUT.made_of.json``, the digests of
its inputs: the same command then has nothing to do when it is run again.
"""

import hashlib
import itertools
import json
import logging
import pathlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from alignjax.data.files import Row, fingerprint, read_rows
from alignjax.data.records import DataError, DataReport, Message, Record, prompt_as_json
from alignjax.data.sources.auto import read_row
from alignjax.data.sources.messages import read_responses
from alignjax.errors import NumericalError, UserError
from alignjax.evaluation import preferences, tables
from alignjax.evaluation.statistics import bootstrap_over_prompts, mean_over_prompts
from alignjax.rewards import reward_models, scorers, transformers_models
from alignjax.rewards.reward_models import RewardModel
from alignjax.rewards.transformers_models import Classifier
from alignjax.runtime import storage

log = logging.getLogger("alignjax")

Limits = tuple[int | None, int | None]  # tokens of prompts and of responses

FORMAT = 1  # increase it when the output of the same inputs changes


def run(
    records: str,
    paths: Sequence[str],
    out: str,
    limits: Limits = (None, None),
) -> None:
    """Scores every response of a file and prints a summary of each score.

    If rows say which of their responses is better, it also prints the table of `_measure`.

    Args:
      records: a file or a glob of rows of any format that `sources.auto` reads. Labels do not
        change the output. Other fields are copied.
      paths: workdirs of finished reward runs, or folders of classifiers saved by transformers.
      out: the ``.jsonl`` to write: rows of ``id``, ``prompt``, ``responses`` and ``scores``, one
        number per response, or with several scores one object of them by name.
      limits: of prompts and of responses, in tokens; None: each reward model's own, see
        `scorers.reward_model`.

    Raises:
      UserError: a row cannot be read or already has ``scores``; a path is no reward model; or
        ``out`` exists and is not the output of this command on these inputs.
    """
    models = [_find(path, limits) for path in paths]
    names = _names(models)
    lines = [line for row in read_rows(records) for line in _read(row)]
    unscored = [record for _, record, _ in lines]
    made_of = {
        "format": FORMAT,
        "records": fingerprint(records),
        "reward_models": {model.path.name: _digests(model) for model in models},
        **({} if limits == (None, None) else {"limits": list(limits)}),
    }
    target = pathlib.Path(out)
    if _is_done(target, made_of):
        log.info("%s: complete, nothing to do", target)
        return
    cuts: scorers.Cuts = Counter()
    columns = [_score(model, unscored, limits, cuts) for model in models]  # [k] or [k, M] each
    table = [
        np.concatenate([x.reshape(len(x), -1) for x in scores], axis=1)
        for scores in zip(*columns, strict=True)
    ]
    for record, scores in zip(unscored, table, strict=True):
        if not np.isfinite(scores).all():
            raise NumericalError(f"{record.origin}: a score is not finite: {scores.tolist()}")
    scored = [_line(fields, x, names) for (fields, _, _), x in zip(lines, table, strict=True)]
    _write(target, scored, {"made_of": made_of, "cuts": cuts})
    _summarise(unscored, table, names, str(target))
    _measure([order for _, _, order in lines], unscored, table, names)


def _find(path: str, limits: Limits) -> RewardModel | Classifier:
    """Opens a reward model, of alignjax or run by transformers."""
    classifier = transformers_models.find(path)
    if classifier is None:
        return reward_models.with_limits(reward_models.find(path), *limits)
    if limits != (None, None):
        raise UserError(
            f"{path}: transformers runs this model, with its own limit of length; wanted no "
            "--max_prompt_tokens and no --max_response_tokens"
        )
    return classifier


def _digests(model: RewardModel | Classifier) -> list[str]:
    return [model.digest] + ([model.tokenizer.digest] if isinstance(model, RewardModel) else [])


def _score(
    model: RewardModel | Classifier, records: list[Record], limits: Limits, cuts: scorers.Cuts
) -> list[np.ndarray]:
    if isinstance(model, Classifier):
        return transformers_models.score(model, records, cuts)
    prompt, response = limits
    return scorers.reward_model(
        records,
        path=str(model.path),
        max_prompt_tokens=prompt,
        max_response_tokens=response,
        cuts=cuts,
    )


def _names(models: Sequence[RewardModel | Classifier]) -> list[str]:
    """Names the scores: by workdir, by objective if there is one model, or by both."""
    names = []
    for model in models:
        name = model.path.resolve().name
        several = [o if len(models) == 1 else f"{name}/{o}" for o in model.objectives]
        names += several if len(several) > 1 else [name]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated:
        raise UserError(
            f"--reward_model: wanted different names, found {repeated!r} twice; rename a workdir"
        )
    return names


# A number per response, larger is better, and its field; or two empty values.
Order = tuple[list[float], str]


def _read(row: Row) -> list[tuple[dict[str, Any], Record, Order]]:
    """Reads the records of a row, each with the fields to write beside its scores, and its order.

    The columns of a pair, for example, become ``prompt`` and ``responses``.
    """
    if "scores" in row.fields:
        raise DataError(
            f"{row.origin}: field 'scores' exists already, and the new scores have this name; "
            "rename it"
        )
    if {"prompt", "responses"} <= set(row.fields):
        record = read_responses(row)
        return [({"id": row.id, **row.fields}, record, _order_beside(row, record))]
    found, records = read_row(DataReport(), row)
    rest = {name: x for name, x in row.fields.items() if name not in found.columns}
    return [
        (
            {
                **rest,
                "id": record.id,
                "prompt": prompt_as_json(record.prompt),
                "responses": _responses(record),
            },
            record,
            _order(record, first="chosen"),
        )
        for record in records
    ]


def _order_beside(row: Row, record: Record) -> Order:
    """Reads the ranks, ratings or labels beside ``responses``; empty if they are ambiguous."""
    try:
        _, read = read_row(DataReport(), row)
    except DataError:
        return [], ""
    same = len(read) == 1 and read[0].responses == record.responses
    return _order(read[0]) if same else ([], "")


def _order(record: Record, first: str = "") -> Order:
    """Reads the order of a record's responses; ``first`` names the better one's field in a pair."""
    if len(record.responses) < 2 or len(record.objectives) > 1:
        return [], ""
    if record.scores:
        return [score for (score,) in record.scores], record.objectives[0]
    if record.desirable:
        return [float(x) for x in record.desirable], "label"
    return ([1.0, 0.0], first) if first and len(record.responses) == 2 else ([], "")


def _responses(record: Record) -> list[Any]:
    """Returns responses as texts, or as messages if they have more fields."""
    return [
        Message("assistant", text, more).fields() if more else text
        for text, more in itertools.zip_longest(record.responses, record.more)
    ]


def _line(fields: dict[str, Any], scores: np.ndarray, names: list[str]) -> str:
    values: list[Any] = scores[:, 0].tolist()
    if len(names) > 1:
        values = [dict(zip(names, x, strict=True)) for x in scores.tolist()]
    return json.dumps({**fields, "scores": values}, ensure_ascii=False) + "\n"


def _about(target: pathlib.Path) -> pathlib.Path:
    return target.with_name(target.name + ".made_of.json")


def _is_done(target: pathlib.Path, made_of: dict[str, Any]) -> bool:
    """Whether the file is complete and of these inputs; refuses any other existing file."""
    # `runtime.artifacts` would replace the file of other inputs, but this one is the user's, who
    # may have edited it.
    if target.suffix != ".jsonl":
        raise UserError(f"--out: wanted a name that ends in .jsonl, found {str(target)!r}")
    digest = storage.sha256(target)
    if not digest:
        return False
    about = storage.find_json(_about(target)) or {}
    if about.get("made_of") != made_of:
        what = "of other records, reward models or limits" if about else "no output of this command"
        raise UserError(f"--out: {target} exists and is {what}; delete it or choose another name")
    if about.get("sha256") != digest:
        raise UserError(f"--out: {target} was changed after it was written; delete it or rename it")
    return True


def _write(target: pathlib.Path, lines: list[str], about: dict[str, Any]) -> None:
    """Writes the digests of inputs and file, then the file, atomically."""
    content = "".join(lines).encode()
    digest = hashlib.sha256(content).hexdigest()
    try:
        storage.write_json(_about(target), about | {"sha256": digest})
        storage.write(target, content)
    except OSError as error:
        raise UserError(f"--out: {target} cannot be written: {error.strerror}") from error


def _summarise(
    records: list[Record], table: list[np.ndarray], names: list[str], target: str
) -> None:
    prompts = [record.prompt for record in records for _ in record.responses]
    scores = np.concatenate(table).astype(np.float64)
    rows = {
        name: [
            str(mean_over_prompts(column, prompts)),
            *(f"{x:.3f}" for x in (column.std(), column.min(), column.max())),
        ]
        for name, column in zip(names, scores.T, strict=True)
    }
    title = f"{target}: {len(scores):,} responses to {len(records):,} prompts"
    tables.print_rows(rows, ("score", "mean", "deviation", "least", "greatest"), title)
    tables.say("± is the half-width of the 95% interval over prompts.")


def _measure(
    orders: list[Order], records: list[Record], table: list[np.ndarray], names: list[str]
) -> None:
    """Prints how often each score agrees with the records about which response is better.

    It counts pairs; and for lists of more than two responses, how often a best response alone has
    the highest score, see `preferences.list_metrics`. Records without an order are left out.
    """
    known = [i for i, (order, _) in enumerate(orders) if order]
    if not known:
        return
    better = preferences.padded([orders[i][0] for i in known])
    present = (~np.isnan(better)).astype(np.int64)
    prompts = [records[i].prompt for i in known]
    rows, measured = {}, []
    for m, name in enumerate(names):
        scores = preferences.padded([table[i][:, m].tolist() for i in known])
        metrics = preferences.reward_metrics(scores, present, better)
        lists = [metrics[x] for x in (preferences.BEST, preferences.TIES) if x in metrics]
        measured = [metrics["rewards/accuracies"], *lists]
        rows[name] = [str(bootstrap_over_prompts(x, prompts)) for x in measured]
    counts = [int((~np.isnan(x)).sum()) for x in measured]
    columns = ("ordered pairs", "best of its list", "tied with others")[: len(measured)]
    title = f"{counts[0]:,} of {len(records):,} records order their responses"
    title += f" (by {', '.join(sorted({orders[i][1] for i in known}))})"
    if len(measured) > 1:
        title += f", {counts[1]:,} of them more than two"
    tables.print_rows(rows, ("right", *columns), title)
    tables.say(
        "In brackets: 95% interval, by bootstrap over prompts. Tied scores count as wrong"
        + ("; the best of a list must alone have the highest." if len(measured) > 1 else ".")
    )
