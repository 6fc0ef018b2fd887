"""The main recipe: data, supervised fine-tuning, reference, alignment, evaluation, report.

Read it downwards: `run` is the order of events. What each stage writes into the workdir:

    config.json  receipt.json  tokenizer.model       what the run is made of
    pretrained/                                      what came with the model of model.path
    sft/                                             the stage that makes the reference
    candidates/                                      sampled and scored lists, where asked for
    cache/                                           prepared rows, reference log-probabilities
    before.json  after.json                          sampled responses
    metrics.jsonl  tensorboard/  checkpoints/        the alignment itself
    summary.json  report.png                         what came of it
"""

import dataclasses
import logging
import pathlib
from typing import Any

import jax

from alignjax.config import Config
from alignjax.config.fields import describe
from alignjax.evaluation import preferences, report
from alignjax.evaluation.preferences import Estimate
from alignjax.recipes.run import open_run
from alignjax.runtime import checkpoint
from alignjax.runtime.faults import fault_point
from alignjax.stages import (
    adapters,
    bricks,
    candidates,
    evaluation,
    learners,
    pretrained,
    referenced,
)
from alignjax.stages.data import prepare_data
from alignjax.stages.reference import Reference
from alignjax.stages.run import Run
from alignjax.training import offline
from alignjax.training.job import Feed
from alignjax.types import Params

log = logging.getLogger("alignjax")


def run(
    config: Config, workdir: str | pathlib.Path, *, allow_config_change: bool = False
) -> dict[str, Any]:
    """Trains and evaluates; started again, continues.

    Args:
      config: what to do.
      workdir: the run's folder.
      allow_config_change: continue although the config differs from the one the run began with.

    Returns:
      What ``summary.json`` holds.

    Raises:
      UserError: see `alignjax.errors` for the kinds and their exit codes.
    """
    with open_run(config, workdir, allow_config_change) as run:
        reference = bricks.supervised(run)
        if run.config.candidates is not None:
            run = candidates.make(run, run.config.candidates, reference)
        return _align(run, reference)


def show_data(config: Config) -> None:
    """Reads, checks and prints the receipt of the data, and the first rows; trains nothing."""
    import tempfile

    config = pretrained.resolve(config, runs=False)
    with tempfile.TemporaryDirectory() as folder:
        data = prepare_data(config, pathlib.Path(folder))
        for row in range(min(2, len(data.train.dataset))):
            example = data.train.dataset[row]
            report.say(f"\n--- {example.id}\n{example.prompt}")
            for i, response in enumerate(example.responses):
                report.say(f"  [{i}]{response}")


def _align(run: Run, reference: Reference) -> dict[str, Any]:
    """Aligns the policy and reports; see the module's docstring for what is written."""
    config, data = run.config, run.data
    ref_params = reference.load()
    batches = bricks.run_batches(config, data.train)
    ref_logps, choice = referenced.attach(
        run, ref_params, reference.digest, "reference, train", trained_rows=batches.row_count
    )
    held_out_reference = None
    if choice.mode != "none":
        title = "reference, held out"
        held_out_reference = referenced.table(
            run, data.held_out, ref_params, reference.digest, title
        )
    fault_point("cached", "")
    before = evaluation.samples_of("before", run, ref_params, None, reference.digest)
    learner = learners.policy(
        config,
        run.mesh,
        len(batches),
        load_reference=reference.load,
        base=ref_params,
        live=choice.mode == "live",
    )
    live = learner.ref_params
    del ref_params  # unless steps are given it, its memory is free from here on

    def during(params: Params) -> dict[str, float]:
        # A reference that was put away is read again for the moment: the KL needs it.
        of = reference.load() if live is None and config.evaluate.during else live
        return evaluation.during(run, adapters.whole(config, live, params), of, held_out_reference)

    state, counts = offline.fit(
        bricks.make_job("alignment", run, reference.digest),
        learner,
        Feed(data.train.dataset, batches, ref_logps),
        jax.random.key(config.train.seed),
        during,
    )
    ref_params = reference.load() if live is None else live
    params = adapters.whole(config, ref_params, state.params)
    after = evaluation.samples_of("after", run, params, ref_params, checkpoint.tree_digest(params))
    if checkpoint.tree_digest(ref_params) != reference.digest:
        raise AssertionError("the reference's parameters changed during the run")
    prompts = [data.held_out.dataset[i].prompt for i in range(len(data.held_out.dataset))]
    policy = bricks.held_out_logps(run, params, "  held-out rows")
    end = evaluation.held_out(run, policy, held_out_reference)
    table_of: report.Table = {}
    for name, values in end.items():
        table_of[name] = (None, preferences.mean_over_prompts(values, prompts))
    if held_out_reference is not None:  # at the start the policy is the reference
        start = evaluation.held_out(run, held_out_reference, held_out_reference)
        for name, values in start.items():
            table_of[name] = (preferences.mean_over_prompts(values, prompts), table_of[name][1])
    if after:
        old, new = (evaluation.sampled(run, x) for x in (before, after))
        table_of |= {name: (old[name], new[name]) for name in new}
    divergence = evaluation.kl(run, params, ref_params, after)
    if divergence is not None:
        table_of[evaluation.KL] = (Estimate(0.0, 0.0, 0), divergence)
    rest = {
        "reference": dataclasses.asdict(choice),
        "loss": describe(config.loss),
        **counts,
    }
    return evaluation.write(run, table_of, before, after, rest)
