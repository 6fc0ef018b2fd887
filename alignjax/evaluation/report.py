"""A run's report as one HTML file that needs nothing else: no script, font or picture elsewhere.

It is made of the files of the run's folder alone, so that it can be made again at any time.
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
PICTURES = {
    "front.png": "Front of the objectives",
    "reliability.png": "Reliability: how often the preferred response won",
}

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 70rem; padding: 1rem;
  color: #1c1c1c; background: #fff; }
h1 { font-size: 1.5rem; margin: .5rem 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
table { border-collapse: collapse; font-size: .9rem; }
.scroll { overflow-x: auto; }
th, td { padding: .2rem .7rem; text-align: left; border-bottom: 1px solid #ddd; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
ul.findings { background: #fff4e0; border-left: 4px solid #d98200; padding: .6rem 2rem; margin: 0; }
p.fine { background: #e9f6ec; border-left: 4px solid #2e8540; padding: .6rem 1rem; margin: 0; }
img, svg { max-width: 100%; height: auto; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(19rem, 1fr)); gap: 1rem; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; }
.sample { border-top: 1px solid #ddd; padding: .6rem 0; }
.sample pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; font: inherit; }
.prompt { color: #555; } .who { font-size: .8rem; color: #555; }
input { font: inherit; padding: .3rem; width: 100%; max-width: 24rem; box-sizing: border-box; }
@media (max-width: 40rem) {
  .pair { grid-template-columns: 1fr; }
  th, td { padding: .2rem .3rem; } td.n { white-space: normal; } table { font-size: .8rem; }
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


def write(workdir: pathlib.Path) -> None:
    """Writes ``report.html`` into a run's folder.

    Raises:
      UserError: the folder holds no run that has ended.
    """
    if not (workdir / "summary.json").is_file() or not (workdir / "config.json").is_file():
        raise UserError(f"--workdir: {workdir} holds no run that has ended (no summary.json)")
    storage.write(workdir / "report.html", page(workdir).encode())


def page(workdir: pathlib.Path) -> str:
    """Makes the page of a run that has ended."""
    settings, summary = (storage.read_json(workdir / f"{x}.json") for x in ("config", "summary"))
    metrics = workdir / "metrics.jsonl"
    lines = read(metrics) if metrics.is_file() else []
    receipt = summary.get("receipt", {})
    title = html.escape(workdir.resolve().name)
    found = findings.of_data(settings, receipt) + findings.of_result(summary, lines)
    parts = [
        f"<h1>{title}</h1>",
        _findings(found),
        _section("Result", _table(summary.get("table", {}))),
        _section("Curves", _curves(lines)),
        *(_section(name, _picture(workdir / file)) for file, name in PICTURES.items()),
        _section("Calibration", _calibration(summary.get("calibration", {}))),
        _section("Samples", _samples(workdir)),
        _section("Data report", "".join(_receipt(side, x) for side, x in receipt.items())),
        _section("Settings", _settings(settings)),
        _section("Versions", _rows(summary.get("versions", {}).items())),
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _section(title: str, content: str) -> str:
    return f"<h2>{title}</h2>{content}" if content else ""


def _findings(found: Sequence[str]) -> str:
    if not found:
        return '<p class="fine">Nothing suspicious was found.</p>'
    items = "".join(f"<li>{html.escape(x)}</li>" for x in found)
    return f'<ul class="findings">{items}</ul>'


def _rows(rows: Iterable[tuple[Any, ...]], head: Sequence[str] = ()) -> str:
    """Writes a table; cells after the first stand to the right where they are numbers."""

    def cell(value: Any, tag: str, number: bool) -> str:
        return f"<{tag}{' class=n' * number}>{html.escape(str(value))}</{tag}>"

    top = "".join(cell(x, "th", i > 0 and len(head) > 2) for i, x in enumerate(head))
    body = "".join(
        f"<tr>{''.join(cell(x, 'td', i > 0 and len(row) > 2) for i, x in enumerate(row))}</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table>{f"<tr>{top}</tr>" * bool(head)}{body}</table></div>'


def interval(value: Any) -> str:
    """Writes a number of a summary with its 95% interval."""
    if value is None:
        return "-"
    if "low" in value:
        return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
    return f"{value['mean']:.3f} ± {value['half_width']:.3f}"


def _table(table: dict[str, Any]) -> str:
    """Writes what was measured before and after training, held out."""
    if not table:
        return ""
    rows = [
        (name, *(interval(findings.side(pair, side)) for side in ("before", "after")))
        for name, pair in table.items()
    ]
    note = "<p>Held-out rows and prompts; with 95% intervals over prompts.</p>"
    return note + _rows(rows, ("", "before", "after"))


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
    head = ("", "scaling", "temperature", "pairs", "ECE", "ECE if calibrated", "MCE", "nats a pair")
    return _rows(rows, head) if rows else ""


def _samples(workdir: pathlib.Path) -> str:
    """Writes the first response to every prompt before and after, with a field to filter them."""
    sides = []
    for name in ("before", "after"):
        path = workdir / f"{name}.json"
        samples = storage.read_json(path)["samples"] if path.is_file() else []
        first: dict[str, Any] = {}
        for sample in samples:
            first.setdefault(sample["prompt"], sample)
        sides.append(first)
    before, after = sides
    shown = "".join(
        _sample(prompt, before.get(prompt), sample)
        for prompt, sample in list(after.items())[:SAMPLES]
    )
    if not shown:
        return ""
    return (
        '<p><input id="filter" placeholder="filter: a word of the prompt or a response"> '
        '<label><input id="changed" type="checkbox" style="width:auto"> changed only</label></p>'
        f"{shown}<script>{FILTER}</script>"
    )


def _sample(prompt: str, before: Any, after: Any) -> str:
    sides = []
    for name, sample in (("before", before), ("after", after)):
        if sample is not None:
            note = f"{name}, {sample['length']} tokens{'' if sample['ended'] else ', cut'}"
            text = html.escape(sample["response"])
            sides.append(f'<div><div class="who">{note}</div><pre>{text}</pre></div>')
    same = before is not None and before["response"] == after["response"]
    return (
        f'<div class="sample" data-same="{int(same)}"><pre class="prompt">{html.escape(prompt)}'
        f'</pre><div class="pair">{"".join(sides)}</div></div>'
    )


def _receipt(side: str, counts: dict[str, Any]) -> str:
    names = {"rows_in": "rows read", "kept": "kept", "held_out": "held out"}
    rows = [(name, counts.get(key, 0), "") for key, name in names.items()]
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
