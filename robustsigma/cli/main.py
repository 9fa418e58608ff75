"""Chooses the verb, and turns what went wrong into one line."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from robustsigma import __version__
from robustsigma.cli.signals import Terminated, terminable
from robustsigma.report.text import printable
from robustsigma.runs.processes import world_size

# Imported when called for: a verb should not wait for the imports of the others.
_VERBS = {
    "quickstart": "train, retrain and evaluate on an embedded dataset, and write the report",
    "evaluate": "the same with your own settings (--config FILE)",
    "sweep": "find the Gaussian noise that is best to train on, for evaluate to go on with",
    "benchmark": "judge attribution methods by every metric, and write the report",
    "fit": "train with a Lightning Trainer (--config FILE)",
    "validate": "validate with a Lightning Trainer",
    "test": "test under every condition with a Lightning Trainer",
    "explain": "write heatmaps of images",
    "augment": "write a folder of perturbed images with a manifest",
    "doctor": "print versions, devices, extras and known hazards among the installed packages",
}
_MODULES = {"fit": "lightning", "validate": "lightning", "test": "lightning", "quickstart": "evaluate"}
INTERRUPTED, TERMINATED, WRONG = 130, 143, 2
_MISSING = re.compile(r"No module named '(\w+)")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk, share of it, file


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb and return the exit status: 0, 2 for a mistake, 130 for an interrupt, 143 for SIGTERM.

    `doctor` returns 1 where something dangerous is installed. Set ROBUSTSIGMA_DEBUG=1 to see the traceback of an error.

    Args:
        arguments: of the command line, the verb first; None takes those of the process.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print(_help())
        return 0 if given else WRONG
    if given[0] == "--version":
        print(f"robustsigma {__version__}")
        return 0
    verb = given[0]
    if verb not in _VERBS:
        from robustsigma.engine.validation import near

        told = f"expected one of {', '.join(_VERBS)}, got {verb!r}{near(verb, _VERBS)}"
        print(f"robustsigma: error: verb: {told}", file=sys.stderr)
        return WRONG
    return _run(verb, given[1:])


def _run(verb: str, arguments: list[str]) -> int:
    from jsonargparse import ArgumentError

    try:
        with terminable():
            module = import_module(f"robustsigma.cli.{_MODULES.get(verb, verb)}")
            call: Callable[[str, list[str]], int | None] = module.run
            return call(verb, arguments) or 0
    except KeyboardInterrupt as error:
        if world_size() == 1:  # else the one that started them tells
            print(f"\nrobustsigma {verb}: interrupted. {_resume(verb)}.", file=sys.stderr)
        return TERMINATED if isinstance(error, Terminated) else INTERRUPTED
    except RuntimeError as error:
        died = _died(error)
        if died is None or os.environ.get("ROBUSTSIGMA_DEBUG"):
            raise
        told = f"{died} died. {_resume(verb)}"
        print(f"robustsigma {verb}: error: {told}. {_line(error)}", file=sys.stderr)
        return WRONG
    except (ValueError, ImportError, OSError, ArgumentError) as error:
        if os.environ.get("ROBUSTSIGMA_DEBUG"):
            raise
        print(f"robustsigma {verb}: error: {_told(verb, error)}", file=sys.stderr)
        return WRONG


def _told(verb: str, error: Exception) -> str:
    told = _line(error) + _hint(str(error))
    if not isinstance(error, OSError) or error.errno not in _FULL:
        return told
    what = "" if "could not write" in told or error.filename else "could not write a file of this run: "
    return f"{what}{told}. {_resume(verb)}"


def _hint(told: str) -> str:
    """Return what helps against an error, or nothing: a console script does not look for modules where it is run."""
    missing = _MISSING.search(told)
    here = missing is not None and any(Path(f"{missing[1]}{suffix}").exists() for suffix in ("", ".py"))
    return " (PYTHONPATH=. makes the current folder importable)" if here else ""


def _resume(verb: str) -> str:
    """Return what is left of a run that ended early, and how to resume it."""
    if verb in ("validate", "test", "doctor"):
        return "Nothing is kept: run the command again"
    how = " with --ckpt_path last to go on from the last finished epoch" if verb == "fit" else " to go on"
    return f"What is finished is kept: run the command again{how}"


def _died(error: RuntimeError) -> str | None:
    """Return which other process an error says to have died, or None."""
    from torch.distributed import DistError

    if str(error).startswith("DataLoader worker"):
        return "a loading process (num_workers), often for want of memory,"
    if isinstance(error, DistError) or "gloo" in str(error):
        return "another process of this training"
    return None


def _line(error: Exception) -> str:
    return printable(" ".join(str(error).split()))  # names of files can steer a terminal


def _help() -> str:
    width = max(map(len, _VERBS))
    verbs = "\n".join(f"  {verb:{width}}  {text}" for verb, text in _VERBS.items())
    return (
        "usage: robustsigma VERB [options]\n\n"
        "Attributions turned into hard training samples, and the proof of whether they help.\n\n"
        f"verbs:\n{verbs}\n\n"
        "robustsigma VERB --help shows a verb's options."
    )
