"""What each command does. Heavy imports happen inside, so that help and mistakes are quick."""

import os
import pathlib
import sys
from typing import Any

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
    """Runs a config, and keeps the files that it was made of."""
    _more_threads(config)
    from alignjax import recipes
    from alignjax.commands import finished_run
    from alignjax.runtime import consistency

    consistency.check_run(config, files, pathlib.Path(workdir))
    recipes.run_config(config, workdir, VALUES.allow_config_change)
    finished_run.note_origin(workdir, path, overrides, files)


def align(method: str) -> None:
    """Runs the short config of a method, or prints it."""
    if VALUES.workdir and VALUES.out:
        raise UserError("--out and --workdir are the same: give one of them")
    workdir = VALUES.workdir or VALUES.out or f"runs/{method}"
    from alignjax.config import write
    from alignjax.recipes import short

    config = short.config(method, VALUES.model, VALUES.data, VALUES.set)
    text = write.source(config, short.about(method, config, workdir))
    if VALUES.print_config:
        print(text, end="")
        return
    print(f"{short.say(method, config)}\nthe run is in {workdir}", file=sys.stderr)
    _run(config, "config.py", [], {"config.py": text.encode()}, workdir)


def demo() -> None:
    run("configs/demo/dpo.py", "runs/demo")


def _more_threads(config: Any) -> None:
    """Gives a mesh of CPUs more threads than cores: its collectives can starve each other else."""
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

    show_data(config)


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
    from alignjax.commands import finished_run, generate

    config = finished_run.config_of(VALUES.workdir, VALUES.config, VALUES.set)
    how = given("prompts", "samples", "temperature", "preference")
    generate.run(config, VALUES.workdir, VALUES.out, **how)


def evaluate() -> None:
    files = VALUES.records or VALUES.against
    if bool(files) == bool(VALUES.workdir):
        raise UserError(
            "evaluate wants either --workdir=RUN, or --records=A.jsonl --against=B.jsonl"
        )
    if files:
        _evaluate_files()
    else:
        _evaluate_run()


def _evaluate_files() -> None:
    for flag in ("records", "against"):
        if not VALUES[flag].value:
            raise UserError(f"evaluate wants --{flag}, e.g. --records=A.jsonl --against=B.jsonl")
    if VALUES.reward_model and VALUES.config:
        raise UserError("evaluate: scores come from --reward_model or from --config, not both")
    from alignjax.commands import win_rates

    win_rates.run(
        VALUES.records,
        VALUES.against,
        reward_models=VALUES.reward_model,
        config=_config() if VALUES.config else None,
        tie=VALUES.tie,
        out=VALUES.out,
    )


def _evaluate_run() -> None:
    for flag in ("reward_model", "tie", "out"):
        if VALUES[flag].present:
            raise UserError(f"evaluate --workdir takes no --{flag}: it goes with --records")
    from alignjax import recipes
    from alignjax.commands import finished_run
    from alignjax.config.validate import get

    config = finished_run.config_of(VALUES.workdir, VALUES.config, VALUES.set)
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

    export.export(VALUES.workdir, VALUES.to, **given("dtype", "adapter", "preference"))
