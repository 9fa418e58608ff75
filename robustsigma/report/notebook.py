"""Tables in a notebook: small HTML without a style sheet."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from robustsigma.report import text
from robustsigma.report.table import Note, TableCell, TableLayout

_CELL = "padding:4px 10px;text-align:right;white-space:nowrap"


def html_table(table: TableLayout, notes: Iterable[Note] = ()) -> str:
    """Return a table as HTML, with intervals and codes of flags in its cells, and notes below."""
    heads = "".join(
        f'<th style="{_CELL}">{_safe(head.label)}<br><small>{_safe(group.suffix) or "&nbsp;"}</small></th>'
        for group in table.columns
        for head in group.heads
    )
    rows = "".join(
        f'<tr><th style="{_CELL};text-align:left">{_safe(head.label + group.suffix)}</th>'
        + "".join(_cell(table.cells.get((head.id, column.id), TableCell())) for column in table.column_heads)
        + "</tr>"
        for group in table.rows
        for head in group.heads
    )
    listed = "".join(f"<li><b>{_safe(code)}</b> {_safe(message)}</li>" for code, message in dict.fromkeys(notes))
    return (
        f'<table><caption style="text-align:left">{_safe(table.title)}</caption>'
        f"<thead><tr><th></th>{heads}</tr></thead><tbody>{rows}</tbody></table>{f'<ul>{listed}</ul>' if listed else ''}"
    )


def _cell(cell: TableCell) -> str:
    codes = ", ".join(dict.fromkeys(code for code, _ in cell.flags))
    lines = [*map(_safe, cell.details), *([f"<b>{_safe(codes)}</b>"] if codes else [])]
    small = f"<br><small>{'<br>'.join(lines)}</small>" if lines else ""
    return f'<td style="{_CELL}" title="{_safe(cell.hint)}">{_safe(cell.text)}{small}</td>'


def _safe(value: str) -> str:
    return escape(text.printable(value))
