"""Weights that torchvision, timm and the Hugging Face Hub publish, with statistics, geometry and class names."""

from __future__ import annotations

import functools
import importlib
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from robustsigma.data.resize_crop import ResizeCrop
from robustsigma.engine.validation import fail, near
from robustsigma.models import hugging_face
from robustsigma.models.hugging_face import HF, timm_geometry
from robustsigma.models.weight_files import State, quiet_unpickling

TORCHVISION, TIMM = "torchvision:", "timm:"
PUBLISHERS = (TORCHVISION, TIMM, HF)
PUBLISHED = "published"  # stands for published weights in place of a file
# These were trained on images in [-1, 1]. torchvision's `transform_input` gets them from images that were normalized
# with ImageNet's statistics; here a mean and std of 0.5 give them directly.
TRAINED_ON_HALVES = ("inception_v3", "googlenet")
_DOWNLOAD_ERRORS = (OSError, RuntimeError, EOFError, pickle.UnpicklingError)


class Published(NamedTuple):
    """What is published for a network.

    Attributes:
        classes: names by label.
        geometry: resizing and cropping of its images.
        mean: mean of its normalization per channel, or None if it is not published.
        std: standard deviation of its normalization per channel, as `mean`.
        arguments: arguments that the constructor needs for these weights.
        entry: torchvision's description of the weights, or None.
    """

    classes: tuple[str, ...]
    geometry: ResizeCrop
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    arguments: dict[str, Any]
    entry: Any = None


def published(name: str, weights: str | None = None, *, stated: bool = False) -> Published | None:
    """Return what is published for "torchvision:NAME", "timm:NAME" or "hf:NAME", or None for any other network.

    torchvision's weights are those with the name of the file `weights`, else the newest. With `stated`, the caller has
    mean, std and geometry, and the image processor of a Hub network is not asked for them.
    """
    if name.startswith(TORCHVISION):
        return _of_torchvision(name.removeprefix(TORCHVISION), weights)
    if name.startswith(HF):
        return _of_hugging_face(name, stated)
    return _of_timm(name.removeprefix(TIMM)) if name.startswith(TIMM) else None


def statistics(known: Published, arguments: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std of a published network's normalization, for its arguments, or raise if there are none."""
    if arguments.get("transform_input"):  # the network undoes ImageNet's statistics
        return (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    if known.mean is None or known.std is None:
        told = "the numbers that images were normalized with in training (--mean, --std)"
        raise fail("mean and std", told, "none, as no preprocessor_config.json lies beside the weights")
    return known.mean, known.std


def guesses(known: Published, weights: str | None) -> bool:
    """Return whether what is published is a guess for these weights: those of a file other than the published one."""
    if weights is None or weights == PUBLISHED:
        return False
    return known.entry is None or Path(known.entry.url).name != Path(weights).name


def warn_of_guess(name: str, weights: str | None, guessed: Mapping[str, object]) -> None:
    """Warn of values by option that are published for a network and may be wrong for the weights of a file."""
    values = ", ".join(f"{option} {value}" for option, value in guessed.items())
    told = (
        f"{Path(str(weights)).name} does not state how its images were prepared, so that what is published for {name}"
    )
    options = ", ".join(f"--{option}" for option in guessed)
    warnings.warn(f"{told} is used: {values}. If it was trained with other values, give {options}", stacklevel=3)


def published_state(name: str, arguments: Mapping[str, Any], known: Published | None = None) -> tuple[State, str]:
    """Return the published weights of a network, for its own numbers of classes and channels, and their origin."""
    if not name.startswith(TORCHVISION):
        given = {k: v for k, v in arguments.items() if k not in ("num_classes", "in_chans", "channels", "config")}
        return load_fitted(name, given).state_dict(), f"the published weights of {name}"
    known = published(name) if known is None else known
    assert known is not None
    url = known.entry.url
    try:
        with quiet_unpickling():
            state = known.entry.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except _DOWNLOAD_ERRORS as error:
        place = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
        raise _unavailable(url, error, f" or at {place}") from error
    return dict(state), url


def load_fitted(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Return a network of timm or transformers with its published weights, which they fit to the arguments."""
    if name.startswith(HF):
        return hugging_face.load(name, arguments)
    timm, name = _timm(), name.removeprefix(TIMM)
    try:
        found: nn.Module = timm.create_model(name, pretrained=True, **arguments)
    except Exception as error:  # the hub's client may raise anything
        settings = timm.get_pretrained_cfg(name)
        url = settings.url or f"https://huggingface.co/{settings.hf_hub_id}"
        raise _unavailable(url, error, "") from error
    return found


def timm_builder(name: str) -> Any:
    """Return a function that builds a network of timm with fresh weights."""
    timm = _timm()
    if not timm.is_model(name):
        raise fail("architecture.name", "the name of a timm model", repr(name))

    return functools.partial(timm.create_model, name, pretrained=False)


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
    mean, std = (((0.5,) * 3,) * 2) if name in TRAINED_ON_HALVES else (tuple(images.mean), tuple(images.std))
    arguments = {"image_size": size} if name.startswith("vit_") else {}
    return Published(tuple(categories), geometry, mean, std, arguments, entry)


def _of_timm(name: str) -> Published:
    timm = _timm()
    found = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if found is None:
        raise fail("model", "the name of a timm model that has weights", repr(name))
    names = _imagenet_names() if found.num_classes == 1000 else tuple(map(str, range(found.num_classes)))
    return Published(names, timm_geometry(vars(found)), tuple(found.mean), tuple(found.std), {})


def _of_hugging_face(name: str, stated: bool) -> Published:
    config = hugging_face.read_config(name)
    names = hugging_face.class_names(config)
    if len(names) == 1000 and names[0].startswith("tench") and names[-1].startswith("toilet"):
        names = _imagenet_names()  # so that its predictions compare with those of torchvision and timm
    found = None if stated else hugging_face.preprocessing(name)
    if found is None:
        size = getattr(config, "image_size", None)
        return Published(names, ResizeCrop(size) if isinstance(size, int) else ResizeCrop(224, 256), None, None, {})
    geometry, (mean, std) = found
    return Published(names, geometry, mean, std, {})


def _imagenet_names() -> tuple[str, ...]:
    import torchvision

    return tuple(torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"])


def _timm() -> Any:
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise ImportError("models named timm:NAME need timm: pip install timm") from error
