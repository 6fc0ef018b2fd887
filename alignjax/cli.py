"""Command line: ``python -m alignjax VERB --flag=value``.

Heavy imports happen inside the verbs, so that help and mistakes in a config are quick.
"""

import logging
import os
import pathlib
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from absl import app, flags

import alignjax
from alignjax.errors import UserError, did_you_mean
from alignjax.runtime import distributed, watchdog

FLAGS = flags.FLAGS
flags.DEFINE_string("config", "", "Python file with get_config(), e.g. configs/demo/dpo.py")
flags.DEFINE_string("workdir", "", "folder of the run; started again, it resumes")
flags.DEFINE_multi_string("set", [], "field=value, changes the config: --set loss.beta=0.2")
flags.DEFINE_bool(
    "allow_config_change", False, "go on from a checkpoint although the config changed"
)
flags.DEFINE_string("records", "", "JSON lines with prompt and responses, for score, evaluate")
flags.DEFINE_multi_string(
    "reward_model", [], "workdir of a reward model's run, for score, evaluate"
)
flags.DEFINE_string(
    "out", "", "what score, generate (.jsonl), compare, front (.png) or plan (.json) writes"
)
flags.DEFINE_string("against", "", "responses to the same prompts as --records, for evaluate")
flags.DEFINE_float("tie", 0.0, "scores that differ by at most this tie, for evaluate")
flags.DEFINE_string("prompts", "", "JSON lines with prompt, for generate; else held-out ones")
flags.DEFINE_integer("samples", None, "responses per prompt, for generate", lower_bound=1)
flags.DEFINE_float("temperature", None, "of generate; 0: greedy", lower_bound=0.0)
flags.DEFINE_list("runs", [], "workdirs, with commas between them, for compare, front")
flags.DEFINE_string("from", "", "import: folder of a model as transformers saves it")
flags.DEFINE_string("to", "", "import, export: folder to write; it must not exist")
flags.DEFINE_bool("adapter", False, "export: a LoRA run's adapters alone, as PEFT has them")
flags.DEFINE_string("dtype", "", "export: float32 | bfloat16; by default the parameters' own")

flags.DEFINE_string("topology", "", "plan: machines to compile for, e.g. v5p:4x4x4 or h100:8")
flags.DEFINE_string("mesh", "", "plan: data=..,fsdp=..,tensor=..; else the config's, or one found")
flags.DEFINE_list("parts", ["step"], "plan: what to compile: step, sft, reward, score, sample")
flags.DEFINE_integer("responses", 0, "plan: responses per prompt in the data", lower_bound=0)
flags.DEFINE_float("price", 0.0, "plan: dollars per device and hour", lower_bound=0.0)
flags.DEFINE_bool("sweep", False, "plan: try meshes and remat policies, and rank them")

VERBS = {
    "run": "train and evaluate what --config says, in --workdir",
    "demo": "run configs/demo/dpo.py (the embedded world, minutes on a laptop)",
    "generate": "sample responses of the policy in --workdir, into --out",
    "evaluate": "measure the run in --workdir again; or win rates of --records --against a file",
    "compare": "metrics of --runs at equal steps and at equal KL, drawn into --out",
    "front": "fronts of several objectives of --runs: one table, one picture, into --out",
    "score": "score the responses in --records with every --reward_model, into --out",
    "describe": "print the config as JSON, after --set, and stop",
    "plan": "compile what --config runs for a --topology: memory, FLOPs, collectives, time, cost",
    "data": "read and check the data of --config, print the receipt, and stop",
    "import": "read a model --from a folder as transformers saves it, write it --to another",
    "export": "write the policy of a run (--workdir) --to a folder that transformers loads",
}


COMPUTES = ("run", "demo", "generate", "evaluate", "score")  # by several processes, where asked to

CONFIG = ("config", "set")
READS = {  # which flags mean something to which verb
    "run": (*CONFIG, "workdir", "allow_config_change"),
    "demo": (*CONFIG, "workdir", "allow_config_change"),
    "generate": (*CONFIG, "workdir", "out", "prompts", "samples", "temperature"),
    "evaluate": (*CONFIG, "workdir", "records", "against", "reward_model", "tie", "out"),
    "compare": ("runs", "out"),
    "front": ("runs", "out"),
    "score": ("records", "reward_model", "out"),
    "describe": CONFIG,
    "plan": (*CONFIG, "topology", "mesh", "parts", "responses", "price", "sweep", "out"),
    "data": CONFIG,
    "import": ("from", "to"),
    "export": ("workdir", "to", "dtype", "adapter"),
}


def usage() -> str:
    """What ``--help`` prints before the flags."""
    verbs = "\n".join(f"  {name:<10}{text}" for name, text in VERBS.items())
    return (
        f"alignjax {alignjax.__version__}: align language models with human preferences.\n\n"
        f"python -m alignjax VERB [--flag=value ...]\n\n{verbs}\n"
    )


