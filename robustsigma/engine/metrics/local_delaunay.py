"""The Delaunay triangles around hidden pixels where many pixels are revealed, without triangulating the image.

A triangle of revealed pixels is one of Delaunay's if no revealed pixel lies inside its circle (Delaunay, 1934). Where
pixels are revealed densely the circles are small, so that a pixel's triangle follows from its neighbors alone.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]

_DISC = 9  # squared radius: 28 neighbors, one bit each; more of them find few more triangles and take longer
_EXCHANGES = 60
_HASH = np.array([0x9E3779B1, 0x85EBCA77])
_TOLERANCE = 1e-9


class Triangles(NamedTuple):
    """The triangles that hold some pixels.

    Attributes:
        found: bool (n,), whether a pixel's triangle is known.
        corners: int (n, 3), flat indices of its corners; any where not found.
        weights: float64 (n, 3), of the corners, not negative, with sum 1.
    """

    found: Array
    corners: Array
    weights: Array


class _Table(NamedTuple):
    offsets: Array  # (28, 2)
    corners: Array  # (E, 3), of offsets
    weights: Array  # (E, 3)
    need: Array  # int32 (E,) bits of the neighbors that must be revealed
    care: Array  # int32 (E,) bits of those and of the neighbors inside the circle


def _cross(a: Array, b: Array) -> Array:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _barycentric(corners: Array, point: Array) -> Array:
    """Return the weights (n, 3) of triangles' corners (n, 3, 2) that give a point (n, 2)."""
    a, b, c = (corners[:, i] - point for i in range(3))
    parts = np.stack([_cross(b, c), _cross(c, a), _cross(a, b)], 1)
    return parts / parts.sum(1, keepdims=True)


def _plane(corners: Array, height: Array) -> tuple[Array, Array]:
    """Return slope (n, 2) and height at 0 (n,) of the planes over corners (n, 3, 2) of given height (n, 3).

    With height |d|^2, a point d is inside the circle through the corners where |d|^2 is below the plane; the circle's
    center is slope / 2 and its squared radius is that height at 0 plus |center|^2.
    """
    u, v = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    du, dv = height[:, 1] - height[:, 0], height[:, 2] - height[:, 0]
    area = _cross(u, v)
    slope = np.stack([(du * v[:, 1] - dv * u[:, 1]) / area, (dv * u[:, 0] - du * v[:, 0]) / area], 1)
    return slope, height[:, 0] - (slope * corners[:, 0]).sum(1)


@lru_cache(maxsize=1)
def _tables() -> tuple[_Table, _Table]:
    """Return every triangle around (0, 0), or segment through it, whose circle holds no pixel beyond the neighbors.

    The near ones come first, since they hit most; equally near ones are in opposite order in the two tables.
    """
    grid = np.stack(np.meshgrid(np.arange(-9, 10), np.arange(-9, 10), indexing="ij"), -1).reshape(-1, 2).astype(float)
    far = (grid**2).sum(1)
    offsets, beyond = grid[(far > 0) & (far <= _DISC)], grid[far > _DISC]
    count = len(offsets)
    first, second = np.triu_indices(count, 1)
    a, b = offsets[first], offsets[second]
    through = (_cross(a, b) == 0) & ((a * b).sum(1) < 0)
    a, b, first, second = a[through], b[through], first[through], second[through]
    share = np.sqrt((b**2).sum(1)) / (np.sqrt((a**2).sum(1)) + np.sqrt((b**2).sum(1)))
    segments = np.stack([first, second, second], 1), np.stack([share, 1 - share, 0 * share], 1)
    triples = np.array(list(combinations(range(count), 3)))
    places = offsets[triples]
    triples = triples[_cross(places[:, 1] - places[:, 0], places[:, 2] - places[:, 0]) != 0]
    weights = _barycentric(offsets[triples], np.zeros(2))
    around = (weights > 0).all(1)
    triples, weights = triples[around], weights[around]
    slope, level = _plane(offsets[triples], (offsets[triples] ** 2).sum(2))
    center = np.concatenate([(a + b) / 2, slope / 2])
    # A segment's own circle is the smallest through its ends.
    square = np.concatenate([((a - b) ** 2).sum(1) / 4, level + (slope**2).sum(1) / 4])
    corners, weights = np.concatenate([segments[0], triples]), np.concatenate([segments[1], weights])
    inside = ((offsets - center[:, None]) ** 2).sum(2) < square[:, None] - _TOLERANCE
    known = ~(((beyond - center[:, None]) ** 2).sum(2) < square[:, None] - _TOLERANCE).any(1)
    cost = (weights * (offsets[corners] ** 2).sum(2)).sum(1).round(6)
    bit = np.int32(1) << np.arange(count, dtype=np.int32)
    need = np.bitwise_or.reduce(bit[corners], 1)
    care = np.where(inside, bit, 0).sum(1, dtype=np.int32) | need
    number, places = np.arange(len(cost)), offsets.astype(np.int64)
    orders = (order[known[order]] for order in (np.lexsort([number, cost]), np.lexsort([-number, cost])))
    first_table, second_table = (_Table(places, corners[o], weights[o], need[o], care[o]) for o in orders)
    return first_table, second_table


