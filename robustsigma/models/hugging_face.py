"""Image classifiers of `transformers`, by their id on the Hugging Face Hub or by a folder of `save_pretrained`."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from robustsigma.data.resize_crop import ResizeCrop
from robustsigma.engine.validation import fail, warn

HF = "hf:"
Statistics = tuple[tuple[float, ...], tuple[float, ...]]
# Resizing by torchvision and by Pillow differs by one level of 255 in a smooth image.
_ROUNDING = 2.5 / 255


def build(
    name: str,
    channels: int | None = None,
    num_classes: int | None = None,
    config: Mapping[str, Any] | None = None,
    **changes: Any,
) -> nn.Module:
    """Return a network with fresh weights. `config` is a whole one as plain JSON types, in place of that of `name`."""
    with _quiet():
        found = read_config(name, channels, num_classes, config, **changes)
        net: nn.Module = _auto("Model").from_config(found, trust_remote_code=False, dtype=torch.float32)
    return net


def load(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Return a network with its published weights in single precision, or raise ValueError if some are missing."""
    config = read_config(name, **arguments)
    options = {"trust_remote_code": False, "dtype": torch.float32, "ignore_mismatched_sizes": True}
    try:
        with _quiet():
            found = _auto("Model").from_pretrained(_place(name), config=config, output_loading_info=True, **options)
    except Exception as error:  # the client may raise anything
        raise _unavailable(name, error) from error
    net: nn.Module = found[0]
    fresh = sorted(map(str, {*found[1]["missing_keys"], *found[1]["mismatched_keys"]}))
    if fresh:
        told = f"no weights for {fresh[0]} in {name}, such as a network without this last layer"
        raise fail("weights", f"those of an image classifier of {config.num_labels} classes", told)
    return net


