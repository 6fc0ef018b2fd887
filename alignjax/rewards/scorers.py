"""Scores of responses: from a trained reward model, or from a judge that is a plain function.

A `Scorer` takes records and returns one array per record. Configs bind one with
`functools.partial`:

    scorer=partial(score.reward_model, path="runs/rm")
    scorer=partial(score.judged, judge=world.judge, name="true_score")
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from alignjax.config import DataConfig, MeshConfig
from alignjax.data.batching import bucket
from alignjax.data.files import fingerprint
from alignjax.data.prepare import in_memory
from alignjax.data.records import DataError, Record
from alignjax.data.tokenizer import load as tokenizers
from alignjax.data.tokenizer.load import Tokenizer
from alignjax.errors import UserError, did_you_mean
from alignjax.models import reward_head
from alignjax.models.config import ModelConfig, model_from
from alignjax.models.hf import configjson
from alignjax.models.hf import load as hf
from alignjax.runtime import distributed, sharding
from alignjax.runtime.map_rows import map_rows
from alignjax.types import Params

Scorer = Callable[[Sequence[Record]], list[np.ndarray]]  # for each record [k] or [k, M] float32
Judge = Callable[[str, str], dict[str, float]]  # (prompt, response) -> {name: score}


def judged(
    records: Sequence[Record], *, judge: Judge, name: str | tuple[str, ...]
) -> list[np.ndarray]:
    """Scores by a function of the texts, such as the embedded world's truth.

    Args:
      records: their prompts are plain text.
      judge: ``(prompt, response) -> {name: score}``.
      name: which of its scores, larger is better; a tuple of M names for M objectives.

    Returns:
      For each record ``[k]`` float32, or ``[k, M]`` where ``name`` is a tuple.

    Raises:
      DataError: a prompt is a conversation, or the judge has no such score.
    """
    names = (name,) if isinstance(name, str) else name
    found = []
    for record in records:
        if not isinstance(record.prompt, str):
            raise DataError(
                f"{record.origin or record.id}: the prompt is a conversation, and a judge reads "
                "plain text"
            )
        rows = [judge(record.prompt, response) for response in record.responses]
        for row in rows:
            for wanted in names:
                if wanted not in row:
                    raise DataError(
                        f"name: the judge gives no score {wanted!r}{did_you_mean(wanted, row)}; "
                        f"it gives {', '.join(row)}"
                    )
        scores = np.array([[row[n] for n in names] for row in rows], np.float32)
        scores = scores.reshape(len(rows), len(names))
        found.append(scores[:, 0] if isinstance(name, str) else scores)
    return found


@dataclasses.dataclass(frozen=True)
class RewardModel:
    """What a finished run of the reward recipe left, without its parameters."""

    path: pathlib.Path
    model: ModelConfig
    tokenizer: Tokenizer
    objectives: tuple[str, ...]  # names of the M scores; () for one score without a name
    data: dict[str, Any]  # the run's config field ``data``: token limits and padding
    digest: str  # of the parameters


def reward_model(
    records: Sequence[Record],
    *,
    path: str,
    batch_size: int = 32,
    mesh: MeshConfig | None = None,
) -> list[np.ndarray]:
    """Scores by a trained reward model, with a progress bar; one compile per padded shape.

    Texts over the run's token limits are cut as in training: prompts lose their beginning,
    responses their end.

    Args:
      records: prompts as the model was trained on, with any number of responses.
      path: the workdir of a finished run whose config has a ``reward_loss``, or a folder of a
        ``...ForSequenceClassification`` as transformers saves it.
      batch_size: prompts at a time, or as many more as the mesh's ``data * fsdp`` divides.
      mesh: what the parameters and the rows are split over. Inside a run it is the run's, see
        `over`; None: one device, or with several processes all of them along ``fsdp``.

    Returns:
      For each record ``[k]`` float32, or ``[k, M]`` where the model has M > 1 objectives.

    Raises:
      UserError: the folder holds no finished reward model, or another tokenizer than it was
        trained with; or batch_size is below 1.
      CheckpointError: the parameters cannot be read, or do not fit the config.
    """
    if batch_size < 1:
        raise UserError(f"batch_size: wanted a positive number, found {batch_size}")
    found = find_reward_model(path)
    if mesh is None:
        mesh = MeshConfig(fsdp=len(jax.devices()) if distributed.several() else 1)
    devices = sharding.make_mesh(mesh.data, mesh.fsdp, mesh.tensor)
    params = load_params(found, devices)
    if not records:
        return []
    dataset = in_memory(
        records,
        found.tokenizer,
        max_prompt_tokens=found.data["max_prompt_tokens"],
        max_response_tokens=found.data["max_response_tokens"],
    )
    rows = mesh.data * mesh.fsdp
    table = map_rows(
        lambda batch: reward_head.score_responses(params, batch, config=found.model),
        bucket(dataset, count=found.data["buckets"], multiple=found.data["pad_multiple"]),
        batch_size=-(-batch_size // rows) * rows,
        mesh=devices,
        title=f"scoring, {found.path.name}",
    )
    return [table[i, : len(record.responses)] for i, record in enumerate(records)]


def over(scorer: Callable[..., Any], mesh: MeshConfig | None) -> Callable[..., Any]:
    """A config's scorer on the run's devices: a reward model is split over them, unless it says."""
    if not isinstance(scorer, functools.partial) or scorer.func is not reward_model:
        return scorer
    return scorer if "mesh" in scorer.keywords else functools.partial(scorer, mesh=mesh)


def find_reward_model(path: str) -> RewardModel:
    """Reads what a reward run says of itself; see `reward_model` for what is refused."""
    folder = pathlib.Path(path)
    config = _read_json(folder, "config.json", "holds no run")
    if "model_type" in config:
        return _find_foreign(folder, config)
    if config.get("game") is not None:
        raise UserError(
            f"{folder} holds a game, not a reward model: its reward models are in its "
            "folders base and round-*/reward"
        )
    if config.get("reward_loss") is None:
        raise UserError(
            f"{folder} holds a policy, not a reward model: its config has no reward_loss"
        )
    summary = _read_json(folder, "summary.json", "holds a run that has not finished")
    trained = folder / "tokenizer.model"
    settings = config["tokenizer"]
    tokenizer = tokenizers.load(
        settings["path"] or str(trained), chat_template=settings["chat_template"]
    )
    said = summary["reward_model"]
    if tokenizer.digest != said["tokenizer"]:
        raise UserError(
            f"{folder}: the reward model was trained with tokenizer {said['tokenizer'][:12]}, "
            f"{settings['path'] or trained} is {tokenizer.digest[:12]}"
        )
    model = model_from(config, str(folder / "config.json"))
    return RewardModel(
        folder, model, tokenizer, tuple(said["objectives"]), config["data"], said["params"]
    )


def _find_foreign(folder: pathlib.Path, config: dict[str, Any]) -> RewardModel:
    """A reward model that was not trained here; texts are cut to the limits a config has."""
    model = hf.read_config(folder, reward=True)
    names = configjson.labels(config, str(folder / "config.json"))
    data = DataConfig(source=find_reward_model)  # its defaults; the source is not read
    tokenizer = tokenizers.load(str(folder))
    tokenizers.check_ids(str(folder), tokenizer.vocab_size, model.vocab_size)
    return RewardModel(
        folder,
        dataclasses.replace(model, path=str(folder)),
        tokenizer,
        names if len(names) > 1 else (),
        {k: v for k, v in dataclasses.asdict(data).items() if k != "source"},
        fingerprint(str(folder / "*.safetensors")),
    )


def load_params(found: RewardModel, mesh: Mesh) -> Params:
    """The parameters of a reward model, on the mesh.

    Raises:
      CheckpointError: they cannot be read, or do not fit the config.
    """
    from alignjax.runtime import checkpoint  # slow to import, and configs import this file

    objectives = max(1, len(found.objectives))
    init = functools.partial(reward_head.init_params, found.model, objectives=objectives)
    shapes = jax.eval_shape(init, jax.random.key(0))
    layout = sharding.shard_tree(shapes, mesh)
    target = sharding.abstract(shapes, layout)
    if not (found.path / "params").is_dir():
        return hf.load_params(found.path, target, found.model)
    return checkpoint.load_params(found.path / "params", target)


def _read_json(folder: pathlib.Path, name: str, otherwise: str) -> dict[str, Any]:
    file = folder / name
    if not file.is_file():
        raise UserError(f"{folder} {otherwise}: no {name} in it")
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, OSError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error
