"""Command line: ``python -m alignjax VERB --flag=value``.

Heavy imports happen inside the verbs, so that help and mistakes in a config are quick.
"""

import dataclasses
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags

import alignjax
from alignjax.errors import UserError, did_you_mean
from alignjax.runtime import distributed, logs, watchdog

FLAGS = flags.FLAGS
flags.DEFINE_string("config", "", "Python file with get_config(), e.g. configs/hps.py:8b")
flags.DEFINE_string("workdir", "", "folder of the run; started again, it resumes")
flags.DEFINE_multi_string("set", [], "field=value, changes the config: --set loss.beta=0.2")
flags.DEFINE_bool("allow_config_change", False, "go on although the config changed")
flags.DEFINE_string("records", "", "JSON lines with prompt and responses, for score, evaluate")
flags.DEFINE_multi_string("reward_model", [], "workdir of a reward model, for score, evaluate")
for what, loses in (("prompt", "beginning"), ("response", "end")):
    note = f"score: longer {what}s lose their {loses}; by default the reward model's own limit"
    flags.DEFINE_integer(f"max_{what}_tokens", None, note, lower_bound=2)
flags.DEFINE_string(
    "out", "", "what score, generate (.jsonl), compare, front (.png) or plan (.json) writes"
)
flags.DEFINE_string("against", "", "responses to the same prompts as --records, for evaluate")
flags.DEFINE_float("tie", 0.0, "scores that differ by at most this tie, for evaluate")
flags.DEFINE_string("prompts", "", "JSON lines with prompt, for generate; else held-out ones")
flags.DEFINE_integer("samples", None, "responses per prompt, for generate", lower_bound=1)
flags.DEFINE_float("temperature", None, "of generate; 0: greedy", lower_bound=0.0)
flags.DEFINE_string(
    "preference", "", "weights of the objectives, e.g. 0.3,0.7, for generate, export (or all)"
)
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


def usage() -> str:
    """Writes what ``--help`` prints before the flags."""
    verbs = "\n".join(f"  {name:<10}{verb.text}" for name, verb in VERBS.items())
    return (
        f"alignjax {alignjax.__version__}: align language models with human preferences.\n\n"
        f"python -m alignjax VERB [--flag=value ...]\n\n{verbs}\n"
    )


def _main(argv: Sequence[str]) -> int:
    logs.quiet_libraries()
    code = run_verb(argv)
    if VERBS[argv[1]].computes:
        distributed.leave()
    return code


def run_verb(argv: Sequence[str]) -> int:
    """Does what a command line asks for, once the flags are read; returns the exit code."""
    verb = _chosen(argv)
    if verb.computes:
        _join_processes()
    verb.do()
    return 0


def _chosen(argv: Sequence[str]) -> "Verb":
    """Finds the verb; it takes all flags on the command line, and has those that it needs."""
    if len(argv) != 2:
        raise UserError(f"wanted one verb out of {', '.join(VERBS)}, found {argv[1:] or 'none'}")
    name = argv[1]
    if name not in VERBS:
        raise UserError(f"no verb {name!r}{did_you_mean(name, VERBS)}; verbs: {', '.join(VERBS)}")
    verb = VERBS[name]
    for flag in sorted({flag for other in VERBS.values() for flag in other.reads}):
        if FLAGS[flag].present and flag not in verb.reads:
            raise UserError(f"{name} takes no --{flag}; it takes --{', --'.join(verb.reads)}")
    for flag in verb.needs:
        if not FLAGS[flag].value:
            raise UserError(f"{name} wants --{flag}, e.g. {verb.example}")
    return verb


def _join_processes() -> None:
    distributed.start()
    if not distributed.is_main():
        logs.warn_only(distributed.index())
    if distributed.several():
        from alignjax.runtime import consistency

        consistency.check_programs()


def _config() -> Any:
    from alignjax.config import load

    return load.load(FLAGS.config, FLAGS.set)


def _given(*names: str) -> dict[str, Any]:
    return {name: FLAGS[name].value for name in names}


def _run(path: str = "", workdir: str = "") -> None:
    from alignjax.config import load

    path, workdir = FLAGS.config or path, FLAGS.workdir or workdir
    config = load.load(path, FLAGS.set)
    _more_threads(config)
    from alignjax import recipes
    from alignjax.commands import finished_run
    from alignjax.runtime import consistency

    consistency.check_run(config, path, pathlib.Path(workdir))
    recipes.run_config(config, workdir, FLAGS.allow_config_change)
    finished_run.note_origin(workdir, path, FLAGS.set)


def _demo() -> None:
    _run("configs/demo/dpo.py", "runs/demo")


def _more_threads(config: Any) -> None:
    """Gives a mesh of CPUs more threads than cores: its collectives can starve each other else."""
    if max(config.mesh.data, config.mesh.fsdp, config.mesh.tensor) > 1:
        os.environ.setdefault("NPROC", "32")


def _describe() -> None:
    import json

    from alignjax.config.fields import describe

    config = _config()
    if config.model.path:
        from alignjax.planning import resolved

        config = resolved.resolve(config)
        print(resolved.say_parameters(config), file=sys.stderr)
    print(json.dumps(describe(config), indent=2))


def _data() -> None:
    config = _config()
    _more_threads(config)
    from alignjax.recipes import align

    align.show_data(config)


def _plan() -> None:
    config = _config()
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


def _generate() -> None:
    from alignjax.commands import finished_run, generate

    config = finished_run.config_of(FLAGS.workdir, FLAGS.config, FLAGS.set)
    given = _given("prompts", "samples", "temperature", "preference")
    generate.run(config, FLAGS.workdir, FLAGS.out, **given)


