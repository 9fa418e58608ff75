"""The scores of an attribution benchmark in the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from robustsigma.report import text
from robustsigma.report.attribution import board as boards
from robustsigma.report.attribution.board import Board, Cell, Method, Metric
from robustsigma.report.terminal import fits, flag_lines

MARKS = {"same": " \u2248", "worse": " \u25bc"}


def show(results: dict[str, Any], console: Console | None = None) -> None:
    """Print a table of each model's scores, then what was skipped and left out, and the flags.

    Args:
        results: what the benchmark measured (schema 1, kind "attribution").
        console: where to print; standard output if None.
    """
    console = console or Console()
    found = boards.build(results)
    dataset = results.get("dataset") or {}
    where = text.printable(dataset.get("name", "the images"))
    for board in found:
        title = f"Attribution on {where}" + (f", model {text.printable(board.model['id'])}" if len(found) > 1 else "")
        for heading, metrics in _parts(console, title, board):
            console.print(_table(heading, board, metrics))
        for reason, said in board.skips:
            console.print(Text("skipped ", style="dim").append(f"{reason}: {said}", style="default"))
    console.print(Text("bold: best and clearly so; \u2248 not clearly other than random, \u25bc worse than random; "
                       "\u2191 \u2193 where better scores lie", style="dim"))  # fmt: skip
    names = boards.names(results)
    for entry in results.get("left_out") or []:
        method, reason = names.get(entry["method"], entry["method"]), entry.get("reason") or "no reason given"
        said = text.printable(f"{method} on {entry['model']}: {reason}")
        console.print(Text("left out ", style="dim").append(said, style="default"))
    notes = [note for board in found for note in board.notes]
    for flag in flag_lines([*text.flags(results), *notes]):
        console.print(flag)


def _parts(console: Console, title: str, board: Board) -> Iterator[tuple[str, list[Metric]]]:
    """Return the tables that the console has room for: one, or one a group, or a group in pieces."""
    every = [metric for _, _, metrics in board.groups() for metric in metrics]
    if fits(console, _table(title, board, every)):
        yield title, every
        return
    for group, _, metrics in board.groups():
        heading, piece = f"{title}: {group.lower()}", list[Metric]()
        for metric in metrics:
            if piece and not fits(console, _table("", board, [*piece, metric])):
                yield heading, piece
                piece = []
            piece.append(metric)
        yield heading, piece


def _table(title: str, board: Board, metrics: list[Metric]) -> Table:
    """Return the table of some metrics: the methods, then the controls."""
    table = Table(title=Text(title), title_style="bold", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("Method", no_wrap=True)
    for metric in metrics:
        head = Text(f"{metric.title} {metric.arrow}", style="bold")
        head.append("" if metric.n is None else f"\nn {text.number(metric.n)}", style="dim")
        head.append(f"\n{metric.skipped} skipped" if metric.skipped else "", style="dim")
        table.add_column(head, justify="right", no_wrap=True)
    for rows, style in ((board.methods, ""), (board.controls, "dim")):
        for row in rows:
            table.add_row(
                _name(row), *(_cell(board.cells.get((row.id, metric.id)), metric, style) for metric in metrics)
            )
        table.add_section()
    return table


def _name(method: Method) -> Text:
    """Return the name of a method; a control says that it is one."""
    shown = Text(method.label if len(method.label) <= 30 else method.label[:29] + "\u2026")
    return shown.append(" (control)" if method.control else "", style="dim")


def _cell(cell: Cell | None, metric: Metric, style: str) -> Text:
    """Return one score with its mark, how many images were skipped, and the codes of its flags."""
    if cell is None:
        return Text(text.DASH, style="dim")
    shown = Text(metric.write(cell.value("mean")), style="bold" if cell.bold else style)
    shown.append(MARKS.get(cell.verdict, ""), style="yellow")
    skipped = sum(cell.skipped.values())
    if skipped != metric.skipped:
        shown.append(f"\n{skipped} skipped", style="dim")
    codes = dict.fromkeys(text.printable(code) for code, _ in text.flags(cell.entry))
    if codes:
        shown.append("\n" + " ".join(codes), style="yellow")
    return shown
