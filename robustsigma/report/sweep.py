"""The sweep of the Gaussian noise to train on, laid out: a block for each regime, a row for each std."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from robustsigma.report import matrix, text

HELD_OUT = {"val": "the validation split", "train": "the training images, left out of every training of the sweep"}
JUDGED = {
    "mean": ("Mean", "the accuracy averaged over the columns"),
    "worst": ("Worst case", "the share of images that are right under every column"),
}


@dataclass(frozen=True)
class Block:
    """The sweep of one regime.

    Attributes:
        title: of the regime, with its protocol.
        heads: of the columns: id, label, reading.
        judged: what the mean or the worst case is called, and what it is.
        rows: of the table, in order of their std.
        entry: as the evaluation wrote it.
    """

    title: str
    heads: tuple[matrix.Head, ...]
    judged: tuple[str, str]
    rows: list[dict[str, Any]]
    entry: dict[str, Any]

    @property
    def where(self) -> str:
        """Which images were judged, in words."""
        part = str(self.entry.get("held_out"))
        return f"{text.number(self.entry.get('images'))} images of {HELD_OUT.get(part, part)}"


def build(results: dict[str, Any]) -> list[Block]:
    """Return the sweep of each regime; a result without a sweep has none.

    Args:
        results: what the evaluation measured (schema 1), or a sweep alone: only its part `sweep` is read.
    """
    return [_block(entry) for entry in results.get("sweep") or []]


def _block(entry: dict[str, Any]) -> Block:
    title = matrix.named(text.name(entry["name"]), str(entry.get("protocol")))
    by = str(entry.get("by"))
    names = Counter(column["name"] for column in entry["columns"])
    heads = tuple(
        matrix.Head(c["id"], text.name(c["name"] if names[c["name"]] == 1 else c["id"]), c.get("reading", "none"), "")
        for c in entry["columns"]
    )
    return Block(title, heads, JUDGED.get(by, (text.printable(by), "")), entry["rows"], entry)
