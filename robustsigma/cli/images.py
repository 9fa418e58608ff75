"""The model and the image files of `explain` and `augment`."""

from __future__ import annotations

import dataclasses
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from PIL import Image
from torch import Tensor

from robustsigma.cli.parsing import check_model
from robustsigma.cli.presets import ALLOW_HELP
from robustsigma.data.folder_scan import scan, skipped_files_note
from robustsigma.data.image_files import FileDataset, ImageRow
from robustsigma.data.resize_crop import ResizeCrop
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.device import best_device
from robustsigma.engine.validation import fail, near
from robustsigma.models import ModelCard, Pretrained
from robustsigma.models import model as load
from robustsigma.models.pretrained import is_saved
from robustsigma.runs.fingerprint import describe, network

_PLAIN = Pretrained("a name")
_OPTIONS = tuple(field.name for field in dataclasses.fields(Pretrained) if field.name != "name")


def add_model(parser: ArgumentParser) -> None:
    """Add the options that name a model to a parser."""
    model_help = "file of a model trained here or of weights, torchvision:NAME, timm:NAME, hf:NAME, or a class path"
    parser.add_argument("--model", type=str, required=True, help=model_help)
    parser.add_argument("--allow", type=str, action="append", default=[], help=ALLOW_HELP)
    parser.add_class_arguments(Pretrained, as_group=False, skip={"name"})


def model(found: Any, made: Any) -> tuple[Classifier, ModelCard]:
    """Return the model that a command line names, on the device.

    Args:
        found: the parsed arguments.
        made: the same with the classes instantiated.
    """
    given = {name: made[name] for name in _OPTIONS if made[name] != getattr(_PLAIN, name)}
    if not is_saved(found.model):
        check_model("model", found.model, found.allow)
    classifier, card = load(found.model, allow=found.allow, **given)
    if not is_saved(found.model) and ":" not in found.model and made.geometry is None:
        side = "the shorter side is resized to 256 pixels and the center cropped to 224"
        warnings.warn(
            f"geometry: {side}, since {found.model} states no image size; --geometry.size N does", stacklevel=1
        )
    return classifier.to(best_device()), card


def model_settings(found: Any, classifier: Classifier, card: ModelCard) -> dict[str, Any]:
    """Return the settings that identify a model: its name, card, weights and logits."""
    return {"model": found.model, "card": describe(card), "network": network(classifier.net, card.shape)}


def files(paths: Sequence[str], out: str | Path) -> list[Path]:
    """Return the given image files, and those in the given folders, but for what an earlier run wrote to `out`."""
    written = Path(out).expanduser().resolve()
    found: list[Path] = []
    for given in (Path(path).expanduser() for path in paths):
        if given.is_dir():
            inside = scan(given)
            if written.is_relative_to(given.resolve()) and written != given.resolve():
                for each in inside:
                    each[:] = [path for path in each if written not in Path(path).resolve().parents]
            skipped = skipped_files_note(inside.others, given) if inside.others else ""
            if not inside.images:
                raise fail("images", f"a folder with images, at {given}", skipped or "none")
            if skipped:
                warnings.warn(f"images: {skipped}", stacklevel=1)
            found += map(Path, inside.images)
        elif given.is_file():
            found.append(given)
        else:
            raise fail("images", "existing files or folders", str(given))
    if not found:
        raise fail("images", "at least one file or folder", "none")
    return found


def read(paths: Sequence[Path], card: ModelCard) -> Tensor:
    """Return images (B, C, H, W) as the model takes them: the shorter side resized, the center cropped."""
    channels, height, width = card.shape
    if height != width:
        raise fail("model", "a model of square images", f"{height} x {width}")
    fit: int | ResizeCrop = card.geometry or height
    dataset = FileDataset([ImageRow(str(path)) for path in paths], fit, channels, name="images")
    return torch.stack([dataset[i][0] for i in range(len(paths))])


def png(pixels: Tensor) -> bytes:
    """Return a PNG file of an image (C, H, W) whose values are whole numbers from 0 to 255."""
    array = pixels.byte().cpu().permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(buffer, "PNG")
    return buffer.getvalue()


def class_index(name: str | int | None, classes: Sequence[str], what: str) -> int | None:
    """Return the index of a class given by its name or its index."""
    if name is None:
        return None
    if str(name) in classes:
        return list(classes).index(str(name))
    if str(name).isdecimal() and int(name) < len(classes):
        return int(name)
    raise fail(
        what,
        f"one of {', '.join(classes[:12])}{', …' if len(classes) > 12 else ''}",
        repr(name) + near(str(name), classes),
    )
