"""What a command line says to the name of a class, of its option or of a value that is none: which names there are."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from typing import Any, get_args

from jsonargparse import ArgumentError, ArgumentParser

from robustsigma.engine.validation import fail, near

_KEY = re.compile(r'Parser key "([^"]+)"')
_NAME = re.compile(r"Expected a dot import path string: (\S+)")
_OPTION = re.compile(r"Problem with given class_path '([^']+)':\s+Option '([^']+)' is not accepted")
_MISSING = re.compile(r"module '([^']+)' has no attribute '([^']+)'")
_CHOICE = re.compile(r"Expected a typing\.Literal\[(.*?)\]")
_VALUE = re.compile(r"(?:Got|Given) value: (\S+)")
_INNER = re.compile(r"(\S+: expected an option of .*?, got '[^']*'(; did you mean [^?]*\?)?)")
_UNKNOWN = re.compile(r"[Uu]nrecognized arguments: (--?[^\s=]+)(.*)", re.DOTALL)


def mistyped(parser: ArgumentParser, error: ArgumentError) -> Exception:
    """Return a parser's error, or where a name or a value was misspelt one that names what is known."""
    told = str(error)
    keys, name, options = _KEY.findall(told), _NAME.search(told), {*_OPTION.findall(told)}
    inner, missing, choices, value = (each.search(told) for each in (_INNER, _MISSING, _CHOICE, _VALUE))
    if unknown := _UNKNOWN.search(told):
        known = [option for option in parser._option_string_actions if not option.endswith(".help")]
        meant = near(unknown[1], known)
        return ValueError(f"unrecognized arguments: {unknown[1]}{unknown[2].rstrip()}{meant}")
    if keys and inner is not None:  # the parser of a class within another has said so, and this one quotes it
        return ValueError(f"{'.'.join(keys)}.{inner[1]}")
    key = ".".join(dict.fromkeys(keys))
    if keys and len(options) == 1:
        ((path, option),) = options
        known = _options(path)
        listed = f" ({', '.join(known)})" if known else ""
        return fail(key, f"an option of {path}{listed}", repr(option) + near(option, known))
    if keys and missing is not None:
        module = sys.modules.get(missing[1])
        return fail(key, f"a name of {missing[1]}", repr(missing[2]) + near(missing[2], getattr(module, "__all__", ())))
    if keys and choices and value:
        known = list(
            dict.fromkeys(each.strip("'\"") for listed in _CHOICE.findall(told) for each in listed.split(", "))
        )
        return fail(key, f"one of {', '.join(known)}", repr(value[1]) + near(value[1], known))
    if name is None or not keys:
        return error
    hints = [getattr(action, "_typehint", None) for action in parser._actions if action.dest == keys[0]]
    # Of a class within another the parser does not say what kind it should be.
    kinds = {each for hint in hints for each in _kinds(hint)} if len(keys) == 1 else set()
    known = sorted(kind.__name__ for kind in kinds if kind.__module__.startswith("robustsigma."))
    expected = f"one of {', '.join(known)}, or" if known else "the name of a class of robustsigma, or"
    meant = near(name[1], sorted({kind.__name__ for kind in kinds}))
    return fail(key, f"{expected} the dotted path of a class", repr(name[1]) + meant)


def _options(path: str) -> list[str]:
    """Return the options of a class that the parser has imported, or none where it does not tell."""
    module, _, name = path.rpartition(".")
    kind = getattr(sys.modules.get(module), name, None)
    try:
        return list(inspect.signature(kind).parameters) if inspect.isclass(kind) else []
    except ValueError:  # such as a class of a C extension
        return []


def _kinds(hint: Any) -> Iterator[type]:
    """Yield the classes, ours and others', that a type hint takes."""
    for part in get_args(hint):
        yield from _kinds(part) if not isinstance(part, list) else ()
    if inspect.isclass(hint) and hint.__module__ != "builtins":
        if not inspect.isabstract(hint) and "._" not in hint.__module__:
            yield hint
        for kind in hint.__subclasses__():
            yield from _kinds(kind)
