"""Shapes of the procedural baggage scans: prohibited items and clutter, drawn as thicknesses of three materials."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Fill = tuple[int, int, int]
Floats = NDArray[np.float64]
Points = Sequence[tuple[float, float]] | Floats

ORGANIC, MIXED, METAL = 0, 1, 2
AIR: Fill = (0, 0, 0)
_ANGLES = np.linspace(0, 2 * np.pi, 18, endpoint=False)
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], 1)


def matter(material: int, amount: float) -> Fill:
    """Return the fill of one material, `amount` in [0, 1] of the greatest thickness."""
    fill = [0, 0, 0]
    fill[material] = round(255 * min(max(amount, 0.0), 1.0))
    return fill[0], fill[1], fill[2]


class Canvas:
    """One object: polygons in its own coordinates, mapped to the scan, the later covering the earlier.

    Args:
        size: side of the scan in pixels.
        center: position of the object's origin, in sides of the scan.
        scale: length of the object's unit, in sides of the scan.
        angle: in-plane rotation in radians.
        squash: factor of the object's y axis, as if tilted out of the plane; a negative one mirrors it.
    """

    def __init__(
        self, size: int, center: tuple[float, float], scale: float, angle: float = 0.0, squash: float = 1.0
    ) -> None:
        self._factor = 4 if size <= 128 else 2
        side = size * self._factor
        cos, sin = scale * side * np.cos(angle), scale * side * np.sin(angle)
        self._matrix = np.array([[cos, sin], [-sin * squash, cos * squash]])
        self._offset = np.array(center) * side
        self._image = Image.new("RGB", (side, side))
        self._draw = ImageDraw.Draw(self._image)

    def polygon(self, points: Points, fill: Fill) -> None:
        """Fill a polygon."""
        self._draw.polygon((np.asarray(points) @ self._matrix + self._offset).ravel().tolist(), fill=fill)

    def box(self, left: float, top: float, right: float, bottom: float, fill: Fill) -> None:
        """Fill a rectangle."""
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], fill)

    def disc(self, x: float, y: float, radius: float, fill: Fill, stretch: float = 1.0) -> None:
        """Fill an ellipse `stretch` times as wide as high."""
        self.polygon(_CIRCLE * (radius * stretch, radius) + (x, y), fill)

    def stroke(self, points: Points, widths: float | Sequence[float], fill: Fill) -> None:
        """Draw a polyline with round joints, its full width given per point or once."""
        at = np.asarray(points, dtype=float)
        half = np.broadcast_to(np.asarray(widths, dtype=float) / 2, len(at))
        along = np.gradient(at, axis=0)
        along /= np.linalg.norm(along, axis=1, keepdims=True) + 1e-9
        across = along[:, ::-1] * (-1, 1) * half[:, None]
        self.polygon(np.concatenate([at + across, (at - across)[::-1]]), fill)
        for i in (0, len(at) - 1):
            self.disc(at[i, 0], at[i, 1], half[i], fill)

    def thickness(self) -> NDArray[np.float32]:
        """Return what was drawn, at the scan's resolution: (H, W, 3) in [0, 1], one channel per material."""
        return np.asarray(self._image.reduce(self._factor), dtype=np.float32) / np.float32(255)


def _arc(length: float, bend: float, count: int = 7) -> Floats:
    """Return points from (0, 0) to (length, 0), bulging by `bend`."""
    t = np.linspace(0, 1, count)
    return np.stack([length * t, 4 * bend * t * (1 - t)], 1)


def _turn(points: Points, angle: float) -> Floats:
    """Return points rotated about the origin."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.asarray(points) @ np.array([[cos, sin], [-sin, cos]])


def _steel(rng: np.random.Generator, low: float = 0.3, high: float = 0.75) -> Fill:
    return matter(METAL, rng.uniform(low, high))


def _cover(rng: np.random.Generator) -> Fill:
    """Return a handle's fill: plastic, rubber or the bare metal."""
    material = int(rng.choice([ORGANIC, MIXED, METAL], p=[0.4, 0.35, 0.25]))
    return matter(material, rng.uniform(0.25, 0.55))


