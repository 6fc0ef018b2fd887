"""Runs the recipe of a reward model: data, supervised fine-tuning, training, calibration, report.

`run` has the stages in order. They write into the workdir:

    config.json  data_report.json  tokenizer.model   settings, data report, tokenizer
    pretrained/                                      files that came with the model of model.path
    sft/                                             the language model it starts from
    cache/  prepared.json  held_out.jsonl            prepared rows
    metrics.jsonl  tensorboard/  checkpoints/        the training
    params/                                          the reward model, for `scorers.reward_model`
    summary.json  report.png  reliability.png        the results
    report.html                                      all results on a page
    .artifacts/                                      digests of what is reused, unfinished parts
"""

import dataclasses
import functools
import logging
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from alignjax.config import Config
from alignjax.data.batching import Bucketed
from alignjax.errors import UserError
from alignjax.evaluation import calibration, plots, statistics, tables
from alignjax.evaluation import preferences as evaluate
from alignjax.evaluation.statistics import Interval
from alignjax.models import lora, reward_head
from alignjax.models.hf import load as hf
from alignjax.recipes.run import open_run
from alignjax.rewards import reward_models
from alignjax.runtime import checkpoint, storage, workdirs
from alignjax.runtime.map_rows import map_rows
from alignjax.stages import adapters, learners, pretrained, sft
from alignjax.stages.held_out import LastScored
from alignjax.stages.run import Run
from alignjax.training import offline
from alignjax.training.job import Feed
from alignjax.types import Params

log = logging.getLogger("alignjax")


def run(
    config: Config, workdir: str | pathlib.Path, allow_config_change: bool = False
) -> dict[str, Any]:
    """Trains and evaluates a reward model; see `alignjax.recipes.run_config`."""
    with open_run(config, workdir, allow_config_change) as run:
        load_language_model, load_start = _starts(run)
        fitted = fit(run, load_language_model, load_start=load_start, extendable=True)
        _report(run.workdir, fitted)
        return fitted.summary


def _starts(run: Run) -> tuple[Callable[[], Params], Callable[[], Params] | None]:
    """Makes loaders of the initial language model, and of the initial reward model or None.

    If ``model.path`` has a reward model, its training continues: the first loader loads its
    decoder, which is the base of adapters.

    Raises:
      UserError: it has another number of outputs than the data have objectives.
    """
    config = run.config
    if not hf.is_classifier(config.model.path):
        return sft.run_stage(run), None
    start = reward_models.find(config.model.path)
    outputs, wanted = max(1, len(start.objectives)), max(1, len(_objectives(run)))
    if outputs != wanted:
        raise UserError(
            f"model.path: {config.model.path}: wanted {wanted} outputs, one per objective of the "
            f"data, found {outputs}"
        )
    log.info("continuing to train the reward model of %s", config.model.path)
    start = dataclasses.replace(start, model=config.model)
    load = functools.partial(reward_models.load_params, start, run.mesh)
    quantize = config.lora.quantize if config.lora is not None else ""

    def decoder() -> Params:
        params = {name: x for name, x in load().items() if name != "reward"}
        return pretrained.quantize_params(params, quantize, run.mesh)

    def with_fresh_adapters() -> Params:
        params = load()
        fresh = adapters.fresh(config, run.mesh, params, objectives=outputs)()
        head = jax.tree.map(lambda x: x.astype(np.float32), params["reward"])
        return {**fresh, "reward": head}

    return decoder, load if config.lora is None else with_fresh_adapters


@dataclasses.dataclass(frozen=True)
class Fitted:
    """The measurements of a trained reward model."""

    summary: dict[str, Any]  # content of summary.json
    measured: dict[str, Interval]  # on held-out rows
    calibrated: dict[str, tuple[dict[str, Any], tuple[calibration.Bins, calibration.Bins]]]


