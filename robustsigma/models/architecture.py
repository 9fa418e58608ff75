"""`Architecture`: a network by its name and arguments, so that a file can say how to build it."""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from robustsigma.engine.classifier import Classifier
from robustsigma.engine.global_rng import temporary_seed
from robustsigma.engine.validation import Settings, choice, fail, near
from robustsigma.models import hugging_face
from robustsigma.models.hugging_face import HF
from robustsigma.models.published_weights import (
    PUBLISHED,
    PUBLISHERS,
    TIMM,
    TORCHVISION,
    TRAINED_ON_HALVES,
    published,
    published_state,
    timm_builder,
)
from robustsigma.models.same_padding import with_same_padding
from robustsigma.models.small_networks import SmallCNN
from robustsigma.models.weight_files import SUFFIXES, State, fit_state, read_state
from robustsigma.runs import fingerprint

# Modules whose networks a file may name without permission.
_KNOWN = ("robustsigma.", "torchvision.models.")


@dataclass(frozen=True)
class Architecture(Settings):
    """A network described by its name and arguments.

    Args:
        name: "small_cnn"; "torchvision:resnet18" or another of torchvision's classification models; "timm:NAME" if timm
            is installed; "hf:NAME" for an image classifier of transformers, by its id on the Hugging Face Hub or by a
            folder of `save_pretrained`; or the dotted path of a class or function, which is imported.
        arguments: arguments of the constructor, except the numbers of channels and classes; for "hf:NAME" values of the
            config.
        weights: file of weights that training starts from; "published" for those of torchvision, timm or the Hub; or
            None for fresh ones. A last layer of another number of classes stays fresh.
        padding: "same" for a network whose weights come from TensorFlow (see `with_same_padding`), or None.

    Example:
        >>> Architecture("torchvision:resnet18", weights="published").build(channels=3, classes=5)
    """

    name: str = "small_cnn"
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)
    weights: str | None = None
    padding: Literal["same"] | None = None

    def __post_init__(self) -> None:
        if self.padding is not None:
            choice("architecture.padding", self.padding, ("same",))
        if self.weights == PUBLISHED and not self.name.startswith(PUBLISHERS):
            told = "a file; published is for torchvision:NAME, timm:NAME and hf:NAME"
            raise fail("architecture.weights", told, f"{PUBLISHED} for {self.name}")

    def build(self, channels: int, classes: int) -> nn.Module:
        """Return the network. Fresh weights are drawn from the global generator, by torch's initializers.

        Args:
            channels: channels of the images, passed on if the constructor takes `channels`, else 3.
            classes: number of logits, passed on as `classes` or `num_classes` if the constructor takes one of them.

        Raises:
            ValueError: an unknown name, arguments that the constructor does not take, or weights of another network.
        """
        parameters = self.parameters()
        given = dict(self.arguments)
        if self.weights == PUBLISHED and self.name.startswith(TORCHVISION):  # the others need no arguments
            known = published(self.name)
            given = {**({} if known is None else known.arguments), **given}
        if "channels" in parameters:
            given.setdefault("channels", channels)
        elif self.name.startswith(TIMM):
            given.setdefault("in_chans", channels)
        elif channels != 3 and not self.is_foreign:
            raise fail("architecture.name", f"a network with an argument `channels`, for {channels}", self.name)
        if "classes" in parameters:
            given.setdefault("classes", classes)
        elif "num_classes" in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
            given.setdefault("num_classes", classes)
        net = self.make(given)
        if self.weights is not None:
            fit_state(net, *self.state(), classes=classes)
        return net

    def check(self, shape: tuple[int, int, int], classes: int, *, trained: bool) -> None:
        """Raise ValueError unless the network can be built, takes the images and has a logit for each class.

        Args:
            shape: (C, H, W) of the images.
            classes: number of classes.
            trained: whether the network is used without further training, so that every weight must be in its file.
        """
        with temporary_seed(0):
            if self.weights is not None and trained:
                net = replace(self, weights=None).build(shape[0], classes)
                fit_state(net, *self.state())
            else:
                net = self.build(shape[0], classes)
        self._check_logits(net, shape, classes)

    def _check_logits(self, net: nn.Module, shape: tuple[int, int, int], classes: int) -> None:
        classifier = Classifier(net, mean=(0.0,), std=(1.0,)).eval()
        found = count_logits(classifier, shape, "dataset")
        if found != classes:
            expected = f"a network of {classes} logits, one for each class of the data"
            told = "; name a function that returns it with other arguments, or add architecture.arguments"
            raise fail("architecture.name", expected, f"{found} of {self.name}{told}")

    def state(self) -> tuple[State, str]:
        """Return the weights that training starts from, which must be given, and where they come from."""
        assert self.weights is not None
        if self.weights == PUBLISHED:
            return published_state(self.name, self.arguments)
        return read_state(self.weights, "architecture.weights"), self.weights

    def make(self, given: Mapping[str, Any]) -> nn.Module:
        """Return the network of exactly these arguments, without the weights of a file."""
        if self.name.startswith(TORCHVISION) and self.name.removeprefix(TORCHVISION) in TRAINED_ON_HALVES:
            # Without these, Inception and GoogLeNet normalize twice and return more than logits.
            given = {"aux_logits": False, "transform_input": False, "init_weights": self.weights is None, **given}
        if self.name.startswith(HF):  # a file of the network then needs neither the folder nor the Hub
            given = {"config": hugging_face.read_config(self.name, **given).to_dict()}
        self.parameters()
        try:
            net = constructor(self.name)(**given)
        except (TypeError, AssertionError) as error:
            raise fail("architecture.arguments", f"arguments of {self.name}", str(error)) from error
        if not isinstance(net, nn.Module):
            raise fail("architecture.name", "something that makes a torch.nn.Module", type(net).__name__)
        if self.is_foreign:
            net = _unshared(net, lambda: constructor(self.name)(**given))
        if self.padding == "same":
            with_same_padding(net)
        # A plain attribute, from which the card of a saved file is made.
        net.architecture = Architecture(self.name, given, padding=self.padding)  # type: ignore[assignment]
        return net

    @property
    def is_foreign(self) -> bool:
        """Whether other code than this package, torchvision, timm and transformers builds it."""
        return not self.name.startswith(("small_cnn", *PUBLISHERS, *_KNOWN))

    @property
    def trained(self) -> bool:
        """Whether the network may come with weights: of a file, or from your own code."""
        return self.weights is not None or self.is_foreign

    def fingerprint(self, shape: tuple[int, int, int], classes: int, *, trained: bool) -> dict[str, Any]:
        """Return what identifies the weights that training starts from, in plain JSON types.

        For your own code, it also covers the network that it builds from fixed random numbers.

        Args:
            shape: (C, H, W) of the images.
            classes: number of logits.
            trained: whether the network is used without further training.

        Raises:
            ValueError: code that gives other weights at each call, for a network that is not trained further.
        """
        found: dict[str, Any] = {}
        if self.weights is not None:
            found["file"] = fingerprint.state(self.state()[0])
        if self.name.startswith(HF):
            found["config"] = fingerprint.describe(hugging_face.read_config(self.name, **self.arguments).to_dict())
        if self.is_foreign:
            made = []
            for _ in range(2):
                with temporary_seed(0):
                    net = self.build(shape[0], classes)
                    made.append(fingerprint.network(net, shape))
            self._check_logits(net, shape, classes)
            if made[0]["weights"] != made[1]["weights"]:
                if trained:
                    raise fail(
                        "architecture.name", "code that gives the same weights at each call", f"others of {self.name}"
                    )
                made[0] |= {"weights": None, "logits": None}
            found |= made[0]
        return found

    def check_origin(self, allow: Sequence[str] = ()) -> None:
        """Raise ValueError if building this network may run code that is neither known nor allowed.

        Args:
            allow: dotted paths of modules, classes or functions; what is below one of them is allowed.
        """
        named = any(self.name == each or self.name.startswith(f"{each}.") for each in allow)
        if named or self.name == "small_cnn" or self.name.startswith((TORCHVISION, HF)):  # none runs code of a hub
            return
        if self.name.startswith(TIMM) and self.name.removeprefix(TIMM).replace("_", "").replace(".", "").isalnum():
            return
        if self.name.startswith(_KNOWN) and _is_network(constructor(self.name)):
            return
        expected = (
            "a network of robustsigma, torchvision, timm or hf:, or of code that the command line allows (--allow NAME)"
        )
        raise fail("architecture.name", expected, f"{self.name!r}{suggest_origin(self.name)}")

    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """Return the parameters of the constructor."""
        try:
            return inspect.signature(constructor(self.name)).parameters
        except (TypeError, ValueError) as error:
            if str(error).startswith("architecture."):
                raise
            raise fail("architecture.name", "a class or function of networks", repr(self.name)) from error


