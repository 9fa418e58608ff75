"""`Torchvision`: any classification dataset of torchvision, by name."""

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

from robustsigma.data.dataset_spec import ArrayDataset, DatasetSpec, PixelDataset, Split
from robustsigma.data.file_dataset_spec import check_fraction
from robustsigma.data.image_files import to_bytes
from robustsigma.data.random_resized_crop import RandomResizedCrop
from robustsigma.data.resize_crop import ResizeCrop
from robustsigma.data.splitting import stratified
from robustsigma.engine.validation import fail, integer


class _Tensors(PixelDataset):
    """Some images of a torchvision dataset, whose items are (PIL image, label), as tensors of one shape."""

    def __init__(
        self, inner: Any, indices: list[int], shape: tuple[int, int, int], resize: int | ResizeCrop | None
    ) -> None:
        self.inner, self.indices, self.shape, self.resize = inner, indices, shape, resize

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int, crop: RandomResizedCrop | None = None, seed: int = 0) -> tuple[Tensor, int]:
        image, label = self.inner[self.indices[index]]
        resize = self.resize if crop is None else lambda full: crop.of_image(full, self.shape[-1], seed)
        tensor = to_bytes(image, self.shape[0], resize)
        if tuple(tensor.shape) != self.shape:
            raise fail("size", "a number, since images differ", f"{tuple(tensor.shape)} and {self.shape}")
        return tensor, int(label)


@dataclass(frozen=True)
class Torchvision(DatasetSpec):
    """A dataset of `torchvision.datasets` whose constructor takes `train` or `split`.

    "test" is the dataset's own test images, or its validation images if it has no others. "val" is drawn from its
    training images.

    Args:
        dataset: class name, such as CIFAR10, FashionMNIST or Imagenette.
        root: folder of the files.
        download: download the files if they are missing.
        size: side in pixels: the shorter side is resized to it and the center cropped. None keeps images that all have
            one size, or is what a trained network needs.
        val_fraction: fraction of the training images that becomes "val".
        seed: seed of that choice.
        geometry: how images are resized and cropped, instead of `size`.

    Example:
        >>> Torchvision("CIFAR10", download=True).shape
        (3, 32, 32)
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
            raise fail("dataset", "a torchvision dataset with a `train` or `split` argument", repr(self.dataset))
        if self.size is not None:
            integer("size", self.size, 1)
        check_fraction("val_fraction", self.val_fraction)
        integer("seed", self.seed, 0)

    @property
    def classes(self) -> tuple[str, ...]:
        """The dataset's own names, or its labels as text."""
        inner = self._load("train")
        names = getattr(inner, "classes", None)
        if names is None:
            return tuple(str(label) for label in range(int(_labels(inner).max()) + 1))
        return tuple(name if isinstance(name, str) else str(name[0]) for name in names)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the first image, with H and W from `size` or `geometry` if one is given."""
        image = self._load("train")[0][0]
        channels = 1 if image.mode in ("1", "L") else 3
        if self._resize is None:
            return channels, image.height, image.width
        size = self._resize if isinstance(self._resize, int) else self._resize.size
        return channels, size, size

    @property
    def _resize(self) -> int | ResizeCrop | None:
        return self.geometry or self.size

    def adapt_to_model(self, classes: Sequence[str], geometry: ResizeCrop | None) -> Torchvision:
        """Return the same images with the network's geometry, if neither `size` nor `geometry` is given."""
        return self if self._resize is not None else dataclasses.replace(self, geometry=geometry)

    def split(self, split: Split) -> Dataset[Any]:
        """Return one split: in memory if torchvision holds it there and images are not resized, else read lazily."""
        self.check_split(split)
        inner = self._load("test" if split == "test" else "train")
        indices = list(range(len(inner)))
        if split != "test":
            val = max(1, round(len(inner) * self.val_fraction))
            indices = stratified(_labels(inner), val, 0, self.seed)[split]
        if self._resize is not None or not hasattr(inner, "data"):
            return _Tensors(inner, indices, self.shape, self._resize)
        images = np.asarray(inner.data)  # (N, H, W), (N, H, W, C) or (N, C, H, W)
        images = images[:, None] if images.ndim == 3 else images
        images = images if images.shape[1:] == self.shape else images.transpose(0, 3, 1, 2)
        return ArrayDataset(*map(torch.from_numpy, (np.ascontiguousarray(images[indices]), _labels(inner)[indices])))

    def _load(self, part: str) -> Any:
        return _load(self.dataset, self.root, self.download, part)


@lru_cache(maxsize=4)
def _load(dataset: str, root: str, download: bool, part: str) -> Any:
    import torchvision

    kind = getattr(torchvision.datasets, dataset)
    parameters = inspect.signature(kind).parameters
    options: dict[str, Any] = {"download": download} if "download" in parameters else {}
    choices: list[dict[str, Any]] = [{"train": part == "train"}]
    if "train" not in parameters:
        choices = [{"split": name} for name in (("train", "trainval") if part == "train" else ("test", "val"))]
    refusal: ValueError | None = None
    for choice in choices:
        try:
            return kind(root, **choice, **options)
        except ValueError as error:  # raised by torchvision for an unknown split
            refusal = error
        except (RuntimeError, FileNotFoundError) as error:
            raise fail("root", f"{dataset} in {root!r}", f"{error} (set download to download it)") from error
    raise fail("dataset", f"{dataset} to have a {part} split", refusal) from refusal


def _labels(inner: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
    for name in ("targets", "labels", "_labels"):
        values = getattr(inner, name, None)
        if values is not None and len(values) == len(inner):
            return np.asarray(values).astype(np.int64)
    return np.array([int(inner[i][1]) for i in range(len(inner))], dtype=np.int64)
