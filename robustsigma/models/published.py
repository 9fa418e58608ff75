"""What torchvision and timm publish beside their networks: weights, statistics, geometry and class names."""

from __future__ import annotations

import importlib
import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from robustsigma.data.resize_crop import ResizeCrop
from robustsigma.engine.validation import fail, near
from robustsigma.models.weights import State, fit_state, quiet_unpickling

TORCHVISION, TIMM = "torchvision:", "timm:"
PUBLISHED = "published"  # in the place of a file of weights
# Networks that were trained elsewhere, on images in [-1, 1]: with `transform_input` they undo ImageNet's statistics to
# get these. Ours give them at once instead.
HALVES = ("inception_v3", "googlenet")
_DOWNLOAD = (OSError, RuntimeError, EOFError, pickle.UnpicklingError)


class Published(NamedTuple):
    """What is known of a network by its name.

    Attributes:
        classes: names by label.
        geometry: of its images.
        mean: of its normalization.
        std: of its normalization.
        arguments: that the constructor needs for these weights.
        entry: torchvision's description of the weights.
    """

    classes: tuple[str, ...]
    geometry: ResizeCrop
    mean: tuple[float, ...]
    std: tuple[float, ...]
    arguments: dict[str, Any]
    entry: Any = None


def published(name: str, weights: str | None = None) -> Published | None:
    """Return what is published beside a network, or None for one that has no publisher.

    Args:
        name: of the network, with "torchvision:" or "timm:" before it.
        weights: a file. One that is called as a published one is taken for it; else the newest are described.
    """
    if name.startswith(TORCHVISION):
        return _of_torchvision(name.removeprefix(TORCHVISION), weights)
    return _of_timm(name.removeprefix(TIMM)) if name.startswith(TIMM) else None


def statistics(known: Published, arguments: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std of a published network's normalization, for the arguments that it is built with."""
    if arguments.get("transform_input"):  # it is asked to undo ImageNet's statistics
        return (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return known.mean, known.std


def published_state(name: str, arguments: Mapping[str, Any]) -> tuple[State, str]:
    """Return the published weights of a network, for its own number of classes, and where they come from.

    Args:
        name: of the network, with "torchvision:" or "timm:" before it.
        arguments: that it is built with; those of another number of classes or channels are passed over.

    Raises:
        ValueError: an unknown name, or weights that cannot be had.
    """
    known = published(name)
    assert known is not None
    if name.startswith(TORCHVISION):
        return torchvision_state(known.entry), known.entry.url
    others = ("num_classes", "in_chans")
    net = load_timm(name.removeprefix(TIMM), {key: value for key, value in arguments.items() if key not in others})
    return net.state_dict(), f"the published weights of {name}"


def load_torchvision(net: nn.Module, entry: Any) -> None:
    """Give a network torchvision's weights, from its cache or its site.

    Raises:
        ValueError: they cannot be had; it says from where, and where to put them.
    """
    fit_state(net, torchvision_state(entry), entry.url)


def torchvision_state(entry: Any) -> State:
    """Return weights of torchvision, as `load_torchvision` does."""
    place = Path(torch.hub.get_dir()) / "checkpoints" / Path(entry.url).name
    try:
        with quiet_unpickling():
            return dict(entry.get_state_dict(progress=True, check_hash=True, weights_only=True))
    except _DOWNLOAD as error:
        raise _unavailable(entry.url, error, f" or at {place}") from error


def load_timm(name: str, arguments: dict[str, Any]) -> nn.Module:
    """Return a network of timm with its weights, from its cache or its site.

    Raises:
        ValueError: they cannot be had; it says from where.
    """
    timm = _timm()
    try:
        found: nn.Module = timm.create_model(name, pretrained=True, **arguments)
    except Exception as error:  # whatever the hub's client raises
        settings = timm.get_pretrained_cfg(name)
        url = settings.url or f"https://huggingface.co/{settings.hf_hub_id}"
        raise _unavailable(url, error, "") from error
    return found


def timm_builder(name: str) -> Any:
    """Return a function that makes a network of timm without weights.

    Raises:
        ImportError: timm is not installed.
        ValueError: it has no such network.
    """
    timm = _timm()
    if not timm.is_model(name):
        raise fail("architecture.name", "the name of a timm model", repr(name))

    def make(**arguments: Any) -> nn.Module:
        found: nn.Module = timm.create_model(name, pretrained=False, **arguments)
        return found

    return make


def _unavailable(url: str, error: Exception, place: str) -> ValueError:
    reason = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
    expected = f"those of {url}, downloaded{place}; or a file of them by the option `weights` (--weights FILE)"
    return fail("weights", expected, reason)


def _of_torchvision(name: str, weights: str | None) -> Published:
    import torchvision  # here, as it takes a second

    try:
        entries = list(torchvision.models.get_model_weights(name))
    except ValueError as error:
        known = torchvision.models.list_models(torchvision.models)
        raise fail("model", "the name of a torchvision model", repr(name) + near(name, known)) from error
    preferred = getattr(torchvision.models.get_model_weights(name), "DEFAULT", None)
    named = [each for each in entries if weights is not None and Path(each.url).name == Path(weights).name]
    entry = named[0] if named else preferred
    images: Any = None if entry is None else entry.transforms()
    categories = None if entry is None else entry.meta.get("categories")
    if not hasattr(images, "crop_size") or not categories or not hasattr(images, "mean"):
        raise fail("model", "a torchvision model that classifies images", repr(name))
    size, resize = images.crop_size[0], images.resize_size[0]
    geometry = ResizeCrop(size, max(size, resize), images.interpolation.value)
    mean, std = (((0.5,) * 3,) * 2) if name in HALVES else (tuple(images.mean), tuple(images.std))
    arguments = {"image_size": size} if name.startswith("vit_") else {}
    return Published(tuple(categories), geometry, mean, std, arguments, entry)


def _of_timm(name: str) -> Published:
    timm = _timm()
    found = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if found is None:
        raise fail("model", "the name of a timm model that has weights", repr(name))
    size = found.input_size[-1]
    share = found.crop_pct or 1.0
    names = imagenet_names() if found.num_classes == 1000 else tuple(map(str, range(found.num_classes)))
    geometry = ResizeCrop(size, max(size, math.floor(size / share)), found.interpolation)
    return Published(names, geometry, tuple(found.mean), tuple(found.std), {})


def imagenet_names() -> tuple[str, ...]:
    """Return the names of ImageNet's 1,000 classes, as torchvision has them."""
    import torchvision

    return tuple(torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"])


def _timm() -> Any:
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise ImportError("models named timm:NAME need timm: pip install timm") from error
