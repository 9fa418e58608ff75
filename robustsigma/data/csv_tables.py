"""CSV files of a dataset: tables that list images, and Saliency-Bench's tables of annotations."""

from __future__ import annotations

import csv
import json
import re
import threading
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from robustsigma.engine.validation import fail

_SEPARATOR = re.compile(r"\s*[;|]\s*")
_INDICES = re.compile(r"\d+(\s+\d+)+")
_LONGEST_CELL = 2**31 - 1  # the largest limit that fits a C long everywhere
_LIMIT = threading.Lock()


def read_csv(path: Path, columns: Sequence[str], name: str) -> Iterator[tuple[dict[str, str], str]]:
    """Yield the rows of a CSV file, by column, each with its file and line. Blank lines are skipped.

    Raises:
        ValueError: a column of `columns` that does not appear once, a row with another number of cells, or a file that
            is no UTF-8 text with commas. It names the argument `name`.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        header = _next_row(reader, name, f"{path}, line 1") or []
        if any(header.count(column) != 1 for column in columns):
            shown = ", ".join(cell[:40] for cell in header[:12]) or "nothing"
            raise fail(name, f"the columns {', '.join(columns)}, each once, in {path}", shown)
        while True:
            where = f"{path}, line {reader.line_num + 1}"
            cells = _next_row(reader, name, where)
            if cells is None:
                return
            if cells and len(cells) != len(header):
                raise fail(name, f"{len(header)} cells in {where}", len(cells))
            if cells:
                yield dict(zip(header, cells, strict=True)), where


def _next_row(reader: Iterator[list[str]], name: str, where: str) -> list[str] | None:
    """Return the next row, with cells of any length, or None after the last."""
    with _LIMIT:  # the limit is global in the csv module, so it is restored after each row
        before = csv.field_size_limit()
        csv.field_size_limit(max(before, _LONGEST_CELL))
        try:
            return next(reader, None)
        except (csv.Error, UnicodeDecodeError) as error:
            raise fail(name, f"rows of UTF-8 text, separated by commas, in {where}", error) from error
        finally:
            csv.field_size_limit(before)


class Columns(NamedTuple):
    """Names of a table's columns. None is a column that the table does not have."""

    file: str
    label: str
    mask: str | None = None
    split: str | None = None


class TableRow(NamedTuple):
    """A row of a table that lists images.

    Attributes:
        path: image file.
        labels: at least one correct class, each by index, WordNet identifier or name.
        mask: mask file, or None.
        split: name of the split, or None.
        where: file and line, for messages.
    """

    path: Path
    labels: tuple[str, ...]
    mask: Path | None
    split: str | None
    where: str


def read_table(table: Path, columns: Columns, *, images: Path, masks: Path) -> list[TableRow]:
    """Return the rows of a table that lists images. Whether the files exist is not checked.

    Args:
        table: CSV file.
        columns: columns to read.
        images: folder that paths of images are relative to.
        masks: folder that paths of masks are relative to.

    Raises:
        ValueError: a file that `read_csv` refuses, no row, a row without a label, or a path outside its folder.
    """
    if not table.is_file():
        raise fail("table", "an existing CSV file", str(table))
    rows = []
    for cells, place in read_csv(table, [column for column in columns if column is not None], "table"):
        where, text = f"in {place}", cells[columns.label].strip()
        labels = tuple(filter(None, text.split() if _INDICES.fullmatch(text) else _SEPARATOR.split(text)))
        if not labels:
            raise fail("label_column", f"at least one class {where}", "none")
        path = path_inside(images, cells[columns.file], "file_column", where)
        mask = "" if columns.mask is None else cells[columns.mask]
        mask_path = path_inside(masks, mask, "mask_column", where) if mask else None
        split = None if columns.split is None else cells[columns.split].strip()
        rows.append(TableRow(path, tuple(dict.fromkeys(labels)), mask_path, split, where))
    if not rows:
        raise fail("table", f"at least one row in {table}", "none")
    return rows


