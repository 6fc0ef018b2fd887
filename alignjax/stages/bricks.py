"""What recipes share: the supervised stage, the job that `offline.fit` is given, held-out rows."""

import dataclasses
import logging
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from alignjax.config import Config, SftConfig
from alignjax.data.batching import Batches, Bucketed, deal_batches, shuffled
from alignjax.runtime import artifacts, checkpoint, workdirs
from alignjax.stages import learners, pretrained, reference
from alignjax.stages.reference import Reference
from alignjax.stages.run import Run
from alignjax.training import offline
from alignjax.training.job import Feed, Job
from alignjax.types import Params

log = logging.getLogger("alignjax")


def make_job(name: str, run: Run, digest: str, more: dict[str, Any] | None = None) -> Job:
    """Makes what the loop needs to know between steps.

    Args:
      name: for messages and the progress bar.
      run: its folder, devices and ``config.train`` are the job's.
      digest: of the reference's parameters.
      more: what else a checkpoint must have been made of to be continued.
    """
    identity = {
        "data": run.data.train.dataset.digest,
        "tokenizer": run.data.tokenizer.digest,
        "reference": digest,
        **(more or {}),
    }
    config = run.config
    return Job(name=name, workdir=run.workdir, mesh=run.mesh, identity=identity, train=config.train)


def run_batches(config: Config, rows: Bucketed) -> Batches:
    """Deals every batch of the run: a function of the rows' lengths, the sizes and the seed."""
    count = len(rows.dataset)
    return deal_batches(
        rows.shapes,
        rows.assignment,
        batch_size=config.train.batch_size,
        order=shuffled(count, config.train.seed),
        rows=0 if config.train.steps else max(1, round(config.train.epochs * count)),
        batches=config.train.steps,
    )


def supervised_config(config: Config, sft: SftConfig) -> Config:
    """Makes the config of the supervised stage, as of a run of its own."""
    return dataclasses.replace(
        config,
        loss=sft.loss,
        reward_loss=None,
        recipe=None,
        select=sft.select,
        baseline=None,
        optim=dataclasses.replace(config.optim, learning_rate=sft.learning_rate),
        train=dataclasses.replace(
            config.train,
            epochs=sft.epochs,
            steps=sft.steps,
            batch_size=sft.batch_size,
            accumulate=1,
            eval_every=0,
        ),
        sft=None,
        lora=None,
    )


def supervised(run: Run) -> Callable[[], Params]:
    """Runs the supervised stage, if there is one.

    Returns:
      A loader of the parameters it ended with: those of the reference and of the policy's start.
      With ``lora.quantize`` they are quantised; the stage itself trains a whole network.
    """
    config, mesh, sft = run.config, run.mesh, run.config.sft
    quantize = config.lora.quantize if config.lora is not None else ""
    if sft is None:
        return pretrained.fresh(config.model, config.train.seed, mesh, quantize)
    own = dataclasses.replace(
        run, config=supervised_config(config, sft), workdir=run.workdir / "sft"
    )
    batches = run_batches(own.config, run.data.train)
    job = make_job("supervised", own, "none")

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

    params = pretrained.supervised_params(run.workdir)
    key = {"identity": job.identity, "steps": len(batches)}
    artifacts.reuse(params, key, train, lambda path: None)
    return pretrained.supervised(config.model, run.workdir, mesh, quantize)


def supervised_reference(run: Run) -> Reference:
    """Runs the supervised stage; loads what it ended with once, for the digest.

    Who needs the parameters at once takes the loader of `supervised`: loading is not cheap.
    """
    load = supervised(run)
    return Reference(load, checkpoint.tree_digest(load()))


def _summarise(run: Run, sft: SftConfig, params: Params, counts: dict[str, int]) -> None:
    """Measures the supervised policy on held-out rows; writes summary.json and logs it."""
    logps = held_out_logps(run, params, "supervised, held out")
    tokens = run.data.held_out.dataset.response_length
    summary: dict[str, Any] = {
        "nll_per_response": float(-logps[tokens > 0].mean()),
        "nll_per_token": float(-logps.sum() / tokens.sum()),
        **counts,
    }
    if sft.truth is not None:
        summary["truth_nll_per_response"] = _truth(sft.truth, run.data.held_out)
    workdirs.write_json(run.workdir / "summary.json", summary)
    log.info(
        "supervised: held-out loss %.4f nats per response%s, %.4f per token",
        summary["nll_per_response"],
        f" (the truth: {summary['truth_nll_per_response']:.4f})" if sft.truth else "",
        summary["nll_per_token"],
    )


def _truth(truth: Callable[[str, str], float], rows: Bucketed) -> float:
    """Computes the loss of the distribution that the rows came from, nats per response."""
    examples = (rows.dataset[i] for i in range(len(rows.dataset)))
    return float(np.mean([-truth(e.prompt, y) for e in examples for y in e.responses]))


def held_out_logps(run: Run, params: Params, title: str) -> np.ndarray:
    """``[N, K]`` nats of every held-out response under one network."""
    return reference.dataset_logps(
        params,
        run.data.held_out,
        config=run.config.model,
        batch_size=run.config.evaluate.batch_size,
        mesh=run.mesh,
        title=title,
    )


def held_out_order(rows: Bucketed) -> np.ndarray | None:
    """``[N, K]`` scores that order the held-out responses; None where index 0 is the chosen one.

    Rows with several objectives have no one order: theirs are all NaN, and say nothing.
    """
    labels = held_out_labels(rows)
    table = np.full(rows.dataset.response_length.shape, np.nan)
    for i in range(len(rows.dataset)):
        scores = rows.dataset[i].scores
        if scores is None:
            return None if labels is None else labels.astype(np.float64)
        if scores.shape[1] == 1:
            table[i, : len(scores)] = scores[:, 0]
    return table


def held_out_labels(rows: Bucketed) -> np.ndarray | None:
    """``[N, K]`` which responses are desirable; None without labels."""
    if not sum(rows.dataset.labels):
        return None
    table = np.zeros(rows.dataset.response_length.shape, bool)
    for i in range(len(rows.dataset)):
        labels = rows.dataset[i].desirable
        assert labels is not None  # preparation refuses rows of several kinds
        table[i, : len(labels)] = labels
    return table
