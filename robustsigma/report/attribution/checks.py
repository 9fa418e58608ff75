"""What a result of an attribution benchmark must hold before it is shown."""

from __future__ import annotations

from typing import Any

import numpy as np

from robustsigma.engine.validation import fail

_STRINGS = {
    "models": ("id",),
    "methods": ("id",),
    "metrics": ("id", "title", "group", "better"),
    "cells": ("model", "method", "metric"),
}
_CURVES = ("mean", "low", "high")


def check(results: Any) -> None:
    """Refuse what is not a result of an attribution benchmark.

    Raises:
        ValueError: naming the field, what was expected and what came.
    """
    if not isinstance(results, dict) or results.get("schema") != 1 or results.get("kind") != "attribution":
        came = type(results).__name__
        if isinstance(results, dict):
            came = f"schema {results.get('schema')!r}, kind {results.get('kind')!r}"
        raise fail("results", "a dict with schema 1, kind 'attribution'", came)
    for key, wanted in _STRINGS.items():
        if not isinstance(results.get(key), list):
            raise fail(f"results[{key!r}]", "a list", type(results.get(key)).__name__)
        for index, entry in enumerate(results[key]):
            for part in wanted:
                if not isinstance(entry.get(part), str):
                    raise fail(f"results[{key!r}][{index}][{part!r}]", "a str", repr(entry.get(part)))
    for key in ("models", "methods", "metrics"):
        ids = [entry["id"] for entry in results[key]]
        if len(set(ids)) != len(ids):
            raise fail(f"results[{key!r}]", "a different id in every entry", ", ".join(ids))
    for index, metric in enumerate(results["metrics"]):
        if metric["better"] not in ("higher", "lower"):
            raise fail(f"results['metrics'][{index}]['better']", "'higher' or 'lower'", repr(metric["better"]))
    for place, curve in enumerate(results.get("curves") or []):
        _check_curve(f"results['curves'][{place}]", curve)


def _check_curve(where: str, curve: dict[str, Any]) -> None:
    """Refuse a curve whose lines are not as long as its x."""
    wanted = len(curve["x"])
    for index, line in enumerate(curve["lines"]):
        for key in _CURVES:
            if line.get(key) is not None and len(line[key]) != wanted:
                raise fail(f"{where}['lines'][{index}][{key!r}]", f"{wanted} values, one per x", len(line[key]))


def check_gallery(section: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Refuse arrays that do not fit the gallery's models, methods and labels.

    Raises:
        ValueError: naming the array, what was expected and what came.
    """
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
