"""The main recipe: data, supervised fine-tuning, reference, alignment, evaluation, report.

Read it downwards: `run` is the order of events. What each stage writes into the workdir:

    config.json  receipt.json  tokenizer.model       what the run is made of
    sft/                                             the stage that makes the reference
    cache/                                           prepared rows, reference log-probabilities
    before.json  after.json                          sampled responses
    metrics.jsonl  tensorboard/  checkpoints/        the alignment itself
    summary.json  report.png                         what came of it
"""

import dataclasses
import logging
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from alignjax import checkpoint, evaluate, reference, report, sharding, train
from alignjax.config import Config
from alignjax.data.batching import Bucketed
from alignjax.evaluate import Estimate
from alignjax.faults import fault_point
from alignjax.fields import describe
from alignjax.generate import Sample, respond
from alignjax.recipes import stages, workdirs
from alignjax.recipes.prepared import Prepared, cache_dir, prepare_data
from alignjax.recipes.signature import (
    bind_fraction,
    check_objectives,
    drawn_responses,
    implicit_reward,
    keeps_cache,
)
from alignjax.types import Logps, Params

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
    workdir = pathlib.Path(workdir)
    with workdirs.owned(workdir):
        workdirs.write_config(workdir, describe(config), allow_change=allow_config_change)
        fault_point("config", "")
        data = prepare_data(config, workdir)
        fault_point("data", "")
        config = bind_fraction(config, data.train)
        check_objectives(config, data.train)
        mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
        load_reference = stages.supervised(config, workdir, data, mesh)
        return _align(config, workdir, data, mesh, load_reference)


def show_data(config: Config) -> None:
    """Reads, checks and prints the receipt of the data, and the first rows; trains nothing."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        data = prepare_data(config, pathlib.Path(folder))
        for row in range(min(2, len(data.train.dataset))):
            example = data.train.dataset[row]
            report.say(f"\n--- {example.id}\n{example.prompt}")
            for i, response in enumerate(example.responses):
                report.say(f"  [{i}]{response}")


def _align(
    config: Config,
    workdir: pathlib.Path,
    data: Prepared,
    mesh: Mesh,
    load_reference: Callable[[], Params],
) -> dict[str, Any]:
    """Aligns the policy and reports; see the module's docstring for what is written."""
    key = jax.random.key(config.train.seed)
    ref_params = load_reference()
    digest = checkpoint.tree_digest(ref_params)
    job = stages.make_job("alignment", config, workdir, data, mesh, digest)

    def table(rows: Bucketed, title: str) -> np.ndarray:
        return reference.cached_logps(
            cache_dir(config, workdir),
            reference.table_key(digest, rows, config.model),
            rows.dataset.response_length.shape,
            lambda: reference.dataset_logps(
                ref_params,
                rows,
                config=config.model,
                batch_size=config.evaluate.batch_size,
                mesh=mesh,
                title=title,
            ),
        )

    rows, responses = data.train.dataset.response_length.shape
    choice = reference.choose(
        config.reference.mode,
        rows=rows,
        responses=responses,
        trained_rows=job.plan.row_count,
        drawn=drawn_responses(config, data.train),
        cacheable=keeps_cache(config, data.train),
        cached=reference.is_cached(
            cache_dir(config, workdir), reference.table_key(digest, data.train, config.model)
        ),
    )
    log.info("reference: %s (%s)", choice.mode, choice.reason)
    held_out_reference = (
        None if choice.mode == "none" else table(data.held_out, "reference, held out")
    )
    job = dataclasses.replace(
        job,
        ref_logps=table(data.train, "reference, train") if choice.mode == "cache" else None,
        ref_params=ref_params if choice.mode == "live" else None,
    )
    fault_point("cached", "")
    before = _samples("before", config, workdir, data, mesh, ref_params, None, digest)
    del ref_params  # unless the choice is live, its memory is free from here on

    reward = implicit_reward(config.objective)
    labels = stages.held_out_labels(data.held_out)

    def preferences(policy: np.ndarray) -> dict[str, np.ndarray]:
        length = data.held_out.dataset.response_length
        logps = Logps(
            policy=jnp.asarray(policy),
            reference=None if held_out_reference is None else jnp.asarray(held_out_reference),
            length=jnp.asarray(length),
        )
        found = evaluate.preferences(
            np.asarray(reward(logps)), length, stages.held_out_order(data.held_out)
        )
        if labels is None:
            return found
        return found | evaluate.labelled(policy, held_out_reference, labels, length)

    def measure(params: Params) -> dict[str, np.ndarray]:
        return preferences(stages.held_out_logps(config, data, mesh, params, "  held-out rows"))

    def means(params: Params) -> dict[str, float]:
        return evaluate.means(measure(params))

    state, counts = train.fit(job, load_reference, key, means)
    job = dataclasses.replace(job, ref_params=None)
    ref_params = load_reference()
    after = _samples(
        "after",
        config,
        workdir,
        data,
        mesh,
        state.params,
        ref_params,
        checkpoint.tree_digest(state.params),
    )
    if checkpoint.tree_digest(ref_params) != digest:
        raise AssertionError("the reference's parameters changed during the run")
    prompts = [data.held_out.dataset[i].prompt for i in range(len(data.held_out.dataset))]
    # At the start the policy is the reference; without one, nothing was measured before.
    start = None if held_out_reference is None else preferences(held_out_reference)
    end = measure(state.params)
    rewards: report.Table = {
        name: (
            None if start is None else evaluate.mean_over_prompts(start[name], prompts),
            evaluate.mean_over_prompts(values, prompts),
        )
        for name, values in end.items()
    }
    return _report(config, workdir, data, counts, choice, rewards, before, after)


