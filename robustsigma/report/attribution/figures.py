"""All figures of an attribution benchmark, by name."""

from __future__ import annotations

from typing import Any

import numpy as np

from robustsigma.report import gallery
from robustsigma.report.attribution import board as boards
from robustsigma.report.attribution.checks import check_gallery
from robustsigma.report.attribution.cost import draw_cost
from robustsigma.report.attribution.curves import draw_curves
from robustsigma.report.attribution.sanity import draw_sanity
from robustsigma.report.canvas import png, styled


def draw(results: dict[str, Any], arrays: dict[str, np.ndarray]) -> dict[str, bytes]:
    """Draw what the result holds.

    Args:
        results: what the benchmark measured (schema 1, kind "attribution").
        arrays: `images`, `maps` and perhaps `masks` of its gallery.

    Returns:
        PNG files by name: `attribution_curves`, `attribution_cost`, `attribution_sanity`, `attribution_gallery`, each
        followed by `_1`, `_2`, … where there are several models; those without data are left out.

    Raises:
        ValueError: if the result is not of that kind, or an array is missing or does not fit.
    """
    found = boards.build(results)
    section = results.get("gallery") or {}
    if section.get("items"):
        check_gallery(section, arrays)
    made: dict[str, bytes] = {}
    with styled():
        for index, board in enumerate(found):
            kinds = {
                "curves": draw_curves(results, board),
                "cost": draw_cost(results, board),
                "sanity": draw_sanity(results, board),
                "gallery": gallery.attributions(results, board.model["id"], boards.names(results), arrays),
            }
            for kind, figure in kinds.items():
                if figure is not None:
                    made[name(kind, index, len(found))] = png(figure)
    return made


def name(kind: str, index: int, count: int) -> str:
    """Return the name of a figure of one of the models; never made of a model's name, which may hold anything."""
    return f"attribution_{kind}" + (f"_{index + 1}" if count > 1 else "")
