"""Shared parts of the figures: style, PNG files, labels, images, heatmaps, lines and tables."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from robustsigma.report import heatmaps, text
from robustsigma.report.panels import CORRECT, FRAME, INK, QUIET, WRONG  # noqa: F401  (figures import them from here)
from robustsigma.report.table import TableLayout
from robustsigma.report.validation import Floats

LINE = "#0b5a9c"
_STYLE = {
    "text.usetex": False,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FRAME,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "image.interpolation": "nearest",
}
# Seven colors that every kind of color vision keeps apart (Okabe and Ito, 2008, without black and yellow, with a
# brown). Line k and line k + 7 share a color and differ in dash and marker.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc6fa6", "#4fa8dc", "#b07d00", "#5b3a8c")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.6)), (0, (1.2, 1.2)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", "p", "h", ">", "d", "*", "8")
_GRAYS = (("#4d5862", (0, (3, 2)), "x"), ("#8a949e", (0, (1, 1.5)), "+"))


@contextmanager
def styled() -> Iterator[None]:
    """Draw in the style of the reports; a character that the font lacks is drawn as a box without a warning."""
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def png(figure: Figure) -> bytes:
    """Return the figure as a PNG file without metadata."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, facecolor="white", bbox_inches="tight", metadata={"Software": None})
    return buffer.getvalue()


def label(value: Any, most: int = 18) -> str:
    """Return a name on one line, cut to `most` characters, of which matplotlib parses nothing as mathematics."""
    shown = text.one_line(value)
    shown = shown if len(shown) <= most else shown[: most - 1] + "\u2026"
    return shown.replace("$", r"\$")


def shades(value: Any) -> tuple[str, str]:
    """Return the background color for a fraction in [0, 1], and the text color with more contrast on it.

    The lightness of the ramp decreases steadily: its order survives grayscale and every kind of color vision.
    """
    fraction = text.finite(value)
    if fraction is None:
        return "#ffffff", INK
    background = mpl.colors.to_hex(mpl.colormaps["Blues"](min(max(fraction, 0.0), 1.0)))
    return background, "#000000" if luminance(background) > 0.179 else "#ffffff"  # contrast of at least 4.58


def luminance(color: str) -> float:
    """Return the relative luminance as WCAG defines it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in mpl.colors.to_rgb(color)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def line_styles(names: Iterable[str], gray: Iterable[str] = ()) -> dict[str, dict[str, Any]]:
    """Return the color, dash and marker of each name in a figure; those in `gray` are in gray."""
    names, grays = list(names), set(gray)
    controls, colored = [n for n in names if n in grays], [n for n in names if n not in grays]
    found: dict[str, dict[str, Any]] = {}
    for place, name in enumerate(colored):
        dash = _DASHES[place // len(_COLORS) % len(_DASHES)]
        marker = _MARKERS[place % len(_MARKERS)]
        found[name] = {"color": _COLORS[place % len(_COLORS)], "linestyle": dash, "marker": marker}
    for place, name in enumerate(controls):
        found[name] = dict(zip(("color", "linestyle", "marker"), _GRAYS[place % len(_GRAYS)], strict=True))
    return found


def grid(axis: Any, which: str = "both") -> None:
    """Draw faint grid lines behind the data, and no frame above and to the right."""
    axis.grid(axis=which, color="#e6eaee", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def percent_axis(axis: Any) -> None:
    """Label a vertical axis of fractions in percent."""
    axis.set_ylim(-0.03, 1.03)
    axis.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0, decimals=0))
    grid(axis, "y")


def image_of(image: Floats) -> Floats:
    """Return an image of (C, H, W) in [0, 1] as matplotlib takes it."""
    image = np.clip(image, 0, 1)
    return np.moveaxis(image, 0, -1) if len(image) == 3 else np.repeat(image.mean(0)[..., None], 3, -1)


def bare(axis: Any, color: str | None = None) -> None:
    """Remove the ticks and color the frame."""
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set(color=color or FRAME, linewidth=2.2 if color else 0.6)


def overlay(axis: Any, image: Floats, heat: Floats) -> None:
    """Draw a heatmap over its image, as `robustsigma.overlay` does."""
    axis.imshow(np.asarray(heatmaps.overlay(image, heat)))


def legend(axis: Any) -> None:
    """Draw the colors of heatmaps to the right of an image."""
    bar = axis.inset_axes([1.08, 0, 0.08, 1])
    bar.imshow(np.asarray(heatmaps.color_bar(8, 100)), aspect="auto", extent=(0, 1, 0, 1))
    bar.set(xticks=[], yticks=[0, 1], yticklabels=["weak", "strong"])
    bar.yaxis.tick_right()
    bar.tick_params(length=0, labelsize=7.5)
    bar.spines[:].set_visible(False)


def draw_table(table: TableLayout) -> Figure:
    """Draw the numbers of a table on their colors; an asterisk stands for flags."""
    columns, width = table.column_heads, len(table.column_heads)
    names = [label(head.label) + label(group.suffix, 30) for group in table.rows for head in group.heads]
    figure = Figure(figsize=(1.7 + 0.82 * width, 0.95 + 0.44 * len(names)))
    axis = figure.subplots()
    for y, row in enumerate(table.row_heads):
        for x, column in enumerate(columns):
            cell = table.cells.get((row.id, column.id))
            background, ink = shades(cell.fill if cell else None)
            axis.add_patch(mpl.patches.Rectangle((x, y), 1, 1, facecolor=background, edgecolor="white", linewidth=1.5))
            shown = cell.text + (" *" if cell.flags else "") if cell else text.DASH
            axis.text(x + 0.5, y + 0.5, shown, ha="center", va="center", color=ink, fontsize=9)
    axis.set(xlim=(0, max(width, 1)), ylim=(max(len(names), 1), 0))
    axis.set_xticks(np.arange(width) + 0.5, [label(head.label, 14) for head in columns], color=INK)
    axis.set_yticks(np.arange(len(names)) + 0.5, names, color=INK)
    axis.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
    axis.spines[:].set_visible(False)
    start = 0
    for group in table.columns:
        end = start + len(group.heads)
        axis.text((start + end) / 2, -0.72, label(group.title), ha="center", va="bottom", fontweight="bold", size=8.5)
        axis.plot([start + 0.06, end - 0.06], [-0.72, -0.72], color=QUIET, linewidth=0.8, clip_on=False)
        start = end
    for row_end in np.cumsum([len(group.heads) for group in table.rows])[:-1]:
        axis.axhline(row_end, color=INK, linewidth=1.0)
    return figure
