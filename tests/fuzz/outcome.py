"""What may come of an input: a right result, or an error that names what was wrong."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

from jsonargparse import ArgumentError

NAMED = re.compile(r"[^\n:]{1,200}: .")
COUNTS = {"taken": 0, "refused": 0}


def settled(call: Callable[[], Any]) -> Any:
    """Return what a call returns, or None where it says in one of the agreed ways what it does not take.

    Any other exception goes on: it is what is searched for. So does one of the agreed kind that does not say what is
    wrong: an error of a codec or of JSON tells a position in bytes that nobody has seen.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = call()
    except ArgumentError:
        COUNTS["refused"] += 1
        return None
    except (ValueError, ImportError, OSError) as error:
        if type(error) is not ValueError and isinstance(error, ValueError):
            raise
        if isinstance(error, ValueError) and not NAMED.match(str(error)):
            raise AssertionError(f"the error names nothing: {error}") from error
        COUNTS["refused"] += 1
        return None
    COUNTS["taken"] += 1
    return found