def read_config(
    name: str,
    channels: int | None = None,
    num_classes: int | None = None,
    config: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Any:
    """Return the config of a network, with changes. The arguments are those of `build`."""
    auto = _auto("Config")
    try:
        with _quiet():
            if config is None:
                found = auto.from_pretrained(_place(name), trust_remote_code=False)
            else:
                given = dict(config)
                found = auto.for_model(given.pop("model_type"), **given)
    except Exception as error:
        raise _unavailable(name, error) from error
    (getattr(found, "model_args", None) or {}).pop("num_classes", None)  # of timm, which transformers states again
    # Attention functions and networks of timm can be names of repositories, whose code or files would be fetched.
    elsewhere = [str(getattr(found, key, None)) for key in ("_attn_implementation", "architecture")]
    elsewhere = [each for each in elsewhere if "/" in each or ":" in each]
    if elsewhere:
        raise fail("model", "a config that names only parts of transformers and timm", f"{elsewhere[0]} in {name!r}")
    if num_classes not in (None, found.num_labels):
        found.num_labels = num_classes  # with new names; setting the same number would lose the old ones
    if channels not in (None, getattr(found, "num_channels", 3)):
        changes = {"num_channels": channels, **changes}
    for key, value in changes.items():
        if not hasattr(found, key):
            raise fail("architecture.arguments", f"values of the config of {name}", key)
        setattr(found, key, value)
    return found


def class_names(config: Any) -> tuple[str, ...]:
    """Return the names of a config's classes: numbers if it has none of its own."""
    names = tuple(str(config.id2label[label]) for label in sorted(config.id2label))
    unnamed = names == tuple(f"LABEL_{label}" for label in range(len(names)))
    return tuple(map(str, range(len(names)))) if unnamed else names


def preprocessing(name: str) -> tuple[ResizeCrop, Statistics] | None:
    """Return how images are resized, cropped and normalized, or None where there is no preprocessor_config.json.

    Warns if the processor does anything else to images.
    """
    try:
        with _quiet():
            processor = _auto("ImageProcessor").from_pretrained(_place(name), trust_remote_code=False)
    except (OSError, ValueError):
        return None
    of_timm = getattr(processor, "data_config", None)  # of a network of timm on the Hub
    geometry = _geometry(processor.to_dict(), name) if of_timm is None else timm_geometry(of_timm)
    # Measured, as processors rescale, shift and normalize in several ways and orders.
    black, white = (_processed(processor, Image.new("RGB", (64, 64), (v,) * 3)).mean((1, 2)) for v in (0, 255))
    scale = 1 / (white - black)
    mean, std = (tuple(float(f"{value:.6g}") + 0.0 for value in each.tolist()) for each in (-black * scale, scale))
    _compare(processor, geometry, (mean, std), name)
    return geometry, (mean, std)


def _processed(processor: Any, image: Image.Image) -> Tensor:
    with _quiet():
        pixels: Tensor = processor(image, return_tensors="pt")["pixel_values"][0]
    return pixels.double()


def timm_geometry(config: Mapping[str, Any]) -> ResizeCrop:
    """Return the geometry of timm's settings of a network."""
    size = config["input_size"][-1]
    resize = max(size, int(size / (config.get("crop_pct") or 1.0)))
    return ResizeCrop(size, resize, config["interpolation"], squeeze=config.get("crop_mode") == "squash")


def _geometry(settings: Mapping[str, Any], name: str) -> ResizeCrop:
    size = settings.get("size") or {}
    crop = settings.get("crop_size") if settings.get("do_center_crop") else None
    square = all(each.get("height") == each.get("width") for each in (size, crop or {}))
    shortest = size.get("shortest_edge")
    squeeze, resize = shortest is None, shortest or size.get("height")
    if not square or resize is None or not settings.get("do_resize", True):
        raise fail("geometry", f"a ResizeCrop, as {name} does not make squares of one size", f"{size}, {crop}")
    cropped = resize if crop is None else crop.get("height", crop.get("shortest_edge"))
    share = settings.get("crop_pct")
    if share is not None and shortest is not None:  # as ConvNeXt's: a share of small images, large ones squeezed
        squeeze, resize = shortest >= 384, shortest if shortest >= 384 else int(shortest / share)
    interpolation: Any = Image.Resampling(settings.get("resample", 2)).name.lower()
    return ResizeCrop(cropped, max(resize, cropped), interpolation, squeeze=squeeze)


def _compare(processor: Any, geometry: ResizeCrop, statistics: Statistics, name: str) -> None:
    """Warn unless a processor makes of an image what resizing, cropping and normalizing make of it."""
    short = geometry.resize or geometry.size
    side = short * max(2, 512 // short)  # so that no half pixels are rounded
    coarse = np.random.default_rng(0).integers(0, 256, (3, 4, 3)).astype(np.uint8)
    image = Image.fromarray(coarse).resize((side, 2 * side), Image.Resampling.BILINEAR)
    theirs = _processed(processor, image)
    mean, std = (torch.tensor(each)[:, None, None] for each in statistics)
    ours = torch.from_numpy(np.array(geometry.apply(image))).permute(2, 0, 1) / 255
    if theirs.shape != ours.shape or ((theirs * std + mean) - ours).abs().max() > _ROUNDING:
        told = f"the {type(processor).__name__} of {name} does more than to resize, crop and normalize"
        warn(f"geometry, mean and std: {told}, so the network sees other pixels here; give all three to correct them")


def _place(name: str) -> str:
    return str(Path(name.removeprefix(HF)).expanduser())


def _auto(kind: str) -> Any:
    """Return transformers' class that finds configs, networks or image processors."""
    return getattr(_transformers(), "AutoModelForImageClassification" if kind == "Model" else f"Auto{kind}")


def _transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise ImportError(f"models named {HF}NAME need transformers: pip install 'robustsigma[hub]'") from error


def _unavailable(name: str, error: Exception) -> ValueError:
    reason, place = " ".join(str(error).split())[:200] or type(error).__name__, _place(name)
    where = (
        f"in {place}" if Path(place).exists() else f"at https://huggingface.co/{place}, or a folder of save_pretrained"
    )
    return fail("model", f"an image classifier {where}", f"{name!r} ({reason})")


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress messages and progress bars: errors say what went wrong."""
    _transformers()
    ours, theirs = (importlib.import_module(f"{each}.utils.logging") for each in ("transformers", "huggingface_hub"))
    bar, levels = ours.is_progress_bar_enabled(), [each.get_verbosity() for each in (ours, theirs)]
    ours.disable_progress_bar()
    for each in (ours, theirs):
        each.set_verbosity_error()
    try:
        yield
    finally:
        for each, level in zip((ours, theirs), levels, strict=True):
            each.set_verbosity(level)
        if bar:
            ours.enable_progress_bar()
