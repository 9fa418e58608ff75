"""Tables in the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from robustsigma.report import attribution, rankings, robustness, text, training
from robustsigma.report.table import Note, TableCell, TableLayout

_STYLES = {"best": "bold", "better": "bold green", "control": "dim"}


def print_table(results: dict[str, Any], console: Console | None = None, *, intervals: bool = False) -> None:
    """Print the accuracies of an evaluation or the scores of a benchmark, with their flags.

    Args:
        results: as in `write_report`.
        console: where to print; standard output if None.
        intervals: whether to print the interval of each accuracy.
    """
    console = console or Console()
    if results.get("kind") == "attribution":
        _print_attribution(results, console)
    else:
        _print_robustness(results, console, intervals)


def print_sweep(results: dict[str, Any], console: Console | None = None) -> None:
    """Print the accuracies of every standard deviation tried as training noise, with the best one marked.

    Args:
        results: what an evaluation wrote, or a dict with its part `sweep` alone.
        console: where to print; standard output if None.
    """
    console = console or Console()
    for exhibit in training.sweeps(results):
        print_layout(console, exhibit.tables[0])
        console.print(Text(text.printable(exhibit.lead), style="dim"))


def _print_robustness(results: dict[str, Any], console: Console, intervals: bool) -> None:
    table = robustness.accuracy_table(results)
    if intervals:
        shown = {key: replace(cell, remark=" ".join(cell.details)) for key, cell in table.cells.items()}
        table = replace(table, cells=shown)
    print_layout(console, table)
    _print_lines(console, [*robustness.run_flags(results), *table.footnotes])
    print_sweep(results, console)


def _print_attribution(results: dict[str, Any], console: Console) -> None:
    tables = attribution.score_tables(results)
    _print_lines(console, rankings.lines(results, attribution.names(results)))
    for model, table in zip(results["models"], tables, strict=True):
        print_layout(console, table)
        _print_lines(
            console, (("skipped", f"{why}: {where}") for why, where in attribution.skips(results, model["id"]))
        )
    console.print(Text("bold: best, significantly ahead of the second; \u2248 not significantly different from random, "
                       "\u25bc worse than random; \u2191 \u2193 direction of better scores", style="dim"))  # fmt: skip
    left_out = [("left out", f"{method} on {model}: {why}") for method, model, why in attribution.left_out(results)]
    if "left_out" in dict(text.flags(results)):  # not in older results
        left_out = []
    notes = [note for table in tables for note in table.footnotes]
    _print_lines(console, [*left_out, *text.flags(results), *notes])


def print_layout(console: Console, table: TableLayout) -> None:
    """Print a table, in several parts if the console is too narrow for it."""
    for part in table.split(lambda piece: fits(console, rich_table(piece))):
        console.print(rich_table(part))


def rich_table(table: TableLayout) -> Table:
    """Return the table as Rich renders it."""
    found = Table(
        title=Text(text.printable(table.title)),
        title_style="bold",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    found.add_column(table.corner, no_wrap=True)
    for group in table.columns:
        for head in group.heads:
            name = Text(text.printable(head.label), style="bold")
            for line in (group.suffix, head.detail):
                name.append(f"\n{text.printable(line)}" if line else "", style="dim")
            found.add_column(name, justify="left" if head.words else "right", no_wrap=True)
    for group in table.rows:
        for head in group.heads:
            label = text.printable(head.label)
            name = Text(label if len(label) <= 30 else label[:29] + "\u2026")
            name.append(text.printable(group.suffix), style="dim")
            found.add_row(name, *(_cell(table.cells.get((head.id, column.id))) for column in table.column_heads))
        found.add_section()
    return found


def _cell(cell: TableCell | None) -> Text:
    """Return the text of a cell with its mark, its remark and the codes of its flags."""
    if cell is None:
        return Text(text.DASH, style="dim")
    shown = Text(text.printable(cell.text), style=_STYLES.get(cell.tone, ""))
    shown.append(f" {cell.mark[0]}" if cell.mark else "", style="yellow")
    shown.append(f"\n{cell.remark}" if cell.remark else "", style="dim")
    codes = dict.fromkeys(text.printable(code) for code, _ in cell.flags)
    return shown.append("\n" + " ".join(codes) if codes else "", style="yellow")


def _print_lines(console: Console, lines: Iterable[Note]) -> None:
    """Print each code with its message once, on a line of its own."""
    for code, message in dict.fromkeys(lines):
        line = Text(text.printable(code), style="yellow")
        console.print(line.append(f"  {text.printable(message)}", style="default"))


def fits(console: Console, table: Table) -> bool:
    """Return whether the console is wide enough to print a table without folding its cells."""
    return Measurement.get(console, console.options.update(max_width=10_000), table).maximum <= console.width
