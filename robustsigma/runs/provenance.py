"""Provenance of a result: command, time, versions and hardware."""

from __future__ import annotations

import os
import platform
import sys
import time
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from PIL import features

from robustsigma import __version__
from robustsigma.runs.ranks import world_size

_PACKAGES = ("torch", "torchvision", "pytorch-lightning", "numpy", "scipy", "pillow")


class Provenance:
    """Records how a result was made; the clock starts when this object is made.

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
                "processes": world_size(),
                "threads": torch.get_num_threads(),  # of each
            },
        }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "robustsigma": __version__}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    found["libwebp"] = features.version("webp") or "not installed"  # measures the information of SIC and AIC
    return found


def _device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU ({sys.platform})"
