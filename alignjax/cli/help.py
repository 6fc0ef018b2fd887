"""Writes the help of the program and of each command, and completion scripts for shells."""

import alignjax
from alignjax import losses
from alignjax.cli.options import BY_NAME, Flag
from alignjax.cli.table import METHODS, VERBS
from alignjax.errors import UserError, did_you_mean

PROGRAM = "python -m alignjax"
WORDS = {
    "help": "help of a command: help run",
    "completion": "print completion for a shell: completion bash, completion zsh",
}


def unknown(name: str) -> str:
    """Returns the message that there is no such command, with a similar one."""
    if name in losses.recipes():
        config = losses.recipes()[name]
        return f"{name} needs several stages, which a config describes: run --config={config}"
    known = [*VERBS, *WORDS]
    shown = ", ".join(x for x in known if x not in METHODS)
    near = did_you_mean(name, known)
    return f"no command {name!r}{near}; commands: {shown}, and the name of each loss, such as dpo"


def usage() -> str:
    """Returns the help of the program."""
    wide = max(map(len, VERBS)) + 2
    others = {name: verb for name, verb in VERBS.items() if name not in METHODS}
    methods = "\n".join(f"  {name:<{wide}}{verb.text}" for name, verb in METHODS.items())
    verbs = "\n".join(f"  {name:<{wide}}{verb.text}" for name, verb in others.items())
    words = "\n".join(f"  {name:<{wide}}{text}" for name, text in WORDS.items())
    return (
        f"alignjax {alignjax.__version__}: align language models with human preferences.\n\n"
        f"{PROGRAM} COMMAND [--flag=value ...]\n\n{verbs}\n{words}\n\n"
        "Align your model with your preference data, with one of the losses, e.g.\n"
        f"{PROGRAM} dpo --model=my-model --data=my-pairs.jsonl\n\n{methods}\n\n"
        f"{PROGRAM} help COMMAND lists the flags of a command; --version prints the version.\n"
        "Exit codes: 0 done; 2 bad configuration or input; 3 damaged or unreadable file; 4 losses "
        "not finite;\n5 a process is lost or stuck; 128 + signal: stopped by a signal, and saved."
    )


def of(name: str) -> str:
    """Returns the help of a command.

    Raises:
      UserError: there is no such command.
    """
    if name in WORDS:
        return f"{PROGRAM} {name}: {WORDS[name]}"
    if name not in VERBS:
        raise UserError(unknown(name))
    verb = VERBS[name]
    needs = set(verb.needs)
    lines = [f"{PROGRAM} {name}: {verb.text}", ""]
    for title, flags in (
        ("required", [flag for flag in verb.reads if flag in needs]),
        ("optional", [flag for flag in verb.reads if flag not in needs]),
    ):
        if flags:
            lines += [title + ":", *(_line(BY_NAME[x], verb.notes.get(x, "")) for x in flags), ""]
    flags_of = [verb.example, f"{verb.example} {verb.more}".strip() if verb.more else ""]
    examples = [
        f"  {PROGRAM} {name} {flags}".rstrip() for flags in dict.fromkeys(flags_of) if flags
    ]
    return "\n".join([*lines, "examples:", *(examples or [f"  {PROGRAM} {name}"])])


def _line(flag: Flag, note: str) -> str:
    values = {"bool": "", "int": "=N", "float": "=X", "list": "=A,B"}.get(flag.kind, "=...")
    default = "" if flag.default in ("", None, False, ()) else f" (default {_shown(flag.default)})"
    repeated = "; can be repeated" if flag.kind == "texts" else ""
    return f"  --{flag.name + values:<26} {note or flag.text}{repeated}{default}"


def _shown(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else f"{value}"


_BASH = """_alignjax() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" i command=
  for ((i = 1; i < COMP_CWORD; i++)); do
    case "${{COMP_WORDS[i]}}" in
      -* | alignjax | */* | '=') ;;
      *) command="${{COMP_WORDS[i]}}"; break ;;
    esac
  done
  case "$command" in
{cases}
    help) COMPREPLY=($(compgen -W "{names}" -- "$word")) ;;
    completion) COMPREPLY=($(compgen -W "bash zsh" -- "$word")) ;;
    *) COMPREPLY=($(compgen -W "{names} {words}" -- "$word")) ;;
  esac
  [[ "${{COMPREPLY[0]-}}" == *= ]] && compopt -o nospace 2>/dev/null
  return 0
}}
complete -o default -F _alignjax alignjax"""


def completion(shell: str) -> str:
    """Returns a script that completes commands and flags of the program ``alignjax``.

    Raises:
      UserError: the shell is not supported.
    """
    if shell not in ("bash", "zsh"):
        raise UserError(f"completion: wanted bash or zsh, found {shell or 'none'!r}")
    cases = "\n".join(
        f'    {name}) COMPREPLY=($(compgen -W "{" ".join(_word(flag) for flag in verb.reads)}" '
        '-- "$word")) ;;'
        for name, verb in VERBS.items()
    )
    script = _BASH.format(cases=cases, names=" ".join(VERBS), words=" ".join(WORDS))
    zsh = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    return f"# source <(alignjax completion {shell})\n{zsh}{script}"


def _word(name: str) -> str:
    return f"--{name}" if BY_NAME[name].kind == "bool" else f"--{name}="
