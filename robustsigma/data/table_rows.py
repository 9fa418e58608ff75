"""CSV files that list images: their rows, and paths that cannot leave their folder."""

from __future__ import annotations

import csv
import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

from robustsigma.engine.validation import fail

_BETWEEN = re.compile(r"\s*[;|]\s*")
_INDICES = re.compile(r"\d+(\s+\d+)+")


class Columns(NamedTuple):
    """Names of a table's columns; None is one that it does not have."""

    file: str
    label: str
    mask: str | None = None
    split: str | None = None


class Listed(NamedTuple):
    """A row of the table.

    Attributes:
        path: of the image.
        labels: what the row calls it: one class or more, each by index, WordNet identifier or name.
        mask: of the object, or None.
        split: that the row names, or None.
        where: file and line, for messages.
    """

    path: Path
    labels: tuple[str, ...]
    mask: Path | None
    split: str | None
    where: str


def read_table(table: Path, columns: Columns, *, images: Path, masks: Path) -> list[Listed]:
    """Return the rows of a CSV file.

    Args:
        table: the file: UTF-8, commas, a header.
        columns: names of those that are read; others are passed over.
        images: folder that paths of images are relative to.
        masks: folder that paths of masks are relative to.

    Raises:
        ValueError: no such file, columns missing or there twice, no row, cells that are empty, or a path that leads
            out of its folder. Whether the files are there is not looked at.
    """
    if not table.is_file():
        raise fail("table", "an existing CSV file", str(table))
    rows = []
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            wanted = [column for column in columns if column is not None]
            if any(header.count(column) != 1 for column in wanted):
                shown = ", ".join(cell[:40] for cell in header[:12]) or "nothing"
                raise fail("table", f"the columns {', '.join(wanted)}, each once, in {table}", shown)
            for cells in reader:
                where = f"in {table}, line {reader.line_num}"
                if cells and len(cells) != len(header):
                    raise fail("table", f"{len(header)} cells {where}", len(cells))
                if cells:
                    rows.append(_row(dict(zip(header, cells, strict=True)), columns, images, masks, where))
    except (csv.Error, UnicodeDecodeError) as error:
        raise fail("table", f"rows of UTF-8 text, separated by commas, in {table}", error) from error
    if not rows:
        raise fail("table", f"at least one row in {table}", "none")
    return rows


def _row(cells: dict[str, str], columns: Columns, images: Path, masks: Path, where: str) -> Listed:
    text = cells[columns.label].strip()
    labels = tuple(filter(None, text.split() if _INDICES.fullmatch(text) else _BETWEEN.split(text)))
    if not labels:
        raise fail("label_column", f"at least one class {where}", "none")
    mask = "" if columns.mask is None else cells[columns.mask]
    return Listed(
        inside(images, cells[columns.file], "file_column", where),
        tuple(dict.fromkeys(labels)),
        inside(masks, mask, "mask_column", where) if mask else None,
        None if columns.split is None else cells[columns.split].strip(),
        where,
    )


def inside(root: Path, text: str, name: str, where: str) -> Path:
    """Return the path of a file below a folder.

    Args:
        root: the folder.
        text: path relative to it, with "/" between its parts.
        name: of the argument, for the error.
        where: the text stands, for the error.

    Raises:
        ValueError: a path that is absolute on any system, goes up, or is a link that leads out of the folder.
    """
    posix, windows = PurePosixPath(text), PureWindowsPath(text)
    leaves = posix.is_absolute() or windows.drive or windows.root or ".." in (*posix.parts, *windows.parts)
    if leaves or "\0" in text or not posix.name:
        raise fail(name, f"a path that stays below {root}, {where}", repr(text[:80]))
    path = root / posix
    try:
        stays = path.resolve(strict=True).is_relative_to(root.resolve())
    except FileNotFoundError:  # which is for the reader to tell
        stays = path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # links in a circle
        stays = False
    if not stays:
        raise fail(name, f"a path that stays below {root}, {where}", f"{text[:80]!r}, a link that leads elsewhere")
    return path
