"""Stores token rows: written once as array_record files by TFDS, then opened; or in memory."""

import contextlib
import functools
import hashlib
import io
import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from alignjax.data.encode import Row, reasons
from alignjax.data.records import DataError, DataReport
from alignjax.errors import UserError

FORMAT = 3  # increase it when the files of the same rows change


@dataclass(frozen=True, eq=False)
class Example:
    """One row, as ids and as text; K responses, M objectives."""

    id: str
    domain: str
    prompt: str  # rendered by the chat template, not truncated
    responses: tuple[str, ...]  # not truncated
    prompt_ids: np.ndarray  # [P] int32, with BOS
    response_ids: tuple[np.ndarray, ...]  # K of [R_k] int32, with EOS unless truncated
    scores: np.ndarray | None  # [K, M] float32
    desirable: np.ndarray | None  # [K] bool


@dataclass(frozen=True, eq=False)
class Dataset:
    """Prepared rows. Opening reads the columns only; ``dataset[i]`` reads one row.

    Several threads may read at once.
    """

    prompt_length: np.ndarray  # [N] int32
    response_length: np.ndarray  # [N, K] int32; 0 in rows with fewer than K responses
    objectives: tuple[str, ...]  # names of the M scores; () without scores
    labels: tuple[int, int]  # desirable and undesirable responses; (0, 0) without labels
    digest: str  # hex sha256 of all ids, scores, labels and row ids
    report: Mapping[str, Any]  # DataReport.as_dict()
    path: str
    _rows: Any = field(repr=False)  # TFDS's random-access source
    adversarial: np.ndarray | None = None  # [N] bool, see `types.Batch`; None: all False
    # [M] standard deviation of each objective's scores within a row, pooled over the rows.
    score_sd: tuple[float, ...] = ()

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


def write(rows: Iterable[Row], folder: str | os.PathLike[str], report: DataReport) -> None:
    """Writes rows to a new folder: array_record files, and the columns that batching reads.

    Args:
      rows: all with the same objectives, and all or none with scores and with labels.
      report: complete after the last row; stored with the rows.

    Raises:
      DataError: there are no rows, or rows of different kinds.
    """
    folder, rows = os.fspath(folder), iter(rows)
    first = next(rows, None)
    if first is None:
        raise DataError(f"all {report.dropped_total} rows were dropped: {reasons(report)}")
    os.makedirs(folder)
    columns = _Columns(objectives=first.record.objectives)
    location = _write_rows(columns.through(itertools.chain([first], rows)), folder)
    arrays = {
        "response_length": columns.lengths(),
        "prompt_length": np.asarray(columns.prompt_length, np.int32),
    }
    if any(columns.adversarial):
        arrays["adversarial"] = np.asarray(columns.adversarial)
    for name, array in arrays.items():
        pathlib.Path(folder, f"{name}.npy").write_bytes(npy(array))
    meta = {
        "rows": os.path.relpath(location, folder),
        "objectives": list(columns.objectives),
        "labels": [columns.desirable, columns.undesirable],
        "score_sd": columns.score_sd(),
        "adversarial": any(columns.adversarial),
        "digest": columns.digest.hexdigest(),
        "receipt": report.as_dict(),  # as earlier versions named it
    }
    with open(os.path.join(folder, "meta.json"), "w", encoding="utf-8") as file:
        json.dump(meta, file, indent=1)


def npy(array: np.ndarray) -> bytes:
    """Encodes an array as the bytes of an .npy file.

    If the disk is full, `np.save` to a file raises an error without an errno.
    """
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    return content.getvalue()


def open_dataset(path: str | os.PathLike[str]) -> Dataset:
    """Opens the folder of a prepared dataset.

    Raises:
      DataError: the folder is no prepared dataset, or a damaged one.
    """
    import tensorflow_datasets as tfds

    path = os.fspath(path)
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
            score_sd=tuple(meta["score_sd"]),
            digest=meta["digest"],
            report=meta["receipt"],
            path=path,
            _rows=rows,
        )
    except Exception as error:  # TFDS, numpy and json raise many types for damaged files
        raise _damaged(path, error) from None


