"""Stores sampled responses: batch by batch during sampling, then in one JSON file."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from alignjax.models.mixture import Mixture
from alignjax.runtime import artifacts, storage
from alignjax.runtime.metrics import timed
from alignjax.sampling.generate import Question, Sample, Sampling, respond_in_batches
from alignjax.types import Params


def reuse_samples(
    path: pathlib.Path, key: Any, make: Callable[[pathlib.Path], list[Sample]]
) -> list[Sample]:
    """Loads samples from a JSON file; makes them first, unless the file has this key.

    Args:
      path: the file.
      key: JSON data that changes whenever the samples would.
      make: makes the samples; its argument is the folder for parts.
    """

    def content(scratch: pathlib.Path) -> dict[str, Any]:
        return {"samples": [dataclasses.asdict(sample) for sample in make(scratch)]}

    return [Sample(**fields) for fields in artifacts.reuse_json(path, key, content)["samples"]]


def draw_samples(
    scratch: pathlib.Path,
    name: str,
    sampling: Sampling,
    params: Params | Mixture,
    questions: Sequence[Question],
    ref_params: Params | None = None,
) -> tuple[list[list[Sample]], float]:
    """Samples responses batch by batch, and saves each batch; saved batches are not sampled again.

    Args:
      scratch: the folder of the batches.
      name: of their files, ``NAME-000000.json`` and so on.
      sampling, params, questions, ref_params: see `generate.respond`.

    Returns:
      The samples of each prompt, in the order of ``questions``; and the seconds of all batches.
    """
    done = {int(i) for part in _parts(scratch, name) for i in part["samples"]}
    batches = respond_in_batches(sampling, params, questions, ref_params, done=done)
    while True:
        with timed() as took:
            batch = next(batches, None)
        if batch is None:
            break
        number, by_prompt = batch
        texts = {i: [_without_prompt(x) for x in samples] for i, samples in by_prompt.items()}
        content = {"seconds": took[0], "samples": texts}
        artifacts.write_part(scratch, f"{name}-{number:06d}", content)
    samples: dict[int, list[Sample]] = {}
    seconds = 0.0
    for part in _parts(scratch, name):
        seconds += part["seconds"]
        for i, fields in part["samples"].items():
            samples[int(i)] = [Sample(prompt=questions[int(i)].prompt, **x) for x in fields]
    return [samples[i] for i in range(len(questions))], seconds


def _parts(scratch: pathlib.Path, name: str) -> list[dict[str, Any]]:
    return [storage.read_json(scratch / x) for x in storage.names(scratch, f"{name}-*.json")]


def _without_prompt(sample: Sample) -> dict[str, Any]:
    return {name: x for name, x in dataclasses.asdict(sample).items() if name != "prompt"}
