"""One image beside its heatmap."""

from __future__ import annotations

from matplotlib.figure import Figure

from robustsigma.report.canvas import Floats, bare, image_of, label, overlay, png, styled


def draw_overlay(image: Floats, heat: Floats, title: str, method: str) -> bytes:
    """Return a PNG file: the image, and the heatmap over it.

    Args:
        image: (C, H, W) in [0, 1].
        heat: (H, W), signed: orange supports the class, purple speaks against it.
        title: over the image.
        method: over the heatmap.
    """
    with styled():
        figure = Figure(figsize=(6.4, 3.5))
        left, right = figure.subplots(1, 2)
        left.imshow(image_of(image), vmin=0, vmax=1)
        left.set_title(label(title, 40), fontsize=10)
        overlay(right, image, heat)
        right.set_title(label(method, 40), fontsize=10)
        for axis in (left, right):
            bare(axis)
        return png(figure)
