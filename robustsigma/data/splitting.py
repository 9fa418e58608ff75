"""Random splits into training, validation and test images, with every class in proportion."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from robustsigma.data.dataset_spec import Split
from robustsigma.engine.validation import fail


def stratified(labels: Sequence[int] | NDArray[np.int64], val: int, test: int, seed: int) -> dict[Split, list[int]]:
    """Split indices at random, every class in proportion and with at least one image in "train".

    `labels` are the classes of all images; `val` and `test` are numbers of images. Indices of each split increase.
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
