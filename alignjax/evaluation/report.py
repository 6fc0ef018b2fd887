"""Writes a run's report as one HTML file, without external scripts or pictures.

It needs only files in the run's folder, so it can be written again at any time.
"""

import base64
import html
import io
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from alignjax.errors import UserError
from alignjax.evaluation import findings, plots
from alignjax.runtime import storage
from alignjax.runtime.metrics import read

SAMPLES = 200  # prompts that are shown, at most
SIDES = 5  # policies of a front whose samples are shown, at most
PICTURES = {
    "front.png": "Pareto front",
    "reliability.png": "Reliability: how often the preferred response won",
}

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 70rem; padding: 1rem;
  color: #1c1c1c; background: #fff; }
h1 { font-size: 1.5rem; margin: .5rem 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1rem 0 .3rem; }
table { border-collapse: collapse; font-size: .9rem; }
.scroll { overflow-x: auto; } .wide img { min-width: 50rem; }
td:first-child { min-width: 8rem; }
th, td { padding: .2rem .7rem; text-align: left; border-bottom: 1px solid #ddd; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
ul.findings { background: #fff4e0; border-left: 4px solid #d98200; padding: .6rem 2rem; margin: 0; }
p.fine { background: #e9f6ec; border-left: 4px solid #2e8540; padding: .6rem 1rem; margin: 0; }
img, svg { max-width: 100%; height: auto; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(19rem, 1fr)); gap: 1rem; }
.sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: 1rem; }
.sample { border-top: 1px solid #ddd; padding: .6rem 0; }
.sample pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; font: inherit; }
.prompt { color: #555; } .who { font-size: .8rem; color: #555; }
input { font: inherit; padding: .3rem; width: 100%; max-width: 24rem; box-sizing: border-box; }
@media (max-width: 40rem) {
  th, td { padding: .2rem; } table { font-size: .72rem; } td:first-child { min-width: 0; }
}
"""
FILTER = """
const field = document.getElementById("filter"), changed = document.getElementById("changed");
function filter() {
  const text = field.value.toLowerCase();
  for (const each of document.querySelectorAll(".sample")) {
    const hidden = !each.textContent.toLowerCase().includes(text) ||
      (changed.checked && each.dataset.same === "1");
    each.style.display = hidden ? "none" : "";
  }
}
field.addEventListener("input", filter); changed.addEventListener("change", filter);
"""


def write(workdir: pathlib.Path) -> list[str]:
    """Writes ``report.html`` into a run's folder; returns the findings about its result.

    Raises:
      UserError: the folder holds no finished run.
    """
    if not (workdir / "summary.json").is_file() or not (workdir / "config.json").is_file():
        raise UserError(f"--workdir: {workdir} holds no finished run (no summary.json)")
    storage.write(workdir / "report.html", page(workdir).encode())
    return findings.of_result(storage.read_json(workdir / "summary.json"), _metrics(workdir))


def page(workdir: pathlib.Path) -> str:
    """Makes the page of a finished run."""
    settings, summary = (storage.read_json(workdir / f"{x}.json") for x in ("config", "summary"))
    lines = _metrics(workdir)
    report = summary.get("data_report", {})
    title = html.escape(workdir.resolve().name)
    found = findings.of_data(settings, report) + findings.of_result(summary, lines)
    parts = [
        f"<h1>{title}</h1>",
        _findings(found),
        _section("Result", _table(summary.get("table")) + _fronts(summary)),
        _section("Rounds", _rounds(workdir, summary.get("rounds", []))),
        _section("Curves", _curves(lines)),
        *(_section(name, _picture(workdir / file)) for file, name in PICTURES.items()),
        _section("Calibration", _calibration(summary.get("calibration", {}))),
        _section("Samples", _samples(workdir)),
        _section("Data report", "".join(_report(side, x) for side, x in report.items())),
        _section("Settings", _settings(settings)),
        _section("Versions", _rows(summary.get("versions", {}).items())),
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    path = workdir / "metrics.jsonl"
    return read(path) if path.is_file() else []


def _section(title: str, content: str) -> str:
    return f"<h2>{title}</h2>{content}" if content else ""


def _findings(found: Sequence[str]) -> str:
    if not found:
        return '<p class="fine">Nothing suspicious was found.</p>'
    items = "".join(f"<li>{html.escape(x)}</li>" for x in found)
    return f'<ul class="findings">{items}</ul>'


def _rows(rows: Iterable[tuple[Any, ...]], head: Sequence[str] = ()) -> str:
    """Writes a table; cells after the first are right-aligned if there are several."""

    def cell(value: Any, tag: str, number: bool) -> str:
        return f"<{tag}{' class=n' * number}>{html.escape(str(value))}</{tag}>"

    top = "".join(cell(x, "th", i > 0 and len(head) > 2) for i, x in enumerate(head))
    body = "".join(
        f"<tr>{''.join(cell(x, 'td', i > 0 and len(row) > 2) for i, x in enumerate(row))}</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table>{f"<tr>{top}</tr>" * bool(head)}{body}</table></div>'


def interval(value: Any) -> str:
    """Writes a number of a summary with its 95% interval, if there are two prompts or more."""
    if value is None or value["mean"] is None:
        return "-"
    if "low" in value:
        return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
    width = value["half_width"]
    return f"{value['mean']:.3f}{'' if width is None else f' ± {width:.3f}'}"


def _table(table: dict[str, Any] | None) -> str:
    """Writes the held-out metrics before and after training; empty for recipes without them."""
    if not table:
        return "" if table is None else "<p>Nothing was measured.</p>"
    rows = [
        (name, *(interval(findings.side(pair, side)) for side in ("before", "after")))
        for name, pair in table.items()
    ]
    note = "<p>On held-out data, with 95% intervals over prompts.</p>"
    return note + _rows(rows, ("", "before", "after"))


def _fronts(summary: dict[str, Any]) -> str:
    """Writes the mean scores for each preference, and the front's own numbers."""
    parts = []
    for front in summary.get("fronts", {}).values():
        names = summary["objectives"]
        rows = [
            (
                preference(point["preference"]),
                *(interval(point[name]) for name in names),
                *(f"{100 * point[name]:.1f}%" for name in ("collapsed", "unfinished")),
            )
            for point in front["points"]
        ]
        order = " : ".join(names)
        parts.append(
            "<p>Mean scores on held-out prompts, with 95% intervals over prompts. A preference is "
            f"the weights {html.escape(order)}.</p>"
            + _rows(rows, ("preference", *names, "collapsed", "unfinished"))
            + f"<p>{html.escape(_volume(front, summary['box'], names))}</p>"
        )
    return "".join(parts)


def _volume(front: dict[str, Any], box: dict[str, Any], names: Sequence[str]) -> str:
    faithful, volume = front["faithfulness"], front["hypervolume"]
    sides = zip(names, box["low"], box["high"], strict=True)
    text = f"Faithfulness to the preferences (rank correlation): {faithful['mean']:.2f}."
    if volume is None:
        return text
    where = ", ".join(f"{name} {low:.4g} to {high:.4g}" for name, low, high in sides)
    low, high = volume["low"], volume["high"]
    return f"Hypervolume: {volume['value']:.3f} [{low:.3f}, {high:.3f}] of the box {where}. {text}"


def preference(weights: Sequence[float]) -> str:
    """Writes the weights of the objectives.

    >>> preference([0.25, 0.75])
    '0.25 : 0.75'
    """
    return " : ".join(f"{w:.2g}" for w in weights)


def _rounds(workdir: pathlib.Path, rounds: Sequence[dict[str, Any]]) -> str:
    """Writes the picture of a game of two players, and its numbers by round."""
    if not rounds:
        return ""
    names = list(dict.fromkeys(name for line in rounds for name in line["policy"]))
    shown = dict.fromkeys(names[:1] + [x for x in names if x.startswith("KL")])
    rows = [
        (f"policy: {name}", *(interval(line["policy"].get(name)) for line in rounds))
        for name in shown
    ]
    for where in dict.fromkeys(name for line in rounds for name in line["reward_model"]):
        for who, called in (
            ("reward_model", "reward model"),
            ("base", "reward model of pairs only"),
        ):
            some = [line[who].get(where, {}) for line in rounds]
            place = "samples of the round before" if where == "samples before" else where
            title = f"{called}: accuracy on {place}"
            rows.append((title, *(interval(x.get("accuracy")) for x in some)))
    head = ("", *(f"round {line['round']}" for line in rounds))
    picture = _picture(workdir / "report.png")  # wide, because its panels are side by side
    return f'<div class="scroll wide">{picture}</div>{_rows(rows, head)}'


def _curves(lines: list[dict[str, Any]]) -> str:
    drawn = []
    for figure in plots.training_figures(lines):
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
        text = file.getvalue()
        drawn.append(f"<div>{text[text.index('<svg') :]}</div>")
    return f'<div class="curves">{"".join(drawn)}</div>' if drawn else ""


def _picture(path: pathlib.Path) -> str:
    if not path.is_file():
        return ""
    content = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{html.escape(path.stem)}" src="data:image/png;base64,{content}">'


def _calibration(calibration: dict[str, Any]) -> str:
    rows = []
    for name, numbers in calibration.items():
        for side in ("before", "after"):
            errors = {k: "-" if x is None else f"{x:.4f}" for k, x in numbers[side].items()}
            pairs, t = (
                numbers["pairs_measured"],
                1.0 if side == "before" else numbers["temperature"],
            )
            row = (errors.get(k, "-") for k in ("ece", "ece_if_calibrated", "mce", "nll"))
            rows.append((name, side, f"{t:.3f}", pairs, *row))
    head = ("", "scaling", "temperature", "pairs", "ECE", "ECE if calibrated", "MCE", "loss, nats")
    return _rows(rows, head) if rows else ""


def _sides(workdir: pathlib.Path) -> list[tuple[str, pathlib.Path]]:
    """Finds the files of samples to show side by side, with titles."""
    if (workdir / "front.json").is_file():
        all_weights = storage.read_json(workdir / "front.json")["preferences"]
        step = max(1, -(-(len(all_weights) - 1) // (SIDES - 1)))
        some = range(0, len(all_weights), step)
        return [(preference(all_weights[i]), workdir / f"samples/{i:02d}.json") for i in some]
    if (workdir / "history.json").is_file():
        last = storage.read_json(workdir / "history.json")[-1]["round"]
        return [
            ("before", workdir / "round-0/samples.json"),
            (f"after round {last}", workdir / f"round-{last}/samples.json"),
        ]
    return [(name, workdir / f"{name}.json") for name in ("before", "after")]


def _samples(workdir: pathlib.Path) -> str:
    """Writes each policy's first response to every prompt, with a field to filter them."""
    sides: dict[str, dict[str, Any]] = {}
    for name, path in _sides(workdir):
        if path.is_file():
            sides[name] = {}
            for sample in storage.read_json(path)["samples"]:
                sides[name].setdefault(sample["prompt"], sample)
    prompts = list(dict.fromkeys(prompt for side in sides.values() for prompt in side))
    shown = "".join(
        _sample(prompt, {name: side[prompt] for name, side in sides.items() if prompt in side})
        for prompt in prompts[:SAMPLES]
    )
    if not shown:
        return ""
    return (
        '<p><input id="filter" placeholder="filter by a word of the prompt or a response"> '
        '<label><input id="changed" type="checkbox" style="width:auto"> changed only</label></p>'
        f"{shown}<script>{FILTER}</script>"
    )


def _sample(prompt: str, sides: dict[str, Any]) -> str:
    columns = []
    for name, sample in sides.items():
        note = f"{name}, {sample['length']} tokens{'' if sample['ended'] else ', cut'}"
        text = html.escape(sample["response"].strip("\n "))
        columns.append(f'<div><div class="who">{note}</div><pre>{text}</pre></div>')
    same = len(sides) > 1 and len({x["response"] for x in sides.values()}) == 1
    return (
        f'<div class="sample" data-same="{int(same)}"><pre class="prompt">{html.escape(prompt)}'
        f'</pre><div class="sides">{"".join(columns)}</div></div>'
    )


def _report(side: str, counts: dict[str, Any]) -> str:
    names = {"rows_in": "rows read", "kept": "kept", "held_out": "held out"}
    rows = [(name, counts.get(key, 0), "") for key, name in names.items() if key in counts]
    for kind, name in (("dropped", "dropped"), ("warned", "noted")):
        for reason, count in counts.get(kind, {}).items():
            ids = ", ".join(map(str, counts.get("ids", {}).get(reason, [])))
            rows.append((f"{name}: {reason.replace('_', ' ')}", count, ids))
    label = "training" if side == "train" else side.replace("_", "-")
    return f"<h3>{html.escape(label)}</h3>" + _rows(rows, ("", "rows", "first ids"))


def _settings(settings: dict[str, Any]) -> str:
    rows = [
        (f"{at}.{name}" if at else name, value if isinstance(value, str) else json.dumps(value))
        for at, section in (("", settings), *settings.items())
        if isinstance(section, dict)
        for name, value in section.items()
        if at or not isinstance(value, dict)
    ]
    return f"<details><summary>all {len(rows)} fields</summary>{_rows(rows)}</details>"
