"""An image of which some pixels are revealed and the others interpolated from them."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np

from robustsigma.engine.validation import choice, fail

Array = np.ndarray[Any, Any]
Interpolation = Literal["fast", "exact"]


def interpolate_masked(image: Array, revealed: Array, interpolation: Interpolation = "fast") -> Array:
    """Return the image with its hidden pixels interpolated linearly in the Delaunay triangles of the revealed ones.

    That is the blur of Performance Information Curves (Kapishnikov et al., XRAI, 2019, section 4). The four corners
    are always revealed.

    Where four or more revealed pixels lie on one circle with none inside, as on a grid they often do, there are
    several Delaunay triangulations, and which one an implementation takes is chance. "exact" takes that of
    scipy.interpolate.griddata and gives its numbers to the last bit; "fast" takes another in such places, and is
    equal to it, but for one level where rounding is a tie, in all others.

    Args:
        image: uint8 (H, W, C), at least 2 x 2 pixels; or float, whose hidden pixels are not rounded.
        revealed: bool (H, W).
        interpolation: "fast" or "exact".

    Returns:
        (H, W, C), of the image's dtype.

    Raises:
        ValueError: another dtype or shape.
    """
    choice("interpolation", interpolation, get_args(Interpolation))
    whole = image.dtype == np.uint8
    if not (whole or image.dtype.kind == "f") or image.ndim != 3 or min(image.shape[:2]) < 2:
        raise fail("image", "uint8 or float (H, W, C) of at least 2 x 2 pixels", f"{image.dtype} {image.shape}")
    if revealed.dtype != np.bool_ or revealed.shape != image.shape[:2]:
        raise fail("revealed", f"bool {image.shape[:2]}", f"{revealed.dtype} {revealed.shape}")
    revealed = revealed.copy()
    revealed[np.ix_([0, -1], [0, -1])] = True
    hidden = np.argwhere(~revealed)
    result = image.copy()
    if len(hidden):
        fill = _from_borders if interpolation == "fast" else _triangulated
        values = fill(image, revealed, hidden)
        if whole:  # single precision before rounding, as griddata's callers store it, so that ties are the same ones
            values = values.astype(np.float32).round()
        result[hidden[:, 0], hidden[:, 1]] = values.astype(image.dtype)
    return result


def _triangulated(image: Array, points: Array, hidden: Array) -> Array:
    """Return the values (n, C) of hidden pixels from one triangulation of the points (H, W), shared by all channels."""
    from scipy.interpolate import LinearNDInterpolator
    from scipy.spatial import Delaunay

    values = LinearNDInterpolator(Delaunay(np.argwhere(points).astype(float)), image[points].astype(float))(hidden)
    # Between corners nothing is outside; only rounding may say so, and griddata then fills in the mean.
    return np.where(np.isnan(values), image.mean((0, 1)), values)


def _from_borders(image: Array, revealed: Array, hidden: Array) -> Array:
    """Return the same values (n, C), but for ties, from the revealed pixels next to hidden ones."""
    from scipy.ndimage import minimum_filter

    # All triangles at a revealed pixel whose eight neighbors are revealed are halves of squares between them.
    border = revealed & ~minimum_filter(revealed, 3, mode="nearest")
    border[np.ix_([0, -1], [0, -1])] = True
    return _triangulated(image, border, hidden)
