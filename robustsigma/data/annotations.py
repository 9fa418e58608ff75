"""Tables of annotations as Saliency-Bench publishes them: a two-dimensional array of numbers in each row."""

from __future__ import annotations

import csv
import json
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from robustsigma.engine.validation import fail

_COLUMNS = ("img_idx", "attention")
_LONGEST = 2**31 - 1  # the largest limit that fits a C long everywhere
_LIMIT = threading.Lock()


class Row(NamedTuple):
    """What a table says of an image.

    Attributes:
        where: file and line, for messages.
        packed: the numbers' text, compressed: as floats, the annotations of a large dataset would fill the memory.
    """

    where: str
    packed: bytes

    def numbers(self) -> Tensor:
        """Return float64 (H, W) in [0, 1]."""
        return _parsed(zlib.decompress(self.packed).decode(), self.where)


def is_name(text: object) -> bool:
    """Return whether this is a text that names a file or folder and cannot lead out of the folder that it is in."""
    return isinstance(text, str) and text not in ("", ".", "..") and not set("/\\") & set(text)


def read_rows(folder: Path) -> dict[str, Row]:
    """Return the row of each annotated image, by the name of its file.

    Numbers are not looked at, unless two rows are of one image: those must be equal.

    Args:
        folder: of CSV files with the columns `img_idx` and `attention`; others are passed over.

    Raises:
        ValueError: no CSV file, columns or rows missing or malformed, or two different annotations of one image.
    """
    found = folder.iterdir() if folder.is_dir() else []
    tables = sorted(path for path in found if path.suffix.lower() == ".csv" and path.name[0] != ".")
    if not tables:
        raise fail("root", f"CSV files of annotations in {folder}", "none" if folder.is_dir() else "no such folder")
    rows: dict[str, Row] = {}
    for table in tables:
        for name, row in _scan(table):
            first = rows.setdefault(name, row)
            if first.packed != row.packed and not torch.equal(first.numbers(), row.numbers()):
                raise fail("root", f"one annotation of {name}", f"two that differ: {first.where} and {row.where}")
    return rows


def _scan(table: Path) -> Iterator[tuple[str, Row]]:
    """Yield the rows of a table, each with the name of its image."""
    with table.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        header = _cells(reader, f"{table}, line 1") or []
        if any(header.count(column) != 1 for column in _COLUMNS):
            shown = ", ".join(cell[:40] for cell in header[:8]) or "nothing"
            raise fail("root", f"the columns {' and '.join(_COLUMNS)}, each once, in {table}", shown)
        name, attention = map(header.index, _COLUMNS)
        where = f"{table}, line {reader.line_num + 1}"
        while (cells := _cells(reader, where)) is not None:
            if cells:  # a blank line has none
                if len(cells) != len(header):
                    raise fail("root", f"{len(header)} cells in {where}", len(cells))
                if not is_name(cells[name]):
                    expected = f"the name of a file, without its folder, as img_idx in {where}"
                    raise fail("root", expected, repr(cells[name][:80]))
                yield cells[name], Row(f"{where} ({cells[name]})", zlib.compress(cells[attention].encode(), 1))
            where = f"{table}, line {reader.line_num + 1}"


def _cells(reader: Iterator[list[str]], where: str) -> list[str] | None:
    """Return the next row, or None after the last."""
    try:
        with _long_cells():
            return next(reader, None)
    except (csv.Error, UnicodeDecodeError) as error:
        raise fail("root", f"rows of UTF-8 text, separated by commas, in {where}", error) from error


@contextmanager
def _long_cells() -> Iterator[None]:
    """Let the csv module read cells of any length. Its limit is global, so that it is put back at once."""
    with _LIMIT:
        before = csv.field_size_limit()
        csv.field_size_limit(max(before, _LONGEST))
        try:
            yield
        finally:
            csv.field_size_limit(before)


def _parsed(text: str, where: str) -> Tensor:
    """Return the numbers of a JSON array, float64 (H, W) in [0, 1]."""
    expected = f"a two-dimensional JSON array of numbers in [0, 1] in {where}"
    try:
        array = np.asarray(json.loads(text))
    except (ValueError, RecursionError) as error:  # of JSON, or of NumPy for rows of different lengths
        raise fail("root", expected, error) from error
    if array.dtype.kind not in "biuf":
        raise fail("root", expected, "entries that are no numbers" if array.ndim == 2 else repr(text[:40]))
    if array.ndim != 2 or array.size == 0:
        raise fail("root", expected, f"shape {array.shape}")
    if not ((array >= 0) & (array <= 1)).all():  # NaN is on neither side
        bytes_ = array.min() >= 0 and 1 < array.max() <= 255
        hint = "; numbers up to 255 must be divided by 255" if bytes_ else ""
        raise fail("root", expected, f"numbers from {array.min():g} to {array.max():g}{hint}")
    return torch.from_numpy(array.astype(np.float64))
