"""The stage between supervised fine-tuning and alignment: lists of sampled, scored responses.

What it writes into the workdir:

    candidates/train.jsonl  held_out.jsonl    the lists, as `data.sources.lists` reads them
    candidates/record.json                    what they are made of, digests, counts
    candidates/parts-*/                       while the stage runs: what is done of it

Responses are drawn from the supervised policy, with randomness that depends on the seed and the
prompt alone. A stage that was killed goes on with the batch that it was at; one that is complete
is recognised by its record and its digests, and skipped.
"""

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from alignjax.config import Config
from alignjax.data.batching import Bucketed
from alignjax.data.prepare import enforce
from alignjax.data.records import Receipt, Record
from alignjax.rewards import scorers
from alignjax.runtime import checkpoint, workdirs
from alignjax.sampling.generate import decisive, questions
from alignjax.stages import sample_lists, scored
from alignjax.stages.data import Prepared, split
from alignjax.types import Params

log = logging.getLogger("alignjax")

SIDES = ("train", "held_out")


def make(
    config: Config,
    workdir: pathlib.Path,
    data: Prepared,
    mesh: Mesh,
    load_policy: Callable[[], Params],
) -> Prepared:
    """Makes the lists, unless they are there, and opens them.

    Args:
      config: ``candidates`` says how.
      data: the prompts, on both sides.
      load_policy: gives the supervised policy.

    Returns:
      The lists to train and to evaluate on; what is asked of the policies stays as it was.

    Raises:
      UserError: a scorer gives something else than finite scores, or too many prompts gave no list
        (``candidates.max_drop_fraction``).
    """
    settings = config.candidates
    assert settings is not None
    folder = workdir / "candidates"
    key = {
        "policy": checkpoint.tree_digest(load_policy()),
        "data": {"train": data.train.dataset.digest, "held_out": data.held_out.dataset.digest},
        "tokenizer": data.tokenizer.digest,
        "seed": config.train.seed,
        "candidates": decisive(settings),
        "reward_models": _reward_models(config),
    }
    record = sample_lists.complete(folder, key)
    if record is None:
        record = sample_lists.make(
            folder,
            key,
            _sides(config, data),
            sample_lists.Drawing(load_policy, config.model, data.tokenizer, mesh),
            settings,
            lambda some: scored.mean_scores(
                settings.scorers, some, "candidates.scorers", config.mesh
            ),
        )
    return _open(config, workdir, folder, record, data)


def _reward_models(config: Config) -> list[str]:
    """Digests of the parameters that the scorers use: a path says nothing of what is there."""
    assert config.candidates is not None
    found = []
    for scorer in config.candidates.scorers:
        if isinstance(scorer, functools.partial) and scorer.func is scorers.reward_model:
            found.append(scorers.find_reward_model(scorer.keywords["path"]).digest)
    return found


def _sides(config: Config, data: Prepared) -> list[sample_lists.Side]:
    train, held_out = split(config, {side: Receipt() for side in SIDES})
    texts = {record.id: record for record in (*train, *held_out)}
    return [
        _side(config, name, rows, texts)
        for name, rows in zip(SIDES, (data.train, data.held_out), strict=True)
    ]


def _side(config: Config, name: str, rows: Bucketed, texts: dict[str, Record]) -> sample_lists.Side:
    assert config.candidates is not None
    own: dict[str, list[str]] = {}
    if config.candidates.keep_own:
        for row in range(len(rows.dataset)):
            example = rows.dataset[row]
            own.setdefault(example.prompt, []).extend(texts[example.id].responses)
    asked = questions(rows, len(rows.dataset))
    return sample_lists.Side(
        name=name,
        title=f"candidates, {name.replace('_', ' ')}",
        key=jax.random.fold_in(jax.random.key(config.train.seed), 1 + SIDES.index(name)),
        asked=asked,
        originals=[texts[rows.dataset[q.number].id] for q in asked],
        own=[own.get(q.prompt, []) for q in asked],
    )


def _open(
    config: Config,
    workdir: pathlib.Path,
    folder: pathlib.Path,
    record: dict[str, Any],
    data: Prepared,
) -> Prepared:
    """Prepares the lists like any other data; extends the receipt."""
    assert config.candidates is not None
    sides, receipts = {}, {}
    for side in SIDES:
        receipt = Receipt()
        sides[side] = sample_lists.opened(
            config,
            workdir,
            folder / f"{side}.jsonl",
            data.tokenizer,
            receipt,
            {"candidates": record["sha256"][side], "side": side},
        )
        counts = record["counts"][side]
        told = ", ".join(f"{count:,} {name}" for name, count in counts.items())
        log.info("candidates, %s: %s\n%s", side.replace("_", " "), told, receipt.render())
        receipts[side] = {**receipt.as_dict(), "responses": counts}
        enforce(
            receipt,
            max_drop_fraction=config.candidates.max_drop_fraction,
            field="candidates.max_drop_fraction",
        )
    receipt_file = workdir / "receipt.json"
    told_all = {**data.receipt, "candidates": receipts}
    workdirs.write_json(receipt_file, told_all)
    return dataclasses.replace(
        data, train=sides["train"], held_out=sides["held_out"], receipt=told_all
    )