def _samples(
    name: str,
    config: Config,
    workdir: pathlib.Path,
    data: Prepared,
    mesh: Mesh,
    params: Params,
    ref_params: Params | None,
    digest: str,
) -> list[Sample]:
    """Sampled responses to held-out prompts; read back when the same ones were drawn before."""
    path = workdir / f"{name}.json"
    key = {
        "params": digest,
        "data": data.held_out.dataset.digest,
        "evaluate": describe(config.evaluate),
    }
    found = workdirs.read_json(path) if path.is_file() else {}
    if found.get("key") == key:
        return [Sample(**s) for s in found["samples"]]
    if not config.evaluate.prompts:
        return []
    samples = respond(
        params,
        ref_params,
        data.held_out,
        model=config.model,
        tokenizer=data.tokenizer,
        settings=config.evaluate,
        key=jax.random.key(config.train.seed),
        mesh=mesh,
        title=f"sampling, {name}",
    )
    workdirs.write_json(path, {"key": key, "samples": [dataclasses.asdict(s) for s in samples]})
    fault_point("sampled", name)
    return samples


def _report(
    config: Config,
    workdir: pathlib.Path,
    data: Prepared,
    counts: dict[str, int],
    choice: reference.Choice,
    rewards: report.Table,
    before: list[Sample],
    after: list[Sample],
) -> dict[str, Any]:
    """Writes summary.json and report.png; prints the table, some samples and where things are."""
    settings = config.evaluate
    table: report.Table = {
        name: (old, new) for name, (old, new) in rewards.items() if new is not None and new.count
    }
    first, scores = "", None
    if before and settings.judge is not None:
        judge = settings.judge
        old, new = (evaluate.judged(x, judge) for x in (before, after))
        table |= {name: (old[name], new[name]) for name in old}
        first = next(iter(old))
        scores = [[judge(s.prompt, s.response)[first] for s in x] for x in (before, after)]
    if after:
        whole = settings.temperature == 1 and settings.top_p == 1 and settings.top_k == 0
        if whole:
            start = Estimate(0.0, 0.0, 0)
            table["KL to reference, nats"] = (start, evaluate.kl_to_reference(after))
        table["response tokens"] = (evaluate.tokens(before), evaluate.tokens(after))
    summary = {
        "table": {
            name: {
                side: None if x is None else dataclasses.asdict(x)
                for side, x in zip(("before", "after"), pair, strict=True)
            }
            for name, pair in table.items()
        },
        "reference": dataclasses.asdict(choice),
        "loss": describe(config.loss),
        **counts,
        "receipt": data.receipt,
        "versions": workdirs.versions(),
    }
    workdirs.write_json(workdir / "summary.json", summary)
    picture = workdir / "report.png"
    report.plot(workdir, picture, scores, first)
    report.print_samples(before, after, settings.judge, count=3)
    report.print_table(table, f"{workdir}: {counts['steps']} steps")
    report.say(f"plot: {picture}\nnumbers: {workdir / 'summary.json'}")
    return summary