def fit(
    run: Run,
    load_language_model: Callable[[], Params],
    *,
    name: str = "reward model",
    load_start: Callable[[], Params] | None = None,
    extendable: bool = False,
) -> Fitted:
    """Trains a reward model, saves its parameters and writes ``summary.json``; resumes.

    Args:
      run: its config's ``reward_loss``, ``optim`` and ``train`` are used.
      load_language_model: loads the network that it starts from.
      name: for the progress bar.
      load_start: loads an initial reward model instead; with ``lora`` adapters and a head, for the
        language model.
      extendable: see `training.job.Job`.
    """
    config, names = run.config, _objectives(run)
    thin = config.lora is not None
    base = (load_language_model if thin or load_start is None else load_start)()
    job = run.job(name, checkpoint.tree_digest(base), extendable=extendable)
    batches = run.batches()
    count = max(1, len(names))
    with_head = functools.partial(reward_head.from_language_model, objectives=count)
    learner = learners.reward_model(
        config,
        run.mesh,
        len(batches),
        load_start=load_start or (None if thin else lambda: with_head(load_language_model())),
        base=base,
        names=names,
    )
    base = learner.ref_params  # None without adapters, which frees its memory
    better = _better(run.data.held_out)

    def during(params: Params) -> dict[str, float]:
        table = scored.keep(params, _rewards(run, adapters.whole(config, base, params), count))
        return statistics.means(_preferences(run, table, better))

    feed, scored = Feed(run.data.train.dataset, batches), LastScored()
    state, counts = offline.fit(job, learner, feed, jax.random.key(config.train.seed), during)
    params, table = state.params, scored.of(state.params)
    if config.lora is not None:
        # Merging changes the rounding, so the rows are scored again.
        params, table = lora.merge(with_head(base), params, config.lora), None
    table = _rewards(run, params, count) if table is None else table
    digest = pretrained.keep_params(run.workdir / "params", params)
    return _measure(run, table, digest, better, {**counts, "identity": job.identity})


def _objectives(run: Run) -> tuple[str, ...]:
    """Returns the objectives that the rows are scored on; none for pairs."""
    names = run.data.train.dataset.objectives
    held_out = run.data.held_out.dataset.objectives
    if held_out != names:
        raise UserError(
            f"data.eval_path: wanted scores on {names}, as the training rows have, found {held_out}"
        )
    return names


def _rewards(run: Run, params: Params, objectives: int) -> np.ndarray:
    """Computes ``[N, K, M]`` scores of the held-out responses."""
    rows, config = run.data.held_out, run.config
    table = map_rows(
        lambda batch: reward_head.score_responses(params, batch, config=config.model),
        rows,
        batch_size=config.evaluate.batch_size,
        mesh=run.mesh,
        title="  held-out rows",
    )
    return table.reshape(*rows.dataset.response_length.shape, objectives)


def _preferences(run: Run, table: np.ndarray, better: np.ndarray) -> dict[str, np.ndarray]:
    """Computes ``[N]`` accuracies and margins of the held-out rows, for each objective."""
    dataset = run.data.held_out.dataset
    values: dict[str, np.ndarray] = {}
    for m, name in enumerate(dataset.objectives or ("reward",)):
        one = evaluate.reward_metrics(table[..., m], dataset.response_length, better[..., m])
        several = len(dataset.objectives) > 1
        values |= {f"{key}/{name}" if several else key: x for key, x in one.items()}
    return values


