"""When, with what and on what a result was made."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from PIL import features

from robustsigma.fingerprint import code
from robustsigma.processes import together

_PACKAGES = ("robustsigma", "torch", "torchvision", "pytorch-lightning", "numpy", "scipy", "pillow")


class Provenance:
    """Starts when it is made.

    Args:
        command: line that makes the result again, or None.
    """

    def __init__(self, command: str | None) -> None:
        self.command = command
        self._started, self._start = datetime.now(timezone.utc), time.perf_counter()

    def record(self) -> dict[str, Any]:
        """Return command, start, seconds until now, versions and hardware, in plain JSON types."""
        return {
            "command": self.command,
            "started": self._started.isoformat(timespec="seconds"),
            "seconds": time.perf_counter() - self._start,
            "versions": _versions(),
            "hardware": {
                "device": _device_name(),
                "cores": os.cpu_count(),
                "processes": together(),
                "threads": torch.get_num_threads(),  # of each
            },
        }


def code_of(allow: Sequence[str], settings: Any = None) -> dict[str, dict[str, str]]:
    """Return the SHA-256 of the source of allowed modules, as a setting `code` that binds a folder to it.

    Args:
        allow: dotted paths of modules, classes or functions. What has no file, such as a built-in module, is left out.
        settings: whose own classes and functions count too, see `robustsigma.fingerprint.code`.

    Returns:
        {"code": by dotted path}, or nothing where no path has a file.
    """
    found = {name: _digest(spec) for name in sorted({*allow}) if (spec := _spec(name)) is not None}
    found |= code(settings)
    digests = {name: digest for name, digest in found.items() if digest is not None}
    return {"code": digests} if digests else {}


def _spec(name: str) -> ModuleSpec | None:
    """Return where the module of a dotted path is, which may name a class or a function in it; or None."""
    while name:
        try:
            spec = find_spec(name)
        except (ImportError, ValueError, AttributeError):  # its parent is no package; or a module without a spec
            spec = None
        if spec is not None:
            return spec
        name = name.rpartition(".")[0]
    return None


def _digest(spec: ModuleSpec) -> str | None:
    """Return the digest of a module's file, or of all Python files of a package."""
    if spec.submodule_search_locations is None:
        path = Path(spec.origin) if spec.has_location and spec.origin else None
        return hashlib.sha256(path.read_bytes()).hexdigest() if path and path.is_file() else None
    digest, roots = hashlib.sha256(), [Path(root) for root in spec.submodule_search_locations]
    files = sorted((path.relative_to(root).as_posix(), path) for root in roots for path in root.rglob("*.py"))
    for name, path in files:
        digest.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest() if files else None


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    found["libwebp"] = features.version("webp") or "not there"  # measures the information of SIC and AIC
    return found


def _device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU ({sys.platform})"
