"""Runs the commands. Heavy imports happen inside functions, so that help and errors are fast."""

import logging
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from alignjax.cli import compile_cache
from alignjax.cli.options import VALUES, given
from alignjax.errors import UserError


def _config() -> Any:
    from alignjax.config import load

    return load.load(VALUES.config, VALUES.set)


def run(path: str = "", workdir: str = "") -> None:
    from alignjax.config import load

    path, workdir = VALUES.config or path, VALUES.workdir or workdir
    _run(load.load(path, VALUES.set), path, VALUES.set, load.files(path), workdir)


def _run(
    config: Any, path: str, overrides: list[str], files: dict[str, bytes], workdir: str
) -> None:
    """Runs a config, and stores copies of its files."""
    _more_threads(config)
    from alignjax import recipes
    from alignjax.commands import finished_run
    from alignjax.runtime import consistency

    consistency.check_run(config, files, pathlib.Path(workdir))
    compile_cache.say()
    recipes.run_config(config, workdir, VALUES.allow_config_change)
    finished_run.note_origin(workdir, path, overrides, files)


def align(method: str) -> None:
    """Runs the short config of a method, or prints it."""
    if VALUES.workdir and VALUES.out:
        raise UserError("--out: is the same as --workdir; use one of them")
    workdir = VALUES.workdir or VALUES.out or f"runs/{method}"
    from alignjax.config import write
    from alignjax.recipes import short

    config = short.config(method, VALUES.model, VALUES.data, VALUES.set, VALUES.reward_model or ())
    text = write.source(config, short.about(method, config, workdir))
    if VALUES.print_config:
        print(text, end="")
        return
    summary = short.say(method, config, VALUES.set)
    logging.getLogger("alignjax").info("%s\nthe run is in %s", summary, workdir)
    _run(config, "config.py", [], {"config.py": text.encode()}, workdir)


def demo() -> None:
    run("configs/demo/dpo.py", "runs/demo")


def report() -> None:
    from alignjax.evaluation import report as reports
    from alignjax.evaluation.tables import say

    folder = pathlib.Path(VALUES.workdir)
    reports.write(folder)
    say(f"report: {folder / 'report.html'}")


def _more_threads(config: Any) -> None:
    """Gives a mesh of CPUs more threads than cores; otherwise its collectives may starve."""
    if max(config.mesh.data, config.mesh.fsdp, config.mesh.tensor) > 1:
        os.environ.setdefault("NPROC", "32")


def describe() -> None:
    import json

    from alignjax.config.fields import describe

    config = _config()
    if config.model.path:
        from alignjax.planning import resolved

        config = resolved.resolve(config)
        print(resolved.say_parameters(config), file=sys.stderr)
    print(json.dumps(describe(config), indent=2))


def data() -> None:
    config = _config()
    _more_threads(config)
    from alignjax.recipes.show_data import show_data

    show_data(config, VALUES.show)


def plan() -> None:
    config = _config()
    import jax

    from alignjax.planning import plan

    jax.config.update("jax_platforms", "cpu")  # nothing runs; the config may have imported JAX
    plan.run(
        config,
        VALUES.topology,
        mesh=VALUES.mesh,
        parts=tuple(VALUES.parts),
        responses=VALUES.responses,
        price=VALUES.price,
        sweep=VALUES.sweep,
        out=VALUES.out,
    )


def generate() -> None:
    if bool(VALUES.workdir) == bool(VALUES.model):
        raise UserError("generate requires either --workdir=RUN or --model=FOLDER")
    out, how = VALUES.out or "-", given("samples", "temperature", "max_new_tokens")
    if VALUES.model:
        _generate_of_folder(out, how)
        return
    from alignjax.commands import finished_run, generate

    config = finished_run.config_of(VALUES.workdir, VALUES.config, VALUES.set)
    more = given("prompts", "preference", "overwrite", "checkpoint", "format")
    generate.run(config, VALUES.workdir, out, **how, **more)


