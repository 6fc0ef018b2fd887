"""Locates data: files, globs, folders with splits, and data sets on the Hugging Face Hub."""

import glob
import json
import os
import re

from alignjax.data.files import SUFFIXES
from alignjax.data.records import DataError
from alignjax.errors import did_you_mean

_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SPLIT = re.compile(r"(?P<name>[a-z][a-z_]*?[a-z])(?:[-_.]\d+(-of-\d+)?)?(-[0-9a-f]{16})?\.")


def resolve(path: str, split: str, field: str = "data.path") -> str:
    """Returns the file or glob of a path.

    Args:
      path: a file or glob, returned unchanged; a folder saved by `datasets`, or of data files (a
        clone of a data set); or the id of a data set on the Hub, which is downloaded.
      split: the split of a folder; "" if it has only one.
      field: the config's field, for messages.

    Raises:
      DataError: no such path, or no such split.
    """
    if os.path.isfile(path) or (glob.has_magic(path) and not os.path.isdir(path)):
        if split:
            raise DataError(f"data.split: {path} is a file and has no splits; found {split!r}")
        return path
    if not os.path.isdir(path) and _HUB.fullmatch(path) and not path.endswith(SUFFIXES):
        path = _fetch(path, field)
    if not os.path.isdir(path):
        return path  # `files.expand` raises the error
    return _of_folder(path, split)


def is_missing(path: str) -> bool:
    """Whether a path is neither a file, a folder, nor a data set that the Hub provides."""
    if os.path.exists(path) or glob.glob(path):
        return False
    try:
        return not os.path.exists(resolve(path, "").split(os.pathsep)[0])
    except DataError:
        return True


def _of_folder(path: str, split: str) -> str:
    """Returns the glob of a folder's split."""
    if os.path.isfile(os.path.join(path, "state.json")):  # one split, saved by `datasets`
        return os.path.join(glob.escape(path), "data-*.arrow")
    splits: dict[str, list[str]] = {}
    saved = os.path.join(path, "dataset_dict.json")
    if os.path.isfile(saved):
        with open(saved, encoding="utf-8") as file:
            for name in json.load(file)["splits"]:
                splits[name] = [os.path.join(glob.escape(path), name, "data-*.arrow")]
    else:
        splits = _files_by_split(path)
    known = ", ".join(splits)
    if not splits:
        raise DataError(f"{path}: holds no data files ({', '.join(SUFFIXES)})")
    if split and split not in splits:
        raise DataError(
            f"data.split: {path} has {known}, found {split!r}{did_you_mean(split, splits)}"
        )
    if not split and len(splits) > 1:
        raise DataError(
            f"data.split: {path} has {known}; choose one: --set data.split={next(iter(splits))}"
        )
    return os.pathsep.join(splits[split or next(iter(splits))])


def _files_by_split(path: str) -> dict[str, list[str]]:
    """Groups the data files below a folder by split, as in train-00000-of-00002.parquet."""
    splits: dict[str, list[str]] = {}
    for folder, _, names in sorted(os.walk(path)):
        if os.path.basename(folder).startswith("."):
            continue
        for name in sorted(names):
            if name.endswith(SUFFIXES) and not name.startswith((".", "dataset_info", "state")):
                match = _SPLIT.match(name)
                split = match["name"] if match else name.split(".")[0]
                if split.isdigit():  # train/0000.parquet
                    split = os.path.basename(folder)
                splits.setdefault(split, []).append(os.path.join(folder, name))
    return splits


def _fetch(id: str, field: str) -> str:
    """Downloads a data set from the Hub, or finds it in the cache; returns its folder."""
    command = f"hf download {id} --repo-type dataset --local-dir DIR, and --set {field}=DIR"
    import huggingface_hub

    try:
        patterns = [f"*{suffix}" for suffix in SUFFIXES]
        return huggingface_hub.snapshot_download(id, repo_type="dataset", allow_patterns=patterns)
    except Exception as error:  # the library raises many types
        what = " ".join(str(error).split())[:160]
        raise DataError(
            f"{field}: no file or folder {id}, and no data set of that id from the Hub "
            f"({type(error).__name__}: {what}); on a machine with a network, run {command}"
        ) from None
