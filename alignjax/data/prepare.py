"""Records -> token ids on disk: written once through TFDS as array_record, then only opened.

``prepare`` is a function of (identity of the records, tokenizer, limits); a digest of the three
names the folder. It writes to a temporary folder and renames it, so a folder under its final name
is complete, and several processes may prepare the same data at once: the first to finish wins.
"""

import contextlib
import fcntl
import functools
import hashlib
import io
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from alignjax.data.records import DataError, Receipt, Record, take_responses
from alignjax.data.tokenizer.load import Encoded, Tokenizer
from alignjax.errors import UserError

FORMAT = 2  # part of the key; raise it when the same input is written differently


@dataclass(frozen=True, eq=False)
class Example:
    """One row as ids and as text. K responses, M objectives."""

    id: str
    domain: str
    prompt: str  # after the chat template, not truncated
    responses: tuple[str, ...]  # not truncated
    prompt_ids: np.ndarray  # [P] int32, BOS included
    response_ids: tuple[np.ndarray, ...]  # K of [R_k] int32, EOS included unless cut
    scores: np.ndarray | None  # [K, M] float32
    desirable: np.ndarray | None  # [K] bool


@dataclass(frozen=True, eq=False)
class Dataset:
    """Prepared rows. Opening it reads the columns only; ``dataset[i]`` reads one row.

    Reading is safe from several threads at once.
    """

    prompt_length: np.ndarray  # [N] int32
    response_length: np.ndarray  # [N, K] int32, K the largest of all rows; 0 marks an absent one
    objectives: tuple[str, ...]  # names of the M scores; () without scores
    labels: tuple[int, int]  # desirable and undesirable responses; (0, 0) without labels
    digest: str  # hex sha256 of all ids, scores, labels and row ids
    receipt: Mapping[str, Any]  # Receipt.as_dict()
    path: str
    _rows: Any = field(repr=False)  # TFDS's random-access source
    adversarial: np.ndarray | None = None  # [N] bool, see `types.Batch`; None: no row is

    def __len__(self) -> int:
        return len(self.prompt_length)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of a dataset with {len(self)} rows")
        try:
            row = self._rows[int(index)]
        except Exception as error:  # array_record's checksums, TFDS's decoder
            raise _damaged(self.path, error) from None
        lengths = row["response_length"]
        ids = np.split(row["response_ids"], np.cumsum(lengths)[:-1])
        scores, labels = row["scores"], row["desirable"]
        return Example(
            id=row["id"].decode(),
            domain=row["domain"].decode(),
            prompt=row["prompt"].decode(),
            responses=tuple(json.loads(row["responses"])),
            prompt_ids=row["prompt_ids"],
            response_ids=tuple(ids),
            scores=scores.reshape(len(lengths), -1) if len(scores) else None,
            desirable=labels.astype(bool) if len(labels) else None,
        )


