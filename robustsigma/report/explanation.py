"""Pictures of one explained image: its heatmaps side by side, and the path of a SIGMA walk."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from robustsigma.report.heatmaps import Floats, color_bar, overlay, picture_of, side_of
from robustsigma.report.panels import CORRECT, Panel, draw_panels

_SIDE, _POINT = 300, 150  # the least, in pixels, of each panel of an explanation and of a walk
_ROW, _STRIP, _FRAMES = 5, 8, 16  # panels in a row, and points of a walk
_HOLD = 12  # times as long as the others, the last frame of an animation is shown


def draw_explanation(
    entry: Mapping[str, Any],
    image: Floats,
    maps: Sequence[Floats],
    samples: Sequence[Floats | None],
    style: Mapping[str, Any],
) -> bytes:
    """Return a PNG file of an image, a heatmap for each method, and the zero-confidence sample of each SIGMA walk.

    Args:
        entry: what `explain` knows of the image: `predicted`, a list of {class, confidence}, `explained`, such a pair,
            `contrast`, a class or None, and `maps`, a list of what it knows of each map.
        image: (C, H, W) in [0, 1].
        maps: values (C, H, W) for each method.
        samples: an image for each method, or None.
        style: options of `overlay`.
    """
    side = side_of(image.shape[1:], _SIDE)
    first, *others = entry["predicted"]
    panels = [Panel(picture_of(image, side), f"predicted: {_pair(first)}", tuple(map(_pair, others[:2])))]
    explained, rather = entry["explained"], entry["contrast"]
    for made, values, sample in zip(entry["maps"], maps, samples, strict=True):
        what = f"{explained['class']} rather than {rather}"
        known = [f"explains {what if rather else _pair(explained)}"]
        if style.get("outline") is not None:
            known.append(f"outlined: the highest {style['outline']:g}%")
        end = made.get("sample_explained")
        lost = "" if made["converged"] else "not converged"
        if end is not None:
            known.append(f"confidence falls to {_percent(end['confidence'])}{', ' * bool(lost)}{lost}")
        elif lost:
            known.append(lost)
        if not values.any():
            known.append("the map is zero everywhere")
        panels.append(Panel(overlay(image, values, side=side, **style), made["method"], tuple(known)))
        if sample is not None:
            told = [f"predicted: {_pair(made['sample_predicted'])}"]
            if end["index"] != made["sample_predicted"]["index"]:
                told.append(_pair(end))
            name = "zero-confidence sample" if made["converged"] else "end of the walk"
            panels.append(Panel(picture_of(sample, side), name, tuple(told)))
    words = ("for", "against") if style.get("signed") else ("strong", "weak")
    rows = [panels[start : start + _ROW] for start in range(0, len(panels), _ROW)]
    return _png(draw_panels(rows, bar=(color_bar(14, side, **style), *words)))


def draw_path(images: Floats, confidence: Sequence[float], name: str) -> bytes:
    """Return a PNG file of a strip of images on a walk, from the image to its end.

    Args:
        images: (S + 1, C, H, W), the points of the walk.
        confidence: at each point.
        name: of the class whose confidence it is.
    """
    side = side_of(images.shape[2:], _POINT)
    return _png(draw_panels([[_point(images, confidence, name, step, side) for step in _spread(len(images), _STRIP)]]))


def animate_path(images: Floats, confidence: Sequence[float], name: str) -> bytes:
    """Return the same as an animated GIF file, with a bar as long as the confidence below the image."""
    side, frames = side_of(images.shape[2:], _POINT), []
    for step in _spread(len(images), _FRAMES):
        panel = _point(images, confidence, name, step, side)
        frame = draw_panels([[panel]])
        brush, bottom = ImageDraw.Draw(frame), frame.height - 1
        brush.rectangle((12, bottom - 5, 12 + confidence[step] * panel.picture.width, bottom), CORRECT)
        frames.append(frame.quantize(128))
    buffer = io.BytesIO()
    pauses = [150] * (len(frames) - 1) + [150 * _HOLD]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=pauses, loop=0)
    return buffer.getvalue()


def _point(images: Floats, confidence: Sequence[float], name: str, step: int, side: int) -> Panel:
    told = f"{name}: {_percent(confidence[step])}"
    return Panel(picture_of(images[step], side), f"step {step} of {len(images) - 1}", (told,))


def _spread(count: int, most: int) -> list[int]:
    return sorted({round(place) for place in np.linspace(0, count - 1, most)})


def _pair(found: Mapping[str, Any]) -> str:
    return f"{found['class']} ({_percent(found['confidence'])})"


def _percent(confidence: float) -> str:
    """Return a confidence in percent, small ones with more digits."""
    return f"{100 * confidence:.0f}%" if confidence >= 0.0095 else f"{100 * confidence:.1g}%" if confidence else "0%"


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
