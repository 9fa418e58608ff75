"""The layout of a table, which the page, the terminal and the figures all render."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from robustsigma.report.text import DASH, interval, name, points, printable

Note = tuple[str, str]  # code and message of a flag


@dataclass(frozen=True)
class Heading:
    """The heading of a row or a column."""

    id: str  # key of the row or column in `TableLayout.cells`
    label: str
    detail: str = ""  # a smaller line below
    hint: str = ""  # tooltip
    words: bool = False  # whether a column holds text, which is aligned left, rather than numbers


@dataclass(frozen=True)
class HeadingGroup:
    """Headings with a common title; without a title, the headings stand alone."""

    key: str  # value that the headings have in common
    title: str
    hint: str  # explanation of the title
    heads: tuple[Heading, ...]
    suffix: str = ""  # added to the labels where no titles are shown, as in a terminal


@dataclass(frozen=True)
class TableCell:
    """One cell."""

    text: str = DASH
    details: tuple[str, ...] = ()  # smaller lines below, such as the interval
    mark: tuple[str, str] | None = None  # sign and words of a warning, as in ("≈", "random")
    tone: str = ""  # style: "better", "worse", "same", "best", "mark" or "control"
    fill: float | None = None  # background as a fraction in [0, 1] of the color ramp
    hint: str = ""  # tooltip
    flags: tuple[Note, ...] = ()  # footnotes of the page, codes in a terminal
    bar: tuple[float | None, ...] | None = None  # zero, low, mean and high in [0, 100] of a bar below the text
    remark: str = ""  # a smaller line that a terminal shows as well


@dataclass(frozen=True)
class TableLayout:
    """Groups of columns, groups of rows, and a cell for each pair of their headings that was measured."""

    corner: str  # heading of the row headings
    columns: tuple[HeadingGroup, ...]
    rows: tuple[HeadingGroup, ...]
    cells: dict[tuple[str, str], TableCell]  # by the ids of row and column
    title: str = ""  # shown in a terminal
    style: str = "plain"  # style of the page

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
        """Each flag of the cells once; all parts of a table have the same ones."""
        return list(dict.fromkeys(flag for cell in self.cells.values() for flag in cell.flags))

    def transposed(self, corner: str) -> TableLayout:
        """Return the table with its rows as columns."""
        cells = {(column, row): cell for (row, column), cell in self.cells.items()}
        return replace(self, corner=corner, columns=self.rows, rows=self.columns, cells=cells)

    def split(self, fits: Callable[[TableLayout], bool]) -> list[TableLayout]:
        """Split the table by its columns into tables that fit, with whole groups if possible."""
        if fits(self):
            return [self]
        parts: list[TableLayout] = []
        for group in self.columns:
            if parts and fits(grown := self._part((*parts[-1].columns, group))):
                parts[-1] = grown
                continue
            parts.append(self._part((replace(group, heads=()),)))
            for head in group.heads:
                (last,) = parts[-1].columns
                grown = self._part((replace(group, heads=(*last.heads, head)),))
                if fits(grown) or not last.heads:
                    parts[-1] = grown
                else:
                    parts.append(self._part((replace(group, heads=(head,)),)))
        return parts

    def _part(self, columns: tuple[HeadingGroup, ...]) -> TableLayout:
        names = ", ".join(group.title.lower() for group in columns)
        return replace(self, columns=columns, title=f"{self.title}: {names}" if names else self.title)


@dataclass(frozen=True)
class Exhibit:
    """What a section of a page shows under one heading: a picture, tables and remarks."""

    title: str = ""  # empty if the title of the section says it all
    lead: str = ""  # a sentence below the title
    tables: tuple[TableLayout, ...] = ()
    picture: str = ""  # file name of a figure without its ending; shown if the figure was drawn
    alt: str = ""  # description of the picture
    remarks: tuple[str, ...] = ()  # sentences below the tables
    key: str = "note"  # prefix of the anchors of the footnotes, unique in the page


def headings(entries: Iterable[dict[str, Any]], key: str = "") -> list[tuple[str, Heading]]:
    """Return the value of a field of each entry, and its heading; headings that would be the same show their ids."""
    keyed = [(str(entry.get(key) or "none"), name(entry.get("name", entry["id"])), entry) for entry in entries]
    shared = Counter((value, label) for value, label, _ in keyed)
    return [
        (value, Heading(e["id"], label if shared[value, label] == 1 else e["id"], hint=str(e.get("settings") or "")))
        for value, label, e in keyed
    ]


def group_by(
    entries: Iterable[tuple[str, Heading]],
    known: dict[str, tuple[str, str]],
    suffix: Callable[[str, str], str] = lambda key, title: "",
) -> tuple[HeadingGroup, ...]:
    """Group headings by their keys, known keys first.

    Args:
        entries: key and heading.
        known: title and hint of each known key; another key is its own title.
        suffix: returns the suffix of a group for its key and title.
    """
    listed, groups = list(entries), []
    for key in dict.fromkeys([*known, *(key for key, _ in listed)]):
        if heads := tuple(head for mine, head in listed if mine == key):
            title, hint = known.get(key, (printable(key), ""))
            groups.append(HeadingGroup(key, title, hint, heads, suffix(key, title)))
    return tuple(groups)


def listing(
    heads: Sequence[str], *bands: tuple[str, str, Iterable[Sequence[Any]]], words: Collection[str] = ()
) -> TableLayout:
    """Return a table of rows that have no ids of their own; a column without any value is left out.

    Args:
        heads: headings of the columns, the first of the row headings.
        bands: title, hint and rows of each group of rows. A row is a label, or a label with its detail, followed by one
            cell, or its text, for each further column.
        words: the columns that hold text.
    """
    columns = tuple(Heading(str(place), head, words=head in words) for place, head in enumerate(heads[1:]))
    groups, cells = [], {}
    for band, (title, hint, rows) in enumerate(bands):
        found = []
        for place, (first, *values) in enumerate(rows):
            label, detail = first if isinstance(first, tuple) else (first, "")
            found.append(Heading(f"{band}.{place}", str(label), detail))
            for column, value in zip(columns, values, strict=True):
                cells[found[-1].id, column.id] = value if isinstance(value, TableCell) else TableCell(str(value))
        groups.append(HeadingGroup("", title, hint, tuple(found)))
    filled = {column for (_, column), cell in cells.items() if cell.text != DASH}
    columns = tuple(column for column in columns if column.id in filled) or columns
    return TableLayout(heads[0], (HeadingGroup("", "", "", columns),), tuple(groups), cells)


def mean_cell(estimate: dict[str, Any] | None, write: Callable[[Any], str]) -> TableCell:
    """Return a mean with its interval."""
    return TableCell(write((estimate or {}).get("mean")), interval(estimate, write))


def difference_cell(estimate: dict[str, Any]) -> TableCell:
    """Return a difference in points with its interval."""
    low, high = (points(estimate.get(key)) for key in ("low", "high"))
    return TableCell(points(estimate.get("mean")), () if DASH in (low, high) else (f"{low} to {high}",))