def _evaluate() -> None:
    files = FLAGS.records or FLAGS.against
    if bool(files) == bool(FLAGS.workdir):
        raise UserError(
            "evaluate wants either --workdir=RUN, or --records=A.jsonl --against=B.jsonl"
        )
    if files:
        _evaluate_files()
    else:
        _evaluate_run()


def _evaluate_files() -> None:
    for flag in ("records", "against"):
        if not FLAGS[flag].value:
            raise UserError(f"evaluate wants --{flag}, e.g. --records=A.jsonl --against=B.jsonl")
    if FLAGS.reward_model and FLAGS.config:
        raise UserError("evaluate: scores come from --reward_model or from --config, not both")
    from alignjax.commands import win_rates

    win_rates.run(
        FLAGS.records,
        FLAGS.against,
        reward_models=FLAGS.reward_model,
        config=_config() if FLAGS.config else None,
        tie=FLAGS.tie,
        out=FLAGS.out,
    )


def _evaluate_run() -> None:
    for flag in ("reward_model", "tie", "out"):
        if FLAGS[flag].present:
            raise UserError(f"evaluate --workdir takes no --{flag}: it goes with --records")
    from alignjax import recipes
    from alignjax.commands import finished_run
    from alignjax.config.validate import get

    config = finished_run.config_of(FLAGS.workdir, FLAGS.config, FLAGS.set)
    if get(config, "recipe.objectives") is None:
        finished_run.require_complete(FLAGS.workdir)
    recipes.run_config(config, FLAGS.workdir)


def _compare() -> None:
    from alignjax.commands import compare

    compare.run(FLAGS.runs, FLAGS.out)


def _front() -> None:
    from alignjax.commands import front

    front.run(FLAGS.runs, FLAGS.out)


def _score() -> None:
    from alignjax.commands import score

    limits = (FLAGS.max_prompt_tokens, FLAGS.max_response_tokens)
    score.run(FLAGS.records, FLAGS.reward_model, FLAGS.out, limits)


def _import() -> None:
    from alignjax.commands import import_model

    import_model.import_model(FLAGS["from"].value or "", FLAGS.to)


def _export() -> None:
    from alignjax.commands import export

    export.export(FLAGS.workdir, FLAGS.to, **_given("dtype", "adapter", "preference"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verb:
    """A word of the command line, and what it takes."""

    do: Callable[[], None]
    text: str  # for --help
    reads: tuple[str, ...]  # flags that mean something to it; others are refused
    example: str = ""  # the flags that must be there, filled in
    computes: bool = False  # by several processes, where asked to

    @property
    def needs(self) -> list[str]:
        """The flags that must be there."""
        return re.findall(r"--(\w+)=", self.example)


CONFIG = ("config", "set")
VERBS = {
    "run": Verb(
        do=_run,
        text="train and evaluate what --config says, in --workdir",
        reads=(*CONFIG, "workdir", "allow_config_change"),
        example="--config=configs/demo/dpo.py --workdir=runs/first",
        computes=True,
    ),
    "demo": Verb(
        do=_demo,
        text="run configs/demo/dpo.py (the embedded world, minutes on a laptop)",
        reads=(*CONFIG, "workdir", "allow_config_change"),
        computes=True,
    ),
    "generate": Verb(
        do=_generate,
        text="sample responses of the policy in --workdir, into --out",
        reads=(*CONFIG, "workdir", "out", "prompts", "samples", "temperature", "preference"),
        example="--workdir=runs/first --out=samples.jsonl",
        computes=True,
    ),
    "evaluate": Verb(
        do=_evaluate,
        text="measure the run in --workdir again; or win rates of --records --against a file",
        reads=(*CONFIG, "workdir", "records", "against", "reward_model", "tie", "out"),
        computes=True,
    ),
    "compare": Verb(
        do=_compare,
        text="metrics of --runs at equal steps and at equal KL, drawn into --out",
        reads=("runs", "out"),
        example="--runs=runs/dpo,runs/hps --out=compared.png",
    ),
    "front": Verb(
        do=_front,
        text="fronts of several objectives of --runs: one table, one picture, into --out",
        reads=("runs", "out"),
        example="--runs=runs/paretohqd,runs/soups --out=front.png",
    ),
    "score": Verb(
        do=_score,
        text="score the responses in --records with every --reward_model, into --out",
        reads=("records", "reward_model", "out", "max_prompt_tokens", "max_response_tokens"),
        example="--records=lists.jsonl --reward_model=runs/rm --out=scored.jsonl",
        computes=True,
    ),
    "describe": Verb(
        do=_describe,
        text="print the config as JSON, after --set, and stop",
        reads=CONFIG,
        example="--config=configs/demo/dpo.py",
    ),
    "plan": Verb(
        do=_plan,
        text="compile what --config runs for a --topology: memory, FLOPs, collectives, time, cost",
        reads=(*CONFIG, "topology", "mesh", "parts", "responses", "price", "sweep", "out"),
        example="--config=configs/demo/dpo.py --topology=v5e:2x2",
    ),
    "data": Verb(
        do=_data,
        text="read and check the data of --config, print the receipt, and stop",
        reads=CONFIG,
        example="--config=configs/demo/dpo.py",
    ),
    "import": Verb(
        do=_import,
        text="read a model --from a folder as transformers saves it, write it --to another",
        reads=("from", "to"),
        example="--from=downloads/llama --to=models/llama",
    ),
    "export": Verb(
        do=_export,
        text="write the policy of a run (--workdir) --to a folder that transformers loads",
        reads=("workdir", "to", "dtype", "adapter", "preference"),
        example="--workdir=runs/first --to=exported/first",
    ),
}


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
        logs.say_last(f"alignjax: {' '.join(str(error).split())}")
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