def gun(canvas: Canvas, rng: np.random.Generator) -> None:
    """Draw a pistol or a revolver, muzzle at the left."""
    metal, grip = _steel(rng, 0.45, 0.9), _cover(rng)
    slant, drop = rng.uniform(0.1, 0.35), rng.uniform(0.7, 1.0)
    muzzle, high = -rng.uniform(0.7, 1.1), rng.uniform(0.26, 0.36)
    back, wide = rng.uniform(0.65, 0.8), rng.uniform(0.36, 0.46)
    front = back - wide
    canvas.polygon([(front, -0.1), (back, -0.1), (back + slant, drop), (front + slant, drop)], grip)
    if rng.random() < 0.7:  # the magazine or the frame inside the grip
        at = slant * 0.08
        canvas.polygon(
            [(front + 0.1 + at, 0), (back - 0.1, 0), (back - 0.1 + slant, drop), (front + 0.1 + slant, drop)], metal
        )
    guard = rng.uniform(0.17, 0.23)
    canvas.disc(front - guard * 0.8, 0.08, guard + 0.07, metal, stretch=1.25)
    canvas.disc(front - guard * 0.8, 0.08, guard - 0.02, AIR, stretch=1.25)
    canvas.stroke([(front - guard, -0.1), (front - guard * 0.9, 0.2)], 0.07, metal)
    if rng.random() < 0.6:
        canvas.box(muzzle, -0.12 - high, back + 0.06, -0.1, metal)
        canvas.box(muzzle, -0.08 - high * 0.7, back * 0.2, -0.2, matter(METAL, metal[2] / 255 * 0.7))
        canvas.box(muzzle + 0.15, -0.1, front - guard, -0.02, grip if rng.random() < 0.5 else metal)
    else:
        canvas.box(muzzle, -0.16 - high * 0.6, 0.1, -0.18, metal)
        canvas.box(0.0, -0.12 - high, back, -0.02, matter(METAL, metal[2] / 255 * 0.8))
        canvas.disc(0.2, -0.2, high * 0.8, metal, stretch=1.1)
        canvas.polygon([(back - 0.1, -0.3), (back + 0.15, -high - 0.2), (back + 0.05, -0.1)], metal)
    canvas.box(muzzle + 0.03, -0.2 - high, muzzle + 0.12, -0.1 - high, metal)


def knife(canvas: Canvas, rng: np.random.Generator) -> None:
    """Draw a kitchen knife, hunting knife, dagger or cleaver, its point at the right."""
    blade, handle = _steel(rng, 0.2, 0.6), _cover(rng)
    if rng.random() < 0.12:
        blade = matter(MIXED, rng.uniform(0.3, 0.6))  # ceramic
    start, wide = rng.uniform(-0.35, -0.05), rng.uniform(0.11, 0.17)
    kind = int(rng.integers(4))
    depth = rng.uniform(0.13, 0.22)
    t = np.linspace(0, 1, 8)
    x = start + (1 - start) * t
    if kind == 0:  # kitchen: straight back, curved belly
        edge = np.stack([x, depth * 1.3 * (1 - t**2.2) - wide * 0.5], 1)
        points = np.concatenate([[(start, -wide * 0.6), (1.0, -wide * 0.5)], edge[::-1]])
    elif kind == 1:  # hunting: clip point
        points = np.array(
            [(start, -depth), (0.45, -depth), (1, 0.02), (0.8, depth * 0.7), (0.5, depth), (start, depth)]
        )
    elif kind == 2:  # dagger
        points = np.array([(start, -depth), (0.5, -depth * 0.8), (1, 0), (0.5, depth * 0.8), (start, depth)])
    else:  # cleaver
        points = np.array([(start, -wide), (0.85, -wide), (0.9, depth * 2), (start + 0.08, depth * 2.2)])
    canvas.polygon(points, blade)
    grip = _arc(1 + start, rng.uniform(-0.06, 0.06)) - (1, 0)
    canvas.stroke(grip, np.linspace(wide * 2.2, wide * 1.7, len(grip)).tolist(), handle)
    if rng.random() < 0.6:  # the tang
        canvas.stroke(grip[1:], wide * 0.7, matter(METAL, blade[2] / 255))
    for at in (0.25, 0.5, 0.75):
        if rng.random() < 0.5:
            canvas.disc(-1 + (1 + start) * at, 0, 0.05, matter(METAL, 0.7))
    if kind in (1, 2) and rng.random() < 0.7:
        canvas.box(start - 0.06, -depth * 1.5, start + 0.04, depth * 1.5, matter(METAL, 0.6))


