"""Random splits into training, validation and test images, with every class in proportion."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from robustsigma.data.dataset_spec import Split
from robustsigma.data.folder_scan import shorten
from robustsigma.engine.validation import fail, integer

T = TypeVar("T")


def stratified(labels: Sequence[int] | NDArray[np.int64], val: int, test: int, seed: int) -> dict[Split, list[int]]:
    """Split indices at random, every class in proportion and with at least one image in "train".

    Args:
        labels: class of each image.
        val: number of validation images.
        test: number of test images; the rest is "train".
        seed: seed of the random choice.

    Returns:
        Increasing indices of each split. The splits are disjoint and cover all images.
    """
    given = np.asarray(labels)
    classes = len(np.unique(given))
    if val < 0 or test < 0 or val + test > len(given) - max(1, classes):
        expected = f"to leave a training image for each of {classes} classes"
        raise fail("val and test", expected, f"{val} and {test} of {len(given)} images")
    rng = np.random.default_rng(seed)
    rank = np.empty(len(given))
    for label in np.unique(given):
        members = rng.permutation(np.flatnonzero(given == label))
        rank[members] = (np.arange(len(members)) + rng.random()) / len(members)
        rank[members[-1]] += 1  # after all others, so that it is in "train"
    order = np.argsort(rank, kind="stable").tolist()
    return {"train": sorted(order[test + val :]), "val": sorted(order[test : test + val]), "test": sorted(order[:test])}


def split_by_fraction(
    rows: Sequence[T],
    labels: Sequence[Any],
    val_fraction: float,
    test_fraction: float,
    seed: int,
    *,
    name: str,
    where: Path,
) -> dict[Split, list[T]]:
    """Split rows like `stratified`. A fraction above zero gives at least one row.

    Raises:
        ValueError: too few images to leave one for training in each class. It names the argument `name` and the place
            `where`.
    """
    val, test = (max(1, round(len(rows) * each)) if each else 0 for each in (val_fraction, test_fraction))
    ranks: dict[Hashable, int] = {label: rank for rank, label in enumerate(sorted(set(labels)))}
    if val + test > len(rows) - len(ranks):
        expected = f"enough images to split in {where} and to leave one for training in each of {len(ranks)} classes"
        raise fail(name, expected, len(rows))
    parts = stratified([ranks[label] for label in labels], val, test, seed)
    return {split: [rows[i] for i in part] for split, part in parts.items()}


def check_fraction(name: str, value: float) -> None:
    """Raise ValueError unless 0 < value < 1."""
    if not isinstance(value, (int, float)) or not 0 < value < 1:
        raise fail(name, "a fraction between 0 and 1, both excluded", value)


def check_split_settings(val_fraction: float, test_fraction: float, seed: int, *, only_test: bool = False) -> None:
    """Raise ValueError unless images can be split so. With `only_test`, `test_fraction` may be 1."""
    check_fraction("val_fraction", val_fraction)
    if not (only_test and isinstance(test_fraction, (int, float)) and test_fraction == 1):
        check_fraction("test_fraction", test_fraction)
        if val_fraction + test_fraction >= 1:
            raise fail("val_fraction and test_fraction", "a sum below 1", val_fraction + test_fraction)
    integer("seed", seed, 0)


def missing_class_notes(classes: Sequence[str], labels: Mapping[Split, Iterable[int]]) -> list[str]:
    """Return a note for each split that lacks a class: any class in "train", one that another split has elsewhere."""
    present = {split: set(each) for split, each in labels.items()}
    notes = []
    for split, found in present.items():
        wanted = set(range(len(classes))) if split == "train" else set().union(*present.values())
        missing = [classes[label] for label in sorted(wanted - found)]
        if missing:
            what = {"train": "training", "val": "validation", "test": "test"}[split]
            notes.append(f"{len(missing)} of {len(classes)} classes without a {what} image: {shorten(missing)}")
    return notes