def along_edges(revealed: Array, hidden: Array) -> Triangles:
    """Return, for pixels of the image's edges, the two nearest revealed pixels along the edge; corners are revealed.

    Args:
        revealed: bool (H, W).
        hidden: (n, 2), hidden pixels; those inside the image are not found.
    """
    height, width = revealed.shape
    found, corners, weights = np.zeros(len(hidden), bool), np.zeros((len(hidden), 3), int), np.zeros((len(hidden), 3))
    last = (height - 1, width - 1)
    for axis, place in ((0, 0), (0, last[0]), (1, 0), (1, last[1])):
        (rows,) = np.nonzero(hidden[:, axis] == place)
        at, known = hidden[rows, 1 - axis], np.flatnonzero(revealed.take(place, axis))
        after = np.searchsorted(known, at)
        low, high = known[after - 1], known[after]
        start, step = (place * width, 1) if axis == 0 else (place, width)
        corners[rows] = start + step * np.stack([low, high, high], 1)
        weights[rows] = np.stack([high - at, at - low, 0 * at], 1) / (high - low)[:, None]
        found[rows] = True
    return Triangles(found, corners, weights)


def look_up(revealed: Array, hidden: Array) -> Triangles:
    """Return the triangles whose circles end within three pixels.

    Args:
        revealed: bool (H, W).
        hidden: (n, 2), the hidden pixels that need a triangle.
    """
    (height, width), pad = revealed.shape, 3
    padded = np.zeros((height + 2 * pad, width + 2 * pad), np.int32)
    padded[pad:-pad, pad:-pad] = revealed
    code = np.zeros((height, width), np.int32)
    for bit, (y, x) in enumerate(_tables()[0].offsets):
        code |= padded[pad + y : pad + y + height, pad + x : pad + x + width] << np.int32(bit)
    found = np.zeros(len(hidden), bool)
    corners, weights = np.zeros((len(hidden), 3), np.int64), np.zeros((len(hidden), 3))
    codes, place = code[hidden[:, 0], hidden[:, 1]], hidden @ np.array([width, 1])
    # Of pixels on one circle, always the same ones would favor a direction of the image: a hash of the place chooses.
    side = (hidden @ _HASH >> 17) & 1 == 1
    for table, half in zip(_tables(), (side, ~side), strict=True):
        rows = np.flatnonzero(half)
        entry = _first_hits(codes[rows], table)
        rows, entry = rows[entry >= 0], entry[entry >= 0]
        flat = table.offsets @ np.array([width, 1])
        found[rows], weights[rows] = True, table.weights[entry]
        corners[rows] = place[rows, None] + flat[table.corners[entry]]
    return Triangles(found, corners, weights)


