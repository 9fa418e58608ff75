"""What a command line says to the name of a class, or of a class's option, that is none: which names there are."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from typing import Any, get_args

from jsonargparse import ArgumentError, ArgumentParser

from robustsigma.engine.validation import fail

_KEY = re.compile(r'Parser key "([^"]+)"')
_NAME = re.compile(r"Expected a dot import path string: (\S+)")
_OPTION = re.compile(r"Problem with given class_path '([^']+)':\s+Option '([^']+)' is not accepted")
_INNER = re.compile(r"(\S+: expected an option of .*?, got '[^']*')")


def mistyped(parser: ArgumentParser, error: ArgumentError) -> Exception:
    """Return a parser's error, or where a class or its option was misspelt one that names what is known."""
    keys, name, options = _KEY.findall(str(error)), _NAME.search(str(error)), {*_OPTION.findall(str(error))}
    inner = _INNER.search(str(error))
    if keys and inner is not None:  # the parser of a class within another has said so, and this one quotes it
        return ValueError(f"{'.'.join(keys)}.{inner[1]}")
    if keys and len(options) == 1:
        ((path, option),) = options
        return fail(".".join(keys), f"an option of {path}{_options(path)}", repr(option))
    if name is None or not keys:
        return error
    hints = [getattr(action, "_typehint", None) for action in parser._actions if action.dest == keys[0]]
    # Of a class within another the parser does not say what kind it should be.
    known = sorted({each for hint in hints for each in _names(hint)}) if len(keys) == 1 else []
    expected = f"one of {', '.join(known)}, or" if known else "the name of a class of robustsigma, or"
    return fail(".".join(keys), f"{expected} the dotted path of a class", repr(name[1]))


def _options(path: str) -> str:
    """Return in brackets the options of a class that the parser has imported, or nothing where it has none."""
    module, _, name = path.rpartition(".")
    kind = getattr(sys.modules.get(module), name, None)
    try:
        known = list(inspect.signature(kind).parameters) if inspect.isclass(kind) else []
    except ValueError:  # such as a class of a C extension
        known = []
    return f" ({', '.join(known)})" if known else ""


def _names(hint: Any) -> Iterator[str]:
    """Yield the names of our own classes that a type hint takes."""
    for part in get_args(hint):
        yield from _names(part)
    if inspect.isclass(hint) and hint.__module__.startswith("robustsigma."):
        if not inspect.isabstract(hint) and "._" not in hint.__module__:
            yield hint.__name__
        for kind in hint.__subclasses__():
            yield from _names(kind)
