"""What a person looks at after a run: a table, a few samples, a picture.

Of several processes the first one shows them and the others do nothing.
"""

import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from alignjax.evaluation.calibration import Bins
from alignjax.evaluation.preferences import Estimate
from alignjax.runtime import distributed
from alignjax.runtime.metrics import read
from alignjax.sampling.generate import Sample

Point = tuple[int, float, float]  # round, value, half-width of its 95% interval
Table = dict[str, tuple[Estimate | None, Estimate | None]]  # name -> before, after


def say(text: str) -> None:
    """A line on standard output, as it is."""
    if distributed.is_main():
        sys.stdout.write(text + "\n")


def print_table(table: Table, title: str) -> None:
    """Before and after, one row a metric, with 95% half-widths."""
    rows = {name: ["-" if x is None else str(x) for x in pair] for name, pair in table.items()}
    print_rows(rows, ("held-out", "before", "after"), title)
    say("± is the half-width of the 95% interval over prompts.")


def print_rows(rows: dict[str, list[str]], columns: Sequence[str], title: str) -> None:
    """A table of texts: names to the left, numbers to the right."""
    if not distributed.is_main():
        return
    import rich.console
    import rich.table

    out = rich.table.Table(title=title, title_justify="left")
    out.add_column(columns[0], no_wrap=True)
    for name in columns[1:]:
        out.add_column(name, justify="right", no_wrap=True)
    for name, cells in rows.items():
        out.add_row(name, *cells)
    console = rich.console.Console()
    # Where there is little room, and in a pipe, lines get long: cells would lose their numbers.
    needed = console.measure(out, options=console.options.update(max_width=1000)).maximum
    rich.console.Console(width=max(console.width, needed)).print(out)


def print_samples(
    before: Sequence[Sample], after: Sequence[Sample], judge: Any, *, count: int
) -> None:
    """The first response to each of the first prompts, before and after, with its true score."""
    seen: set[str] = set()
    for old, new in zip(before, after, strict=True):
        if old.prompt in seen or len(seen) == count:
            continue
        seen.add(old.prompt)
        say(f"\n{old.prompt.strip()}")
        for name, sample in (("before", old), ("after ", new)):
            scores = judge(sample.prompt, sample.response) if judge else {}
            note = "".join(f"  [{k} {v:.2f}]" for k, v in list(scores.items())[:1])
            say(f"  {name} |{sample.response}{note}")


def plot(
    workdir: pathlib.Path,
    path: pathlib.Path,
    scores: Sequence[Sequence[float]] | None,
    score_name: str,
) -> None:
    """Training curves of a run and, where responses were judged, their scores before and after.

    Args:
      workdir: holds ``metrics.jsonl``.
      path: the PNG to write.
      scores: one score per sampled response, before and after; None draws no such panel.
      score_name: what the scores are called.
    """
    if not distributed.is_main():
        return
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = read(workdir / "metrics.jsonl")
    panels = [
        ("loss", ["loss"]),
        ("reward", ["rewards/chosen", "rewards/rejected", "rewards/margins"]),
        ("reward accuracy", ["rewards/accuracies", "eval_rewards/accuracies"]),
    ]
    panels = [
        (title, [n for n in names if any(n in line for line in lines)]) for title, names in panels
    ]
    panels = [(title, names) for title, names in panels if names]
    count = len(panels) + (scores is not None)
    figure, axes = plt.subplots(1, count, figsize=(4.2 * count, 3.2), squeeze=False)
    for axis, (title, names) in zip(axes[0], panels, strict=False):
        for name in names:
            points = [(line["step"], line[name]) for line in lines if name in line]
            marker = "o" if name.startswith("eval_") else None
            axis.plot(*zip(*points, strict=True), label=name, marker=marker, linewidth=1.5)
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    if scores is not None:
        axis = axes[0][-1]
        axis.hist(scores, bins=20, label=["before", "after"])
        axis.set_title(f"{score_name} of sampled responses")
        axis.set_xlabel(score_name)
        axis.set_ylabel("responses")
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_reliability(path: pathlib.Path, bins: dict[str, tuple[Bins, Bins]]) -> None:
    """Reliability diagrams: how often the preferred response came first, by predicted probability.

    Args:
      path: the PNG to write.
      bins: objective -> bins before and after temperature scaling; one panel each.
    """
    if not distributed.is_main():
        return
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(bins), figsize=(4.2 * len(bins), 4.0), squeeze=False)
    for axis, (name, pair) in zip(axes[0], bins.items(), strict=True):
        axis.plot([0, 1], [0, 1], color="gray", linewidth=1, label="calibrated")
        for label, found in zip(("before", "after"), pair, strict=True):
            some = found.count > 0
            axis.plot(found.predicted[some], found.happened[some], marker="o", label=label)
        axis.set_title(name)
        axis.set_xlabel("predicted probability of preference")
        axis.set_ylabel("share preferred")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_rounds(panels: dict[str, dict[str, list[Point]]], path: pathlib.Path) -> None:
    """Values by round, with intervals: panel -> line -> points."""
    if not distributed.is_main():
        return
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.2), squeeze=False)
    for axis, (title, lines) in zip(axes[0], panels.items(), strict=True):
        for name, points in lines.items():
            rounds, values, half = zip(*points, strict=True)
            axis.errorbar(rounds, values, yerr=half, marker="o", capsize=3, label=name)
            axis.set_xticks(rounds)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("round")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_histories(
    runs: dict[str, list[dict[str, float]]], metrics: Sequence[str], path: pathlib.Path
) -> None:
    """Every metric against the step and, below, against the KL; a line per run."""
    if not distributed.is_main():
        return
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = (("step", "step"), ("kl", "KL to the reference, nats"))
    figure, axes = plt.subplots(2, len(metrics), figsize=(3.6 * len(metrics), 6.0), squeeze=False)
    for column, metric in enumerate(metrics):
        for axis, (x, label) in zip(axes[:, column], rows, strict=True):
            for name, history in runs.items():
                points = [(p[x], p[metric]) for p in history if x in p and metric in p]
                axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
            axis.set_title(metric)
            axis.set_xlabel(label)
            axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
