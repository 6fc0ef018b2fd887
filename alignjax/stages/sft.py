"""Runs the supervised stage, which trains the reference and the policy's initial parameters."""

import dataclasses
import logging
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from alignjax.config import Config, ReferenceConfig, SftConfig
from alignjax.data.batching import Bucketed
from alignjax.runtime import artifacts, checkpoint, storage, stores
from alignjax.runtime.metrics import NOBODY
from alignjax.stages import held_out, learners, pretrained
from alignjax.stages.reference import Reference
from alignjax.stages.run import Run
from alignjax.training import offline
from alignjax.training.job import Feed
from alignjax.types import Params

log = logging.getLogger("alignjax")


def stage_config(config: Config, sft: SftConfig) -> Config:
    """Makes a config for the supervised stage as a run of its own."""
    return dataclasses.replace(
        config,
        loss=sft.loss,
        reward_loss=None,
        recipe=None,
        select=sft.select,
        baseline=None,
        reference=ReferenceConfig(mode="none"),
        optim=dataclasses.replace(config.optim, learning_rate=sft.learning_rate),
        train=dataclasses.replace(
            config.train,
            epochs=sft.epochs,
            steps=sft.steps,
            batch_size=sft.batch_size,
            eval_every=0,
            keep_best="",
        ),
        sft=None,
        lora=None,
    )


def run_stage(run: Run) -> Callable[[], Params]:
    """Runs the supervised stage, if the config has one.

    Returns:
      A loader of the parameters of the reference and of the policy's start. With ``lora.quantize``
      they are quantised; the stage itself trains an unquantised network.
    """
    config, mesh, sft = run.config, run.mesh, run.config.sft
    quantize = config.lora.quantize if config.lora is not None else ""
    if sft is None:
        return pretrained.fresh(config.model, config.train.seed, mesh, quantize)
    own = dataclasses.replace(
        run, config=stage_config(config, sft), workdir=run.workdir / "sft", watch=NOBODY
    )
    batches = own.batches()
    job = own.job("supervised", "none")

    def train(scratch: pathlib.Path) -> None:
        fresh = pretrained.fresh(config.model, config.train.seed, mesh)
        state, counts = offline.fit(
            job,
            learners.policy(own.config, mesh, len(batches), load_reference=fresh),
            Feed(run.data.train.dataset, batches),
            jax.random.key(config.train.seed),
        )
        checkpoint.save_params(scratch / "params", state.params)
        _summarise(own, sft, state.params, counts)

    # The parameters are loaded from disk also right after training, as after a restart.
    params = pretrained.supervised_params(run.workdir)
    key = {"identity": job.identity, "steps": len(batches)}
    artifacts.reuse(params, key, train, lambda path: None)
    stores.drop_state(own.workdir / "checkpoints")
    return pretrained.supervised(config.model, run.workdir, mesh, quantize)


def reference_of(run: Run) -> Reference:
    """Runs the supervised stage; loads its parameters once, for the digest.

    Callers that need the parameters at once should call `run_stage`: loading is slow.
    """
    load = run_stage(run)
    return Reference(load, checkpoint.tree_digest(load()))


def _summarise(run: Run, sft: SftConfig, params: Params, counts: dict[str, int]) -> None:
    """Evaluates the supervised policy on held-out rows; writes summary.json and logs it."""
    if not run.config.evaluate.held_out:
        storage.keep_json(run.workdir / "summary.json", counts)
        return
    logps = held_out.logps(run, params, "supervised, held out")
    tokens = run.data.held_out.dataset.response_length
    summary: dict[str, Any] = {
        "nll_per_response": float(-logps[tokens > 0].mean()),
        "nll_per_token": float(-logps.sum() / tokens.sum()),
        **counts,
    }
    if sft.truth is not None:
        summary["truth_nll_per_response"] = _truth(sft.truth, run.data.held_out)
    storage.keep_json(run.workdir / "summary.json", summary)
    log.info(
        "supervised: held-out loss %.4f nats per response%s, %.4f per token",
        summary["nll_per_response"],
        f" (entropy floor: {summary['truth_nll_per_response']:.4f})" if sft.truth else "",
        summary["nll_per_token"],
    )


def _truth(truth: Callable[[str, str], float], rows: Bucketed) -> float:
    """Computes the entropy floor: the true distribution's loss on the rows, nats per response."""
    examples = (rows.dataset[i] for i in range(len(rows.dataset)))
    return float(np.mean([-truth(e.prompt, y) for e in examples for y in e.responses]))
