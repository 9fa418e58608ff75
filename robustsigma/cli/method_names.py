"""The option `--method`: given several times, and short names of methods."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from robustsigma.engine import attributors


def walk_of_photographs(**changes: Any) -> dict[str, Any]:
    """Return `Sigma.photographs()` of one path, with some arguments changed, as YAML writes it."""
    walk = replace(attributors.Sigma.photographs(), paths=1, **changes)
    changed = [field.name for field in fields(walk) if getattr(walk, field.name) != field.default]
    return {"class_path": "robustsigma.Sigma", "init_args": {name: getattr(walk, name) for name in changed}}


# One walk of few steps shows where the network looks as well as a long one, within seconds (docs/guide/explain.md).
DEFAULT = walk_of_photographs(max_steps=24)


def split_methods(arguments: Sequence[str]) -> list[list[str]]:
    """Return a command line with its first `--method`, and each further `--method` with the options after it.

    An option such as `--method.steps` belongs to the last method before it.
    """
    first: list[str] = []
    others: list[list[str]] = []
    group, is_value, seen = first, False, False
    for argument in arguments:
        if is_value:
            is_value = False
        else:
            name, equals, _ = argument.partition("=")
            if name == "--method" and seen:
                others.append([])
            seen = seen or name == "--method"
            belongs = name == "--method" or name.startswith("--method.")
            group = others[-1] if belongs and others else first
            is_value = belongs and not equals
        group.append(argument)
    return [first, *others]


def by_alias(arguments: Sequence[str]) -> list[str]:
    """Return a command line with the class of a method in place of its initials, or of its name in small letters.

    `sigma` is `DEFAULT`, and `Sigma` the class with the settings of its paper.
    """
    names = [name for name in attributors.__all__ if name not in ("Attribution", "Attributor")]
    initials = {"".join(re.findall("[A-Z]", name)).lower(): name for name in names}
    known = {short: name for short, name in initials.items() if len(short) > 1} | {name.lower(): name for name in names}
    known["sigma"] = json.dumps(DEFAULT)
    found = [_named(known, argument) if before == "--method" else argument
             for before, argument in zip(["", *arguments], arguments, strict=False)]  # fmt: skip
    return [f"--method={_named(known, a[9:])}" if a.startswith("--method=") else a for a in found]


def _named(known: Mapping[str, str], name: str) -> str:
    return name if name == "Sigma" else known.get(name.lower(), name)
