"""Writes docs/losses.md and its picture from the losses themselves: docstrings, signatures, curves.

    python benchmarks/losses_page.py            # writes docs/losses.md and docs/images/losses.png
    python benchmarks/losses_page.py --check    # exits with 1 if docs/losses.md is not current

What a loss wants is found by handing it batches without scores, labels or a reference and with 1, 2
and 4 responses. A test holds the page to what this would write.
"""

import argparse
import functools
import importlib
import inspect
import json
import math
import pathlib
import re
import sys
import textwrap
from collections.abc import Callable
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import jax
import jax.numpy as jnp
import numpy as np

from alignjax.testing import loss_inputs
from alignjax.types import Array, Batch, Logps

ROOT = pathlib.Path(__file__).parent.parent
PAGE, PICTURE = ROOT / "docs" / "losses.md", ROOT / "docs" / "images" / "losses.png"
TABLE = ROOT / "docs" / "losses_table.json"
TEXT = ROOT / "docs" / "losses.in.md"
LOSS = re.compile(r"(reward_)?loss(_\w+)?$")
OTHER = re.compile(r"(select|baseline|curate)(_\w+)?$")
# What the recipe binds, and hyperparameters without a default that works by itself.
BOUND = {"desirable_fraction": 0.5, "preference": (0.5, 0.5)}
MARGINS = np.linspace(-40.0, 40.0, 161)


def modules() -> dict[str, Any]:
    """Imports every file of `losses/`, by name."""
    files = sorted((ROOT / "alignjax" / "losses").glob("*.py"))
    names = [path.stem for path in files if path.stem != "__init__"]
    return {name: importlib.import_module(f"alignjax.losses.{name}") for name in names}


def functions(module: Any, pattern: re.Pattern[str]) -> dict[str, Callable[..., Any]]:
    """Finds the functions that a file defines, in the order in which it does."""
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and pattern.match(name)
    }


def implicits(module: Any) -> list[str]:
    """Names the functions of log-probabilities alone: rewards that go under other losses."""
    public = functions(module, re.compile(r"[a-z]\w*$"))

    def positional(f: Callable[..., Any]) -> list[str]:
        parameters = inspect.signature(f).parameters.values()
        return [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]

    return [name for name, f in public.items() if positional(f) == ["logps"]]


def as_run(name: str, loss: Callable[..., Any]) -> Callable[[Logps, Batch], Any]:
    """The loss with what a recipe binds; of a reward model, over scores in the policy's place."""
    bound = {k: v for k, v in BOUND.items() if k in inspect.signature(loss).parameters}
    partial = functools.partial(loss, **bound)
    if name.startswith("reward_"):
        return lambda logps, batch: partial(logps.policy, batch)
    return partial


@functools.cache
def inputs(k: int, without: str, objectives: int) -> tuple[Logps, Batch]:
    """The arguments of a loss for K responses, all but one of what a loss may read."""
    scores = np.tile(np.arange(k, 0.0, -1), (2, 1))
    given: dict[str, Any] = {
        "reference": np.zeros((2, k)),
        "scores": scores if objectives == 1 else np.stack([scores] * objectives, axis=2),
        "desirable": np.ones((2, k), bool),
        "drawn_from": np.full(2, 3),
        "baseline": 0.0,
        "running_baseline": 0.0,
        "adversarial": np.ones(2, bool),
        "policy_tail": np.zeros((2, k)),
        "reference_tail": np.zeros((2, k)),
        "log_squares": np.zeros((2, k)),
    }
    return loss_inputs(np.zeros((2, k)), **{n: x for n, x in given.items() if n != without})


def accepts(loss: Callable[[Logps, Batch], Any], k: int, without: str = "") -> bool:
    """Whether a loss takes K responses, with scores on one objective or on two."""
    for objectives in (1, 2):
        try:
            jax.eval_shape(loss, *inputs(k, without, objectives))
        except ValueError:
            continue
        return True
    return False


def wants(loss: Callable[[Logps, Batch], Any]) -> dict[str, Any]:
    """Finds what a loss needs: which K, scores, labels, a reference, a draw, a baseline, tokens."""
    sizes = [k for k in (1, 2, 4) if accepts(loss, k)]
    k = sizes[-1]
    missing = ("scores", "desirable", "reference", "drawn_from", "baseline", "running_baseline")
    missing += ("policy_tail", "log_squares")
    needs = {name for name in missing if not accepts(loss, k, name)}
    return {"sizes": sizes, "needs": needs}


def data(found: dict[str, Any]) -> str:
    """Says in words what a loss learns from."""
    sizes, needs = found["sizes"], found["needs"]
    if "desirable" in needs:
        words = "labelled responses"
    elif "scores" in needs:
        words = "scored lists" if sizes != [4] else "scored lists of 3 or more"
    elif sizes == [2]:
        words = "pairs"
    else:
        words = "any responses" if 1 in sizes else "pairs, scored lists"
    if "drawn_from" in needs:
        words += " drawn by a `select`"
    if needs & {"baseline", "running_baseline"}:
        words += ", with a `baseline`"
    if needs & {"policy_tail", "log_squares"}:
        words += ", token by token"
    return words


