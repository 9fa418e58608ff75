"""`Pretrained`: networks that were trained elsewhere, and `model`, which loads any model by its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from robustsigma.data.resize_crop import ResizeCrop
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.validation import Settings, fail, integer
from robustsigma.models.architecture import Architecture
from robustsigma.models.model_files import ModelCard, count_logits, load_model
from robustsigma.models.published_weights import (
    PUBLISHED,
    TIMM,
    Published,
    load_timm,
    published,
    published_state,
    statistics,
)
from robustsigma.models.same_padding import with_same_padding
from robustsigma.models.weight_files import SUFFIX, State, fit_state, read_state, stored_statistics


@dataclass(frozen=True)
class Pretrained(Settings):
    """A network that was trained elsewhere: its weights, and how a photograph becomes its input.

    Args:
        name: "torchvision:resnet50", "timm:NAME" if timm is installed, or the dotted path of a class or function,
            which is imported and called: name only code that you trust.
        weights: safetensors file, state dict of `torch.save` or Lightning checkpoint, which is read with
            `weights_only`. None takes the published weights, from the cache or the site of torchvision or timm. The
            network of a dotted path has its weights already.
        arguments: arguments of the constructor.
        classes: names by label, or their number, or a text file with one name per line. None takes the published
            names, or numbers.
        geometry: how photographs are resized and cropped. None is the published one, or 224 pixels of 256.
        mean: mean per channel of the normalization of images in [0, 1]. None takes it from the file of weights if that
            is of a `Classifier` (as a checkpoint of a `LitClassifier` is), else the published one.
        std: standard deviation per channel, as `mean`.
        channels: channels of the images.
        padding: "same" for weights that come from TensorFlow, or None.

    Example:
        >>> classifier, card = Pretrained("torchvision:resnet50").load()
        >>> card.classes[0]
        'tench'
    """

    name: str
    weights: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)
    classes: int | str | Sequence[str] | None = None
    geometry: ResizeCrop | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    channels: int = 3
    padding: Literal["same"] | None = None

    def __post_init__(self) -> None:
        integer("channels", self.channels, 1)
        if (self.mean is None) != (self.std is None):
            raise fail("mean and std", "both or neither", f"{self.mean} and {self.std}")

    def __str__(self) -> str:
        weights = "published weights" if self.weights is None else f"weights of {Path(self.weights).name}"
        return f"{self.name}, {weights}"

    def load(self) -> tuple[Classifier, ModelCard]:
        """Return the classifier in eval mode, and its card.

        Raises:
            ValueError: an unknown name, or weights that cannot be downloaded, read or fitted.
            ImportError: timm is named and not installed.
        """
        known = published(self.name, self.weights)
        state = None if self.weights is None else read_state(self.weights)
        self._statistics(known, state)  # an error before weights are downloaded
        names, count = self._names()
        with torch.random.fork_rng(devices=[]):  # initial weights are drawn from the global generator and overwritten
            net = self._net(known, count, state)
        mean, std = self._statistics(known, state, net)
        geometry = self.geometry or (ResizeCrop(224, 256) if known is None else known.geometry)
        classifier = Classifier(net, mean=mean, std=std).eval()
        shape = (self.channels, geometry.size, geometry.size)
        found = count_logits(classifier, shape, "geometry")
        if count is not None and count != found:
            raise fail("classes", f"{found}, as many as there are logits", count)
        if names is None:
            fits = known is not None and len(known.classes) == found
            names = known.classes if known is not None and fits else tuple(map(str, range(found)))
        architecture = getattr(net, "architecture", None)
        return classifier, ModelCard(architecture, names, shape, tuple(mean), tuple(std), geometry)

    def _net(self, known: Published | None, count: int | None, state: State | None) -> nn.Module:
        architecture = Architecture(
            self.name, padding=self.padding, weights=self.weights or (PUBLISHED if known else None)
        )
        given = {**({} if known is None else known.arguments), **self.arguments}
        for name in ("num_classes", "classes") if count is not None else ():
            if architecture.takes(name):
                given.setdefault(name, count)
                break
        if state is None and self.name.startswith(TIMM):  # timm fits its weights to the arguments
            net = load_timm(self.name.removeprefix(TIMM), given)
            net.architecture = Architecture(self.name, given, padding=self.padding)  # type: ignore[assignment]
            return with_same_padding(net) if self.padding == "same" else net
        net = architecture.make(given)
        if state is not None:
            fit_state(net, state, str(self.weights))
        elif known is not None:
            fit_state(net, *published_state(self.name, given, known))
        return net

    def _names(self) -> tuple[tuple[str, ...] | None, int | None]:
        """Return the given names and number of classes, each None if it was not given."""
        if self.classes is None:
            return None, None
        if isinstance(self.classes, int):
            integer("classes", self.classes, 2)
            return None, self.classes
        names = self.classes
        if isinstance(names, str):
            if not Path(names).is_file():
                raise fail("classes", "a number, a list of names, or a text file with a name in each line", names)
            try:
                lines = Path(names).read_text(encoding="utf-8-sig").splitlines()
            except UnicodeDecodeError as error:
                raise fail("classes", f"a text file in UTF-8, {names}", error) from error
            names = [line.strip() for line in lines if line.strip()]
        return tuple(map(str, names)), len(names)

    def _statistics(
        self, known: Published | None, state: State | None, net: nn.Module | None = None
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        if self.mean is not None and self.std is not None:
            return tuple(self.mean), tuple(self.std)
        stored = None if state is None else stored_statistics(state, net)
        if stored is not None:
            return stored
        if known is None:
            told = "the numbers that images were normalized with in training, since none are published beside it"
            raise fail("mean and std", told, f"none for {self.name}")
        return statistics(known, self.arguments)


def model(name: str | Path | Pretrained, *, allow: Sequence[str] = (), **options: Any) -> tuple[Classifier, ModelCard]:
    """Return a classifier in eval mode, and its card.

    Args:
        name: file that `save_model` wrote; or a network that was trained elsewhere, as a `Pretrained` or by its name,
            such as "torchvision:resnet50".
        allow: dotted paths that a file may name as its network, in addition to this package's and torchvision's.
        options: arguments of `Pretrained` except the name. None stands for the default.

    Raises:
        ValueError: an unknown name, or a file that cannot be used.

    Example:
        >>> classifier, card = model("torchvision:resnet18", weights="last.ckpt", classes=10)
    """
    given = {key: value for key, value in options.items() if value is not None}
    if isinstance(name, Pretrained):
        if given:
            raise fail(next(iter(given)), "no option beside the description of the model", given)
        return name.load()
    if not is_saved(name):
        return Pretrained(str(name), **given).load()
    if given:
        told = f"no option beside {name}, which says itself how to use it"
        raise fail(next(iter(given)), told, next(iter(given.values())))
    return load_model(name, allow=allow)


def is_saved(name: str | Path) -> bool:
    """Return whether this names a file rather than a network."""
    return isinstance(name, Path) or name.endswith(SUFFIX) or Path(name).is_file()