def _quiet_libraries() -> None:
    """Our own lines as they are; of the libraries' only warnings."""
    import absl.logging

    absl.logging.set_verbosity(absl.logging.WARNING)
    logging.getLogger().setLevel(logging.WARNING)
    # Where one array of a checkpoint cannot be read, the others' failures would follow our line.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    ours = logging.getLogger("alignjax")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    ours.propagate = False


def _warn_only() -> None:
    """Of a process beside the first one only warnings, with its number."""
    ours = logging.getLogger("alignjax")
    ours.setLevel(logging.WARNING)
    for handler in ours.handlers:
        handler.setFormatter(logging.Formatter(f"process {distributed.index()}: %(message)s"))


def _main(argv: Sequence[str]) -> int:
    _quiet_libraries()
    code = run_verb(argv)
    if argv[1] in COMPUTES:
        distributed.leave()
    return code


def run_verb(argv: Sequence[str]) -> int:
    """Does what a command line asks for, once the flags are read; returns the exit code."""
    if len(argv) != 2:
        raise UserError(f"wanted one verb out of {', '.join(VERBS)}, found {argv[1:] or 'none'}")
    verb = argv[1]
    if verb not in VERBS:
        raise UserError(f"no verb {verb!r}{did_you_mean(verb, VERBS)}; verbs: {', '.join(VERBS)}")
    for flag in sorted({name for names in READS.values() for name in names} - {*READS[verb]}):
        if FLAGS[flag].present:
            raise UserError(f"{verb} takes no --{flag}; it takes --{', --'.join(READS[verb])}")
    if verb in COMPUTES:
        distributed.start()
        if not distributed.is_main():
            _warn_only()
        if distributed.several():
            from alignjax.runtime import consistency

            consistency.check_programs()
    if verb == "generate":
        return _generate()
    if verb == "evaluate":
        return _evaluate()
    if verb == "compare":
        return _compare()
    if verb == "front":
        return _front()
    if verb == "score":
        return _score()
    if verb in ("import", "export"):
        return _exchange(verb)
    path, workdir = FLAGS.config, FLAGS.workdir
    if verb == "demo":
        path, workdir = path or "configs/demo/dpo.py", workdir or "runs/demo"
    if not path:
        raise UserError(f"{verb} wants --config=FILE, e.g. --config=configs/demo/dpo.py")
    if verb == "run" and not workdir:
        raise UserError("run wants --workdir=FOLDER, e.g. --workdir=runs/first")

    from alignjax.config import load
    from alignjax.config.fields import describe

    config = load.load(path, FLAGS.set)
    if verb == "describe":
        import json

        print(json.dumps(describe(config), indent=2))
        return 0
    if verb == "plan":
        return _plan(config)
    if max(config.mesh.data, config.mesh.fsdp, config.mesh.tensor) > 1:
        # A larger pool than there are cores: CPU collectives can starve each other otherwise.
        os.environ.setdefault("NPROC", "32")
    from alignjax.commands import finished_run
    from alignjax.recipes import align
    from alignjax.runtime import consistency

    if verb == "data":
        align.show_data(config)
        return 0
    consistency.check_run(config, path, pathlib.Path(workdir))
    _recipe(config).run(config, workdir, allow_config_change=FLAGS.allow_config_change)
    finished_run.note_origin(workdir, path, FLAGS.set)
    return 0


def _recipe(config: Any) -> Any:
    """The recipe that a config asks for: a module with ``run``."""
    from alignjax.recipes import align, reward_model
    from alignjax.recipes.apo import rounds, stepwise
    from alignjax.recipes.multi_objective import run as several

    if config.objectives is not None:
        return several
    if config.game is not None:
        return stepwise if config.game.policy_steps else rounds
    return align if config.reward_loss is None else reward_model


def _plan(config: Any) -> int:
    _want("plan", "topology", example="--config=configs/demo/dpo.py --topology=v5e:2x2")
    import jax

    from alignjax.planning import plan

    jax.config.update("jax_platforms", "cpu")  # nothing runs; the config may have imported JAX

    plan.run(
        config,
        FLAGS.topology,
        mesh=FLAGS.mesh,
        parts=tuple(FLAGS.parts),
        responses=FLAGS.responses,
        price=FLAGS.price,
        sweep=FLAGS.sweep,
        out=FLAGS.out,
    )
    return 0


def _want(verb: str, *wanted: str, example: str) -> None:
    for flag in wanted:
        if not FLAGS[flag].value:
            raise UserError(f"{verb} wants --{flag}, e.g. {example}")


