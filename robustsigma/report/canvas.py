"""What the figures of the reports share: style, files, checks of arrays, names, images and heatmaps."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from robustsigma.report import text

Floats = NDArray[np.floating[Any]]
RIGHT, WRONG, INK, QUIET, LINE = "#00805e", "#c8420b", "#1d2a35", "#5d6b78", "#0b5a9c"
MOST = 10
STYLE = {
    "text.usetex": False,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#b8c2cc",
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "image.interpolation": "nearest",
}


@contextmanager
def styled() -> Iterator[None]:
    """Draw in the reports' style; a character that the font lacks is drawn as a box, and nothing is said."""
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def png(figure: Figure) -> bytes:
    """Return the figure as a PNG file that names no program."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, facecolor="white", bbox_inches="tight", metadata={"Software": None})
    return buffer.getvalue()


def floats(values: Iterable[Any]) -> Floats:
    """Return numbers as an array, NaN for what is missing or not finite."""
    return np.array([np.nan if text.finite(value) is None else float(value) for value in values], float)


def array(arrays: dict[str, np.ndarray], key: str, dimensions: int) -> Floats:
    """Return an array after a look at its shape."""
    found = arrays.get(key)
    shape = None if found is None else np.shape(found)
    if shape is None or len(shape) != dimensions or 0 in shape:
        raise ValueError(f"arrays[{key!r}]: expected an array of {dimensions} dimensions, not empty, got shape {shape}")
    return np.nan_to_num(np.asarray(found, dtype=np.float64), posinf=1.0, neginf=0.0)


def fit(key: str, came: int, wanted: int, of: str) -> None:
    """Refuse an array that is not as long as the section it belongs to."""
    if came != wanted:
        raise ValueError(f"arrays[{key!r}]: expected {wanted} {of}, got {came}")


def label(value: Any, most: int = 18) -> str:
    """Return a name that matplotlib draws as it is: no mathematics, not too long, on one line."""
    shown = " ".join(text.printable(value).split())
    shown = shown if len(shown) <= most else shown[: most - 1] + "\u2026"
    return shown.replace("$", r"\$")


def image_of(image: Floats) -> Floats:
    """Return an image of (C, H, W) as matplotlib takes it, in [0, 1]."""
    image = np.clip(image, 0, 1)
    return np.moveaxis(image, 0, -1) if len(image) == 3 else np.repeat(image.mean(0)[..., None], 3, -1)


def bare(axis: Any, colour: str | None = None) -> None:
    """Take the ticks away and colour the frame."""
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set(color=colour or "#b8c2cc", linewidth=2.2 if colour else 0.6)


def overlay(axis: Any, image: Floats, heat: Floats) -> None:
    """Draw a heatmap over its image in grey: strong attributions opaque, weak ones clear, purple below zero."""
    axis.imshow(0.35 + 0.65 * image_of(image).mean(-1), cmap="gray", vmin=0, vmax=1)
    scale = float(np.quantile(np.abs(heat), 0.99)) or float(np.abs(heat).max()) or 1.0
    level = np.clip(heat / scale, -1, 1)
    colours = mpl.colormaps["PuOr_r"](0.5 + 0.42 * np.sign(level) * (0.45 + 0.55 * np.abs(level)))
    colours[..., 3] = np.clip(np.abs(level) ** 0.8, 0, 0.92)
    axis.imshow(colours, extent=axis.images[0].get_extent())
