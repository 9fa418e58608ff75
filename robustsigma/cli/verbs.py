"""The verbs of the command line: run one, and print an error as one line."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

from robustsigma import __version__
from robustsigma.cli.signals import Terminated, terminable

# The modules of verbs, torch and the packages below are imported when they are needed: `--help` should be immediate.
_VERBS = {
    "quickstart": "train, retrain and evaluate on a built-in dataset, and write the report",
    "init": "write a commented file of settings for your images and your model",
    "evaluate": "train, retrain and evaluate your own model or data (--config FILE), and write the report",
    "sweep": "find the Gaussian noise that is best to train on, before evaluate",
    "benchmark": "evaluate attribution methods by every metric, and write the report",
    "report": "write the report of a run of evaluate or benchmark that was made in shards",
    "fit": "train with a Lightning Trainer (--config FILE)",
    "validate": "validate with a Lightning Trainer",
    "test": "test under every condition with a Lightning Trainer",
    "compare": "compare two finished runs of evaluate, as a gate for CI",
    "card": "write the card of a finished run: threat models, accuracies and withdrawn claims",
    "explain": "draw heatmaps over image files",
    "augment": "write a folder of perturbed images with a manifest",
    "doctor": "print versions, devices, extras and known hazards among the installed packages",
}
_MODULES = {"validate": "fit", "test": "fit", "quickstart": "evaluate"}
INTERRUPTED, TERMINATED, WRONG = 130, 143, 2
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of the disk, a quota and a file


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb and return the exit status: 0, 2 for a mistake, 130 for an interrupt, 143 for SIGTERM.

    `doctor` returns 1 where something dangerous is installed. Set ROBUSTSIGMA_DEBUG=1 to see the traceback of an error.

    Args:
        arguments: arguments of the command line, the verb first; None uses those of the process.
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
        near = get_close_matches(verb, _VERBS, n=1)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        print(f"robustsigma: error: verb: expected one of {', '.join(_VERBS)}, got {verb!r}{meant}", file=sys.stderr)
        return WRONG
    return _run(verb, given[1:])


def _run(verb: str, arguments: list[str]) -> int:
    try:
        with terminable(), _plain_warnings(verb), _own_modules(arguments):
            module = import_module(f"robustsigma.cli.{_MODULES.get(verb, verb)}")
            call: Callable[[str, list[str]], int | None] = module.run
            return call(verb, arguments) or 0
    except KeyboardInterrupt as error:
        from robustsigma.runs.ranks import world_size

        if world_size() == 1:  # otherwise the process that started them reports it
            _say(f"\nrobustsigma {verb}: interrupted. {_resume(verb)}.")
        return TERMINATED if isinstance(error, Terminated) else INTERRUPTED
    except RuntimeError as error:
        died = _dead_process(error)
        if died is None or os.environ.get("ROBUSTSIGMA_DEBUG"):
            raise
        _say(f"robustsigma {verb}: error: {died} died. {_resume(verb)}. {_line(error)}")
        return WRONG
    except (ValueError, ImportError, OSError, ArgumentError) as error:
        if os.environ.get("ROBUSTSIGMA_DEBUG"):
            raise
        _say(f"robustsigma {verb}: error: {_message(verb, error)}")
        return WRONG


def _say(text: str) -> None:
    """Print why a run ended; its status counts even if standard error is a file on a full disk."""
    with suppress(OSError):
        print(text, file=sys.stderr)


@contextmanager
def _own_modules(arguments: Sequence[str]) -> Iterator[None]:
    """Within this context, what `--allow` names may be in the current folder, where a script does not look by itself.

    Installed modules come first.
    """
    before = list(sys.path)
    if any(argument.partition("=")[0] == "--allow" for argument in arguments):
        sys.path.append(str(Path.cwd()))
    try:
        yield
    finally:
        sys.path[:] = before


@contextmanager
def _plain_warnings(verb: str) -> Iterator[None]:
    """Within this context, a warning to users is printed as one line, without the code that it comes from."""
    show, long = warnings.showwarning, warnings.formatwarning

    def format_plainly(message: Any, category: type[Warning], *args: Any, **kwargs: Any) -> str:
        if not issubclass(category, UserWarning):  # for developers
            return long(message, category, *args, **kwargs)
        return f"robustsigma {verb}: warning: {_line(message)}\n"

    def show_plainly(*args: Any, **kwargs: Any) -> None:
        warnings.formatwarning = format_plainly  # each time, since Lightning sets its own when it is imported
        show(*args, **kwargs)

    warnings.showwarning = show_plainly
    try:
        yield
    finally:
        warnings.showwarning, warnings.formatwarning = show, long


def _message(verb: str, error: Exception) -> str:
    text = _line(error)
    if not isinstance(error, OSError) or error.errno not in _FULL:
        return text
    what = "" if "could not write" in text or error.filename else "could not write a file of this run: "
    return f"{what}{text}. {_resume(verb)}"


def _resume(verb: str) -> str:
    """Return what is kept of a run that ended early, and how to resume it."""
    if verb in ("validate", "test", "doctor", "init"):
        return "Nothing is kept: run the command again"
    how = " with --ckpt_path last to resume from the last finished epoch" if verb == "fit" else " to resume"
    return f"Finished work is kept: run the command again{how}"


def _dead_process(error: RuntimeError) -> str | None:
    """Return the other process that an error reports as dead, or None."""
    from torch.distributed import DistError

    if str(error).startswith("DataLoader worker"):
        return "a loading process (num_workers), often for lack of memory,"
    if isinstance(error, DistError) or "gloo" in str(error):
        return "another process of this training"
    return None


def _line(error: object) -> str:
    from robustsigma.report.text import printable

    return printable(" ".join(str(error).split()))  # file names may contain control characters of a terminal


def _help() -> str:
    width = max(map(len, _VERBS))
    verbs = "\n".join(f"  {verb:{width}}  {text}" for verb, text in _VERBS.items())
    return (
        "usage: robustsigma VERB [options]\n\n"
        "Turn attributions into hard training samples, and measure whether they make a classifier more robust.\n\n"
        f"verbs:\n{verbs}\n\n"
        "robustsigma VERB --help shows a verb's options."
    )
