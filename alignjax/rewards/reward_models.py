"""Loads trained reward models, and scores responses with them."""

import dataclasses
import functools
import glob
import logging
import os
import pathlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from alignjax.config import DataConfig, MeshConfig
from alignjax.data.batching import bucket
from alignjax.data.encode import Reading, encode_all
from alignjax.data.files import fingerprint
from alignjax.data.records import DataReport, Record
from alignjax.data.store import in_memory
from alignjax.data.tokenizer import load as tokenizers
from alignjax.data.tokenizer.load import Tokenizer
from alignjax.errors import UserError
from alignjax.models import reward_head
from alignjax.models.config import ModelConfig, model_from
from alignjax.models.hf import configjson
from alignjax.models.hf import load as hf
from alignjax.runtime import distributed, sharding, storage, workdirs
from alignjax.runtime.map_rows import map_rows
from alignjax.types import Params

log = logging.getLogger("alignjax")

OURS = "reward_model.json"  # in an exported folder: the token limits of the run
LIMITS = ("max_prompt_tokens", "max_response_tokens")


@dataclasses.dataclass(frozen=True)
class RewardModel:
    """A trained reward model, without its parameters."""

    path: pathlib.Path  # its folder
    model: ModelConfig
    tokenizer: Tokenizer
    objectives: tuple[str, ...]  # names of the M scores; () for one score without a name
    data: dict[str, Any]  # the run's config field ``data``: token limits and padding
    digest: str  # of the parameters
    from_elsewhere: bool = False  # whether transformers saved it, not a run of alignjax
    reading: Reading | None = None  # how to write its input; None: as alignjax's runs do
    labels: tuple[str, str] | None = None  # a score is the second one's logit minus the first one's


