"""Maps that were made elsewhere, one file for each image, as rows of a benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file
from torch import Tensor
from torch.utils.data import Subset

from robustsigma.engine import validation
from robustsigma.engine.attributors import Attributor
from robustsigma.engine.attributors.layer_maps import as_values
from robustsigma.engine.classifier import Classifier
from robustsigma.runs.files import damaged, read_arrays

_SUFFIXES = (".npy", ".npz", ".safetensors")


@dataclass(frozen=True)
class StoredMaps(Attributor):
    """Maps made elsewhere, as a method of `benchmark`.

    The folder has a file for each image that is evaluated: `.npy`, `.npz` or `.safetensors` with one array (C, H, W),
    (1, H, W) or (H, W). Smaller maps are upsampled bilinearly. The file is named after the image: by its path below the
    folder of a class (`ant/0001.npy`) or by its stem (`0001.npy`) where the data are image files, and by its index in
    the data otherwise (`0.npy` is the first image). They should explain the class that the model predicts.

    Such a method cannot be run again, so passes, seconds, stability and the check with shuffled weights are not
    measured.

    Args:
        folder: folder of the maps. Of several models, `{model}` in it stands for the model's name.

    Raises:
        ValueError: no such folder; maps that are missing, damaged, larger than the image or not finite.

    Example:
        >>> benchmark(net, test_set, {"theirs": StoredMaps("maps"), "IG": IntegratedGradients()})
    """

    folder: str

    def __post_init__(self) -> None:
        validation.instance("folder", self.folder, str)

    def attribute(
        self, classifier: Classifier, images: Tensor, target: Tensor, logits: Tensor, seeds: Tensor
    ) -> NoReturn:
        """Raise: maps of files belong to images by their names, which only a benchmark knows."""
        raise validation.fail("method", "one that can be run, outside of a benchmark", repr(self))

    def files(self, model: str) -> list[Path]:
        """Return all files of maps of one model.

        Raises:
            ValueError: there is no such folder, or none of its files is one.
        """
        root = self._root(model)
        found = sorted(path for path in root.rglob("*") if path.suffix in _SUFFIXES)
        if not found:
            got = f"{root} without one" if root.is_dir() else f"{root}, which does not exist"
            raise validation.fail("folder", f"a folder of maps ({', '.join(_SUFFIXES)})", got)
        return found

    def load(self, model: str, dataset: Any, indices: Sequence[int], images: Tensor) -> Tensor:
        """Return the maps of some images of a dataset as values (B, C, H, W).

        Args:
            model: name of the model.
            dataset: the dataset.
            indices: indices of the images.
            images: (B, C, H, W).
        """
        known = {path.relative_to(self._root(model)).with_suffix("").as_posix(): path for path in self.files(model)}
        names = [_names(dataset, index) for index in indices]
        missing = [each for each in names if not any(name in known for name in each)]
        if missing:
            told = " or ".join(repr(f"{name}.npy") for name in missing[0])
            got = f"{len(missing)} without, such as {told}"
            raise validation.fail(str(self._root(model)), "a map of every image", got)
        found = [known[next(name for name in each if name in known)] for each in names]
        maps = [_read(path, images) for path in found]
        return torch.cat([as_values(values, images[:1], str(path)) for path, values in zip(found, maps, strict=True)])

    def _root(self, model: str) -> Path:
        return Path(self.folder.replace("{model}", model)).expanduser()


def _names(dataset: Any, index: int) -> list[str]:
    """Return what the file of an image may be called, without its suffix."""
    path = _path(dataset, index)
    by_path = [] if path is None else [f"{path.parent.name}/{path.stem}", path.stem]
    return [*by_path, str(index)]


def _path(dataset: Any, index: int) -> Path | None:
    if isinstance(dataset, Subset):
        return _path(dataset.dataset, dataset.indices[index])
    for name in ("paths", "samples"):  # of our datasets, and of torchvision's and timm's
        listed = getattr(dataset, name, None)
        if isinstance(listed, (list, tuple)) and len(listed) == len(dataset):
            found = listed[index][0] if isinstance(listed[index], (list, tuple)) else listed[index]
            if isinstance(found, (str, Path)):
                return Path(found)
    inner = getattr(dataset, "inner", None)
    return None if inner is None else _path(inner, index)


def _read(path: Path, images: Tensor) -> Tensor:
    """Return a file's map as (1, C or 1, H, W), upsampled if it is smaller than the image."""
    try:
        if path.suffix == ".npy":
            found = {"": np.load(path, allow_pickle=False)}
        else:
            found = read_arrays(path) if path.suffix == ".npz" else load_file(path)
    except Exception as error:  # NumPy, zipfile and safetensors each have errors of their own
        raise damaged(path, "a map", error, "make it again") from error
    if len(found) != 1:
        raise validation.fail(str(path), "one array", f"{len(found)}: {', '.join(found)}")
    (array,) = found.values()
    channels, height, width = images.shape[1:]
    sides = array.shape[-2:]
    fits = array.ndim in (2, 3) and array.dtype.kind in "fiu" and (array.ndim == 2 or len(array) in (1, channels))
    if not fits or 0 in sides or sides[0] > height or sides[1] > width:
        expected = f"a map ({channels}, {height}, {width}), (1, {height}, {width}) or ({height}, {width}), or smaller"
        raise validation.fail(str(path), expected, f"{array.dtype} {array.shape}")
    values = torch.as_tensor(array.astype(np.float32)).reshape(1, -1, *sides)
    if sides != (height, width):
        values = F.interpolate(values, (height, width), mode="bilinear", align_corners=False)
    return values