def prepare(
    records: Iterable[Record],
    tokenizer: Tokenizer,
    *,
    cache_dir: str,
    max_prompt_tokens: int,
    max_response_tokens: int,
    receipt: Receipt,
    identity: Any,
) -> Dataset:
    """Tokenises records and writes them, or opens what an earlier call has written.

    A prompt over its limit keeps its end, after the BOS if there is one; a response over its limit
    keeps its start, and then has no EOS. Both are noted (``truncated_prompt``,
    ``truncated_response``), as are ``special_token_text`` (encoded as plain text) and
    ``lossy_encoding`` (ids that do not decode to the text, plain-text prompts only). Rows whose
    responses truncation makes identical are dropped as ``identical_after_truncation``; scored
    lists lose only the repeated responses, as long as they still rank something, and are noted as
    ``removed_identical_after_truncation``.

    Args:
      records: checked records; not touched if the data are already prepared.
      tokenizer: from ``tokenizer.load``.
      cache_dir: folder that holds prepared datasets, one sub-folder each.
      max_prompt_tokens: limit of a prompt, BOS included; at least 2.
      max_response_tokens: limit of a response, EOS included; at least 1.
      receipt: gets the counts of this preparation, or of the earlier one.
      identity: JSON-able value that changes whenever the records would: e.g. the source's name
        and arguments, ``files.fingerprint(path)``, and the side of the split.

    Raises:
      DataError: no row is left, rows of different kinds, or a damaged folder.
      UserError: limits out of range, or the folder cannot be written.
    """
    if max_prompt_tokens < 2 or max_response_tokens < 1:
        raise UserError(
            f"data: max_prompt_tokens is {max_prompt_tokens}, expected at least 2; "
            f"max_response_tokens is {max_response_tokens}, expected at least 1"
        )
    inputs = [FORMAT, identity, tokenizer.digest, max_prompt_tokens, max_response_tokens]
    key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:32]
    path = os.path.join(cache_dir, key)
    if not os.path.isdir(path):
        rows = _encode(records, tokenizer, max_prompt_tokens, max_response_tokens, receipt)
        try:
            _write(rows, cache_dir, path, receipt)
        except OSError as error:
            raise UserError(
                f"{cache_dir}: prepared data cannot be written ({error.strerror or error})"
            ) from None
    dataset = open_dataset(path)
    receipt.restore(dict(dataset.receipt))
    return dataset


def in_memory(
    records: Sequence[Record],
    tokenizer: Tokenizer,
    *,
    max_prompt_tokens: int,
    max_response_tokens: int,
) -> Dataset:
    """Tokenises and cuts records as `prepare` does, keeps all of them, and writes nothing.

    For rows that are read once, to be scored: row i is record i, its response j response j.
    Scores and labels are left out.

    Raises:
      DataError: a record has no responses, or a conversation does not fit the chat template.
    """
    rows = []
    for record in records:
        if not record.responses:
            raise DataError(f"{record.origin or record.id}: has no responses")
        try:
            encoded = tokenizer.encode(record.prompt, record.responses)
        except UserError as error:
            raise DataError(f"{record.origin or record.id}: {error}") from None
        plain = replace(record, scores=(), objectives=(), desirable=())
        ids = _cut(encoded, tokenizer, max_prompt_tokens, max_response_tokens)
        rows.append(_Row(plain, tokenizer.render(record.prompt), *ids))
    columns = _Columns(objectives=())
    kept = [
        {name: x.encode() if isinstance(x, str) else x for name, x in row.items()}
        for row in columns.through(iter(rows))
    ]
    return Dataset(
        prompt_length=np.asarray(columns.prompt_length, np.int32),
        response_length=columns.lengths(),
        objectives=(),
        labels=(0, 0),
        digest=columns.digest.hexdigest(),
        receipt={},
        path="memory",
        _rows=kept,
    )


def open_dataset(path: str) -> Dataset:
    """Opens the folder of a prepared dataset.

    Raises:
      DataError: not such a folder, or a damaged one.
    """
    import tensorflow_datasets as tfds

    try:
        with open(os.path.join(path, "meta.json"), encoding="utf-8") as file:
            meta = json.load(file)
        prompt_length = np.load(os.path.join(path, "prompt_length.npy"), allow_pickle=False)
        response_length = np.load(os.path.join(path, "response_length.npy"), allow_pickle=False)
        adversarial = None
        if meta.get("adversarial"):
            adversarial = np.load(os.path.join(path, "adversarial.npy"), allow_pickle=False)
        builder = tfds.builder_from_directory(os.path.join(path, meta["rows"]))
        rows = builder.as_data_source(split="train")
        if not len(rows) == len(prompt_length) == len(response_length):
            raise ValueError(f"{len(rows)} rows but {len(prompt_length)} lengths")
        return Dataset(
            prompt_length=prompt_length,
            response_length=response_length,
            objectives=tuple(meta["objectives"]),
            labels=tuple(meta["labels"]),
            adversarial=adversarial,
            digest=meta["digest"],
            receipt=meta["receipt"],
            path=path,
            _rows=rows,
        )
    except Exception as error:  # whatever TFDS, numpy or json say about damaged files
        raise _damaged(path, error) from None


