"""The data module of an evaluation: training images with samples added, and test images made beforehand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from robustsigma.data.dataset_spec import Batch, Split
from robustsigma.data.module import RobustDataModule
from robustsigma.engine.perturbations import Identity, Perturbation


class MadeImages(Dataset[tuple[Tensor, int]]):
    """Images that a perturbation made, found by the index of the image they came from.

    Args:
        images: float (N, C, H, W) in [0, 1].
        labels: int64 (N,).
        indices: int64 (N,), or None for 0 to N - 1.
    """

    def __init__(self, images: Tensor, labels: Tensor, indices: Tensor | None = None) -> None:
        self.images, self.labels = images, labels
        found = range(len(images)) if indices is None else indices.tolist()
        self.row = {index: row for row, index in enumerate(found)}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        row = self.row[index]
        return self.images[row], int(self.labels[row])


class MatrixData(RobustDataModule):
    """A `RobustDataModule` with images that were made beforehand, for an evaluation that flags unsound networks.

    Args:
        args: of RobustDataModule.
        added: images added to those of training, or None.
        conditions: as of RobustDataModule; may be empty beside `made`.
        made: test images by the name of a condition, each with the labels and indices of the chosen test images.
        done: how many of the chosen test images are done already, by the name of a condition: the first ones.
        kwargs: of RobustDataModule.
    """

    reports_network = True

    def __init__(
        self,
        *args: Any,
        added: MadeImages | None = None,
        conditions: Mapping[str, Perturbation] | None = None,
        made: Mapping[str, MadeImages] | None = None,
        done: Mapping[str, int] | None = None,
        **kwargs: Any,
    ) -> None:
        self.added, self.done = added, dict(done or {})
        self.made = dict(made or {})
        every = {**(conditions or {}), **{name: Identity() for name in self.made}}
        super().__init__(*args, conditions=every or None, **kwargs)

    def split(self, name: Split) -> Dataset[Any]:
        """Return the images of a split, those of training with the added ones."""
        dataset = super().split(name)
        return dataset if self.added is None or name != "train" else ConcatDataset([dataset, self.added])

    def test_dataloader(self) -> list[DataLoader[Batch]]:
        """Return a loader for each condition."""
        return [self._rest(name) for name in self.conditions]

    def _rest(self, name: str) -> DataLoader[Batch]:
        """Return the loader of the test images of a condition that are not done."""
        dataset = self.made.get(name) or self.split("test")
        indices = list(dataset.row) if isinstance(dataset, MadeImages) else self._chosen(dataset, "test")
        return self._keyed_loader(dataset, indices[self.done.get(name, 0) :], "test")