def path_inside(root: Path, text: str, name: str, where: str) -> Path:
    """Return the path of a file below a folder. `text` is relative to it, with "/" between its parts.

    Raises:
        ValueError: a path that is absolute on any system, goes up, or is a link that leads out of the folder.
    """
    posix, windows = PurePosixPath(text), PureWindowsPath(text)
    leaves = posix.is_absolute() or windows.drive or windows.root or ".." in (*posix.parts, *windows.parts)
    if leaves or "\0" in text or not posix.name:
        raise fail(name, f"a path that stays below {root}, {where}", repr(text[:80]))
    path = root / posix
    try:
        stays = path.resolve().is_relative_to(root.resolve())
        path.resolve(strict=True)
    except FileNotFoundError:  # reported when the file is read
        pass
    except (OSError, RuntimeError):  # links in a circle
        stays = False
    if not stays:
        raise fail(name, f"a path that stays below {root}, {where}", f"{text[:80]!r}, a link that leads elsewhere")
    return path


class Annotation(NamedTuple):
    """An annotation of Saliency-Bench: a two-dimensional array of numbers that spans the whole image.

    Attributes:
        where: file and line, for messages.
        packed: compressed text of the numbers. As floats, the annotations of a large dataset would fill the memory.
    """

    where: str
    packed: bytes

    def numbers(self) -> Tensor:
        """Return float64 (H, W) in [0, 1], or raise ValueError if the text is no such JSON array."""
        expected = f"a two-dimensional JSON array of numbers in [0, 1] in {self.where}"
        text = zlib.decompress(self.packed).decode()
        try:
            array = np.asarray(json.loads(text))
        except (ValueError, RecursionError) as error:  # raised by JSON, or by NumPy for rows of different lengths
            raise fail("root", expected, error) from error
        if array.dtype.kind not in "biuf":
            raise fail("root", expected, "entries that are no numbers" if array.ndim == 2 else repr(text[:40]))
        if array.ndim != 2 or array.size == 0:
            raise fail("root", expected, f"shape {array.shape}")
        if not ((array >= 0) & (array <= 1)).all():  # NaN fails both comparisons
            in_bytes = array.min() >= 0 and 1 < array.max() <= 255
            hint = "; numbers up to 255 must be divided by 255" if in_bytes else ""
            raise fail("root", expected, f"numbers from {array.min():g} to {array.max():g}{hint}")
        return torch.from_numpy(array.astype(np.float64))


def is_file_name(text: object) -> bool:
    """Return whether this is the name of a file or folder, which cannot lead out of the folder that it is in."""
    return isinstance(text, str) and text not in ("", ".", "..") and not set("/\\") & set(text)


def read_annotations(folder: Path) -> dict[str, Annotation]:
    """Return the annotation of each annotated image in the CSV files of a folder, by the name of the image's file.

    Raises:
        ValueError: no CSV file, malformed columns or rows, or two different annotations of one image.
    """
    files = folder.iterdir() if folder.is_dir() else []
    tables = sorted(path for path in files if path.suffix.lower() == ".csv" and path.name[0] != ".")
    if not tables:
        raise fail("root", f"CSV files of annotations in {folder}", "none" if folder.is_dir() else "no such folder")
    found: dict[str, Annotation] = {}
    for table in tables:
        for cells, where in read_csv(table, ("img_idx", "attention"), "root"):
            name = cells["img_idx"]
            if not is_file_name(name):
                expected = f"the name of a file, without its folder, as img_idx in {where}"
                raise fail("root", expected, repr(name[:80]))
            annotation = Annotation(f"{where} ({name})", zlib.compress(cells["attention"].encode(), 1))
            first = found.setdefault(name, annotation)
            if first.packed != annotation.packed and not torch.equal(first.numbers(), annotation.numbers()):
                got = f"two that differ: {first.where} and {annotation.where}"
                raise fail("root", f"one annotation of {name}", got)
    return found
