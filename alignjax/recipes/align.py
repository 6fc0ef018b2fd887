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
import functools
import logging
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from alignjax import checkpoint, evaluate, optim, reference, report, sharding, train
from alignjax.config import Config
from alignjax.data.batching import Bucketed, Plan, plan_batches, shuffled
from alignjax.evaluate import Estimate
from alignjax.faults import fault_point
from alignjax.fields import describe
from alignjax.generate import Sample, respond
from alignjax.logps import response_logps
from alignjax.models.transformer import init_params
from alignjax.recipes import workdirs
from alignjax.recipes.prepared import Prepared, cache_dir, prepare_data
from alignjax.recipes.signature import (
    bind_fraction,
    bound,
    check_objectives,
    drawn_responses,
    keeps_cache,
)
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
    workdir = pathlib.Path(workdir)
    with workdirs.owned(workdir):
        workdirs.write_config(workdir, describe(config), allow_change=allow_config_change)
        fault_point("config", "")
        data = prepare_data(config, workdir)
        fault_point("data", "")
        config = bind_fraction(config, data.train)
        check_objectives(config, data.train)
        mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
        load_reference = _supervised(config, workdir, data, mesh)
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


def _job(
    name: str, config: Config, workdir: pathlib.Path, data: Prepared, mesh: Mesh, digest: str
) -> train.Job:
    """What `train.fit` needs, from a config whose ``loss``, ``optim`` and ``train`` count."""
    plan = _plan(config, data.train)
    steps = len(plan)
    return train.Job(
        name=name,
        workdir=workdir,
        plan=plan,
        data=data.train,
        ref_logps=None,
        ref_params=None,
        params_shape=jax.eval_shape(
            functools.partial(init_params, config.model), jax.random.key(0)
        ),
        apply=functools.partial(response_logps, config=config.model),
        loss=config.loss,
        select=config.select,
        baseline=config.baseline,
        optimizer=optim.make(config.optim, steps),
        learning_rate=optim.learning_rate(config.optim, steps),
        accumulate=config.train.accumulate,
        mesh=mesh,
        identity={
            "data": data.train.dataset.digest,
            "tokenizer": data.tokenizer.digest,
            "reference": digest,
        },
        save_every=config.train.save_every,
        log_every=config.train.log_every,
        eval_every=config.train.eval_every,
        keep=config.train.keep,
        max_skipped=config.train.max_skipped,
    )


def _plan(config: Config, rows: Bucketed) -> Plan:
    """Every batch of the run: a pure function of the rows' lengths, the sizes and the seed."""
    count = len(rows.dataset)
    return plan_batches(
        rows.shapes,
        rows.assignment,
        batch_size=config.train.batch_size,
        order=shuffled(count, config.train.seed),
        rows=0 if config.train.steps else max(1, round(config.train.epochs * count)),
        batches=config.train.steps,
    )


def _supervised(
    config: Config, workdir: pathlib.Path, data: Prepared, mesh: Mesh
) -> Callable[[], Params]:
    """Runs the supervised stage, if there is one.

    Returns:
      What loads the parameters it ended with: those of the reference and of the policy's start.
    """
    key = jax.random.key(config.train.seed)
    init = functools.partial(init_params, config.model, key)
    shapes = jax.eval_shape(init)
    shards = sharding.shard_tree(shapes, mesh)
    fresh = jax.jit(init, out_shardings=shards)
    sft = config.sft
    if sft is None:
        return fresh
    stage = dataclasses.replace(
        config,
        loss=sft.loss,
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
    )
    job = _job("supervised", stage, workdir / "sft", data, mesh, "none")
    state, counts = train.fit(job, fresh, key)
    result, told = (workdir / "sft" / name for name in ("params", "summary.json"))
    # The summary is written last: with it, the parameters of these very steps are there.
    if not told.is_file() or workdirs.read_json(told)["steps"] != counts["steps"]:
        checkpoint.save_params(result, state.params)
        fault_point("params", "")
        logps = _held_out_logps(config, data, mesh, state.params, "supervised, held out")
        tokens = data.held_out.dataset.response_length
        summary = {
            "nll_per_response": float(-logps[tokens > 0].mean()),
            "nll_per_token": float(-logps.sum() / tokens.sum()),
            **counts,
        }
        if sft.truth is not None:
            summary["truth_nll_per_response"] = _truth(sft.truth, data.held_out)
        workdirs.write_json(told, summary)
        log.info(
            "supervised: held-out loss %.4f nats per response%s, %.4f per token",
            summary["nll_per_response"],
            f" (the truth: {summary['truth_nll_per_response']:.4f})" if sft.truth else "",
            summary["nll_per_token"],
        )
    return functools.partial(checkpoint.load_params, result, sharding.abstract(shapes, shards))


