"""`doctor`: print what is installed, the devices, and known problems."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, metadata

import torch
from jsonargparse import ArgumentParser
from rich.console import Console

from robustsigma import __version__
from robustsigma.cli.installed_packages import Unmet, hazards, installed, unmet
from robustsigma.engine.device import best_device

_DESCRIPTION = (
    "Print versions, devices, threads, the extras that are installed and missing, and known hazards among the "
    "installed packages; or the unreadable images of a folder. The exit status is 1 if a hazard is dangerous or an "
    "image unreadable."
)
_NAMES = (
    *("torch", "torchvision", "pytorch-lightning", "torchmetrics", "jsonargparse", "numpy", "scipy", "safetensors"),
    *("pillow", "albumentations", "torchattacks", "captum"),
)
DANGER = 1


def run(verb: str, arguments: list[str]) -> int:
    """Parse the arguments, print, and return the exit status: 0, or 1 for a dangerous hazard or unreadable images."""
    # Not `new_parser`, whose module imports more packages: a broken one must not stop the doctor.
    parser = ArgumentParser(prog="robustsigma doctor", exit_on_error=False, description=_DESCRIPTION)
    parser.add_argument("--data", type=str, help="folder whose images are decoded, instead, to find unreadable ones")
    folder, console = parser.parse_args(arguments).data, Console()
    if folder is not None:
        return _verify(console, folder)
    versions = installed()
    found = hazards(versions)
    _show(console, "versions", _versions(versions))
    _show(console, "devices", _devices())
    _show(console, "threads", _threads())
    _show(console, "requirements", _requirements(versions))
    lines = [(str(each.level), f"{each.package}: {each.what}. Do: {each.remedy}.") for each in found]
    _show(console, "hazards", lines or [("none", "no known hazard")])
    return DANGER if any(hazard.level == "danger" for hazard in found) else 0


def _verify(console: Console, folder: str) -> int:
    from robustsigma.data.verification import verify_images  # here, as a broken package must not stop the doctor

    broken = verify_images(folder)
    _show(console, "unreadable images", list(broken.items()) or [("none", f"all images in {folder} can be read")])
    return DANGER if broken else 0


def _show(console: Console, title: str, lines: Iterable[tuple[str, str]]) -> None:
    console.print(f"[bold]{title}[/bold]")
    for name, text in lines:
        console.print(f"  {name:<18} {text}", markup=False, highlight=False, soft_wrap=True)


def _versions(versions: dict[str, str]) -> list[tuple[str, str]]:
    first = [
        ("robustsigma", __version__),
        ("python", f"{platform.python_version()} ({sys.executable})"),
        ("platform", platform.platform()),
    ]
    return first + [(name, versions.get(name, "not installed")) for name in _NAMES]


def _devices() -> list[tuple[str, str]]:
    found = [("used by default", str(best_device())), ("CUDA of torch", torch.version.cuda or "none, a CPU build")]
    for place in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(place)
        about = f"{device.name}, {device.total_memory / 2**30:.0f} GiB, capability {device.major}.{device.minor}"
        found.append((f"cuda:{place}", about))
    return found


def _threads() -> list[tuple[str, str]]:
    # A container or a scheduler may allow fewer cores than the machine has.
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [
        ("cores", f"{os.cpu_count()}, of which this process may use {usable}"),
        ("torch", f"{torch.get_num_threads()} in an operation, {torch.get_num_interop_threads()} between operations"),
        ("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "not set")),
    ]


def _requirements(versions: dict[str, str]) -> list[tuple[str, str]]:
    try:
        of_ours = metadata("robustsigma")
    except PackageNotFoundError:
        return [("robustsigma", "is not installed but run from its files: its extras are unknown")]
    stated = of_ours.get_all("Requires-Dist") or []
    found = [("robustsigma", _missing(unmet(stated, versions), "robustsigma"))]
    for extra in of_ours.get_all("Provides-Extra") or []:
        if extra != "all":  # the others together
            found.append((f"extra {extra}", _missing(unmet(stated, versions, extra), f"robustsigma[{extra}]")))
    return found


def _missing(found: list[Unmet], what: str) -> str:
    if not found:
        return "complete"
    listed = ", ".join(f"{entry.requirement} ({entry.found or 'missing'})" for entry in found)
    return f"{listed}: pip install '{what}'"
