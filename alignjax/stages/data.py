"""Prepares the data: from files or a generator to bucketed rows; the first stage of recipes."""

import dataclasses
import hashlib
import itertools
import json
import logging
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

from alignjax.config import Config, DataConfig, fields
from alignjax.config.fields import describe, keywords, plain
from alignjax.data import kept, store
from alignjax.data.batching import Bucketed, bucket
from alignjax.data.encode import encode, enforce, reasons
from alignjax.data.files import fingerprint
from alignjax.data.places import is_missing, resolve
from alignjax.data.records import DataError, DataReport, Record, check
from alignjax.data.sources import Columns
from alignjax.data.splits import check_no_overlap, split_by_prompt
from alignjax.data.store import Dataset, Example
from alignjax.data.tokenizer import chat, training
from alignjax.data.tokenizer import load as tokenizers
from alignjax.data.tokenizer.load import Tokenizer
from alignjax.errors import UserError
from alignjax.runtime import artifacts, storage
from alignjax.runtime.consistency import check_same, check_shared_folder
from alignjax.runtime.distributed import run_on_main, several
from alignjax.runtime.loggers import bars

log = logging.getLogger("alignjax")

SHOWN = 4  # rows that `survey` returns


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Training rows, held-out rows with other prompts, and their tokenizer."""

    train: Bucketed
    held_out: Bucketed
    # Held-out rows as read: prompts to sample for, and preferred responses.
    originals: Bucketed
    original_records: dict[str, Record]  # the same as text, by id
    tokenizer: Tokenizer
    report: dict[str, Any]  # the content of data_report.json


def read_source(
    data: DataConfig, path: str, report: DataReport, field: str = "data.path"
) -> Iterator[Record]:
    """Reads the records of a source, without checking them.

    Args:
      data: has the ``source``.
      path: the source's path, if it reads files.
      report: counts are added to it.
      field: the config field of the path, for messages.

    Raises:
      UserError: the source needs a path and has none, or the other way round; or a row is malformed
        (names file, line and field).
    """
    source = plain(data.source)
    takes = keywords(source)
    if "path" in takes and not path:
        raise UserError(f"{field}: {source.__name__} reads files; name one: --set {field}=...")
    if path and "path" not in takes:
        raise UserError(f"{field}: {source.__name__} reads no file, found {path!r}")
    bound: dict[str, Any] = {"path": _located(data, path, field)} if path else {}
    if data.columns != Columns():
        if "columns" not in takes:
            raise UserError(
                f"data.columns: {source.__name__} has fixed columns (data.source); "
                "leave data.columns unset"
            )
        bound["columns"] = data.columns
    rows: Iterator[Record] = data.source(report, **bound)
    return itertools.islice(rows, data.limit) if data.limit else rows


def read_records(
    data: DataConfig, path: str, report: DataReport, field: str = "data.path"
) -> list[Record]:
    """Reads and checks every record of a source; see `read_source`."""
    rows = bars.counted(f"{field}: reading rows", read_source(data, path, report, field))
    return list(check(rows, report))


def _located(data: DataConfig, path: str, field: str) -> str:
    """Returns the file or glob of a path; ``data.split`` applies to ``data.path`` only."""
    return resolve(path, data.split if field == "data.path" else "", field)


def split(config: Config, reports: dict[str, DataReport]) -> tuple[list[Record], list[Record]]:
    """Reads training and held-out records; no prompt is in both."""
    data = config.data
    records = _read_some(config, data.path, reports["train"])
    if data.eval_path:
        held_out = _read_some(config, data.eval_path, reports["held_out"])
        check_no_overlap(records, held_out)
        return records, held_out
    train, held_out = split_records(config, records, reports["train"])
    reports["held_out"].rows_in = len(held_out)
    return train, held_out


def split_records(
    config: Config, records: list[Record], report: DataReport | None
) -> tuple[list[Record], list[Record]]:
    """Holds out records by their prompts.

    Raises:
      UserError: no record is held out, or none is left.
    """
    fraction = config.data.eval_fraction
    train, held_out = split_by_prompt(
        records, seed=config.train.seed, eval_fraction=fraction, report=report
    )
    if not held_out:
        raise UserError(f"data.eval_fraction: {fraction} of {len(records)} rows holds out none")
    return train, held_out


def load_tokenizer(config: Config, workdir: pathlib.Path, train: list[Record]) -> Tokenizer:
    """Loads the config's tokenizer, or trains one on the training records into the workdir.

    Raises:
      UserError: it cannot be read, or has more ids than the embedding has rows.
    """
    settings = config.tokenizer
    path = settings.path
    if not path:
        path = str(workdir / "tokenizer.model")
        run_on_main("tokenizer.model", lambda: _train_tokenizer(train, settings.vocab_size, path))
    tokenizer = tokenizers.load(path, model=config.model.path, chat_template=settings.chat_template)
    tokenizers.check_ids(path, tokenizer.vocab_size, config.model.vocab_size)
    log.info("tokenizer: %s", tokenizer.describe_ends())
    return tokenizer


def _train_tokenizer(train: list[Record], vocab_size: int, path: str) -> None:
    # Not an artifact: a run keeps its tokenizer even if its data change.
    if not pathlib.Path(path).is_file():
        texts = (text for record in train for text in _texts(record))
        training.train_sentencepiece(texts, vocab_size=vocab_size, path=path)


def _texts(record: Record) -> list[str]:
    prompt = record.prompt
    turns = [prompt] if isinstance(prompt, str) else [m.content for m in prompt]
    return [*turns, *record.responses]


def prepare_data(config: Config, workdir: pathlib.Path) -> Prepared:
    """Reads, checks, splits, tokenises and buckets the data; writes and prints the data report.

    If the files no longer exist, it opens the rows that an earlier start prepared.

    Raises:
      UserError: bad data, or more rows dropped than ``data.max_drop_fraction``.
    """
    kept_rows = _kept_rows(config, workdir)
    if kept_rows is not None:
        return kept_rows
    reports = {"train": DataReport(), "held_out": DataReport()}
    train, held_out = split(config, reports)
    if several():  # every process reads the files itself, perhaps from its own disk
        check_same(
            {
                "the data's training records": kept.digest(train),
                "held-out records": kept.digest(held_out),
            }
        )
    if config.data.cache_dir:
        check_shared_folder(pathlib.Path(config.data.cache_dir), "data.cache_dir")
    tokenizer = load_tokenizer(config, workdir, train)
    sides = _sides(config, workdir, {"train": train, "held_out": held_out}, reports, tokenizer)
    report = {side: r.as_dict() | kept_counts(sides[side]) for side, r in reports.items()}
    _write_report(workdir / "data_report.json", report)
    for r in reports.values():
        enforce(r, max_drop_fraction=config.data.max_drop_fraction)
    for side, rows in sides.items():
        log.info("%s shapes (prompt + K x response tokens): %s", side, _shapes(rows))
    _keep_rows(config, workdir, sides, held_out)
    return _prepared(sides, held_out, tokenizer, report)


def _prepared(
    sides: dict[str, Bucketed], records: list[Record], tokenizer: Tokenizer, report: Any
) -> Prepared:
    train, held_out = sides["train"], sides["held_out"]
    by_id = {record.id: record for record in records}
    return Prepared(train, held_out, held_out, by_id, tokenizer, report)


def _keep_rows(
    config: Config, workdir: pathlib.Path, sides: dict[str, Bucketed], held_out: list[Record]
) -> None:
    """Records the folders of the prepared rows, and saves the held-out records as text."""
    path = workdir / "held_out.jsonl"
    storage.write(path, kept.write(held_out))
    rows = {side: pathlib.Path(x.dataset.path).name for side, x in sides.items()}
    about = {"rows": rows, "held_out": storage.sha256(path), "data": fields.identity(config.data)}
    storage.keep_json(workdir / "prepared.json", about)


def _kept_rows(config: Config, workdir: pathlib.Path) -> Prepared | None:
    """Opens the rows that an earlier start prepared, if the data files no longer exist."""
    paths = [path for path in (config.data.path, config.data.eval_path) if path]
    about = workdir / "prepared.json"
    if several() or not about.is_file() or not any(map(is_missing, paths)):
        return None
    noted = storage.read_json(about)
    if noted["data"] != json.loads(storage.as_json(fields.identity(config.data))):
        return None  # rows of another config; reading then raises that files are missing
    log.warning("%s: no longer exists; using the rows that were prepared from it", ", ".join(paths))
    folder, path = cache_dir(config, workdir), workdir / "held_out.jsonl"
    opened = {side: store.open_dataset(folder / name) for side, name in noted["rows"].items()}
    sides = {side: _bucketed(config.data, rows) for side, rows in opened.items()}
    if storage.sha256(path) != noted["held_out"]:
        raise DataError(f"{path}: has changed since it was written, and its data no longer exist")
    held_out = kept.read(path.read_bytes())
    tokenizer = load_tokenizer(config, workdir, [])
    return _prepared(sides, held_out, tokenizer, storage.read_json(workdir / "data_report.json"))


def survey(
    config: Config, folder: pathlib.Path
) -> tuple[list[Example], tuple[str, ...], Tokenizer]:
    """Reads, checks and tokenises the data, and prints the data reports.

    It warns if a run would stop because of dropped rows, or because no row is held out. It returns
    the first rows, the names of their scores (() without scores), and the tokenizer.

    Raises:
      UserError: the data are malformed, or every row was dropped.
    """
    data, given, reports = config.data, {}, {}
    for side, path in (("train", data.path), ("held_out", data.eval_path)):
        if side == "train" or path:
            reports[side] = DataReport()
            given[side] = _read_some(config, path, reports[side])
    tokenizer = load_tokenizer(config, folder, given["train"])
    sides = _sides(config, folder, given, reports, tokenizer)
    try:
        for report in reports.values():
            enforce(report, max_drop_fraction=data.max_drop_fraction)
        if "held_out" in given:
            check_no_overlap(given["train"], given["held_out"])
        else:
            split_records(config, given["train"], None)
    except UserError as error:
        log.warning("a run would stop: %s", error)
    rows = sides["train"].dataset
    return [rows[i] for i in range(min(SHOWN, len(rows)))], rows.objectives, tokenizer


def _read_some(config: Config, path: str, report: DataReport) -> list[Record]:
    """Reads the records of a path; raises an error with the reasons if every row was dropped."""
    field = "data.path" if path == config.data.path else "data.eval_path"
    records = read_records(config.data, path, report, field)
    if not records:
        _log_reports({field: report})
        raise DataError(
            f"{field}: all {report.dropped_total} rows of {path or 'the source'} were dropped: "
            f"{reasons(report)}"
        )
    return records


def _sides(
    config: Config,
    workdir: pathlib.Path,
    given: dict[str, list[Record]],
    reports: dict[str, DataReport],
    tokenizer: Tokenizer,
) -> dict[str, Bucketed]:
    """Prepares the rows of each side, and prints the data reports even if this fails."""
    data = config.data
    paths = {"data.path": data.path, "data.eval_path": data.eval_path}
    files = [fingerprint(_located(data, path, field)) for field, path in paths.items() if path]
    sides = {}
    try:
        for side, records in given.items():
            parts = {
                "side": side,
                # An edited source keeps its name; the counts show the rows that it now drops.
                "records": kept.digest(records),
                "read": reports[side].as_dict(),
                "source": describe(data.source),
                "files": files,
                "split": [data.eval_fraction, config.train.seed, bool(data.eval_path)],
            }
            identity = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
            sides[side] = rows_of(config, workdir, records, tokenizer, reports[side], identity)
    finally:
        _log_reports({side: reports[side] for side in given})
        _note_plain_prompts(given["train"], tokenizer)
    return sides


def _log_reports(reports: dict[str, DataReport]) -> None:
    for side, report in reports.items():
        log.info("data, %s:\n%s", side.replace("_", " "), report.render())


def _note_plain_prompts(records: list[Record], tokenizer: Tokenizer) -> None:
    """Warns if prompts are plain text although the tokenizer has a chat template."""
    plain_text = sum(isinstance(record.prompt, str) for record in records)
    if plain_text and tokenizer.chat_template != chat.PLAIN_TEMPLATE:
        log.warning(
            "data.source.chat is not set: %d prompts are plain text and do not go through the "
            "chat template of %s; --set data.source.chat=true makes them user messages",
            plain_text,
            tokenizer.template_name,
        )


def _write_report(path: pathlib.Path, report: dict[str, Any]) -> None:
    """Writes the data report, unless it exists with these counts: later stages add to it."""

    def write() -> None:
        try:
            known = storage.read_here(path) if path.is_file() else {}
        except UserError:  # damaged
            known = {}
        wanted = json.loads(storage.as_json(report))
        if not isinstance(known, dict) or wanted != {side: known.get(side) for side in wanted}:
            storage.keep_here(path, report)

    run_on_main("data_report.json", write)


def rows_of(
    config: Config,
    workdir: pathlib.Path,
    records: Iterable[Record],
    tokenizer: Tokenizer,
    report: DataReport,
    identity: Any,
) -> Bucketed:
    """Encodes and buckets records as training or evaluation rows.

    If rows of the same records exist, it opens them and restores their report.

    Args:
      records: checked; not read if the rows exist.
      report: counts are added to it.
      identity: JSON data that changes whenever the records would.
    """
    data = config.data
    limits = [data.max_prompt_tokens, data.max_response_tokens]
    key = [store.FORMAT, identity, tokenizer.digest, *limits]
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    path = cache_dir(config, workdir) / name

    def write(scratch: pathlib.Path) -> None:
        rows = encode(
            bars.shown("tokenising rows", records),
            tokenizer,
            max_prompt_tokens=data.max_prompt_tokens,
            max_response_tokens=data.max_response_tokens,
            report=report,
        )
        run_on_main("prepared rows", lambda: store.write(rows, scratch / name, report))

    dataset = artifacts.reuse(path, key, write, store.open_dataset)
    report.restore(dict(dataset.report))
    return _bucketed(data, dataset)


def _bucketed(data: DataConfig, dataset: Dataset) -> Bucketed:
    return bucket(dataset, count=data.buckets, multiple=data.pad_multiple)


def kept_counts(rows: Bucketed) -> dict[str, Any]:
    """Counts labels and scores of the kept rows for the data report."""
    good, bad = rows.dataset.labels
    names, sd = rows.dataset.objectives, rows.dataset.score_sd
    out: dict[str, Any] = {"score_sd": dict(zip(names, sd, strict=True))} if names else {}
    if good + bad:
        share = good / (good + bad)
        out["kept_labels"] = {"desirable": good, "undesirable": bad, "desirable_fraction": share}
    return out


def _shapes(rows: Bucketed) -> str:
    k = rows.dataset.response_length.shape[1]
    counts = [int((rows.assignment == i).sum()) for i in range(len(rows.shapes))]
    return ", ".join(
        f"{s.prompt} + {k} x {s.response} ({n:,} rows)"
        for s, n in zip(rows.shapes, counts, strict=True)
    )


def cache_dir(config: Config, workdir: pathlib.Path) -> pathlib.Path:
    """Returns the folder of prepared rows and reference log-probabilities."""
    return pathlib.Path(config.data.cache_dir or workdir / "cache")
