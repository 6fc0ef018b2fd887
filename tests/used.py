"""Uses what whole runs trained: samples by a network, by an exported folder, and by `generate`."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from alignjax.commands import generate as command
from alignjax.config import Config
from alignjax.data.records import Record
from alignjax.models.config import ModelConfig
from alignjax.models.hf import load
from alignjax.rewards import reward_models, scorers
from alignjax.runtime.sharding import make_mesh
from alignjax.sampling import generate
from alignjax.sampling.generate import Question, Sample
from alignjax.stages import pretrained
from alignjax.stages.data import prepare_data
from alignjax.stages.run import Run
from alignjax.types import Params


def exported(folder: pathlib.Path) -> Params:
    """The parameters of an exported folder."""
    model = load.resolve(ModelConfig(path=str(folder)))
    return load.load_params(folder, pretrained.target(model, make_mesh(1, 1, 1)), model)


def run_of(config: Config, workdir: pathlib.Path) -> Run:
    return Run(config, workdir, prepare_data(config, workdir), make_mesh(1, 1, 1))


def samples(run: Run, params: Params, questions: Sequence[Question] | None = None) -> list[Sample]:
    """What a network responds to held-out prompts, drawn as the run draws."""
    if questions is None:
        questions = generate.take_questions(run.data.originals, run.config.evaluate.prompts)
    return generate.respond(run.sampling(run.config.evaluate, "used"), params, questions)


def texts_and_nats(found: Sequence[Sample] | pathlib.Path) -> list[tuple[str, float]]:
    """Responses and their log-probabilities, of samples or of a file of them."""
    if isinstance(found, pathlib.Path):
        return [(x["response"], x["logps"]) for x in json.loads(found.read_text())["samples"]]
    return [(sample.response, sample.logps) for sample in found]


def generated(config: Config, workdir: pathlib.Path, out: pathlib.Path, **flags: Any) -> list[str]:
    """The responses that `generate` writes."""
    command.run(config, str(workdir), str(out), **flags)
    return [text for line in out.read_text().splitlines() for text in json.loads(line)["responses"]]


def written(texts: Sequence[tuple[str, float]]) -> list[str]:
    """Responses as a text file holds them."""
    return [text.replace("\0", "\ufffd") for text, _ in texts]


def assert_scores_alike(exported: pathlib.Path, workdir: pathlib.Path) -> None:
    """An exported reward model is its run's own, bit for bit, and scores alike."""
    models = [reward_models.find(str(x)) for x in (exported, workdir)]
    params = [reward_models.load_params(model, make_mesh(1, 1, 1)) for model in models]
    jax.tree.map(np.testing.assert_array_equal, *params)
    responses = ("A plan.", "No idea at all.", "Yes.")
    records = [Record(id=str(i), prompt=f"How do {i}?", responses=responses) for i in range(2)]
    found, wanted = (scorers.reward_model(records, path=str(x)) for x in (exported, workdir))
    # Rows are padded to other shapes, so sums round differently: in proportion to their terms, not
    # to a score that happens to be near 0.
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    assert len(np.unique(wanted)) > 1
