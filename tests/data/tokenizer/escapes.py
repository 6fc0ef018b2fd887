"""Ways in which a chat template may try to get out of its bounds; `escapes_test` tries them all.

    python -m tests.data.tokenizer.escapes          # a line of JSON each: what came of it
    python -m tests.data.tokenizer.escapes --full   # with the limits that users have

They are the lines of `escapes.txt`, by kinds. ``L`` is a number a little below the limit of
characters, ``X`` a text of so many, ``Y`` one with another letter in its middle, ``D`` a fifth
of ``L``; words in capitals are written out by `expand`.
"""

import json
import pathlib
import re
import resource
import sys
import time
from typing import Any

from alignjax.data.records import Message
from alignjax.data.tokenizer import bounds, chat
from alignjax.errors import UserError

FILE = pathlib.Path(__file__).with_suffix(".txt")
WORDS = {
    "DATA": "data " * 400, "LITERAL": "1," * 2000, "GENERATORS": "messages | map('upper')," * 200,
    "FILTERS": "|upper" * 5000, "DOTS": ".x" * 5000, "PLUS": "+1" * 5000, "TILDE": "~1" * 5000,
    "LESS": "<1" * 2000, "AND": " and 1" * 5000, "ELIFS": "{% elif 0 %}" * 3000,
    "NINES": "9" * 5000, "ERROR": "error " * 500,
}  # fmt: skip
HEAD = "{% set n = namespace(k=[], x='aaaa', y=Y, l=l, d=d, s=s, t=(), u=(), a=(1,), b=(1,)) %}"
# 10 lists of 10 lists of ... 40 times.
DEEPER = (
    "{% for i in range(40) %}{% set n.a = (n.a,) * 10 %}{% set n.b = (n.b,) * 10 %}"
    "{% set n.d = {'x': n.d, 'y': n.d} %}{% endfor %}"
)
SPACE = 384 << 20  # bytes that all of them may take beyond what the program has


def escapes() -> dict[str, list[str]]:
    """The templates of each kind."""
    found: dict[str, list[str]] = {}
    for line in FILE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            kind = found.setdefault(line[3:], [])
        else:
            kind.append(line)
    return found


def expand(source: str) -> str:
    """Writes out the words in capitals."""
    while found := re.search(r"\b(GROW|KEEP|REPEAT|NEST|BURIED)\(", source):
        end, depth = found.end(), 1
        while depth:
            depth += {"(": 1, ")": -1}.get(source[end], 0)
            end += 1
        inner = source[found.end() : end - 1]
        source = source[: found.start()] + _written_out(found[1], inner) + source[end:]
    for word, text in WORDS.items():
        source = source.replace(word, text)
    return source


def _written_out(word: str, inner: str) -> str:
    if word == "GROW":
        loop = f"{{% for i in range(99) %}}{{% set n.x = {inner} %}}{{% endfor %}}"
        return "{% set n = namespace(x='aaaa') %}" + loop
    if word == "KEEP":
        return f"{{% for i in range(L) %}}{{% set n.k = [n.k, {inner}] %}}{{% endfor %}}"
    if word == "BURIED":  # a list in a list in a list
        sets = "{% set n.t = (n.t,) %}{% set n.u = (n.u,) %}"
        return f"{{% for i in range(D) %}}{sets}{{% endfor %}}{{{{ {inner} }}}}"
    if word == "REPEAT":
        return inner * 200
    begin, *core, end, times = inner.split("|")
    begins = "".join(begin.replace("BLOCK", f"b{i}") for i in range(int(times)))
    return begins + "".join(core) + end * int(times)


def attempt(kind: str, source: str) -> dict[str, Any]:
    """Tries one: how it ended, in which line or how long a text, and how long it took."""
    if bounds.MAX_EXTRA < 10**6:  # what is kept is to be stopped for its size, not for its time
        bounds.MAX_SECONDS = 0.05 if kind == "time" else 1.0
        bounds.MAX_EXTRA = 100_000 if kind in ("leaps", "time", "harmless") else 10_000
    template = HEAD + (DEEPER if kind == "deep" else "") + expand(source)
    size = bounds.MAX_EXTRA * 9 // 10
    values: dict[str, Any] = {
        "L": size, "D": min(99_999, size // 5), "X": "x" * size,
        "Y": "x" * (size // 2) + "y" + "x" * (size // 2 - 1),
        "l": list(range(size // 10)), "d": dict.fromkeys(range(size // 10), 1),
        "s": {f"k{i}": i for i in range(size // 10)},
    }  # fmt: skip
    said = (Message("system", "be kind"), Message("user", "hi"))
    begin = time.process_time()
    try:
        text = chat.render(
            template, said, add_generation_prompt=True, special_tokens=values, name="x.jinja"
        )
        text.encode("utf-8")
        ended: dict[str, Any] = {"ended": "rendered", "size": len(text)}
    except UserError as error:
        ended = {"ended": "refused", "line": str(error)}
    except BaseException as error:
        ended = {"ended": type(error).__name__, "line": str(error)[:200]}
    seconds = round(time.process_time() - begin, 3)
    return {"kind": kind, "source": source, **ended, "seconds": seconds}


def bound(*, full: bool) -> None:
    """Sets the limits of this process, and those of templates if they are not to be full."""
    if not full:
        bounds.MAX_EXTRA, bounds.MAX_STEPS = 100_000, 10_000
    time.monotonic = time.process_time  # others that use this machine change nothing
    with open("/proc/self/statm", encoding="ascii") as file:
        pages = int(file.read().split()[0])
    most = pages * resource.getpagesize() + SPACE * (4 if full else 1)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


if __name__ == "__main__":
    bound(full="--full" in sys.argv)
    for which, templates in escapes().items():
        for one in templates:
            sys.stdout.write(json.dumps(attempt(which, one)) + "\n")
            sys.stdout.flush()
