"""Stores token rows: written once as array_record files, opened by TFDS; or in memory."""

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

FORMAT = 3  # increase it when the files of earlier versions would be read as other rows
_NAME = "preference_rows"


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
        ids = np.split(row["response_ids"], np.cumsum(lengths))[:-1]
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
    _write_rows(columns.through(itertools.chain([first], rows)), os.path.join(folder, "rows"))
    arrays = {
        "response_length": columns.lengths(),
        "prompt_length": np.asarray(columns.prompt_length, np.int32),
    }
    if any(columns.adversarial):
        arrays["adversarial"] = np.asarray(columns.adversarial)
    for name, array in arrays.items():
        pathlib.Path(folder, f"{name}.npy").write_bytes(npy(array))
    meta = {
        "rows": "rows",
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
        count = max(1, *map(len, self.response_length))  # of prompts alone: one, which is absent
        table = np.zeros((len(self.response_length), count), np.int32)
        for row, responses in zip(table, self.response_length, strict=True):
            row[: len(responses)] = responses
        return table

    def score_sd(self) -> list[float]:
        """Returns each objective's standard deviation within rows, pooled; 0 for single scores."""
        return np.sqrt(self.squares / max(self.freedom, 1)).tolist() if self.objectives else []

    def through(self, rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
        """Yields what is stored of each row: texts and flat arrays."""
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
                "response_ids": np.concatenate([np.zeros(0, np.int32), *row.response_ids]),
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


def _write_rows(examples: Iterator[dict[str, Any]], folder: str) -> None:
    """Writes one array_record file and the files by which TFDS knows its content.

    TFDS's own writer converts and checks every value, writes all rows to a temporary file and reads
    them again, which takes longer.
    """
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter

    os.makedirs(folder)
    file = pathlib.Path(folder, f"{_NAME}-train.array_record-00000-of-00001")
    rows = size = 0
    writer = ArrayRecordWriter(str(file), "group_size:1")  # TFDS's options: rows are read singly
    for example in examples:
        content = _serialised(example)
        writer.write(content)
        rows, size = rows + 1, size + len(content)
    writer.close()
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=_NAME, split="train", filetype_suffix="array_record"
    )
    split = tfds.core.SplitInfo(
        name="train", shard_lengths=[rows], num_bytes=size, filename_template=template
    )
    text, integers = tfds.features.Text(), tfds.features.Tensor(shape=(None,), dtype=np.int32)
    features = {
        **dict.fromkeys(("id", "domain", "prompt", "responses"), text),
        **dict.fromkeys(("prompt_ids", "response_ids", "response_length", "desirable"), integers),
        "scores": tfds.features.Tensor(shape=(None,), dtype=np.float32),
    }
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=features,
        split_infos=[split],
        version=f"{FORMAT}.0.0",
        check_data=False,  # would need TensorFlow
        disable_shuffling=True,
    )


def _serialised(example: dict[str, Any]) -> bytes:
    """Serialises texts and arrays of one row as a tf.train.Example."""
    from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

    def feature(value: Any) -> Any:
        if isinstance(value, str):
            content = tf_feature_pb2.BytesList(value=[value.encode()])
            return tf_feature_pb2.Feature(bytes_list=content)
        if value.dtype.kind == "f":
            content = tf_feature_pb2.FloatList(value=value.tolist())
            return tf_feature_pb2.Feature(float_list=content)
        content = tf_feature_pb2.Int64List(value=value.tolist())
        return tf_feature_pb2.Feature(int64_list=content)

    features = tf_feature_pb2.Features(feature={k: feature(v) for k, v in example.items()})
    row: bytes = tf_example_pb2.Example(features=features).SerializeToString(deterministic=True)
    return row