def _measure(
    run: Run, table: np.ndarray, digest: str, better: np.ndarray, counts: dict[str, Any]
) -> Fitted:
    """Measures and calibrates the reward model by its `_rewards`; writes ``summary.json``."""
    dataset = run.data.held_out.dataset
    prompts = [dataset[i].prompt for i in range(len(dataset))]
    measured = {
        name: evaluate.over_prompts(name, values, prompts)
        for name, values in _preferences(run, table, better).items()
    }
    calibrated = {
        name: _calibration(table[..., m], better[..., m], prompts)
        for m, name in enumerate(dataset.objectives or ("reward",))
    }
    summary = {
        "table": {name: x.as_dict() for name, x in measured.items() if x.count},
        "calibration": {name: numbers for name, (numbers, _) in calibrated.items()},
        # `scorers.reward_model` compares these with its inputs.
        "reward_model": {
            "objectives": list(dataset.objectives),
            "tokenizer": run.data.tokenizer.digest,
            "params": digest,
        },
        **counts,
        "data_report": run.data.report,
        "versions": workdirs.versions(),
    }
    storage.keep_json(run.workdir / "summary.json", summary)
    return Fitted(summary, measured, calibrated)


def _better(rows: Bucketed) -> np.ndarray:
    """Makes a table ``[N, K, M]`` of true scores of held-out responses, NaN for absent ones.

    In pairs without scores the chosen response has 1 and the rejected one 0.
    """
    dataset = rows.dataset
    n, k = dataset.response_length.shape
    table = np.full((n, k, max(1, len(dataset.objectives))), np.nan)
    for i in range(n):
        scores = dataset[i].scores
        if scores is None:
            table[i, :, 0] = np.arange(k) == 0
        else:
            table[i, : len(scores)] = scores
    return table


def _calibration(
    reward: np.ndarray, better: np.ndarray, prompts: list[str]
) -> tuple[dict[str, Any], tuple[calibration.Bins, calibration.Bins]]:
    """Fits a temperature on every second held-out prompt, and measures it on the others.

    Returns:
      Numbers for the summary, None where there is no pair, and the bins before and after.
    """
    place = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    fitted = np.array([place[prompt] % 2 == 0 for prompt in prompts])
    pairs = calibration.pairs(reward, better)
    fit, other = pairs.of_rows(fitted).margin, pairs.of_rows(~fitted).margin
    temperature = calibration.fit_temperature(fit)
    sides = {}
    for name, t in (("before", 1.0), ("after", temperature)):
        errors = calibration.measure(other, temperature=t)
        errors["ece_if_calibrated"] = calibration.ece_if_calibrated(other, temperature=t)
        sides[name] = {k: None if math.isnan(x) else x for k, x in errors.items()}
    numbers = {
        "temperature": temperature,
        "pairs_fitted": len(fit),
        "pairs_measured": len(other),
        **sides,
    }
    return numbers, (calibration.bins(other), calibration.bins(other, temperature=temperature))


def _report(workdir: pathlib.Path, fitted: Fitted) -> None:
    """Draws the pictures, and prints the tables and the places of files."""
    measured, calibrated = fitted.measured, fitted.calibrated
    curves, diagram = workdir / "report.png", workdir / "reliability.png"
    plots.plot_training(workdir, curves, None, "")
    plots.plot_reliability(diagram, {name: bins for name, (_, bins) in calibrated.items()})
    rows = {name: [str(x)] for name, x in measured.items() if x.count}
    tables.print_rows(
        rows, ("held-out", "reward model"), f"{workdir}: {fitted.summary['steps']} steps"
    )
    tables.say("± is the half-width of the 95% interval over prompts.")
    for name, (numbers, _) in calibrated.items():
        sides = [numbers[side] for side in ("before", "after")]
        tables.print_rows(
            {k: ["-" if s[k] is None else f"{s[k]:.4f}" for s in sides] for k in sides[0]},
            ("calibration", "before", "after"),
            f"{name}: temperature {numbers['temperature']:.3f}, fitted on "
            f"{numbers['pairs_fitted']} held-out pairs, measured on {numbers['pairs_measured']}",
        )
    tables.say(
        f"plots: {curves}, {diagram}\nnumbers: {workdir / 'summary.json'}\n"
        f"the reward model: {workdir / 'params'}; to score with it: python -m alignjax score "
        f"--reward_model={workdir} --records=FILE --out=FILE"
    )