def _damaged(path: str, error: Exception) -> DataError:
    reason = " ".join(str(error).split())
    return DataError(
        f"{path}: damaged prepared data ({reason}); delete the folder to prepare it again"
    )


def enforce(
    receipt: Receipt, *, max_drop_fraction: float, field: str = "data.max_drop_fraction"
) -> None:
    """Refuses to train on what is left of a dataset that lost too many rows.

    Args:
      receipt: counts after ``prepare``.
      max_drop_fraction: largest share of the rows read that may be dropped, in [0, 1].
      field: the config field that says so, for the message.

    Raises:
      DataError: with every reason, its count and first ids; or rows that no count explains.
    """
    if receipt.unaccounted:
        raise DataError(
            f"{receipt.unaccounted} of {receipt.rows_in} rows were neither kept, held out nor "
            "dropped with a reason: a source or filter loses rows without counting them"
        )
    dropped, total = receipt.dropped_total, receipt.rows_in
    if dropped > max_drop_fraction * total:
        reasons = ", ".join(
            f"{reason} {count} ({', '.join(receipt.ids.get(reason, []))}"
            f"{', ...' if count > len(receipt.ids.get(reason, [])) else ''})"
            for reason, count in sorted(receipt.dropped.items(), key=lambda item: -item[1])
        )
        raise DataError(
            f"{dropped} of {total} rows dropped ({dropped / total:.1%}), more than "
            f"{field} = {max_drop_fraction:g} allows: {reasons}"
        )


@dataclass(frozen=True)
class _Row:
    record: Record
    prompt: str
    prompt_ids: np.ndarray
    response_ids: list[np.ndarray]


def _encode(
    records: Iterable[Record],
    tokenizer: Tokenizer,
    max_prompt: int,
    max_response: int,
    receipt: Receipt,
) -> Iterator[_Row]:
    for record in records:
        try:
            encoded = tokenizer.encode(record.prompt, record.responses)
        except UserError as error:
            raise DataError(f"{record.origin or record.id}: {error}") from None
        if encoded.special_text:
            receipt.warn("special_token_text", record.id)
        if isinstance(record.prompt, str) and not _lossless(tokenizer, record, encoded):
            receipt.warn("lossy_encoding", record.id)

        if len(encoded.prompt_ids) > max_prompt:
            receipt.warn("truncated_prompt", record.id)
        prompt_ids, response_ids = _cut(encoded, tokenizer, max_prompt, max_response)
        keep = _distinct(record, response_ids)
        if keep is None:
            receipt.drop("identical_after_truncation", record.id)
            continue
        if any(len(ids) > max_response for ids in encoded.response_ids):
            receipt.warn("truncated_response", record.id)
        if len(keep) < len(response_ids):
            receipt.warn("removed_identical_after_truncation", record.id)
            record = take_responses(record, keep)
            response_ids = [response_ids[index] for index in keep]
        receipt.kept += 1
        yield _Row(record, tokenizer.render(record.prompt), prompt_ids, response_ids)


