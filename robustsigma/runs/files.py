"""Files that are either complete or absent: atomic writes, and reads that name a damaged file."""

from __future__ import annotations

import io
import json
import os
import platform
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from robustsigma.engine.validation import fail

PART = ".part"  # suffix of a file that is being written


def write_atomically(path: Path, content: bytes | memoryview) -> Path:
    """Write a file beside its place and move it there in one step, so that no reader sees half of it.

    Raises:
        OSError: naming the file, where the disk is full or the place is not writable.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.{writer()}.", suffix=PART)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            umask = os.umask(0)
            os.umask(umask)
            Path(name).chmod(0o666 & ~umask)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        # A full disk names the file only when it is opened, and then it would name the temporary one.
        raise type(error)(error.errno, f"could not write {path}: {error.strerror or error}") from error
    return path


def writer() -> str:
    """Return the name of this machine and the number of this process, without a dot."""
    return f"{platform.node().replace('.', '-').replace('/', '-')[:60]}-{os.getpid()}"


def write_json(path: Path, value: Any, *, indent: int | None = None, allow_nan: bool = True) -> Path:
    """Write plain JSON types in one step."""
    return write_atomically(path, json.dumps(value, indent=indent, allow_nan=allow_nan).encode())


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], *, compress: bool = True) -> Path:
    """Write arrays by name to an .npz file in one step."""
    buffer = io.BytesIO()
    (np.savez_compressed if compress else np.savez)(buffer, **arrays)  # type: ignore[arg-type]
    return write_atomically(path, buffer.getbuffer())


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz file by name.

    Args:
        path: path of the file.

    Raises:
        ValueError: naming the file, if it is truncated, empty or something else.
    """
    with path.open("rb") as file:  # outside: a file that is missing or may not be read is not damaged
        try:
            if file.read(2) != b"PK":  # NumPy would take it for a pickle, and advise to read that
                raise zipfile.BadZipFile("no zip archive")
            file.seek(0)
            with np.load(file, allow_pickle=False) as found:
                return {name: found[name] for name in found.files}
        except MemoryError:
            raise
        except Exception as error:  # zipfile, zlib and NumPy each have errors of their own
            raise damaged(path, "an .npz file", error) from error


def read_json(path: Path, *, remedy: str | None = None) -> dict[str, Any]:
    """Return the object in a JSON file.

    Args:
        path: path of the file.
        remedy: what to do if the file is damaged; None advises to delete it.

    Raises:
        ValueError: naming the file, if it is truncated, empty or something else.
    """
    content = path.read_bytes()
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise damaged(path, "a JSON file", error, remedy) from error
    if not isinstance(found, dict):
        raise damaged(path, "a JSON file", TypeError(f"{type(found).__name__} instead of an object"), remedy)
    return found


def damaged(path: Path, expected: str, error: Exception, remedy: str | None = None) -> ValueError:
    """Return the error for a file of a run that cannot be read.

    Args:
        path: path of the file.
        expected: what it should be.
        error: raised by reading it.
        remedy: what to do; None advises to delete the file.
    """
    message = " ".join(str(error).split())[:160] or type(error).__name__
    remedy = remedy or "delete it, and the same command makes it again"
    return fail(str(path), f"{expected} that is whole", f"a damaged one ({message}); {remedy}")
