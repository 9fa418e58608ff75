"""What a data module, a loader or a dataset of a user holds, and batches of its items."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    default_collate,
)

from robustsigma.data.dataset_spec import DatasetSpec
from robustsigma.data.image_files import is_gray, to_bytes
from robustsigma.data.loading import load_pixels
from robustsigma.engine.validation import fail

_LOADERS = {"test": ("test_dataloader", "test"), "val": ("val_dataloader", "validate")}


def unwrapped(data: Any) -> tuple[Any, Any]:
    """Return what a data module holds for its tests, or else for validation, and which; or the data as they are."""
    if isinstance(getattr(data, "dataset", None), DatasetSpec) and hasattr(data, "conditions"):
        return data.dataset, None  # of a RobustDataModule, whose loaders are one for each condition
    if not hasattr(data, "test_dataloader"):
        return data, None
    data.prepare_data()
    for split, (name, stage) in _LOADERS.items():
        inherited = getattr(type(data), name).__qualname__.partition(".")[0] in ("DataHooks", "LightningDataModule")
        if inherited and name not in vars(data):  # `LightningDataModule.from_datasets` sets them on the object
            continue
        data.setup(stage)
        loaders = getattr(data, name)()
        several = list(loaders.values()) if isinstance(loaders, Mapping) else loaders
        if isinstance(several, (list, tuple)):
            if len(several) > 1:
                raise fail("data", f"one loader of {name}", f"{len(several)}; pass the one that is meant")
            loaders = several[0] if several else None
        if loaders is not None:
            return loaders, split
    raise fail("data", "a LightningDataModule with test or validation images", f"{type(data).__name__} without")


def data_name(data: Any) -> str:
    """Return what a report calls data: the folder that images in folders lie in, otherwise the class."""
    while isinstance(data, (DataLoader, Subset)):
        data = data.dataset
    name, root = type(data).__name__, getattr(data, "root", None)
    return Path(root).resolve().name if "Folder" in name and isinstance(root, (str, Path)) else name


def in_any_order(loader: DataLoader[Any]) -> bool:
    """Return whether a loader shows every image of its dataset once, so that images may be asked for by their index."""
    sampler: Any = loader.sampler
    every = isinstance(sampler, SequentialSampler) or (isinstance(sampler, RandomSampler) and not sampler.replacement)
    return (
        every
        and not isinstance(loader.dataset, IterableDataset)
        and type(loader.batch_sampler) is BatchSampler
        and not loader.drop_last
        and len(sampler) == len(loader.dataset)  # type: ignore[arg-type]
    )


def class_names(source: Any) -> tuple[str, ...] | None:
    """Return the names of the classes that a dataset, or the one in a loader or a subset, has as `classes`."""
    while source is not None:
        names = getattr(source, "classes", None)
        if isinstance(names, (list, tuple)) and names and all(isinstance(each, str) for each in names):
            return tuple(names)
        source = getattr(source, "dataset", None)
    return None


def collate(items: list[Any]) -> Any:
    """Return a batch of items as torch does, with PIL images as tensors."""
    try:
        return default_collate([_as_tensors(item) for item in items])
    except RuntimeError as error:
        raise fail("data", "images of one shape, such as Resize and CenterCrop make", error) from error
    except TypeError as error:
        raise fail("data", "items of tensors, arrays, numbers or PIL images", error) from error


def _as_tensors(item: Any) -> Any:
    """Return an item with its PIL images as tensors, gray ones with one channel."""
    if isinstance(item, Image.Image):
        return to_bytes(item, 1 if is_gray(item.mode) else 3, None)
    if isinstance(item, Mapping):
        return {key: _as_tensors(part) for key, part in item.items()}
    return [*map(_as_tensors, item)] if isinstance(item, (tuple, list)) else item


def as_it_is(value: Any) -> Any:
    """Return what needs no change: a batch that a dataset has made already, or images that are pixels."""
    return value


class PixelBatches(Dataset[Any]):
    """A dataset that is read a batch at a time, as bytes where it has bytes."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        return load_pixels(self.dataset, indices)


class Pair(Dataset[Any]):
    """Images and labels in memory, read a batch at a time."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.tensors = images, labels

    def __len__(self) -> int:
        return len(self.tensors[1])

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        return tuple(each[torch.tensor(indices)] for each in self.tensors)
