"""The models of a user as classifiers of images in [0, 1], and the way from the user's images to pixels and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustsigma.engine.classifier import Classifier, as_classifier
from robustsigma.engine.network_pass import check_channels
from robustsigma.engine.network_state import at_least_single
from robustsigma.engine.validation import fail
from robustsigma.evaluation.unwrapped_data import as_it_is
from robustsigma.models import ModelCard, Pretrained
from robustsigma.models import model as load

Convert = Callable[[Tensor], Tensor]
Normalized = bool | tuple[Convert, Convert]
SINGLE = "model"  # name of a model that came without one


@dataclass(frozen=True)
class GivenModels:
    """The models of an evaluation.

    Attributes:
        classifiers: by name; the first one is the base model.
        cards: descriptions of the models that have one, by name.
        to_pixels: turns floating images of the data into pixels.
        unnormalizes: whether `to_pixels` changes anything.
    """

    classifiers: dict[str, Classifier]
    cards: dict[str, ModelCard]
    to_pixels: Convert
    unnormalizes: bool

    def classes(self, images: Tensor, names: Sequence[str] | None) -> tuple[str, ...]:
        """Return the names of the classes, those given if there are as many as logits, else their indices.

        Args:
            images: a few images (N, C, H, W).
            names: of the classes of the data, or None.

        Raises:
            ValueError: the models differ in their number of logits.
        """
        found = {}
        for name, classifier in self.classifiers.items():
            with classifier.frozen():
                found[name] = classifier.logits(classifier.prepare_input(images.to(classifier.mean.device))).shape[1]
        if len({*found.values()}) > 1:
            raise fail("model", "networks of the same classes", ", ".join(f"{k}: {v}" for k, v in found.items()))
        count = next(iter(found.values()))
        return tuple(names) if names is not None and len(names) == count else tuple(map(str, range(count)))


def given_models(
    model: Any, mean: Sequence[float] | None, std: Sequence[float] | None, normalized: Normalized
) -> GivenModels:
    """Return the models as classifiers; arguments as of `evaluate`.

    Raises:
        ValueError: no network, statistics beside models that have their own, or none where they are needed.
    """
    given = dict(model) if isinstance(model, Mapping) else {SINGLE: model}
    if not given or not all(isinstance(name, str) and name for name in given):
        raise fail("model", "one model, or a mapping from names to models", repr(list(given))[:80])
    pair = isinstance(normalized, tuple)
    if not (isinstance(normalized, bool) or (pair and len(normalized) == 2 and all(map(callable, normalized)))):
        raise fail("normalized", "True, False or a pair of functions (to_pixels, to_network)", repr(normalized)[:80])
    if pair and (mean is not None or std is not None):
        raise fail("mean and std", "None beside the functions of `normalized`, which do their work", f"{mean}, {std}")
    classifiers, cards, own = {}, {}, []
    for name, value in given.items():
        value = load(value) if isinstance(value, (str, Path, Mapping, Pretrained)) else value
        if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], ModelCard):
            value, cards[name] = value
        if isinstance(value, Classifier) or isinstance(getattr(value, "classifier", None), Classifier):
            classifiers[name] = as_classifier(value)
            own.append(name)
        else:
            classifiers[name] = _wrapped(_network(name, value), mean, std, normalized)
        classifiers[name].checked = True  # the report flags an unsound network
    if len(own) == len(given) and (mean is not None or std is not None):
        raise fail("mean and std", "None, since the Classifier has its own", f"{mean}, {std}")
    to_pixels = (
        normalized[0] if isinstance(normalized, tuple) else _unnormalize(classifiers) if normalized else as_it_is
    )
    return GivenModels(classifiers, cards, to_pixels, normalized is not False)


def about(classifier: Classifier) -> str:
    """Return what a report says of a model that the user provided."""
    net = classifier.net
    return f"{type(net).__name__}, {sum(each.numel() for each in net.parameters()):,} parameters"


def _network(name: str, value: Any) -> nn.Module:
    where = "model" if name == SINGLE else f"model[{name!r}]"
    if not isinstance(value, nn.Module):
        hint = f"the class {value.__name__}, not an instance" if isinstance(value, type) else type(value).__name__
        raise fail(
            where, "a torch.nn.Module, Classifier, LightningModule or name, or a mapping from names to them", hint
        )
    if getattr(getattr(type(value), "forward", None), "__qualname__", "") == "LightningModule.forward":
        children = [child for child, _ in value.named_children()]
        got = f"{type(value).__name__} without one; pass the network itself, such as one of {children}"
        raise fail(where, "a LightningModule whose `forward` returns logits", got)
    return value


def _wrapped(
    net: nn.Module, mean: Sequence[float] | None, std: Sequence[float] | None, normalized: Normalized
) -> Classifier:
    if isinstance(normalized, tuple):
        return Classifier(_Preceded(normalized[1], net))
    if normalized and (mean is None or std is None):
        raise fail(
            "mean and std", "those that the images were normalized with, beside normalized=True", f"{mean}, {std}"
        )
    return Classifier(net, mean=mean, std=std)


class _Preceded(nn.Module):
    """A network after a function of the user's that makes its input of pixels."""

    def __init__(self, to_network: Convert, net: nn.Module) -> None:
        super().__init__()
        self.to_network, self.net = to_network, net

    def forward(self, images: Tensor) -> Any:
        return self.net(self.to_network(images))


def _unnormalize(classifiers: Mapping[str, Classifier]) -> Convert:
    first, *others = ((c.mean.detach().cpu(), c.std.detach().cpu()) for c in classifiers.values())
    if any(not torch.equal(a, b) for each in others for a, b in zip(first, each, strict=True)):
        got = "several; pass images in [0, 1], which each Classifier normalizes for its network"
        raise fail("normalized", "True for models of one normalization", got)
    mean, std = first

    def to_pixels(images: Tensor) -> Tensor:
        check_channels({"mean": mean, "std": std}, images)
        return at_least_single(images) * std.to(images.device) + mean.to(images.device)

    return to_pixels


@contextmanager
def on_device(classifiers: Mapping[str, Classifier], device: str | torch.device | None) -> Iterator[None]:
    """Run the body with the models on a device, and move them back; None leaves each one where it is.

    Raises:
        ValueError: a model that is spread over several devices.
    """
    before: dict[str, torch.device] = {}
    for name, classifier in classifiers.items() if device is not None else ():
        found = {tensor.device for tensor in (*classifier.parameters(), *classifier.buffers())}
        if len(found) > 1:
            raise fail("device", f"None, as {name!r} is spread over several devices", repr(device))
        before[name] = found.pop()
    try:
        for name in before:
            classifiers[name].to(device)
        yield
    finally:
        for name, former in before.items():
            classifiers[name].to(former)
