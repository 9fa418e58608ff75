"""What identifies a function that a user passes as a method, so that a folder belongs to one."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from robustsigma.engine.validation import fail
from robustsigma.runs.fingerprint import code, describe


def function_identity(function: Any, seen: frozenset[int] = frozenset()) -> Any:
    """Return the source of a function, with its defaults and what it closes over, in plain JSON types."""
    if isinstance(function, (list, tuple)):
        return [function_identity(each, seen) for each in function]
    if id(function) in seen:  # a function that calls itself
        return None
    seen = seen | {id(function)}
    if isinstance(function, functools.partial):
        parts = [function.func, *function.args, *function.keywords.values()]
        return [*function_identity(parts, seen), *function.keywords]
    if inspect.ismethod(function):
        return function_identity([function.__func__, function.__self__], seen)
    if not inspect.isfunction(function):
        return [describe(function), code(function)]
    cells = [_contents(cell) for cell in function.__closure__ or ()]
    kept = [*cells, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    return [code(function), *function_identity(kept, seen)]


def check_source(name: str, function: Any) -> None:
    """Raise unless a function, or what it wraps, is written in Python."""
    called = function
    while isinstance(called, functools.partial) or inspect.ismethod(called):
        called = called.func if isinstance(called, functools.partial) else called.__func__
    if not inspect.isfunction(called) and not inspect.isfunction(type(called).__call__):
        hint = "call it from a function that you write in Python, or leave out `out`"
        raise fail(name, "a function with a source, as the folder `out` is bound to it", f"{called!r}; {hint}")


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is not assigned yet
        return None
