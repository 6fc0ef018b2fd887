"""Prints tables and lines of results. Of several processes only the first prints them."""

from collections.abc import Sequence
from typing import Any

from alignjax.evaluation.statistics import Interval
from alignjax.runtime import distributed, logs
from alignjax.sampling.generate import Sample

Table = dict[str, tuple[Interval | None, Interval | None]]  # name -> before, after


def say(text: str) -> None:
    """Prints a line on standard output."""
    if distributed.is_main():
        logs.show(text + "\n")


def print_table(table: Table, title: str) -> None:
    """Prints before and after, one row per metric, with 95% half-widths."""
    rows = {name: ["-" if x is None else str(x) for x in pair] for name, pair in table.items()}
    print_rows(rows, ("held-out", "before", "after"), title)
    say("± is the half-width of the 95% interval over prompts.")


def print_rows(rows: dict[str, list[str]], columns: Sequence[str], title: str) -> None:
    """Prints a table of texts: names are left-aligned, numbers right-aligned."""
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
    # In a narrow terminal and in a pipe lines may be too long: otherwise numbers would be cut.
    needed = console.measure(out, options=console.options.update(max_width=1000)).maximum
    wide = rich.console.Console(width=max(console.width, needed))
    with wide.capture() as captured:
        wide.print(out)
    logs.show(captured.get())


def print_samples(
    before: Sequence[Sample], after: Sequence[Sample], judge: Any, *, count: int
) -> None:
    """Prints the first response to each of the first prompts, before and after, with its score."""
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
