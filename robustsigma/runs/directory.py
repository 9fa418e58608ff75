"""Folders that belong to one run: made, checked against the run's settings, and cleaned of half-written files."""

from __future__ import annotations

import json
import os
import re
import shlex
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from robustsigma.engine.validation import fail
from robustsigma.runs.files import PART, read_json, write_json, writer

_COMMAND = "command.json"
_FINGERPRINTS = {"network.": "the network weights", "data.": "the data (images and labels)", "code.": "the source"}


def output_folder(name: str | Path) -> Path:
    """Return the folder of a command's results, which is made and tried before anything is computed.

    Args:
        name: name of the folder; a leading `~` is the home folder.

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


def read_settings(folder: Path) -> dict[str, Any] | None:
    """Return the settings that a folder was made with, or None where it has none.

    Raises:
        ValueError: naming their file, if it is damaged.
    """
    path = folder / "settings.json"
    # To delete the file alone is no cure: finished work in the folder may be of other settings.
    remedy = f"which settings {folder} was made with is not known any more: delete the folder, or name another"
    return read_json(path, remedy=remedy) if path.is_file() else None


def write_command(folder: Path, command: str | None) -> None:
    """Write the command line of a run, and where it was run, for `report`."""
    if command is not None:
        write_json(folder / _COMMAND, {"command": command, "folder": str(Path.cwd())})


def read_command(folder: Path) -> tuple[list[str], Path]:
    """Return the arguments of the command line of a run, and where it was run.

    Raises:
        ValueError: there is none.
    """
    if not (folder / _COMMAND).is_file():
        told = f"{folder}, which has no {_COMMAND}; make the call that began it again"
        raise fail("run", "the folder of a run of evaluate or benchmark", told)
    found = read_json(folder / _COMMAND)
    return shlex.split(found["command"])[1:], Path(found["folder"])


def init_run_dir(folder: Path, settings: dict[str, Any]) -> None:
    """Make the folder of a run, or check that an existing one was made with the same settings.

    Temporary files that a killed process left there are removed.

    Args:
        folder: folder of the run.
        settings: as plain JSON types; written to `settings.json`.

    Raises:
        ValueError: naming the first setting that differs, or a damaged `settings.json`.
    """
    if folder.exists() and not folder.is_dir():
        raise fail("out", "a folder", f"the file {folder}")
    before = read_settings(folder)
    if before is None:
        write_json(folder / "settings.json", settings, indent=1)
        return
    differing = _difference(before, json.loads(json.dumps(settings)))
    if differing:
        what = next((kind for start, kind in _FINGERPRINTS.items() if differing.startswith(start)), "the settings")
        raise fail("out", f"a new folder, or {what} of the run in {folder}", f"{differing}; name another folder")
    remove_leftovers(folder)


def remove_leftovers(folder: Path) -> int:
    """Remove files that processes of this machine were writing when they were killed; return how many."""
    host = writer().rpartition("-")[0]
    found = 0
    for path in folder.rglob(f".*{PART}"):
        name, _, process = path.name.removesuffix(PART).rsplit(".", 2)[-2].rpartition("-")
        # Another machine's process, or one that is alive, may be writing it at this moment.
        if name == host and process.isdecimal() and not _is_alive(int(process)):
            path.unlink(missing_ok=True)
            found += 1
    return found


def _is_alive(process: int) -> bool:
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
        # Settings are compared before fingerprints.
        for key in sorted({*before, *now}, key=lambda key: (f"{key}." in _FINGERPRINTS, key)):
            found = _difference(before.get(key), now.get(key), f"{at}.{key}" if at else key)
            if found:
                return found
        return None
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        if re.fullmatch(r"network\.(.*\.)?logits", at):
            most = max(map(abs, before), default=0.0)  # another machine rounds differently
            return None if np.allclose(before, now, rtol=0, atol=0.01 * most) else f"{at} of two fixed images"
        parts = (_difference(a, b, f"{at}[{place}]") for place, (a, b) in enumerate(zip(before, now, strict=True)))
        return next(filter(None, parts), None)
    return None if before == now else f"{at} = {now} (the folder has {before})"
