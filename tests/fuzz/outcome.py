"""The allowed outcomes of an input: a correct result, or an error that names what is wrong."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

from jsonargparse import ArgumentError

NAMED = re.compile(r"[^\n:]{1,200}: .")


def settled(call: Callable[[], Any]) -> Any:
    """Return the result of a call, or None where the call refuses its input with an allowed error.

    Every other exception is raised: finding it is the purpose of the tests. An allowed error that does not name what is
    wrong is raised too: an error of a codec or of JSON gives a byte position that the user cannot see.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return call()
    except ArgumentError:
        return None
    except (ValueError, ImportError, OSError) as error:
        if type(error) is not ValueError and isinstance(error, ValueError):
            raise
        if isinstance(error, ValueError) and not NAMED.match(str(error)):
            raise AssertionError(f"the error names nothing: {error}") from error
        return None
