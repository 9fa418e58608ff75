"""The layout of a table, which the page, the terminal and the figures all render."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from robustsigma.report.text import DASH, color, printable

Note = tuple[str, str]


@dataclass(frozen=True)
class Heading:
    """The heading of a row or a column.

    Attributes:
        id: key of the row or column in `TableLayout.cells`.
        label: what is shown.
        detail: a second, smaller line.
        hint: tooltip.
        words: whether the column holds text, which is aligned left, rather than numbers.
    """

    id: str
    label: str
    detail: str = ""
    hint: str = ""
    words: bool = False


@dataclass(frozen=True)
class HeadingGroup:
    """Headings with a common title; without a title, the headings stand alone.

    Attributes:
        key: value that the headings have in common.
        title: shown above the headings.
        hint: explanation of the title.
        heads: the headings.
        suffix: added to the labels where no titles are shown, as in a terminal.
    """

    key: str
    title: str
    hint: str
    heads: tuple[Heading, ...]
    suffix: str = ""


@dataclass(frozen=True)
class TableCell:
    """One cell.

    Attributes:
        text: the number or the words.
        details: smaller lines below, such as the interval.
        mark: sign and words of a warning, as in ("≈", "random").
        tone: names of styles: "better", "worse", "same", "best", "control".
        fill: background as a fraction in [0, 1] of the color ramp.
        hint: tooltip.
        flags: code and message of each flag; the page shows them as footnotes.
        bar: places of zero, low, mean and high in [0, 100] for a bar below the text.
        remark: a smaller line that a terminal shows as well.
    """

    text: str = DASH
    details: tuple[str, ...] = ()
    mark: tuple[str, str] | None = None
    tone: str = ""
    fill: float | None = None
    hint: str = ""
    flags: tuple[Note, ...] = ()
    bar: tuple[float, float | None, float, float | None] | None = None
    remark: str = ""

    @property
    def colors(self) -> tuple[str, str]:
        """Background and text color."""
        return color(self.fill)


@dataclass(frozen=True)
class TableLayout:
    """Groups of columns, groups of rows and the cells that are known.

    Attributes:
        corner: heading of the row headings.
        columns: groups of columns.
        rows: groups of rows.
        cells: by the ids of row and column; a pair without a cell was not measured.
        title: shown above the table in a terminal.
        style: names of styles in the page.
    """

    corner: str
    columns: tuple[HeadingGroup, ...]
    rows: tuple[HeadingGroup, ...]
    cells: dict[tuple[str, str], TableCell]
    title: str = ""
    style: str = "plain"

    @property
    def column_heads(self) -> list[Heading]:
        """Every column, in order."""
        return [head for group in self.columns for head in group.heads]

    @property
    def row_heads(self) -> list[Heading]:
        """Every row, in order."""
        return [head for group in self.rows for head in group.heads]

    @property
    def footnotes(self) -> list[Note]:
        """Each flag of the cells once, row by row."""
        pairs = ((row.id, column.id) for row in self.row_heads for column in self.column_heads)
        return list(dict.fromkeys(flag for pair in pairs if pair in self.cells for flag in self.cells[pair].flags))

    def split(self, fits: Callable[[TableLayout], bool]) -> list[TableLayout]:
        """Split the table by its columns into tables that fit, groups left whole where possible."""
        if fits(self):
            return [self]
        parts: list[TableLayout] = []
        for group in self.columns:
            if parts and fits(grown := self._part((*parts[-1].columns, group))):
                parts[-1] = grown
                continue
            piece: list[Heading] = []
            for head in group.heads:
                if piece and not fits(self._part((replace(group, heads=(*piece, head)),))):
                    parts.append(self._part((replace(group, heads=tuple(piece)),)))
                    piece = []
                piece.append(head)
            parts.append(self._part((replace(group, heads=tuple(piece)),)))
        return parts

    def _part(self, columns: tuple[HeadingGroup, ...]) -> TableLayout:
        names = ", ".join(group.title.lower() for group in columns)
        return replace(self, columns=columns, title=f"{self.title}: {names}" if names else self.title)


def group_by(
    entries: Iterable[tuple[str, Heading]],
    known: dict[str, tuple[str, str]],
    suffix: Callable[[str, str], str] = lambda key, title: "",
) -> tuple[HeadingGroup, ...]:
    """Group headings by their keys: known keys first and in their order, with their titles and hints.

    Args:
        entries: key and heading.
        known: title and hint of each known key; another key is its own title.
        suffix: returns the suffix of a group for its key and title.
    """
    listed, groups = list(entries), []
    for key in dict.fromkeys([*known, *(key for key, _ in listed)]):
        heads = tuple(head for mine, head in listed if mine == key)
        if heads:
            title, hint = known.get(key, (printable(key), ""))
            groups.append(HeadingGroup(key, title, hint, heads, suffix(key, title)))
    return tuple(groups)


def listing(
    heads: Sequence[str], *bands: tuple[str, str, Iterable[Sequence[Any]]], words: Collection[str] = ()
) -> TableLayout:
    """Return a table of rows that have no ids of their own.

    Args:
        heads: of the columns; the first one is that of the row headings.
        bands: title, hint and rows of each group of rows. A row is a label, or a label with its detail, followed by one
            cell, or its text, for each further column.
        words: the columns that hold text.
    """
    columns = tuple(Heading(str(place), head, words=head in words) for place, head in enumerate(heads[1:]))
    groups, cells = [], {}
    for title, hint, rows in bands:
        found = []
        for first, *values in rows:
            label, detail = first if isinstance(first, tuple) else (first, "")
            head = Heading(f"{len(groups)}.{len(found)}", str(label), detail)
            found.append(head)
            for column, value in zip(columns, values, strict=True):
                cells[head.id, column.id] = value if isinstance(value, TableCell) else TableCell(str(value))
        groups.append(HeadingGroup("", title, hint, tuple(found)))
    return TableLayout(heads[0], (HeadingGroup("", "", "", columns),), tuple(groups), cells)


@dataclass(frozen=True)
class Exhibit:
    """What a section of a page shows under one heading: a picture, tables and remarks.

    Attributes:
        title: heading; empty where the title of the section says it all.
        lead: a sentence below the heading.
        tables: the tables.
        picture: file name, without its ending, of a figure that is shown if it was drawn.
        alt: description of the picture.
        footnotes: flags that the cells of the tables refer to.
        remarks: sentences below the tables.
        key: prefix of the anchors of the footnotes, unique in the page.
    """

    title: str = ""
    lead: str = ""
    tables: tuple[TableLayout, ...] = ()
    picture: str = ""
    alt: str = ""
    footnotes: tuple[Note, ...] = ()
    remarks: tuple[str, ...] = ()
    key: str = "note"