def _generate_of_folder(out: str, how: dict[str, Any]) -> None:
    if not VALUES.prompts:
        raise UserError("generate --model requires --prompts: a file, or - for standard input")
    for flag in ("config", "preference", "checkpoint"):
        if VALUES[flag].present:
            raise UserError(f"generate --model does not take --{flag}: use it with --workdir")
    from alignjax.commands import generate

    settings = _sampling({"samples": 1, "batch_size": 8}, how)
    more = given("prompts", "overwrite", "format")
    generate.of_folder(VALUES.model, out, settings=settings, **more)


def chat() -> None:
    from alignjax.commands import chat

    how = given("temperature", "max_new_tokens")
    overrides = [  # changes to a run's config; the others are sampling settings
        x for x in VALUES.set if "." in x.partition("=")[0] and not x.startswith("evaluate.")
    ]
    # Small models ramble at temperature 1, the default of evaluations.
    defaults = {"samples": 1, "batch_size": 1, "temperature": 0.7}
    settings = _sampling(defaults, how, without=overrides)
    more = given("against", "checkpoint")
    chat.run(VALUES.model, settings=settings, overrides=overrides, **more)


def _sampling(defaults: dict[str, Any], how: dict[str, Any], without: Sequence[str] = ()) -> Any:
    """Makes the sampling settings; ``--set`` can change their fields, e.g. top_p=0.9."""
    from alignjax.config import SamplingConfig, override

    flags = {name: x for name, x in how.items() if x is not None}
    settings = SamplingConfig(**{"max_new_tokens": 256, **defaults, **flags})
    own = [x.removeprefix("evaluate.") for x in VALUES.set if x not in without]
    return override.apply(settings, override.tree_of(own))


def evaluate() -> None:
    files = VALUES.records or VALUES.against
    if bool(files) == bool(VALUES.workdir):
        raise UserError(
            "evaluate requires either --workdir=RUN, or --records=A.jsonl --against=B.jsonl"
        )
    if files:
        _evaluate_files()
    else:
        _evaluate_run()


def _evaluate_files() -> None:
    for flag in ("records", "against"):
        if not VALUES[flag].value:
            raise UserError(f"evaluate requires --{flag}, e.g. --records=A.jsonl --against=B.jsonl")
    if sum(map(bool, (VALUES.reward_model, VALUES.config, VALUES.judge))) > 1:
        raise UserError("evaluate: wanted one of --reward_model, --config and --judge")
    from alignjax.commands import win_rates

    win_rates.run(
        VALUES.records,
        VALUES.against,
        reward_models=VALUES.reward_model,
        config=_config() if VALUES.config else None,
        tie=VALUES.tie,
        judge=VALUES.judge,
        out=VALUES.out,
    )


def _evaluate_run() -> None:
    for flag in ("reward_model", "judge", "tie", "out"):
        if VALUES[flag].present:
            raise UserError(f"evaluate --workdir does not take --{flag}: use it with --records")
    from alignjax import recipes
    from alignjax.commands import finished_run
    from alignjax.config.validate import get

    config = finished_run.config_of(VALUES.workdir, VALUES.config, VALUES.set, start=True)
    if get(config, "recipe.objectives") is None:
        finished_run.require_complete(VALUES.workdir)
    recipes.run_config(config, VALUES.workdir)


def compare() -> None:
    from alignjax.commands import compare

    compare.run(VALUES.runs, VALUES.out)


def front() -> None:
    from alignjax.commands import front

    front.run(VALUES.runs, VALUES.out)


def score() -> None:
    from alignjax.commands import score

    limits = (VALUES.max_prompt_tokens, VALUES.max_response_tokens)
    score.run(VALUES.records, VALUES.reward_model, VALUES.out, limits)


def import_model() -> None:
    from alignjax.commands import import_model

    import_model.import_model(VALUES["from"].value or "", VALUES.to)


def export() -> None:
    from alignjax.commands import export

    names = ("workdir", "to", "dtype", "adapter", "preference", "base", "checkpoint")
    export.run(VALUES["from"].value or "", **given(*names))
