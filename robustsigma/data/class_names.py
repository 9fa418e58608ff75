"""Names of classes: how a text in a table or the name of a folder becomes a label."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from robustsigma.engine.validation import fail

# WordNet 3.0 identifiers of the classes of ILSVRC 2012. Sorted, their places are the labels of every published network.
WNIDS = tuple(Path(__file__).with_name("imagenet_wnids.txt").read_text(encoding="ascii").split())
_WNID = re.compile(r"n\d{8}")
_INDEX = re.compile(r"(\d{1,9})(\.0*)?", re.ASCII)
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_NUMBER = re.compile(NUMBER, re.ASCII)
_MISSING = ("?", "-", "na", "n/a", "nan", "<na>", "none", "null")


def are_wnids(texts: Sequence[str]) -> bool:
    """Return whether there is at least one text and all are WordNet identifiers such as n01440764."""
    return bool(texts) and all(map(_WNID.fullmatch, texts))


def as_index(text: str) -> int | None:
    """Return the non-negative integer that a text such as "3" or "3.0" is, or None.

    pandas writes a column of integers with a missing value as floats.
    """
    found = _INDEX.fullmatch(text)
    return int(found[1]) if found else None


def are_indices(texts: Sequence[str]) -> bool:
    """Return whether there is at least one text and all are non-negative integers."""
    return bool(texts) and all(as_index(text) is not None for text in texts)


def are_numbers(texts: Sequence[str]) -> bool:
    """Return whether some texts are numbers and the others stand for a missing value, such as "nan" or "?"."""
    names = [text for text in texts if not _NUMBER.fullmatch(text)]
    return len(names) < len(texts) and all(text.lower() in _MISSING for text in names)


def order_notes(classes: Sequence[str]) -> list[str]:
    """Return a warning if most classes are named by numbers that are not in numeric order, such as "10" before "2"."""
    numbers = [name for name in classes if _NUMBER.fullmatch(name)]
    pair = next((f"{a!r} before {b!r}" for a, b in pairwise(numbers) if float(a) > float(b)), None)
    if pair is None or 2 * len(numbers) <= len(classes):
        return []
    hint = "if the network's logits are in numeric order, give class_list with the names in that order"
    return [f"classes are in alphabetical order, {pair}; {hint}"]


class ClassIndex:
    """Finds the label of a class by its name, its index, or its WordNet identifier if the classes are ImageNet's 1,000.

    A name comes before an index: of the class folders "1" and "2", "1" is the first.

    Args:
        classes: names by label.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.count = len(classes)
        self._labels = {wnid: label for label, wnid in enumerate(WNIDS)} if self.count == len(WNIDS) else {}
        self._ambiguous = {name for name, times in Counter(classes).items() if times > 1}
        self._labels |= {name: label for label, name in enumerate(classes)}

    def find(self, text: str, name: str, where: str) -> int:
        """Return the label of the class that a text names; otherwise the error names `name` and the place `where`."""
        if text in self._ambiguous:
            raise fail(name, f"the index of one of the classes that are called {text!r}, {where}", "the name")
        if text in self._labels:
            return self._labels[text]
        index = as_index(text)
        if index is not None and index < self.count:
            return index
        raise fail(name, f"a class by its name or its index below {self.count}, {where}", repr(text[:60]))


def class_names(name: str, given: Sequence[str]) -> tuple[str, ...]:
    """Return names of classes as a tuple, or raise ValueError unless they are a list of at least two texts."""
    found: object = given
    listed = isinstance(found, (list, tuple)) and len(given) > 1
    if not listed or not all(isinstance(each, str) and each for each in given):
        raise fail(name, "a list of at least two names of classes", repr(given)[:80])
    return tuple(given)
