"""The matrix of a robustness evaluation in the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from robustsigma.report import matrix, sweep, text

_LOOK: dict[str, Any] = {"title_style": "bold", "title_justify": "left", "box": SIMPLE_HEAD, "pad_edge": False}


def show(results: dict[str, Any], console: Console | None = None) -> None:
    """Print the matrix, then the flags and how many seeds stand behind it.

    Args:
        results: what the evaluation measured (schema 1).
        console: where to print; standard output if None.
    """
    console = console or Console()
    found = matrix.build(results)
    dataset = results.get("dataset") or {}
    title = f"Accuracy in % on {text.printable(dataset.get('name', 'the test set'))}"
    table = _table(title, found, found.columns)
    if fits(console, table):
        console.print(table)
    else:
        for group in found.columns:
            console.print(_table(f"{title}: {group.title.lower()}", found, (group,)))
    if matrix.one_seed_unsaid(results):
        console.print(Text("1 seed: how results vary between trainings is not known", style="bold red"))
    for line in flag_lines([*text.flags(results), *found.notes]):
        console.print(line)
    show_sweep(results, console)


def show_sweep(results: dict[str, Any], console: Console | None = None) -> None:
    """Print the sweep of each regime's Gaussian noise, if there was one, the best standard deviation marked.

    Args:
        results: what the evaluation measured, of which only the sweep is read.
        console: where to print; standard output if None.
    """
    console = console or Console()
    for block in sweep.build(results):
        table = Table(title=Text(f"Std of the Gaussian noise to train on: {block.title}"), **_LOOK)
        table.add_column("Std", justify="right")
        for head in block.heads:
            table.add_column(Text(head.label), justify="right")
        table.add_column(block.judged[0], justify="right")
        table.add_column("")
        for row in block.rows:
            shown = [text.percent((row["accuracy"].get(head.id) or {}).get("mean")) for head in block.heads]
            score = text.percent((row.get("score") or {}).get("mean"))
            best = bool(row.get("best"))
            mark = "best" if best else ""
            table.add_row(text.number(row["std"]), *shown, score, mark, style="bold green" if best else "")
        console.print(table)
        said = f"Accuracy in % on {block.where}; {block.judged[0].lower()}: {block.judged[1]}."
        console.print(Text(said, style="dim"))


def _table(title: str, found: matrix.Matrix, columns: tuple[matrix.Group, ...]) -> Table:
    """Return the table of some readings."""
    table = Table(title=Text(title), **_LOOK)
    table.add_column("Model", no_wrap=True)
    heads = [head for group in columns for head in group.heads]
    for head in heads:
        name = Text(head.label, style="bold")
        name.append("" if head.group == "none" else f"\n{text.printable(head.group)}", style="dim")
        table.add_column(name, justify="right", no_wrap=True)
    for group in found.rows:
        for regime in group.heads:
            label = Text(text.printable(regime.label))
            label.append("" if group.key == "none" else f", {group.title.lower()}", style="dim")
            table.add_row(label, *(_cell(found.cells.get((regime.id, head.id))) for head in heads))
        table.add_section()
    return table


def _cell(cell: matrix.Cell | None) -> Text:
    """Return one accuracy with the codes of its flags."""
    if cell is None:
        return Text(text.DASH, style="dim")
    shown = Text(text.percent(cell.accuracy.get("mean")))
    codes = list(dict.fromkeys(text.printable(flag.get("code", "flag")) for flag in cell.flags))
    if codes:
        shown.append("\n" + " ".join(codes), style="yellow")
    return shown


def flag_lines(flags: Iterable[tuple[str, str]]) -> list[Text]:
    """Return one line a flag, each flag once."""
    return [
        Text(text.printable(code), style="yellow").append(f"  {text.printable(message)}", style="default")
        for code, message in dict.fromkeys(flags)
    ]


def fits(console: Console, table: Table) -> bool:
    """Return whether a table can be printed without folding its cells."""
    return Measurement.get(console, console.options.update(max_width=10_000), table).maximum <= console.width
