"""Checks of results and arrays before a report shows them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustsigma.engine.validation import fail
from robustsigma.report import text

Floats = NDArray[np.floating[Any]]


def check_gallery(section: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Raise ValueError unless the arrays fit the models, methods and labels of the gallery."""
    images, maps, masks = (np.shape(arrays[key]) if arrays.get(key) is not None else None
                           for key in ("images", "maps", "masks"))  # fmt: skip
    count = len(section["labels"])
    if images is None or len(images) != 4 or 0 in images or images[0] != count:
        raise fail("arrays['images']", f"shape ({count}, C, H, W), one image per item of labels", images)
    side = images[2:]
    wanted = (len(section["models"]), len(section["methods"]), count, *side)
    if maps != wanted:
        raise fail("arrays['maps']", f"shape {wanted}: models, methods, images, height, width", maps)
    if masks is not None and masks != (count, *side):
        raise fail("arrays['masks']", f"shape {(count, *side)}, one mask per image", masks)


def check_length(where: str, values: Any, wanted: int, of: str) -> None:
    """Raise ValueError unless there are as many values as the section they belong to needs."""
    if len(values) != wanted:
        raise fail(where, f"{wanted} {of}", len(values))


def array(arrays: dict[str, np.ndarray], key: str, dimensions: int) -> Floats:
    """Return an array as finite floats after a check of its dimensions."""
    found = arrays.get(key)
    shape = None if found is None else np.shape(found)
    if shape is None or len(shape) != dimensions or 0 in shape:
        raise fail(f"arrays[{key!r}]", f"an array of {dimensions} dimensions, not empty", f"shape {shape}")
    return np.nan_to_num(np.asarray(found, dtype=np.float64), posinf=1.0, neginf=0.0)


def floats(values: Any) -> Floats:
    """Return numbers as an array with NaN for each that is missing or not finite."""
    return np.array([np.nan if text.finite(value) is None else float(value) for value in values], float)
