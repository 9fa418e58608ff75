"""The folder that `explain` writes: pictures, maps, samples, and manifest.json, from which it resumes."""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

import robustsigma
from robustsigma.cli.images import png
from robustsigma.engine.validation import fail
from robustsigma.runs.files import read_json, write_atomically, write_json
from robustsigma.runs.fingerprint import files

_SCHEMA = 1
_PAUSE = 2.0  # seconds between two writes of the manifest; a killed run loses the entries of so many


class MapFiles(NamedTuple):
    """What a method made of an image: its values (C, H, W), for SIGMA its sample, and its walk: a file, its suffix."""

    values: np.ndarray
    sample: Tensor | None = None
    walk: tuple[bytes, str] | None = None


class ExplainedFolder:
    """What is known of each image, by the path of its file, and the files that were made of it.

    An entry is kept if its image, its settings and its files are the same as before, and so are the entries of images
    that are not asked for. The others are removed from the manifest before anything is computed: a run that is killed
    must not leave an entry beside the map of other settings.

    Args:
        out: the folder.
        paths: image files to explain.
        settings: what the maps depend on beside the image.
        style: what the pictures depend on beside the maps.
    """

    def __init__(self, out: Path, paths: Sequence[Path], settings: Mapping[str, Any], style: Any) -> None:
        self.out, self._file, self._written = out, out / "manifest.json", 0.0
        self._entries: dict[str, dict[str, Any]] = {}
        if self._file.is_file():
            found = read_json(self._file, remedy="delete it, and all images are explained again")
            if not isinstance(found, dict) or found.get("schema") != _SCHEMA:
                raise fail("out", f"a folder whose manifest.json has schema {_SCHEMA}", f"{self._file}; name another")
            self._entries = {entry["file"]: entry for entry in found["images"]}
        self._names = self._unique(paths)
        contents = {path: files([path])["content"] for path in paths}
        self._maps = {str(path): _digest([settings, contents[path], self._names[str(path)]]) for path in paths}
        self._looks = {name: _digest([digest, style]) for name, digest in self._maps.items()}
        for name, digest in self._maps.items():
            entry = self._entries.get(name, {})
            parts = [part for record in entry.get("maps", ()) for part in record["files"].values()]
            if entry.get("maps_of") != digest or not all((out / part).is_file() for part in parts):
                self._entries.pop(name, None)
            elif entry.get("picture_of") != self._looks[name] or not (out / entry["picture"]).is_file():
                entry["picture_of"] = None
        self.write()

    def has_maps(self, path: Path) -> bool:
        """Return whether the maps of an image are there."""
        return str(path) in self._entries

    def is_finished(self, path: Path) -> bool:
        """Return whether its picture is there as well."""
        return self.has_maps(path) and self._entries[str(path)]["picture_of"] is not None

    def save(self, path: Path, entry: Mapping[str, Any], made: Sequence[MapFiles]) -> None:
        """Write the maps of an image, and what belongs to them; `entry` has a record for each in `maps`."""
        name = self._names[str(path)]
        for number, (record, each) in enumerate(zip(entry["maps"], made, strict=True)):
            before = [other["method"] for other in entry["maps"][:number]].count(record["method"])
            stem = f"{name}.{record['method']}{f'-{before + 1}' if before else ''}"
            buffer = io.BytesIO()
            np.save(buffer, each.values)
            record["files"] = {"map": write_atomically(self.out / f"{stem}.npy", buffer.getvalue()).name}
            if each.sample is not None:
                content = png((255 * each.sample).round())
                record["files"]["sample"] = write_atomically(self.out / f"{stem}.sample.png", content).name
            if each.walk is not None:
                content, suffix = each.walk
                record["files"]["path"] = write_atomically(self.out / f"{stem}.path.{suffix}", content).name
        picture = {"file": str(path), "picture": f"{name}.png", "picture_of": None, "maps_of": self._maps[str(path)]}
        self._entries[str(path)] = {**picture, **entry}

    def load(self, path: Path) -> tuple[dict[str, Any], list[np.ndarray], list[np.ndarray | None]]:
        """Return the entry of an image, its maps (C, H, W), and its samples (C, H, W) in [0, 1] or None."""
        entry = self._entries[str(path)]
        parts = [record["files"] for record in entry["maps"]]
        maps = [np.load(self.out / each["map"], allow_pickle=False) for each in parts]
        return entry, maps, [_pixels(self.out / each["sample"]) if "sample" in each else None for each in parts]

    def finish(self, path: Path, picture: bytes) -> None:
        """Write the picture of an image."""
        entry = self._entries[str(path)]
        write_atomically(self.out / entry["picture"], picture)
        entry["picture_of"] = self._looks[str(path)]
        if time.monotonic() - self._written > _PAUSE:
            self.write()

    def write(self) -> None:
        """Write the manifest."""
        found = {"schema": _SCHEMA, "robustsigma": robustsigma.__version__, "images": list(self._entries.values())}
        write_json(self._file, found, indent=1)
        self._written = time.monotonic()

    def _unique(self, paths: Sequence[Path]) -> dict[str, str]:
        """Return a name for each file: its own, with a number where another differs at most in case.

        A name has no dot, so that no picture has the name of a file that belongs to another one.
        """
        names = {name: entry["picture"].removesuffix(".png") for name, entry in self._entries.items()}
        taken = {name.casefold() for name in names.values()}
        for path in paths:
            name, number = (stem := path.stem.replace(".", "_")), 1
            while str(path) not in names and name.casefold() in taken:
                number += 1
                name = f"{stem}-{number}"
            taken.add(names.setdefault(str(path), name).casefold())
        return names


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as file:
        found = np.asarray(file, np.float64) / 255
    return found[None] if found.ndim == 2 else np.moveaxis(found, -1, 0)