def formula(loss: Callable[..., Any]) -> str:
    """The equation of a docstring."""
    found = re.search(r"::\n\n((?:    .*\n|\n)+)", textwrap.dedent(doc(loss)))
    assert found, loss
    return textwrap.dedent(found[1]).strip("\n")


def doc(of: Any) -> str:
    """A docstring, its lines after the first without their common indentation."""
    return inspect.getdoc(of) or ""


def sentence(of: Any) -> str:
    """The first sentence of a docstring, on one line, its emphasis kept."""
    return " ".join(doc(of).split("\n\n")[0].split())


def papers(module: Any) -> list[str]:
    """The arXiv numbers of a file's references, that of its reference first."""
    texts = [doc(module), *(doc(f) for f in functions(module, LOSS).values())]
    found: list[str] = []
    for text in (t[t.find("Reference:") :] for t in texts if "Reference:" in t):
        found += re.findall(r"arXiv\s+(\d{4}\.\d{5})", text)
    found += [n for t in texts for n in re.findall(r"arXiv\s+(\d{4}\.\d{5})", t)]
    return list(dict.fromkeys(found))


def settings(loss: Callable[..., Any]) -> str:
    """The hyperparameters and their defaults."""

    def value(x: Any) -> str:
        if isinstance(x, functools.partial):
            inside = ", ".join(f"{k}={value(v)}" for k, v in x.keywords.items())
            return f"partial({value(x.func)}, {inside})"
        if inspect.isfunction(x):
            return f"{x.__module__.rpartition('.')[2]}.{x.__name__}"
        if isinstance(x, tuple):
            return "(" + ", ".join(map(value, x)) + ("," if len(x) == 1 else "") + ")"
        return repr(x)

    hyper = inspect.signature(loss).parameters.values()
    return ", ".join(
        p.name if p.default is p.empty else f"{p.name}={value(p.default)}"
        for p in hyper
        if p.kind is p.KEYWORD_ONLY
    )


def curve(name: str, loss: Callable[..., Any], found: dict[str, Any]) -> Array | None:
    """``[3, N]`` loss and slopes along the margin; None for a loss of several objectives.

    Two responses of 10 tokens, the first preferred, whose log-ratios are half the margin above and
    below 0; their log-probabilities under the reference are -20 nats. Reward models: the margin is
    a tenth as large, in log-odds. Slopes are with respect to the log-probability of the preferred
    and of the other response.
    """
    if not max(found["sizes"]) >= 2 or name.partition(".")[0] in ("modpo", "rewards_in_context"):
        return None
    run = as_run(name.partition(".")[2], loss)
    k = 3 if 2 not in found["sizes"] else 2
    scale = 0.1 if "reward_" in name else 1.0
    center = 0.0 if "reward_" in name else -20.0
    # A third response, the gold one, stays where the reference has it.
    place = np.array([0.5, -0.5, 0.0])[:k]
    policy = center + scale * MARGINS[:, None] * place

    def value(row: Array) -> Array:
        logps, batch = loss_inputs(
            row[None],
            np.full((1, k), -20.0),
            length=np.full((1, k), 10),
            scores=np.array([[1.0, 0.0, 2.0]])[:, :k],
            desirable=np.array([[True, False, True]])[:, :k],
            drawn_from=[1],
            baseline=0.0,
            running_baseline=0.0,
            adversarial=[True],
            policy_tail=np.zeros((1, k)),
            reference_tail=np.zeros((1, k)),
            log_squares=np.full((1, k), center),
        )
        losses: Array = run(logps, batch)[0][0]
        return losses

    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(value)))(jnp.asarray(policy))
    return np.stack([values, slopes[:, 0], slopes[:, 1]])