def _first_hits(codes: Array, table: _Table) -> Array:
    """Return, for neighborhoods (n,), the first entry of the table whose triangle is there, or -1."""
    left, entry = np.arange(len(codes)), np.full(len(codes), -1)
    for number, (need, care) in enumerate(zip(table.need, table.care, strict=True)):
        if not len(left):
            break
        hit = (codes & care) == need
        if hit.any():
            entry[left[hit]] = number
            codes, left = codes[~hit], left[~hit]
    return entry


def search(revealed: Array, hidden: Array, reach: int) -> Triangles:
    """Return the triangles whose circles end, or leave the image, within `reach` pixels along each axis.

    Over pixels lifted to the height |d|^2, d from the hidden one, a pixel's triangle is that with the lowest plane at
    d = 0: a linear programme in three variables, solved for all at once by exchanging a corner for the pixel furthest
    below the plane (the dual simplex method) until none is.
    """
    height, width = revealed.shape
    line = np.arange(-reach, reach + 1)
    offsets = np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
    padded = np.zeros((height + 2 * reach, width + 2 * reach), bool)
    padded[reach:-reach, reach:-reach] = revealed
    seen: Array = padded[hidden[:, :1] + reach + offsets[:, 0], hidden[:, 1:] + reach + offsets[:, 1]]
    lift = (offsets**2).sum(1).astype(float)
    # A start that holds every pixel and that any real triangle is below.
    points = np.concatenate([offsets, reach * np.array([[-9, -9], [-9, 27], [27, -9]])]).astype(float)
    heights = np.append(lift, np.full(3, 1e6))
    corners = np.tile(len(offsets) + np.arange(3), (len(hidden), 1))
    moving = np.arange(len(hidden))
    slope, level = _plane(points[corners], heights[corners])
    for _ in range(_EXCHANGES):
        now = corners[moving]
        slope[moving], level[moving] = _plane(points[now], heights[now])
        above = lift - slope[moving] @ points[: len(offsets)].T - level[moving, None]
        above[~seen[moving]] = np.inf
        enters = above.argmin(1)
        below = above[np.arange(len(moving)), enters] < -_TOLERANCE
        moving, now, enters = moving[below], now[below], enters[below]
        if not len(moving):
            break
        at = points[now]
        share, of = _barycentric(at, np.zeros(2)), _barycentric(at, points[enters])
        ratio = np.where(of > _TOLERANCE, share / np.where(of > _TOLERANCE, of, 1), np.inf)
        corners[moving, ratio.argmin(1)] = enters
    done: Array = np.asarray((corners < len(offsets)).all(1))
    done[moving] = False
    done &= _within(hidden, slope / 2, level + (slope**2).sum(1) / 4, revealed.shape, reach)
    corners = np.where(done[:, None], corners, 0)
    weights = np.zeros(corners.shape)
    weights[done] = _barycentric(points[corners[done]], np.zeros(2))
    flat = (hidden @ np.array([width, 1]))[:, None] + (offsets @ np.array([width, 1]))[corners]
    return Triangles(done, flat, weights)


def _within(hidden: Array, center: Array, square: Array, shape: tuple[int, ...], reach: int) -> Array:
    """Return bool (n,), whether the part of a circle that lies in the image lies in the window."""
    inside: Array = np.ones(len(hidden), bool)
    for axis in (0, 1):
        other = 1 - axis
        middle = hidden[:, other] + center[:, other]
        outside = middle - np.clip(middle, 0, shape[other] - 1)
        half = np.sqrt(np.maximum(square - outside**2, 0))
        start, end = center[:, axis] - half, center[:, axis] + half
        # A pixel just beyond the window may lie on the circle, not inside; none lies beyond the image.
        inside &= (start >= -reach - 1) | (hidden[:, axis] <= reach)
        inside &= (end <= reach + 1) | (hidden[:, axis] >= shape[axis] - 1 - reach)
    return inside
