"""Responses that methods of several objectives train on, drawn from a policy on the way."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import jax

from alignjax.config import SamplingConfig
from alignjax.config.fields import identity
from alignjax.recipes.multi_objective import cost
from alignjax.recipes.multi_objective.method import Setting
from alignjax.recipes.multi_objective.training import network
from alignjax.runtime.faults import fault_point
from alignjax.runtime.metrics import timed
from alignjax.sampling import generate
from alignjax.sampling.generate import Question, Sample
from alignjax.types import Params


def sampled(
    setting: Setting,
    name: str,
    params: Params,
    asked: Sequence[Question],
    *,
    settings: SamplingConfig | None = None,
    seed: int = 1,
) -> list[Sample]:
    """Responses that a method trains on: drawn batch by batch, kept in ``workdir/name.json``.

    Args:
      name: of the file, the progress bar and the time.
      params: of a whole network, or adapters of `fit`.
      asked: the prompts, e.g. ``generate.questions(setting.data.train, 1000)``.
      settings: how many and how; None: as ``evaluate`` says.
      seed: folded into the run's, so that two draws for one prompt differ.

    Returns:
      ``settings.samples`` responses per prompt, in the order of ``asked``.
    """
    from alignjax.runtime import checkpoint, workdirs

    config = setting.config
    settings = config.evaluate if settings is None else settings
    whole = network(setting, params)
    key = {
        "params": checkpoint.tree_digest(whole),
        "settings": identity(settings),
        "seed": [config.train.seed, seed],
        "asked": _digest([[q.number, q.prompt] for q in asked]),
    }
    file = setting.workdir / f"{name}.json"
    found = workdirs.find_json(file) or {}
    if found.get("key") == key:
        return [Sample(**s) for s in found["samples"]]
    parts = setting.workdir / f"{name}.parts" / _digest(key)
    batches = generate.respond_in_batches(
        whole,
        None,
        asked,
        model=config.model,
        tokenizer=setting.data.tokenizer,
        settings=settings,
        key=jax.random.fold_in(jax.random.key(config.train.seed), seed),
        mesh=setting.mesh,
        title=name,
        done={int(name.removesuffix(".json")) for name in workdirs.names(parts, "*.json")},
    )
    while True:
        with timed() as took:
            batch = next(batches, None)
        if batch is None:
            break
        number, drawn = batch
        said = {i: [dataclasses.asdict(s) for s in x] for i, x in drawn.items()}
        part = {"seconds": took[0], "samples": said}
        workdirs.write_json(parts / f"{number:06d}.json", part)
        fault_point("drawn", f"{name}-{number:06d}")
    told = [workdirs.read_json(parts / name) for name in workdirs.names(parts, "*.json")]
    by_prompt = {int(i): x for part in told for i, x in part["samples"].items()}
    samples = [s for i in sorted(by_prompt) for s in by_prompt[i]]
    cost.note_seconds(setting, name, sum(part["seconds"] for part in told))
    workdirs.write_json(file, {"key": key, "samples": samples})
    workdirs.remove(setting.workdir / f"{name}.parts")
    return [Sample(**s) for s in samples]


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
