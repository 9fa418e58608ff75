"""Files that are either whole or not there, and folders that belong to one run."""

from __future__ import annotations

import json
import os
import platform
import re
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from robustsigma.engine.validation import fail

_PART = ".part"
_OTHERS = {"network.": "the network weights", "data.": "the data (images and labels)", "code.": "the source"}


def write_atomically(path: Path, content: bytes) -> Path:
    """Write a file beside its place and move it there in one step, so that nobody reads half of it.

    Raises:
        OSError: naming the file, where the disk is full or nobody may write there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.{_writer()}.", suffix=_PART)
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
        # A full disk says which file only when the file is opened, and then it would be the one beside.
        raise type(error)(error.errno, f"could not write {path}: {error.strerror or error}") from error
    return path


def output_folder(name: str | Path) -> Path:
    """Return the folder of a command's results, made and tried before anything is computed.

    Args:
        name: of the folder; a leading `~` is the home folder.

    Raises:
        ValueError: a file of this name, or a folder that cannot be written to.
    """
    folder = Path(name).expanduser()
    if folder.exists() and not folder.is_dir():
        raise fail("out", "a folder", f"the file {folder}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise fail("out", "a folder that can be written to", f"{folder} ({error.strerror or error})") from error
    return folder


def read_arrays(path: Path, *, remedy: str | None = None) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz file by name.

    Args:
        path: of the file.
        remedy: what helps if the file is damaged; to delete it if None.

    Raises:
        ValueError: naming the file, where it is cut short, empty or something else.
    """
    with path.open("rb") as file:  # outside: a file that is missing or not ours to read is not damaged
        try:
            if file.read(2) != b"PK":  # NumPy would take it for a pickle, and advise to read that
                raise zipfile.BadZipFile("no zip archive")
            file.seek(0)
            with np.load(file, allow_pickle=False) as found:
                return {name: found[name] for name in found.files}
        except MemoryError:
            raise
        except Exception as error:  # zipfile, zlib and NumPy each have errors of their own
            raise damaged(path, "an .npz file", error, remedy) from error


def read_json(path: Path, *, remedy: str | None = None) -> dict[str, Any]:
    """Return what a JSON file holds, an object.

    Args:
        path: of the file.
        remedy: what helps if the file is damaged; to delete it if None.

    Raises:
        ValueError: naming the file, where it is cut short, empty or something else.
    """
    content = path.read_bytes()
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise damaged(path, "a JSON file", error, remedy) from error
    if not isinstance(found, dict):
        raise damaged(path, "a JSON file", TypeError(f"{type(found).__name__} instead of an object"), remedy)
    return found


def read_settings(folder: Path) -> dict[str, Any] | None:
    """Return the settings that a folder was made with, or None where none are kept in it.

    Raises:
        ValueError: naming their file, where it is damaged.
    """
    path = folder / "settings.json"
    # To delete the file alone is no cure: what is finished there may be of other settings.
    remedy = f"which settings {folder} was made with is not known any more: delete the folder, or name another"
    return read_json(path, remedy=remedy) if path.is_file() else None


def damaged(path: Path, expected: str, error: Exception, remedy: str | None = None) -> ValueError:
    """Return the error for a file of a run that cannot be read.

    Args:
        path: of the file.
        expected: what it should be.
        error: that reading it raised.
        remedy: what helps; to delete it if None.
    """
    told = " ".join(str(error).split())[:160]
    remedy = remedy or "delete it, and the same command makes it again"
    return fail(str(path), f"{expected} that is whole", f"a damaged one ({told or type(error).__name__}); {remedy}")


def init_run_dir(folder: Path, settings: dict[str, Any]) -> None:
    """Make a folder for a run of these settings, or find that it is one: only then may the run go on there.

    What a killed process left half-written beside its place is removed.

    Args:
        folder: of the run.
        settings: as plain JSON types; kept in `settings.json`.

    Raises:
        ValueError: naming the first setting that differs, or a damaged `settings.json`.
    """
    if folder.exists() and not folder.is_dir():
        raise fail("out", "a folder", f"the file {folder}")
    before = read_settings(folder)
    if before is None:
        write_atomically(folder / "settings.json", json.dumps(settings, indent=1).encode())
        return
    differing = _difference(before, json.loads(json.dumps(settings)))
    if differing:
        what = next((told for start, told in _OTHERS.items() if differing.startswith(start)), "the settings")
        raise fail("out", f"a new folder, or {what} of the run in {folder}", f"{differing}; name another folder")
    remove_leftovers(folder)


def remove_leftovers(folder: Path) -> int:
    """Remove what processes of this machine were writing in a folder when they were killed; return how many files."""
    host = _writer().rpartition("-")[0]
    found = 0
    for path in folder.rglob(f".*{_PART}"):
        writer = path.name.removesuffix(_PART).rsplit(".", 2)[-2]
        name, _, process = writer.rpartition("-")
        # Another machine's process, or one that lives, may be writing it at this moment.
        if name == host and process.isdecimal() and not _lives(int(process)):
            path.unlink(missing_ok=True)
            found += 1
    return found


def _writer() -> str:
    """Return which process of which machine this is, without a dot."""
    return f"{platform.node().replace('.', '-').replace('/', '-')[:60]}-{os.getpid()}"


def _lives(process: int) -> bool:
    if os.name == "nt":  # there, signal 0 would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        return True
    return True


def _difference(before: Any, now: Any, at: str = "") -> str | None:
    """Return where two settings differ first, in words, or None."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}, key=lambda key: (f"{key}." in _OTHERS, key)):  # settings come first
            found = _difference(before.get(key), now.get(key), f"{at}.{key}" if at else key)
            if found:
                return found
        return None
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        if re.fullmatch(r"network\.(.*\.)?logits", at):
            most = max(map(abs, before), default=0.0)  # another machine rounds otherwise
            return None if np.allclose(before, now, rtol=0, atol=0.01 * most) else f"{at} of two fixed images"
        parts = (_difference(a, b, f"{at}[{place}]") for place, (a, b) in enumerate(zip(before, now, strict=True)))
        return next(filter(None, parts), None)
    return None if before == now else f"{at} = {now} (the folder has {before})"
