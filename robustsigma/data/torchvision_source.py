"""Any classification dataset of torchvision, by name."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from robustsigma.data.files import to_tensor
from robustsigma.data.folder import check_fraction, stratified
from robustsigma.data.resize_crop import ResizeCrop
from robustsigma.data.source import ArrayDataset, DatasetSpec, Split
from robustsigma.engine.validation import fail, integer


class WrappedDataset(Dataset[tuple[Tensor, int]]):
    """Some images of a torchvision dataset as tensors of one shape.

    Args:
        inner: gives (PIL image, label).
        indices: which images.
        shape: (C, H, W) that every image must have.
        fit: side to resize and crop to, or how to, or None to leave images as they are.
    """

    def __init__(
        self, inner: Any, indices: list[int], shape: tuple[int, int, int], fit: int | ResizeCrop | None
    ) -> None:
        self.inner, self.indices, self.shape, self.fit = inner, indices, shape, fit

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.inner[self.indices[index]]
        tensor = to_tensor(image, self.shape[0], self.fit)
        if tuple(tensor.shape) != self.shape:
            raise ValueError(f"size: expected a number, since images differ: {tuple(tensor.shape)} and {self.shape}")
        return tensor, int(label)


@dataclass(frozen=True)
class Torchvision(DatasetSpec):
    """A dataset of `torchvision.datasets` whose constructor takes `train` or `split`.

    "test" is the dataset's own test images, or its validation images where it publishes no others; "val" is taken
    from its training images.

    Args:
        dataset: class name, such as CIFAR10, FashionMNIST or Imagenette.
        root: folder of the files.
        download: fetch them if they are missing.
        size: the shorter side is resized to it and the center cropped; None keeps images that are all of one size, or
            has them as a network wants that was trained elsewhere.
        val_fraction: share of the training images that becomes "val".
        seed: of that choice.
        geometry: how images are resized and cropped, instead of `size`.
    """

    dataset: str
    root: str = "data"
    download: bool = False
    size: int | None = None
    val_fraction: float = 0.1
    seed: int = 0
    geometry: ResizeCrop | None = None

    def __post_init__(self) -> None:
        if self.size is not None and self.geometry is not None:
            raise fail("size", "a number of pixels, or a geometry instead", "both")
        import torchvision  # here, as it takes a second

        kind = getattr(torchvision.datasets, str(self.dataset), None)
        if not (inspect.isclass(kind) and {"train", "split"} & set(inspect.signature(kind).parameters)):
            raise ValueError(
                f"dataset: expected a torchvision dataset with a `train` or `split` argument, got {self.dataset!r}"
            )
        if self.size is not None:
            integer("size", self.size, 1)
        check_fraction("val_fraction", self.val_fraction)
        integer("seed", self.seed, 0)

    @property
    def classes(self) -> tuple[str, ...]:
        """The dataset's own names, or its labels as text."""
        inner = _load(self.dataset, self.root, self.download, "train")
        names = getattr(inner, "classes", None)
        if names is None:
            return tuple(str(label) for label in range(int(_labels(inner).max()) + 1))
        return tuple(name if isinstance(name, str) else str(name[0]) for name in names)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the first image, H and W being `size` where that is given."""
        image = _load(self.dataset, self.root, self.download, "train")[0][0]
        channels = 1 if image.mode in ("1", "L") else 3
        if self._fit is None:
            return channels, image.height, image.width
        size = self._fit.size if isinstance(self._fit, ResizeCrop) else self._fit
        return channels, size, size

    @property
    def _fit(self) -> int | ResizeCrop | None:
        return self.geometry or self.size

    def adapt_to_model(self, classes: Sequence[str], geometry: ResizeCrop | None) -> Torchvision:
        """Return the same images with the network's geometry, where no size is given."""
        return self if self._fit is not None else dataclasses.replace(self, geometry=geometry)

    def split(self, split: Split) -> Dataset[Any]:
        """Return one split: in memory where torchvision holds it there and no resizing is due, else read lazily."""
        self.check_split(split)
        inner = _load(self.dataset, self.root, self.download, "test" if split == "test" else "train")
        indices = list(range(len(inner)))
        if split != "test":
            val = max(1, round(len(inner) * self.val_fraction))
            indices = stratified(_labels(inner), val, 0, self.seed)[split]
        shape = self.shape
        lazy = WrappedDataset(inner, indices, shape, self._fit)
        if self._fit is not None or not hasattr(inner, "data"):
            return lazy
        images = torch.empty((len(lazy), *shape), dtype=torch.uint8)
        for i in range(len(lazy)):
            images[i] = (lazy[i][0] * 255).round().byte()
        return ArrayDataset(images, torch.from_numpy(_labels(inner)[indices]))


@lru_cache(maxsize=4)
def _load(dataset: str, root: str, download: bool, part: str) -> Any:
    import torchvision

    kind = getattr(torchvision.datasets, dataset)
    parameters = inspect.signature(kind).parameters
    options: dict[str, Any] = {"download": download} if "download" in parameters else {}
    choices: list[dict[str, Any]]
    if "train" in parameters:
        choices = [{"train": part == "train"}]
    else:
        choices = [{"split": name} for name in (("train", "trainval") if part == "train" else ("test", "val"))]
    refusal: ValueError | None = None
    for choice in choices:
        try:
            return kind(root, **choice, **options)
        except ValueError as error:  # torchvision's word for an unknown split
            refusal = error
        except (RuntimeError, FileNotFoundError) as error:
            raise ValueError(f"root: expected {dataset} in {root!r}, got {error} (set download to fetch it)") from error
    raise ValueError(f"dataset: expected {dataset} to have a {part} split, got {refusal}") from refusal


def _labels(inner: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
    for name in ("targets", "labels", "_labels"):
        values = getattr(inner, name, None)
        if values is not None and len(values) == len(inner):
            return np.asarray(values).astype(np.int64)
    return np.array([int(inner[i][1]) for i in range(len(inner))], dtype=np.int64)