def wrench(canvas: Canvas, rng: np.random.Generator) -> None:
    """Draw a spanner: open ends, ring ends, or one of each."""
    metal = _steel(rng, 0.4, 0.85)
    width = rng.uniform(0.14, 0.24)
    canvas.stroke([(-0.8, 0), (0.0, 0), (0.8, 0)], [width * 1.1, width * 0.9, width * 1.1], metal)
    if rng.random() < 0.5:
        canvas.box(-0.5, -width * 0.2, 0.5, width * 0.2, matter(METAL, metal[2] / 255 * 0.7))
    both = rng.random() < 0.45
    for side in (-1, 1):
        radius = rng.uniform(0.27, 0.36) * (1.0 if side == 1 else 0.85)
        x, tilt = side * (1 - radius * 0.8), rng.uniform(-0.3, 0.3)
        canvas.disc(x, 0, radius, metal)
        if side == 1 or both:
            jaw = _turn([(-0.1 * radius, -0.45 * radius), (2 * radius, -0.6 * radius)], tilt * side)
            other = _turn([(2 * radius, 0.6 * radius), (-0.1 * radius, 0.45 * radius)], tilt * side)
            canvas.polygon(np.concatenate([jaw, other]) * (side, 1) + (x, 0), AIR)
        else:
            hexagon = _turn(_CIRCLE[::3] * radius * 0.62, tilt)
            canvas.polygon(np.add(hexagon, (x, 0)), AIR)


def pliers(canvas: Canvas, rng: np.random.Generator) -> None:
    """Draw pliers: short jaws at the right of the pivot, two long bowed handles at its left."""
    metal, cover = _steel(rng, 0.45, 0.85), _cover(rng)
    opening, bow = rng.uniform(0.08, 0.3), rng.uniform(0.1, 0.2)
    jaw, stout = rng.uniform(0.4, 0.75), rng.uniform(0.16, 0.24)
    width = rng.uniform(0.13, 0.18)
    pivot = np.array([0.35, 0.0])
    handle = _arc(1.35, bow, 8) * (-1, 1)
    for side in (-1, 1):
        arm = _turn(handle * (1, side), -side * opening * 0.5) + pivot + (0, side * 0.04)
        canvas.stroke(arm, width, metal)
        canvas.stroke(arm[3:], width * 1.35, cover)
        tip = _turn([(0, 0), (jaw * 0.5, side * stout * 0.5), (jaw, side * 0.06)], side * opening * 0.6) + pivot
        canvas.stroke(tip, [stout * 1.4, stout, stout * 0.45], metal)
    canvas.disc(pivot[0], pivot[1], stout * 1.05, metal)
    canvas.disc(pivot[0], pivot[1], stout * 0.4, matter(METAL, 0.95))


def scissors(canvas: Canvas, rng: np.random.Generator) -> None:
    """Draw scissors: two long blades crossing at a pivot, a loop at the end of each shank."""
    blade, loop = _steel(rng, 0.3, 0.65), _cover(rng)
    opening, reach = rng.uniform(0.08, 0.42), rng.uniform(0.8, 1.1)
    radius, hole = rng.uniform(0.2, 0.28), rng.uniform(0.5, 0.68)
    stretch, width = rng.uniform(1.1, 1.6), rng.uniform(0.11, 0.17)
    for side in (-1, 1):
        shank = 0.5 + radius * 0.6
        end = _turn([(-shank, side * (radius + 0.03))], side * opening * -0.6)[0]
        canvas.disc(end[0], end[1], radius, loop, stretch)
        canvas.disc(end[0], end[1], radius * hole, AIR, stretch)
        neck = np.add(end, (radius * 0.9 * stretch, -side * radius * 0.3))
        canvas.stroke([tuple(neck), (0.0, 0.0)], width * 1.1, loop if rng.random() < 0.3 else blade)
    for side in (-1, 1):
        points = [(-0.1, -side * width * 0.5), (reach, 0.0), (0.1, side * width * 0.8)]
        canvas.polygon(_turn(points, -side * opening * 0.5), blade)
    canvas.disc(0, 0, 0.07, matter(METAL, 0.9))


