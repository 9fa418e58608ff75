"""Networks that were trained elsewhere: where their weights are, and what their images look like."""

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
from robustsigma.models.outputs import count_logits
from robustsigma.models.published import (
    PUBLISHED,
    TIMM,
    TORCHVISION,
    Published,
    load_timm,
    load_torchvision,
    published,
    statistics,
)
from robustsigma.models.same_padding import with_same_padding
from robustsigma.models.saved import ModelCard
from robustsigma.models.weights import fit_state, read_state


@dataclass(frozen=True)
class Pretrained(Settings):
    """A network with its weights, and all that a photograph needs to become its input.

    Args:
        name: "torchvision:resnet50", "timm:NAME" where timm is installed, or the dotted path of a class or function,
            which is imported and called: name only what you trust.
        weights: a safetensors file, or a state dict of `torch.save`, which is read with `weights_only`. None takes
            the published weights, from the cache or the site of torchvision or timm; what a dotted path makes is
            taken to have its weights already.
        arguments: of the constructor.
        classes: names by label; or how many there are; or a text file with a name in each line. None takes the
            published names, or numbers.
        geometry: how photographs are resized and cropped; None is the published one, or 224 pixels of 256.
        mean: per channel, of the normalization of images in [0, 1]; None is the published one.
        std: the same.
        channels: of the images.
        padding: "same" for weights that come from TensorFlow, or None.
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
            ValueError: an unknown name, or weights that cannot be had, read or fitted.
            ImportError: timm is named and not installed.
        """
        known = published(self.name, self.weights)
        if known is None and self.mean is None:
            told = "the numbers that images were normalized with in training, since none are published beside it"
            raise fail("mean and std", told, f"none for {self.name}")
        names, count = self._names()
        with torch.random.fork_rng(devices=[]):  # initial weights are drawn from the global generator and overwritten
            net = self._net(known, count)
        mean, std = self._statistics(known)
        geometry = self.geometry or (ResizeCrop(224, 256) if known is None else known.geometry)
        classifier = Classifier(net, mean=mean, std=std).eval()
        found = count_logits(classifier, (self.channels, geometry.size, geometry.size), "geometry")
        if count is not None and count != found:
            raise fail("classes", f"{found}, as many as there are logits", count)
        if names is None:
            fits = known is not None and len(known.classes) == found
            names = known.classes if known is not None and fits else tuple(map(str, range(found)))
        shape = (self.channels, geometry.size, geometry.size)
        architecture = getattr(net, "architecture", None)
        return classifier, ModelCard(architecture, names, shape, tuple(mean), tuple(std), geometry)

    def _net(self, known: Published | None, count: int | None) -> nn.Module:
        architecture = Architecture(
            self.name, padding=self.padding, weights=self.weights or (PUBLISHED if known else None)
        )
        given = {**({} if known is None else known.arguments), **self.arguments}
        for name in ("num_classes", "classes") if count is not None else ():
            if architecture.takes(name):
                given.setdefault(name, count)
                break
        if self.weights is None and self.name.startswith(TIMM):
            net = load_timm(self.name.removeprefix(TIMM), given)
            net.architecture = Architecture(self.name, given, padding=self.padding)  # type: ignore[assignment]
            return with_same_padding(net) if self.padding == "same" else net
        net = architecture.make(given)
        if self.weights is not None:
            fit_state(net, read_state(self.weights), self.weights)
        elif known is not None and self.name.startswith(TORCHVISION):
            load_torchvision(net, known.entry)
        return net

    def _names(self) -> tuple[tuple[str, ...] | None, int | None]:
        """Return the names that were given, and how many classes there are as far as that was."""
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

    def _statistics(self, known: Published | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
        if self.mean is not None and self.std is not None:
            return tuple(self.mean), tuple(self.std)
        assert known is not None
        return statistics(known, self.arguments)