def _generate() -> int:
    _want("generate", "workdir", "out", example="--workdir=runs/first --out=said.jsonl")
    from alignjax.commands import finished_run, generate

    config = finished_run.config_of(FLAGS.workdir, FLAGS.config, FLAGS.set)
    if config.objectives is not None:
        raise UserError(
            f"--workdir: {FLAGS.workdir} holds a front, one policy per preference, wanted one "
            "policy; its samples are in said/"
        )
    generate.run(
        config,
        FLAGS.workdir,
        FLAGS.out,
        prompts=FLAGS.prompts,
        samples=FLAGS.samples,
        temperature=FLAGS.temperature,
    )
    return 0


def _evaluate() -> int:
    files = FLAGS.records or FLAGS.against
    if bool(files) == bool(FLAGS.workdir):
        raise UserError(
            "evaluate wants either --workdir=RUN, or --records=A.jsonl --against=B.jsonl"
        )
    if files:
        _want("evaluate", "records", "against", example="--records=A.jsonl --against=B.jsonl")
        if FLAGS.reward_model and FLAGS.config:
            raise UserError("evaluate: scores come from --reward_model or from --config, not both")
        from alignjax.commands import win_rates
        from alignjax.config import load

        config = load.load(FLAGS.config, FLAGS.set) if FLAGS.config else None
        win_rates.run(
            FLAGS.records,
            FLAGS.against,
            reward_models=FLAGS.reward_model,
            config=config,
            tie=FLAGS.tie,
            out=FLAGS.out,
        )
        return 0
    for flag in ("reward_model", "tie", "out"):
        if FLAGS[flag].present:
            raise UserError(f"evaluate --workdir takes no --{flag}: it goes with --records")
    from alignjax.commands import finished_run

    config = finished_run.config_of(FLAGS.workdir, FLAGS.config, FLAGS.set)
    if config.objectives is None:
        finished_run.require_complete(FLAGS.workdir)
    _recipe(config).run(config, FLAGS.workdir)
    return 0


def _compare() -> int:
    _want("compare", "runs", "out", example="--runs=runs/dpo,runs/hps --out=compared.png")
    from alignjax.commands import compare

    compare.run(FLAGS.runs, FLAGS.out)
    return 0


def _front() -> int:
    _want("front", "runs", "out", example="--runs=runs/paretohqd,runs/soups --out=front.png")
    from alignjax.commands import front

    front.run(FLAGS.runs, FLAGS.out)
    return 0


def _score() -> int:
    for flag in ("records", "reward_model", "out"):
        if not FLAGS[flag].value:
            raise UserError(
                f"score wants --{flag}, e.g. --records=lists.jsonl --reward_model=runs/rm "
                "--out=scored.jsonl"
            )
    from alignjax.commands import score

    score.run(FLAGS.records, FLAGS.reward_model, FLAGS.out)
    return 0


def _exchange(verb: str) -> int:
    """Models in and out."""
    source = FLAGS["from"].value if verb == "import" else FLAGS.workdir
    if not source or not FLAGS.to:
        given = "--from" if verb == "import" else "--workdir"
        raise UserError(f"{verb} wants {given}=FOLDER and --to=FOLDER")
    if verb == "import":
        from alignjax.commands import import_model

        import_model.import_model(source, FLAGS.to)
    else:
        from alignjax.commands import export

        export.export(source, FLAGS.to, dtype=FLAGS.dtype, adapter=FLAGS.adapter)
    return 0


def main() -> None:
    """Entry point: one-line errors, and the exit codes that `alignjax.errors` lists."""
    asks = any(a in ("--help", "-h", "-help", "--helpfull") for a in sys.argv[1:])
    try:
        if asks or len(sys.argv) < 2:
            print(usage())
            print(FLAGS.main_module_help() or FLAGS.module_help("alignjax.cli"), flush=True)
            raise SystemExit(0)
        argv = FLAGS(sys.argv)
        app.run(_main, argv=list(argv))
    except flags.Error as error:
        print(f"alignjax: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except UserError as error:
        watchdog.wait_for_verdict(error)
        # All is said with this line. Where a checkpoint is damaged, threads of the library go on to
        # tell of reads that nobody waits for any more, past every hook that Python has: they lose
        # their stderr first, so that none of theirs can follow ours.
        sys.stderr.flush()
        ours = os.dup(sys.stderr.fileno())
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
        line = f"alignjax: {' '.join(str(error).split())}\n"
        os.write(ours, line.encode(errors="backslashreplace"))
        watchdog.fail(error.exit_code, str(error))
        raise SystemExit(error.exit_code) from None
    except BrokenPipeError:  # whoever read our output has gone: `... --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        watchdog.fail(1, "nobody reads its output any more")
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("alignjax: stopped; the same command goes on from what is done", file=sys.stderr)
        watchdog.fail(130, "stopped")
        raise SystemExit(130) from None
    except Exception as error:
        watchdog.wait_for_verdict(error)
        if distributed.several():
            traceback.print_exc()
        watchdog.fail(1, f"{type(error).__name__}: {error}")
        raise


if __name__ == "__main__":
    main()