def constructor(name: str) -> Any:
    """Return what builds a network, by its name; a dotted path is imported. Raise ValueError for an unknown one."""
    if name == "small_cnn":
        return SmallCNN
    if name.startswith(HF):
        return functools.partial(hugging_face.build, name)
    if name.startswith(TIMM):
        return timm_builder(name.removeprefix(TIMM))
    if name.startswith(TORCHVISION):
        try:
            import torchvision  # here, as it takes a second

            return torchvision.models.get_model_builder(name.removeprefix(TORCHVISION))
        except ValueError as error:
            raise fail(
                "architecture.name", "the name of a torchvision model", f"{name!r}{suggest_name(name)}"
            ) from error
    try:
        return _import(name)
    except (ImportError, AttributeError, ValueError) as error:
        expected = '"small_cnn", "torchvision:NAME", "timm:NAME", "hf:NAME" or the dotted path of a class'
        told = f" ({error})" if "." in name else suggest_name(name)
        raise fail("architecture.name", expected, f"{name!r}{told}") from error


def _import(name: str) -> Any:
    module = name.rpartition(".")[0]
    try:
        return pkgutil.resolve_name(name if module else ".")
    except AttributeError:
        importlib.import_module(module)  # reports an import that fails within the module
        raise


def _unshared(net: nn.Module, again: Callable[[], nn.Module]) -> nn.Module:
    """Return a network that is not shared: code may return the one that its caller works with."""
    try:
        return copy.deepcopy(net)
    except Exception as error:  # not every network can be copied
        other = again()
        if {*map(id, net.parameters())} & {*map(id, other.parameters())} or other is net:
            told = "code that makes a new network at each call, or one that copy.deepcopy copies"
            raise fail("architecture.name", told, f"the same one twice ({error})") from error
        return other