Painter = Callable[[Canvas, np.random.Generator], None]
ITEMS: dict[str, Painter] = {each.__name__: each for each in (gun, knife, wrench, pliers, scissors)}


def clothes(canvas: Canvas, rng: np.random.Generator) -> None:
    """Draw a soft heap with folds."""
    waves = sum(rng.uniform(0, 0.15) * np.cos(k * _ANGLES + rng.uniform(0, 6.3)) for k in (2, 3, 4))
    outline = _CIRCLE * (1 + np.asarray(waves))[:, None] * (1.0, rng.uniform(0.5, 1.0))
    amount = rng.uniform(0.06, 0.16)
    canvas.polygon(outline, matter(ORGANIC, amount))
    for _ in range(3):
        start, end = rng.uniform(-0.5, 0.5, (2, 2))
        canvas.stroke([tuple(start), tuple(end)], rng.uniform(0.08, 0.25), matter(ORGANIC, amount * 1.4))


def bottle(canvas: Canvas, rng: np.random.Generator) -> None:
    """Draw a bottle: thick in the middle, with a neck and a cap."""
    material, amount = int(rng.choice([ORGANIC, MIXED], p=[0.7, 0.3])), rng.uniform(0.2, 0.4)
    wide = rng.uniform(0.25, 0.4)
    for share in (1.0, 0.85, 0.6):
        fill = matter(material, amount * (1.25 - share * 0.6))
        w = wide * share
        canvas.polygon([(-1, -w), (0.5, -w), (0.75, -w * 0.4), (0.75, w * 0.4), (0.5, w), (-1, w)], fill)
    canvas.box(0.7, -wide * 0.4, 0.95, wide * 0.4, matter(material, amount))
    canvas.box(0.85, -wide * 0.5, 1.0, wide * 0.5, matter(int(rng.integers(3)), 0.4))


def carton(canvas: Canvas, rng: np.random.Generator) -> None:
    """Draw a box or a book: a rectangle with darker walls."""
    material, amount, high = int(rng.integers(2)), rng.uniform(0.08, 0.3), rng.uniform(0.4, 0.9)
    canvas.box(-1, -high, 1, high, matter(material, amount * 1.6))
    canvas.box(-0.9, -high + 0.1, 0.9, high - 0.1, matter(material, amount))


def cable(canvas: Canvas, rng: np.random.Generator) -> None:
    """Draw a curled wire, sometimes with a plug."""
    t = np.linspace(0, 1, 28)
    loops, spread = rng.uniform(1, 3) * 2 * np.pi, rng.uniform(0.2, 0.6)
    path = np.stack([2 * t - 1 + spread * np.cos(loops * t), spread * np.sin(loops * t)], 1)
    fill = matter(METAL, rng.uniform(0.1, 0.28))
    for a, b in pairwise(path):
        canvas.stroke([tuple(a), tuple(b)], 0.09, fill)
    if rng.random() < 0.6:
        canvas.disc(path[-1, 0], path[-1, 1], 0.18, matter(MIXED, 0.5), 1.5)


def laptop(canvas: Canvas, rng: np.random.Generator) -> None:
    """Draw a thin case with battery cells, a board and a hinge."""
    canvas.box(-1, -0.7, 1, 0.7, matter(MIXED, rng.uniform(0.12, 0.25)))
    cells, amount = int(rng.integers(3, 6)), rng.uniform(0.2, 0.4)
    for i in range(cells):
        left = -0.85 + 1.7 * i / cells
        canvas.box(left, 0.2, left + 1.5 / cells, 0.6, matter(MIXED, amount))
    x, y = rng.uniform(-0.6, 0.2), rng.uniform(-0.4, -0.2)
    canvas.box(x, y - 0.15, x + 0.5, y + 0.2, matter(METAL, rng.uniform(0.15, 0.35)))
    canvas.box(-0.8, -0.7, 0.8, -0.62, matter(METAL, 0.4))