def score(
    reward: RewardModel,
    records: Sequence[Record],
    *,
    batch_size: int,
    mesh: MeshConfig | None,
    cuts: Counter[str] | None = None,
) -> list[np.ndarray]:
    """Scores responses; see `scorers.reward_model`, which takes a folder instead."""
    if mesh is None:
        mesh = MeshConfig(fsdp=len(jax.devices()) if distributed.several() else 1)
    devices = sharding.make_mesh(mesh.data, mesh.fsdp, mesh.tensor)
    params = load_params(reward, devices)
    if not records:
        return []
    report = DataReport()
    encoded = encode_all(
        records,
        reward.tokenizer,
        max_prompt_tokens=reward.data["max_prompt_tokens"],
        max_response_tokens=reward.data["max_response_tokens"],
        report=report,
        reading=reward.reading,
    )
    rows = mesh.data * mesh.fsdp
    table = map_rows(
        lambda batch: reward_head.score_responses(params, batch, config=reward.model),
        bucket(
            in_memory(encoded), count=reward.data["buckets"], multiple=reward.data["pad_multiple"]
        ),
        batch_size=-(-batch_size // rows) * rows,
        mesh=devices,
        title=f"scoring, {reward.path.name}",
    )
    if reward.labels is not None:
        log.info(
            "scoring, %s: two labels: a score is the logit of %r minus that of %r",
            *(reward.path.name, reward.labels[1], reward.labels[0]),
        )
    _count_cuts(reward, report, sum(len(record.responses) for record in records), cuts)
    return [table[i, : len(record.responses)] for i, record in enumerate(records)]


def _count_cuts(
    reward: RewardModel, report: DataReport, responses: int, cuts: Counter[str] | None
) -> None:
    """Logs how many texts were cut; adds this count and the number of texts to ``cuts``."""
    for what, total, loses in (
        ("prompt", report.kept, "beginning"),
        ("response", responses, "end"),
    ):
        cut = report.warned.get(f"truncated_{what}", 0)
        if cuts is not None:
            cuts.update({f"{reward.path.name}: {what}s": total})
            cuts.update({f"{reward.path.name}: {what}s cut": cut})
        if cut:
            limit = reward.data[f"max_{what}_tokens"]
            to = f"max_{what}_tokens = {limit}"
            if reward.reading is not None and limit >= reward.reading.longest:
                to = f"the model's maximum length, {limit} tokens with the other part"
            log.info(
                "scoring, %s: %s of %s %ss cut to %s, their %s is lost",
                *(reward.path.name, f"{cut:,}", f"{total:,}", what, to, loses),
            )


def with_limits(
    reward: RewardModel, max_prompt_tokens: int | None, max_response_tokens: int | None
) -> RewardModel:
    """Replaces a reward model's token limits; None keeps one.

    Raises:
      UserError: a limit is below 2.
    """
    limits = {"max_prompt_tokens": max_prompt_tokens, "max_response_tokens": max_response_tokens}
    given = {name: limit for name, limit in limits.items() if limit is not None}
    for name, limit in given.items():
        if limit < 2:
            raise UserError(f"{name}: wanted a number above 1, found {limit}")
    return dataclasses.replace(reward, data={**reward.data, **given})


def find(path: str) -> RewardModel:
    """Reads the description in a reward model's folder.

    Raises:
      UserError: it holds no finished reward model, or another tokenizer than the model was trained
        with.
    """
    folder = pathlib.Path(path)
    config = _read_json(folder, "config.json", "holds no run")
    if "model_type" in config:
        return _from_elsewhere(folder, config)
    if config.get("reward_loss") is None:
        raise UserError(
            f"{folder} holds a policy, not a reward model: its config has no reward_loss"
        )
    if config.get("loss") is not None:
        raise UserError(
            f"{folder} holds a game, not a reward model: its reward models are in its "
            "folders base and round-*/reward"
        )
    summary = _read_json(folder, "summary.json", "holds a run that has not finished")
    own = folder / "tokenizer.model"
    settings = config["tokenizer"]
    tokenizer = tokenizers.load(
        workdirs.kept_tokenizer(settings["path"], folder) if settings["path"] else str(own),
        model=workdirs.kept_tokenizer(config["model"]["path"], folder),
        chat_template=settings["chat_template"],
    )
    trained_with = summary["reward_model"]
    if tokenizer.digest != trained_with["tokenizer"]:
        raise UserError(
            f"{folder}: wanted the tokenizer that the reward model was trained with, "
            f"{trained_with['tokenizer'][:12]}, found {tokenizer.digest[:12]} "
            f"({settings['path'] or own})"
        )
    model = model_from(config, str(folder / "config.json"))
    return RewardModel(
        folder,
        model,
        tokenizer,
        tuple(trained_with["objectives"]),
        config["data"],
        trained_with["params"],
    )


def _from_elsewhere(folder: pathlib.Path, config: dict[str, Any]) -> RewardModel:
    """Reads the folder of a reward model that transformers saved, or that was exported.

    An exported one has the token limits that it was trained with in ``reward_model.json``.
    """
    model = hf.read_config(folder, reward=True)
    names = configjson.labels(config, str(folder / "config.json"))
    tokenizer = tokenizers.load(str(folder))
    tokenizers.check_ids(str(folder), tokenizer.vocab_size, model.vocab_size)
    labels = configjson.two_labels(config, names)
    reading = None
    if (folder / OURS).is_file():
        limits = _limits(folder)
    else:
        reading = Reading(_own_length(folder, config), config.get("pad_token_id"))
        limits = dict.fromkeys(LIMITS, reading.longest)
    data = {**dataclasses.asdict(DataConfig(source=find)), **limits}  # the source is not read
    return RewardModel(
        folder,
        dataclasses.replace(model, path=str(folder)),
        tokenizer,
        names if len(names) > 1 and labels is None else (),
        {k: v for k, v in data.items() if k != "source"},
        fingerprint(os.path.join(glob.escape(str(folder)), "*.safetensors")),
        from_elsewhere=True,
        reading=reading,
        labels=labels,
    )


def _limits(folder: pathlib.Path) -> dict[str, int]:
    """Reads the token limits that an exported reward model was trained with."""
    limits = _read_json(folder, OURS, "")
    for name in LIMITS:
        if type(limits.get(name)) is not int or limits[name] < 2:
            raise UserError(
                f"{folder / OURS}: {name}: wanted a number above 1, found {limits.get(name)!r:.80}"
            )
    return {name: limits[name] for name in LIMITS}


def _own_length(folder: pathlib.Path, config: dict[str, Any]) -> int:
    """Finds a model's maximum length in tokens: its context, or its tokenizer's lower limit."""
    given = [config.get("max_position_embeddings")]
    if (folder / "tokenizer_config.json").is_file():
        given.append(_read_json(folder, "tokenizer_config.json", "").get("model_max_length"))
    # Where a tokenizer has no limit, transformers writes a number of 30 digits.
    lengths = [x for x in given if type(x) is int and 2 < x < 10**9]
    if not lengths:
        raise UserError(
            f"{folder / 'config.json'}: max_position_embeddings: wanted a number, found none; nor "
            "has tokenizer_config.json a model_max_length"
        )
    return min(lengths)


def load_params(reward: RewardModel, mesh: Mesh) -> Params:
    """Loads the parameters of a reward model onto the mesh.

    Raises:
      CheckpointError: they cannot be read, or do not fit the config.
    """
    from alignjax.runtime import checkpoint  # slow to import, and configs import this module

    objectives = 2 if reward.labels is not None else max(1, len(reward.objectives))
    init = functools.partial(reward_head.init_params, reward.model, objectives=objectives)
    shapes = jax.eval_shape(init, jax.random.key(0))
    layout = sharding.shard_tree(shapes, mesh)
    target = sharding.abstract(shapes, layout)
    if not (reward.path / "params").is_dir():
        params = hf.load_params(reward.path, target, reward.model)
        if reward.labels is not None:  # one output, the difference of the two
            kernel = params["reward"]["kernel"]
            params["reward"]["kernel"] = kernel[:, 1:] - kernel[:, :1]
        return params
    return checkpoint.load_params(reward.path / "params", target)


def _read_json(folder: pathlib.Path, name: str, otherwise: str) -> dict[str, Any]:
    file = folder / name
    if not file.is_file():
        raise UserError(f"{folder} {otherwise}: no {name} in it")
    return dict(storage.read_here(file))