def draw(curves: dict[str, Any]) -> None:
    """Draws all curves, a panel for each loss."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = 6
    rows = math.ceil(len(curves) / columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(2.6 * columns, 1.9 * rows))
    for axis in axes.flat[len(curves) :]:
        axis.axis("off")
    for axis, (name, (values, good, bad)) in zip(axes.flat, curves.items(), strict=False):
        x = MARGINS * (0.1 if "reward_" in name else 1.0)
        axis.plot(x, np.clip(values, -20, 20), color="black", linewidth=1.4, label="loss")
        axis.set_title(name, fontsize=8)
        if np.ptp(values) < 1e-3:  # else the axis shows rounding
            axis.set_ylim(values.mean() - 1, values.mean() + 1)
        axis.tick_params(labelsize=6)
        axis.axvline(0, color="0.8", linewidth=0.6, zorder=0)
        other = axis.twinx()
        other.plot(x, np.clip(-good, -2, 2), color="tab:green", linewidth=1, label="raises chosen")
        other.plot(x, np.clip(bad, -2, 2), color="tab:red", linewidth=1, label="lowers rejected")
        other.axhline(0, color="0.8", linewidth=0.6, zorder=0)
        other.tick_params(labelsize=6, colors="0.4")
        if name == next(iter(curves)):
            lines = axis.get_lines()[:1] + other.get_lines()[:2]
            axis.legend(lines, ["loss (left)", "pull on chosen", "push on rejected"], fontsize=5)
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=80)


def summary_table(found: dict[str, dict[str, Any]]) -> list[str]:
    """The table of all files."""
    lines = ["| file | what | paper | learns from | reference | functions |", "|---" * 6 + "|"]
    for name, module in modules().items():
        losses = {f"{name}.{f}" for f in functions(module, LOSS)}
        kinds = list(dict.fromkeys(data(found[x]) for x in sorted(losses)))
        needs = {"reference" in found[x]["needs"] for x in losses if ".reward_" not in x}
        reference = "some" if len(needs) == 2 else "yes" if True in needs else "no"
        numbers = papers(module)[:1]
        links = ", ".join(f"[{n}](https://arxiv.org/abs/{n})" for n in numbers)
        named = [*functions(module, LOSS), *functions(module, OTHER), *implicits(module)]
        words = ", ".join(f"`{f}`" for f in named)
        title = sentence(module).rstrip(".")
        lines.append(
            f"| `{name}` | {title} | {links} | {'; '.join(kinds)} | {reference} | {words} |"
        )
    return lines


def world_table() -> list[str]:
    """The table of the embedded world, from what `benchmarks/losses_table.py` measured."""
    rows: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.exists() else {}
    if not rows:
        return ["Nothing was measured yet."]
    lines = [
        "| loss | learns from | true score | KL, nats | tokens | setting | settings | seeds |",
        "|---" * 8 + "|",
    ]

    def cell(values: list[float], digits: int) -> str:
        spread = f" ± {values[1]:.{digits}f}" if len(values) > 1 else ""
        return f"{values[0]:.{digits}f}{spread}"

    for name, row in sorted(rows.items(), key=lambda item: -item[1]["true score"][0]):
        columns = [f"`{name}`", row["kind"], cell(row["true score"], 3), cell(row["KL"], 2)]
        columns += [cell(row["tokens"], 1), f"x {row['setting']:.2f}"]
        columns += [f"{row['settings']} of 3", f"{row['seeds']} of 3"]
        lines.append("| " + " | ".join(columns) + " |")
    before = [row["score before"][0] for row in rows.values()]
    lines += ["", f"Before alignment the true score is {min(before):.3f} to {max(before):.3f}."]
    return lines


def details(found: dict[str, dict[str, Any]]) -> list[str]:
    """A section for each file: its sentences, equations and defaults."""
    lines: list[str] = []
    for name, module in modules().items():
        lines += [
            f"### {name}",
            "",
            f"{sentence(module)} [Source](../alignjax/losses/{name}.py).",
            "",
        ]
        for function, loss in functions(module, LOSS).items():
            needs = found[f"{name}.{function}"]["needs"]
            reference = ", reference" if "reference" in needs else ""
            lines += [f"`{name}.{function}`: {sentence(loss)}", "", "```", formula(loss), "```", ""]
            words = settings(loss)
            defaults = f" Defaults: `{words}`." if words else ""
            lines += [f"Wants {data(found[f'{name}.{function}'])}{reference}.{defaults}", ""]
    return lines


def page() -> str:
    """Makes the whole page."""
    found = {
        f"{name}.{function}": wants(as_run(function, loss))
        for name, module in modules().items()
        for function, loss in functions(module, LOSS).items()
    }
    text = TEXT.read_text(encoding="utf-8")
    parts = {"TABLE": summary_table(found), "WORLD": world_table(), "DETAILS": details(found)}
    for name, lines in parts.items():
        text = text.replace(f"<!-- {name} -->", "\n".join(lines).rstrip())
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, say what is stale")
    args = parser.parse_args()
    text = page()
    if args.check:
        if PAGE.read_text(encoding="utf-8") != text:
            sys.exit(f"{PAGE}: stale; python benchmarks/losses_page.py writes it")
        return
    PAGE.write_text(text, encoding="utf-8")
    curves = {}
    for name, module in modules().items():
        for function, loss in functions(module, LOSS).items():
            made = curve(f"{name}.{function}", loss, wants(as_run(function, loss)))
            if made is not None:
                curves[f"{name}.{function}"] = made
    draw(curves)
    print(f"{PAGE}: {text.count(chr(10))} lines; {PICTURE}: {len(curves)} curves")


if __name__ == "__main__":
    main()