def rod(canvas: Canvas, rng: np.random.Generator) -> None:
    """Draw a pen, a screwdriver, an umbrella's stick or a ruler."""
    fill = _cover(rng)
    canvas.stroke(_arc(2, rng.uniform(-0.1, 0.1)) - (1, 0), rng.uniform(0.08, 0.2), _steel(rng, 0.12, 0.35))
    if rng.random() < 0.6:
        canvas.stroke([(-1, 0), (rng.uniform(-0.6, -0.1), 0)], rng.uniform(0.2, 0.4), fill)


def ring(canvas: Canvas, rng: np.random.Generator) -> None:
    """Draw a ring, a coin, a roll of tape or a bracelet."""
    fill = _cover(rng) if rng.random() < 0.6 else _steel(rng, 0.15, 0.4)
    canvas.disc(0, 0, 0.7, fill, rng.uniform(0.8, 1.3))
    if rng.random() < 0.7:
        canvas.disc(0, 0, rng.uniform(0.35, 0.55), AIR)


def keys(canvas: Canvas, rng: np.random.Generator) -> None:
    """Draw two or three keys on a ring."""
    canvas.disc(0, 0, 0.35, _steel(rng, 0.15, 0.4))
    canvas.disc(0, 0, 0.25, AIR)
    for angle in rng.uniform(0, 6.3, int(rng.integers(2, 4))):
        fill = _steel(rng, 0.15, 0.4)
        canvas.stroke(_turn([(0.3, 0), (1.0, 0)], angle), 0.16, fill)
        canvas.polygon(_turn(_CIRCLE * 0.24 + (0.45, 0), angle), fill)


def gadget(canvas: Canvas, rng: np.random.Generator) -> None:
    """Draw a phone, a charger or a camera: a case with dense parts."""
    high = rng.uniform(0.4, 0.8)
    canvas.box(-1, -high, 1, high, matter(MIXED, rng.uniform(0.2, 0.4)))
    for _ in range(3):
        x, y = rng.uniform(-0.8, 0.3), rng.uniform(-high * 0.8, high * 0.2)
        w, h = rng.uniform(0.2, 0.6, 2)
        fill = matter(int(rng.integers(1, 3)), rng.uniform(0.3, 0.7))
        canvas.box(x, y, x + w, min(y + h, high), fill)


CLUTTER: tuple[tuple[Painter, float, float, float], ...] = (
    # what, smallest and largest scale, weight
    (clothes, 0.2, 0.35, 3.0),
    (bottle, 0.14, 0.26, 2.0),
    (carton, 0.08, 0.22, 2.0),
    (cable, 0.1, 0.22, 2.0),
    (laptop, 0.22, 0.32, 0.7),
    (rod, 0.08, 0.26, 2.5),
    (ring, 0.03, 0.1, 2.0),
    (keys, 0.05, 0.1, 1.5),
    (gadget, 0.06, 0.15, 1.5),
)


def bag(canvas: Canvas, rng: np.random.Generator) -> None:
    """Draw the bag itself: a rounded outline with walls, a zip and a handle; the unit is the scan's side."""
    wide, high = rng.uniform(0.42, 0.48), rng.uniform(0.38, 0.46)
    corner = rng.uniform(3, 8)  # exponent of a superellipse
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    cos, sin = np.cos(angles), np.sin(angles)
    outline = np.stack([np.sign(cos) * abs(cos) ** (2 / corner), np.sign(sin) * abs(sin) ** (2 / corner)], 1)
    material, amount = int(rng.choice([ORGANIC, MIXED], p=[0.7, 0.3])), rng.uniform(0.1, 0.22)
    if rng.random() < 0.6:
        grip = rng.uniform(0.08, 0.16)
        canvas.disc(0, -high, grip, matter(material, 0.2), 1.4)
        canvas.disc(0, -high, grip - 0.03, AIR, 1.4)
    canvas.polygon(outline * (wide, high), matter(material, amount))
    canvas.polygon(outline * (wide - 0.025, high - 0.025), matter(material, amount * 0.35))
    if rng.random() < 0.5:
        y = rng.uniform(-0.3, 0.3)
        canvas.stroke([(-wide + 0.03, y), (wide - 0.03, y)], 0.012, matter(METAL, 0.25))
