"""A toy: noise, dark or bright."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from robustsigma.data.dataset_spec import ArrayDataset, DatasetSpec, Split

_COUNTS: dict[Split, int] = {"train": 40, "val": 10, "test": 20}


@dataclass(frozen=True)
class Foo(DatasetSpec):
    """Gray noise in two classes.

    Args:
        seed: of the noise.
    """

    seed: int = 0

    @property
    def classes(self) -> tuple[str, ...]:
        """Dark and bright."""
        return "dark", "bright"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(1, 8, 8)."""
        return 1, 8, 8

    def split(self, split: Split) -> ArrayDataset:
        """Return one split, drawn again each time."""
        self.check_split(split)
        count = _COUNTS[split]
        drawn = torch.Generator().manual_seed(1000 * self.seed + list(_COUNTS).index(split))
        labels = torch.arange(count) % 2
        images = torch.randint(0, 128, (count, *self.shape), generator=drawn) + 128 * labels[:, None, None, None]
        return ArrayDataset(images.to(torch.uint8), labels)
