"""What `explain` and `augment` share: the model, and images from files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from robustsigma.data.folder import FileDataset, image_files
from robustsigma.device import best_device
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.validation import fail
from robustsigma.models import ModelCard, load_model


def model(path: str) -> tuple[Classifier, ModelCard]:
    """Return a saved model on the device."""
    classifier, card = load_model(path)
    return classifier.to(best_device()), card


def files(paths: Sequence[str]) -> list[Path]:
    """Return the image files named, and those in the folders named."""
    found: list[Path] = []
    for given in map(Path, paths):
        if given.is_dir():
            inside = image_files(given)
            if not inside:
                raise fail("images", f"a folder with images, at {given}", "none")
            found += inside
        elif given.is_file():
            found.append(given)
        else:
            raise fail("images", "existing files or folders", str(given))
    if not found:
        raise fail("images", "at least one file or folder", "none")
    return found


def read(paths: Sequence[Path], shape: tuple[int, int, int]) -> Tensor:
    """Return images (B, C, H, W) as the model takes them: the shorter side resized, the centre cropped."""
    if shape[1] != shape[2]:
        raise fail("model", "one of square images", f"{shape[1]} x {shape[2]}")
    dataset = FileDataset(paths, [0] * len(paths), shape[1], shape[0], name="images")
    return torch.stack([dataset[i][0] for i in range(len(paths))])


def class_index(name: str | int | None, classes: Sequence[str], what: str) -> int | None:
    """Return the index of a class given by its name or its index."""
    if name is None:
        return None
    if str(name) in classes:
        return list(classes).index(str(name))
    if str(name).isdecimal() and int(name) < len(classes):
        return int(name)
    raise fail(what, f"one of {', '.join(classes[:12])}{', …' if len(classes) > 12 else ''}", repr(name))
