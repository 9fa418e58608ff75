"""Parts of a whole that fill passes, of which none is of the few images that were left over."""

from __future__ import annotations


def split_sizes(count: int, most: int) -> list[int]:
    """Return the sizes of the fewest parts of `count` items: of `most` each, the last two even where little is left."""
    full, rest = divmod(count, most)
    if full == 0 or rest == 0:
        return [most] * full if full else [count]
    if 2 * rest >= most:
        return [*[most] * full, rest]
    half = (most + rest) // 2
    return [*[most] * (full - 1), most + rest - half, half]