def _cut(
    encoded: Encoded, tokenizer: Tokenizer, max_prompt: int, max_response: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Prompt ids without their beginning, response ids without their end, where too long."""
    prompt_ids = encoded.prompt_ids
    if len(prompt_ids) > max_prompt:
        start = prompt_ids[:1] if tokenizer.bos_id is not None else prompt_ids[:0]
        prompt_ids = np.concatenate([start, prompt_ids[len(start) - max_prompt :]])
    return prompt_ids, [ids[:max_response] for ids in encoded.response_ids]


def _lossless(tokenizer: Tokenizer, record: Record, encoded: Any) -> bool:
    return all(
        tokenizer.decode(np.concatenate([encoded.prompt_ids, ids])) == f"{record.prompt}{text}"
        for ids, text in zip(encoded.response_ids, record.responses, strict=True)
    )


def _distinct(record: Record, response_ids: list[np.ndarray]) -> list[int] | None:
    """The responses that still differ; None if the row has nothing to say any more."""
    first: dict[bytes, int] = {}
    for index, ids in enumerate(response_ids):
        first.setdefault(ids.tobytes(), index)
    keep = list(first.values())
    if len(keep) == len(response_ids):
        return keep
    if not record.scores or len({record.scores[index] for index in keep}) < 2:
        return None
    return keep


def _write(rows: Iterator[_Row], cache_dir: str, path: str, receipt: Receipt) -> None:
    """Writes a complete dataset folder and moves it to ``path``."""
    first = next(rows, None)
    if first is None:
        raise DataError(f"no rows left to train on: {_one_line(receipt)}")
    with _temporary_folder(cache_dir) as folder:
        columns = _Columns(objectives=first.record.objectives)
        location = _write_rows(columns.through(_chain(first, rows)), folder)
        np.save(os.path.join(folder, "response_length.npy"), columns.lengths())
        np.save(
            os.path.join(folder, "prompt_length.npy"), np.asarray(columns.prompt_length, np.int32)
        )
        if any(columns.adversarial):
            np.save(os.path.join(folder, "adversarial.npy"), np.asarray(columns.adversarial))
        meta = {
            "rows": os.path.relpath(location, folder),
            "objectives": list(columns.objectives),
            "labels": [columns.desirable, columns.undesirable],
            "adversarial": any(columns.adversarial),
            "digest": columns.digest.hexdigest(),
            "receipt": receipt.as_dict(),
        }
        with open(os.path.join(folder, "meta.json"), "w", encoding="utf-8") as file:
            json.dump(meta, file, indent=1)
        _sync(folder)
        try:
            os.rename(folder, path)
        except OSError:
            if not os.path.isdir(path):  # else another process was first; its data are the same
                raise


def _chain(first: _Row, rest: Iterator[_Row]) -> Iterator[_Row]:
    yield first
    yield from rest


def _one_line(receipt: Receipt) -> str:
    return "; ".join(" ".join(line.split()) for line in receipt.render().splitlines())


@dataclass
class _Columns:
    """What is kept of every row beside the row itself."""

    objectives: tuple[str, ...]
    prompt_length: list[int] = field(default_factory=list)
    response_length: list[list[int]] = field(default_factory=list)
    adversarial: list[bool] = field(default_factory=list)
    desirable: int = 0  # responses with that label
    undesirable: int = 0
    digest: Any = field(default_factory=hashlib.sha256)
    kind: tuple[bool, bool] | None = None

    def lengths(self) -> np.ndarray:
        """``[N, K]`` int32, 0 where a row has fewer than K responses."""
        count = max(map(len, self.response_length))
        table = np.zeros((len(self.response_length), count), np.int32)
        for row, responses in zip(table, self.response_length, strict=True):
            row[: len(responses)] = responses
        return table

    def through(self, rows: Iterator[_Row]) -> Iterator[dict[str, Any]]:
        """Yields what TFDS stores of each row. Only flat arrays: nested ones need TensorFlow."""
        for row in rows:
            record = row.record
            kind = (bool(record.scores), bool(record.desirable))
            self.kind = self.kind or kind
            if kind != self.kind or record.objectives != self.objectives:
                raise DataError(
                    f"{record.origin or record.id}: is of another kind than the rows before it "
                    f"(objectives {list(record.objectives)} against {list(self.objectives)}, "
                    f"{'with' if kind[1] else 'without'} labels)"
                )
            lengths = [len(ids) for ids in row.response_ids]
            self.prompt_length.append(len(row.prompt_ids))
            self.response_length.append(lengths)
            self.adversarial.append(record.adversarial)
            self.desirable += sum(record.desirable)
            self.undesirable += len(record.desirable) - sum(record.desirable)
            arrays = {
                "prompt_ids": row.prompt_ids,
                "response_ids": np.concatenate(row.response_ids),
                "response_length": np.asarray(lengths, np.int32),
                "scores": np.asarray(record.scores, np.float32).reshape(-1),
                "desirable": np.asarray(record.desirable, np.int32),
            }
            for array in arrays.values():
                self.digest.update(len(array).to_bytes(8, "little") + array.tobytes())
            marks = ["adversarial"] if record.adversarial else []
            self.digest.update(json.dumps([record.id, record.domain, *marks]).encode())
            yield {
                **arrays,
                "id": record.id,
                "domain": record.domain,
                "prompt": row.prompt,
                "responses": json.dumps(record.responses, ensure_ascii=False),
            }


@functools.cache
def _builder_class() -> Any:
    """The TFDS builder; made on first use because TFDS takes a while to import."""
    import tensorflow_datasets as tfds

    def ids(dtype: Any) -> Any:
        return tfds.features.Tensor(shape=(None,), dtype=dtype)

    class PreferenceRows(tfds.core.GeneratorBasedBuilder):
        """Rows in the order they are given."""

        VERSION = tfds.core.Version(f"{FORMAT}.0.0")
        code_path = None  # no checksum or description files lie beside this source file

        def __init__(self, *, examples: Iterator[dict[str, Any]], **kwargs: Any):
            self._examples = examples
            super().__init__(**kwargs)

        def _info(self) -> Any:
            text = tfds.features.Text()
            return tfds.core.DatasetInfo(
                builder=self,
                disable_shuffling=True,
                features=tfds.features.FeaturesDict(
                    {
                        **dict.fromkeys(("id", "domain", "prompt", "responses"), text),
                        **{name: ids(np.int32) for name in ("prompt_ids", "response_ids")},
                        "response_length": ids(np.int32),
                        "scores": ids(np.float32),
                        "desirable": ids(np.int32),
                    }
                ),
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {"train": enumerate(self._examples)}

        def _generate_examples(self) -> None:
            """Not used: the split is given as an iterator."""

    return PreferenceRows


def _write_rows(examples: Iterator[dict[str, Any]], folder: str) -> str:
    """Writes array_record files under ``folder``; returns the folder TFDS put them in."""
    import tensorflow_datasets as tfds

    caused: list[UserError] = []

    def remembered() -> Iterator[dict[str, Any]]:
        try:
            yield from examples
        except UserError as error:
            caused.append(error)
            raise

    # array_record, because TFDS's default format needs TensorFlow to be finished.
    builder = _builder_class()(
        examples=remembered(), data_dir=os.path.join(folder, "tfds"), file_format="array_record"
    )
    tfds.disable_progress_bar()
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it "downloads"
            builder.download_and_prepare(download_config=config)
    except Exception:
        if caused:  # TFDS wraps what its generator raises
            raise caused[0] from None
        raise
    return str(builder.data_dir)


@contextlib.contextmanager
def _temporary_folder(cache_dir: str) -> Iterator[str]:
    """A folder for this process alone, removed in the end unless it was renamed.

    A lock file beside it is held while the process lives, so that the folder of a killed process
    is known to be abandoned. It is locked before the folder exists, so no other process can take
    a living folder for an abandoned one.
    """
    os.makedirs(cache_dir, exist_ok=True)
    _remove_abandoned(cache_dir)
    folder = os.path.join(cache_dir, f".tmp-{secrets.token_hex(8)}")
    with open(f"{folder}.lock", "x") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            os.mkdir(folder)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.unlink(lock.name)


def _remove_abandoned(cache_dir: str) -> None:
    for name in os.listdir(cache_dir):
        folder = os.path.join(cache_dir, name)
        if not name.startswith(".tmp-"):
            continue
        if name.endswith(".lock"):
            day_old = time.time() - 86400
            with contextlib.suppress(OSError):
                if os.path.getmtime(folder) < day_old and not os.path.exists(folder[:-5]):
                    os.unlink(folder)
            continue
        # OSError: a living process holds the lock, or the folder has gone meanwhile.
        with contextlib.suppress(OSError), open(f"{folder}.lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
            os.unlink(lock.name)


def _sync(folder: str) -> None:
    """Flushes all files below a folder to disk, before its final name appears."""
    for parent, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(parent, name), "rb") as file:
                os.fsync(file.fileno())
