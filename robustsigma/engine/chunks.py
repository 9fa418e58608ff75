"""Parts of about equal size, so that no pass is of the few images that were left over."""

from __future__ import annotations


def even(count: int, most: int) -> int:
    """Return the size of parts, at most `most`, into which `count` items split with the fewest and evenest parts."""
    return -(-count // max(1, -(-count // most)))