def _truth(truth: Callable[[str, str], float], rows: Bucketed) -> float:
    """What the distribution that the rows came from loses on them, nats per response."""
    examples = (rows.dataset[i] for i in range(len(rows.dataset)))
    return float(np.mean([-truth(e.prompt, y) for e in examples for y in e.responses]))


def _held_out_logps(
    config: Config, data: Prepared, mesh: Mesh, params: Params, title: str
) -> np.ndarray:
    return reference.dataset_logps(
        params,
        data.held_out,
        config=config.model,
        batch_size=config.evaluate.batch_size,
        mesh=mesh,
        title=title,
    )


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
    job = _job("alignment", config, workdir, data, mesh, digest)

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

    def measure(params: Params) -> dict[str, np.ndarray]:
        policy = _held_out_logps(config, data, mesh, params, "  held-out rows")
        length = data.held_out.dataset.response_length
        found = evaluate.preferences(
            policy,
            held_out_reference,
            length,
            _order(data.held_out),
            beta=bound(config.loss, "beta", 1.0),
        )
        labels = _labels(data.held_out)
        if labels is None:
            return found
        return found | evaluate.labelled(policy, held_out_reference, labels, length)

    def means(params: Params) -> dict[str, float]:
        # A row may say nothing (NaN); where none does, there is nothing to log.
        found = {name: values[~np.isnan(values)] for name, values in measure(params).items()}
        return {name: float(values.mean()) for name, values in found.items() if len(values)}

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
    preferences = {
        name: evaluate.mean_over_prompts(values, prompts)
        for name, values in measure(state.params).items()
    }
    return _report(config, workdir, data, counts, choice, preferences, before, after)


def _order(rows: Bucketed) -> np.ndarray | None:
    """``[N, K]`` scores or labels that order the held-out responses; None: index 0 is chosen.

    Rows with several objectives have no one order: theirs are all NaN, and say nothing.
    """
    labels = _labels(rows)
    table = np.full(rows.dataset.response_length.shape, np.nan)
    for i in range(len(rows.dataset)):
        scores = rows.dataset[i].scores
        if scores is None:
            return None if labels is None else labels.astype(np.float64)
        if scores.shape[1] == 1:
            table[i, : len(scores)] = scores[:, 0]
    return table


def _labels(rows: Bucketed) -> np.ndarray | None:
    """``[N, K]`` which responses are desirable; None without labels."""
    if not sum(rows.dataset.labels):
        return None
    table = np.zeros(rows.dataset.response_length.shape, bool)
    for i in range(len(rows.dataset)):
        found = rows.dataset[i].desirable
        assert found is not None  # preparation refuses rows of several kinds
        table[i, : len(found)] = found
    return table


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
    preferences: dict[str, Estimate],
    before: list[Sample],
    after: list[Sample],
) -> dict[str, Any]:
    """Writes summary.json and report.png; prints the table, some samples and where things are."""
    settings = config.evaluate
    # Before the first step the policy is the reference: every reward is 0 and all of them tie.
    # Without a reference, rewards are log-probabilities, and nothing was measured before.
    table: report.Table = {
        name: (None if choice.mode == "none" else Estimate(0.0, 0.0, value.count), value)
        for name, value in preferences.items()
        if value.count
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
