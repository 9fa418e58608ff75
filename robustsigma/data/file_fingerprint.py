"""The fingerprint of image files, from their names, their sizes and the contents of some, without decoding any."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robustsigma.runs import fingerprint

_READ = 256  # files whose content is read, evenly spaced


def fingerprint_of_files(paths: Sequence[str]) -> dict[str, Any]:
    """Return the number of files and hashes of their paths and sizes, and of the content of up to 256, as JSON types.

    Paths count below their common folder. The time of a change does not count: copies of a folder, such as those on
    the disks of several nodes, are the same data.
    """
    found = sorted(paths)
    root = os.path.commonpath([found[0], found[-1]])  # that of all, as they are sorted
    names = hashlib.sha256()
    for path in found:
        names.update(f"{path[len(root) :]}\0{_size(path)}\n".encode(errors="surrogateescape"))
    places = sorted({*np.linspace(0, len(found) - 1, min(len(found), _READ)).round().astype(int).tolist()})
    content = fingerprint.files([Path(found[place]) for place in places], Path(root).parent)["content"]
    return {"count": len(found), "names": names.hexdigest(), "content": content}


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size  # noqa: PTH116  # a Path takes longer than the call
    except OSError:  # a missing file is for the reader to report
        return None