def _damaged(path: str, error: Exception) -> DataError:
    reason = " ".join(str(error).split())
    return DataError(
        f"{path}: damaged prepared data ({reason}); delete the folder to prepare it again"
    )


def in_memory(rows: Iterable[Row]) -> Dataset:
    """Makes a dataset in memory, for rows that are read once."""
    columns = _Columns(objectives=())
    kept = [
        {name: x.encode() if isinstance(x, str) else x for name, x in row.items()}
        for row in columns.through(rows)
    ]
    return Dataset(
        prompt_length=np.asarray(columns.prompt_length, np.int32),
        response_length=columns.lengths(),
        objectives=(),
        labels=(0, 0),
        digest=columns.digest.hexdigest(),
        report={},
        path="memory",
        _rows=kept,
    )


@dataclass
class _Columns:
    """The columns that are stored beside the rows."""

    objectives: tuple[str, ...]
    prompt_length: list[int] = field(default_factory=list)
    response_length: list[list[int]] = field(default_factory=list)
    adversarial: list[bool] = field(default_factory=list)
    desirable: int = 0  # responses with that label
    undesirable: int = 0
    digest: Any = field(default_factory=hashlib.sha256)
    kind: tuple[bool, bool] | None = None
    squares: Any = 0.0  # [M] squared deviations of scores from their row's mean, summed
    freedom: int = 0  # degrees of freedom: scores of an objective, minus one per row

    def lengths(self) -> np.ndarray:
        """Returns the responses' lengths, ``[N, K]`` int32, 0 in rows with fewer responses."""
        count = max(map(len, self.response_length))
        table = np.zeros((len(self.response_length), count), np.int32)
        for row, responses in zip(table, self.response_length, strict=True):
            row[: len(responses)] = responses
        return table

    def score_sd(self) -> list[float]:
        """Returns each objective's standard deviation within rows, pooled; 0 for single scores."""
        return np.sqrt(self.squares / max(self.freedom, 1)).tolist() if self.objectives else []

    def through(self, rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
        """Yields what TFDS stores of each row: flat arrays, because nested ones need TensorFlow."""
        for row in rows:
            record = row.record
            kind = (bool(record.scores), bool(record.desirable))
            self.kind = self.kind or kind
            if kind != self.kind or record.objectives != self.objectives:
                raise DataError(
                    f"{record.origin or record.id}: is of another kind than the rows before it: "
                    f"wanted objectives {list(self.objectives)}, found {list(record.objectives)}, "
                    f"{'with' if kind[1] else 'without'} labels"
                )
            lengths = [len(ids) for ids in row.response_ids]
            scores = np.asarray(record.scores, np.float32)
            if len(scores):
                self.squares = self.squares + len(scores) * scores.var(axis=0, dtype=np.float64)
                self.freedom += len(scores) - 1
            self.prompt_length.append(len(row.prompt_ids))
            self.response_length.append(lengths)
            self.adversarial.append(record.adversarial)
            self.desirable += sum(record.desirable)
            self.undesirable += len(record.desirable) - sum(record.desirable)
            arrays = {
                "prompt_ids": row.prompt_ids,
                "response_ids": np.concatenate(row.response_ids),
                "response_length": np.asarray(lengths, np.int32),
                "scores": scores.reshape(-1),
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
    """Defines the TFDS builder on first use, because importing TFDS is slow."""
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
            """Not called: the split is an iterator."""

    return PreferenceRows


def _write_rows(examples: Iterator[dict[str, Any]], folder: str) -> str:
    """Writes array_record files below ``folder``; returns TFDS's folder."""
    import tensorflow_datasets as tfds

    errors: list[UserError] = []

    def record_errors() -> Iterator[dict[str, Any]]:
        try:
            yield from examples
        except UserError as error:
            errors.append(error)
            raise

    # array_record, because TFDS needs TensorFlow to write its default format.
    builder = _builder_class()(
        examples=record_errors(), data_dir=os.path.join(folder, "tfds"), file_format="array_record"
    )
    tfds.disable_progress_bar()
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints a download that does not happen
            builder.download_and_prepare(download_config=config)
    except Exception:
        if errors:  # TFDS wraps errors of its generator
            raise errors[0] from None
        raise
    return str(builder.data_dir)