def suggest_origin(name: str) -> str:
    """Return how to allow a dotted path or state a file, or a question that suggests a known name."""
    if Path(name).suffix in SUFFIXES:
        return "; a file of weights is `architecture.weights`, beside the name of its network"
    dotted = all(part.isidentifier() for part in name.split(".")) and "." in name
    return f"; add --allow {name} if you trust it" if dotted else suggest_name(name)


def suggest_name(name: str) -> str:
    """Return a question that suggests a known name in place of an unknown one, or ""."""
    if own := near(name, ["small_cnn"]):
        return own  # without the second that torchvision takes
    import torchvision

    known = torchvision.models.list_models(torchvision.models)
    publisher, colon, model = name.rpartition(":")
    if not colon and model in known:
        return f"; {TORCHVISION}{model} is one"
    if f"{publisher}:" == TORCHVISION or not colon:
        return near(f"{TORCHVISION}{model}", ["small_cnn", *(TORCHVISION + each for each in known)])
    return near(name, [each + model for each in PUBLISHERS])


def _is_network(made: Any) -> bool:
    """Return whether this is a network's class in a known module, or a model of torchvision, and not one's import."""
    if inspect.isclass(made) and issubclass(made, nn.Module):
        return made.__module__.startswith(_KNOWN)
    name = getattr(made, "__name__", "")
    import torchvision  # here, as it takes a second

    return name in torchvision.models.list_models() and torchvision.models.get_model_builder(name) is made


def count_logits(classifier: Classifier, shape: tuple[int, int, int], name: str) -> int:
    """Return the number of logits that a classifier in eval mode gives for images of a shape (C, H, W)."""
    try:
        with classifier.frozen():
            return classifier.logits(torch.zeros(1, *shape, device=classifier.mean.device)).shape[1]
    except (RuntimeError, TypeError, AssertionError, ValueError) as error:
        if str(error).startswith("net: "):
            raise
        told = f"an image size that {type(classifier.net).__name__} takes"
        raise fail(name, told, f"{shape} ({(str(error).splitlines() or [''])[0][:160]})") from error


def network(
    name: str,
    channels: int,
    classes: int,
    arguments: Mapping[str, Any] | None = None,
    weights: str | None = None,
    padding: Literal["same"] | None = None,
) -> nn.Module:
    """Return a network by name, for YAML files: `net: {class_path: robustsigma.models.network, init_args: …}`.

    Args:
        name: name as in `Architecture`.
        channels: channels of its images.
        classes: number of logits.
        arguments: other arguments of its constructor; None for its defaults.
        weights: weights to start from, as in `Architecture`; the last layer is a fresh one where the number of classes
            differs. None for fresh weights.
        padding: as in `Architecture`.

    Raises:
        ValueError: an unknown name, an argument that it does not take, or weights of another network.

    Example:
        >>> network("small_cnn", channels=3, classes=5, arguments={"width": 8})
    """
    return Architecture(name, dict(arguments or {}), weights, padding).build(channels, classes)
