"""Command line: ``python -m alignjax COMMAND --flag=value``, or ``alignjax COMMAND``.

Heavy imports happen inside functions of `actions`, so that help and errors in configs are fast.
"""

import io
import os
import pathlib
import sys
import traceback
from collections.abc import Sequence

from absl import app, flags

import alignjax
from alignjax import digests
from alignjax.cli import compile_cache, help
from alignjax.cli.options import BY_NAME
from alignjax.cli.options import VALUES as FLAGS
from alignjax.cli.table import VERBS, Verb
from alignjax.errors import FULL, UserError
from alignjax.runtime import distributed, logs, watchdog

HELP = ("--help", "-h", "-help", "--helpfull", "--helpshort")


def _main(argv: Sequence[str]) -> int:
    logs.quiet_libraries()
    code = run_verb(argv)
    sys.stdout.flush()  # an error here becomes one line; at exit it would not
    if VERBS[argv[1]].computes:
        distributed.leave()
    return code


def run_verb(argv: Sequence[str]) -> int:
    """Runs the command after the flags are parsed; returns the exit code."""
    verb = _find_verb(argv)
    if verb.computes:
        _join_processes()
        compile_cache.use()
    with digests.falling_back(FLAGS.allow_fallback):
        verb.do()
    return 0


def _find_verb(argv: Sequence[str]) -> Verb:
    """Finds the command, and checks that it reads the given flags and has the required ones."""
    if len(argv) > 1 and argv[1] not in VERBS:
        raise UserError(help.unknown(argv[1]))
    if len(argv) != 2:
        raise UserError(f"wanted one command, found {' '.join(argv[1:]) or 'none'}; see --help")
    name = argv[1]
    verb = VERBS[name]
    for flag in sorted(BY_NAME):
        if FLAGS[flag].present and flag not in verb.reads:
            raise UserError(f"{name} does not take --{flag}; it takes --{', --'.join(verb.reads)}")
    for flag in verb.needs:
        if not FLAGS[flag].value:
            raise UserError(f"{name} requires --{flag}, e.g. {verb.example}")
    return verb


def _join_processes() -> None:
    distributed.start()
    if not distributed.is_main():
        logs.warn_only(distributed.index())
    if distributed.several():
        from alignjax.runtime import consistency

        consistency.check_programs()


def help_text(words: Sequence[str]) -> str:
    """Returns the help, version or completion script that a command line asks for, else "".

    Raises:
      UserError: there is no such command.
    """
    names = [word for word in words if not word.startswith("-") and "=" not in word]
    asks = any(word in HELP for word in words)
    if "--version" in words and not names:
        return f"alignjax {alignjax.__version__}"
    if not words or (asks and not names) or names == ["help"]:
        return help.usage()
    if names[:1] == ["completion"] and not asks:
        return help.completion(" ".join(names[1:]))
    if names[:1] == ["help"] or asks:
        return help.of(names[1] if names[0] == "help" and len(names) > 1 else names[0])
    if (
        not words[0].startswith("-") and words[0] not in VERBS
    ):  # absl would name an unknown flag first
        raise UserError(help.unknown(words[0]))
    return ""


def full_disk(error: BaseException | None) -> str:
    """Describes what could not be written if a full disk caused an error, else "".

    Libraries raise their own types of errors, but quote the system's message.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            where = error.filename or _open_file(error) or "standard output, or a file"
            return f"{where}: cannot be written: {error.strerror}"
        if any(os.strerror(number) in str(error) for number in FULL):
            return f"cannot be written: {' '.join(str(error).split())}"
        error = error.__cause__ or error.__context__
    return ""


def _open_file(error: OSError) -> str:
    """Finds the file that an error without a file name is about, else "".

    It is the file that the innermost function has open, or the path that `pathlib` writes to.
    """
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        of_pathlib = str(frame.f_globals.get("__name__", "")).startswith("pathlib")
        for value in frame.f_locals.values():
            if isinstance(value, io.IOBase) and isinstance(getattr(value, "name", 0), str):
                return str(getattr(value, "name"))  # noqa: B009 (not all streams have one)
            if of_pathlib and isinstance(value, pathlib.Path):
                return str(value)
    return ""


def main() -> None:
    """Runs the program; errors are one line, exit codes are those of `alignjax.errors`."""
    logs.prepare_streams()
    try:
        text = help_text(sys.argv[1:])
        if text:
            print(text, flush=True)
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
    except BrokenPipeError:  # the reader of our output has closed it: `... --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        watchdog.fail(1, "its output was closed")
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        # A computation on the device cannot be interrupted: the process ends after it.
        line = "stopping after the current computation; run the same command again to resume"
        print(f"alignjax: {line}", file=sys.stderr)
        watchdog.fail(130, "stopped")
        raise SystemExit(130) from None
    except Exception as error:
        if line := full_disk(error):
            logs.silence(sys.stdout)
            logs.say_last(f"alignjax: {line}")
            watchdog.fail(3, line)
            raise SystemExit(3) from None
        watchdog.wait_for_verdict(error)
        if distributed.several():
            traceback.print_exc()
        watchdog.fail(1, f"{type(error).__name__}: {error}")
        raise
