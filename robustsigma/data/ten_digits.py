"""What the two embedded datasets of handwritten digits share."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from robustsigma.data.folder import stratified
from robustsigma.data.source import ArrayDataset, DatasetSpec, Split
from robustsigma.engine.validation import integer


@dataclass(frozen=True)
class TenDigits(DatasetSpec):
    """Gray digits held in memory, split at random with every class in proportion.

    Args:
        seed: of the split.
    """

    side: ClassVar[int]
    val: ClassVar[int]
    test: ClassVar[int]

    seed: int = 0

    def __post_init__(self) -> None:
        integer("seed", self.seed, 0)

    @staticmethod
    @abstractmethod
    def load() -> tuple[Tensor, Tensor]:
        """Return all images, uint8 (N, 1, side, side), and their labels (N,)."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The ten digits."""
        return tuple("0123456789")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(1, side, side)."""
        return 1, self.side, self.side

    def split(self, split: Split) -> ArrayDataset:
        """Return one split, held in memory."""
        self.check_split(split)
        images, labels = self.load()
        part = stratified(labels.numpy(), self.val, self.test, self.seed)[split]
        return ArrayDataset(images[part], labels[part])
