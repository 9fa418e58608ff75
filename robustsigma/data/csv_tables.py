"""CSV files of a dataset: tables that list images, and Saliency-Bench's tables of annotations."""

from __future__ import annotations

import csv
import json
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from robustsigma.engine.validation import fail

# Names of folders and a file without anything that an operating system could read in another way.
_PLAIN = re.compile(r"(?:(?!\.\.?/)[^/\\:\0]+/)*(?!\.\.?$)[^/\\:\0]+")
_LONGEST_CELL = 2**31 - 1  # the largest limit that fits a C long everywhere


def delimiter_of(header: str, columns: Sequence[str] = ()) -> str:
    """Return what separates the cells of a header: a comma, a semicolon or a tab, so that it has the columns if any."""
    cells = {each: next(csv.reader([header], delimiter=each), []) for each in ",;\t"}
    fit = [each for each in cells if {*columns} <= {*cells[each]}]
    return max(fit or cells, key=lambda each: len(cells[each]))


def read_csv(path: Path, columns: Sequence[str], name: str) -> Iterator[tuple[dict[str, str], str]]:
    """Yield the rows of a CSV file, by column, each with its file and line. Blank lines are skipped.

    Commas, semicolons or tabs separate its cells, as its header shows.

    ValueError, naming the argument `name`: anything but UTF-8 text with each of `columns` once and equal rows.
    """
    limit = csv.field_size_limit()  # global in the csv module
    with path.open(encoding="utf-8-sig", newline="") as file:
        where = f"{path}, line 1"
        try:
            csv.field_size_limit(max(limit, _LONGEST_CELL))
            reader = csv.reader(file, strict=True, delimiter=delimiter_of(file.readline(), columns))
            file.seek(0)
            header = next(reader, [])
            if any(header.count(column) != 1 for column in columns):
                shown = ", ".join(cell[:40] for cell in header[:12]) or "nothing"
                raise fail(name, f"the columns {', '.join(columns)}, each once, in {path}", shown)
            where = f"{path}, line {reader.line_num + 1}"
            for cells in reader:
                if cells and len(cells) != len(header):
                    raise fail(name, f"{len(header)} cells in {where}", len(cells))
                if cells:
                    yield dict(zip(header, cells, strict=True)), where
                where = f"{path}, line {reader.line_num + 1}"
        except (csv.Error, UnicodeDecodeError) as error:
            expected = f"rows of UTF-8 text, with cells between commas, semicolons or tabs, in {where}"
            raise fail(name, expected, error) from error
        finally:
            csv.field_size_limit(limit)


class PathsInside:
    """Makes paths of files below a folder from the texts of a table.

    Args:
        root: the folder.
        name: argument that an error names.
    """

    def __init__(self, root: Path, name: str) -> None:
        self.root, self.name, self.prefix = root, name, f"{root}/"
        self._real = root.resolve()
        self._folders: dict[str, bool] = {}  # whether each one lies inside; files are many and folders few

    def find(self, text: str, where: str) -> str:
        """Return the path of a file; a text or link that leaves the folder on any system is a ValueError."""
        stays = True
        if not _PLAIN.fullmatch(text):  # a Path takes several times as long as all that follows
            posix, windows = PurePosixPath(text), PureWindowsPath(text)
            stays = bool(posix.name) and not windows.anchor and ".." not in (*posix.parts, *windows.parts)
            stays, text = stays and "\0" not in text, str(posix)
        path, folder = f"{self.prefix}{text}", text.rpartition("/")[0]
        try:
            if stays and folder not in self._folders:
                self._folders[folder] = Path(self.root, folder).resolve().is_relative_to(self._real)
            stays = stays and self._folders[folder]
            if stays and os.path.islink(path):  # noqa: PTH114
                stays = Path(path).resolve().is_relative_to(self._real)
        except (OSError, RuntimeError):  # links in a circle
            stays = False
        if not stays:
            raise fail(self.name, f"a path that stays below {self.root}, {where}", repr(text[:80]))
        return path


class Annotation(NamedTuple):
    """An annotation of Saliency-Bench: a two-dimensional array of numbers that spans the whole image, as packed JSON.

    As floats, the annotations of a large dataset would fill the memory.
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
    """Return the annotation of each annotated image in the CSV files of a folder, by the name of the image's file."""
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
