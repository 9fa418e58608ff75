"""Networks by name, so that a file can say how to build the network whose weights it holds."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from robustsigma.engine import validation
from robustsigma.models.small import SmallCNN

_TORCHVISION = "torchvision:"


@dataclass(frozen=True)
class Architecture:
    """A network described by its name and arguments.

    Args:
        name: "small_cnn"; "torchvision:resnet18" or another of torchvision's classification models, without
            weights; or the dotted path of a class or function, which is imported.
        arguments: of the constructor, beside the numbers of channels and classes.
    """

    name: str = "small_cnn"
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def build(self, channels: int, classes: int) -> nn.Module:
        """Return the network with fresh weights, drawn from the global generator as torch's initialisers do.

        Args:
            channels: of the images; passed on where the constructor takes `channels`, else it must be 3.
            classes: number of logits; passed on as `classes` or `num_classes`.

        Raises:
            ValueError: an unknown name, or arguments that the constructor does not take.
        """
        make = self._constructor()
        given = dict(self.arguments)
        try:
            parameters = inspect.signature(make).parameters
        except (TypeError, ValueError) as error:
            raise validation.fail("architecture.name", "a class or function of networks", repr(self.name)) from error
        if "channels" in parameters:
            given.setdefault("channels", channels)
        elif channels != 3:
            raise validation.fail(
                "architecture.name", f"a network with an argument `channels`, for {channels}", self.name
            )
        if "classes" in parameters:
            given.setdefault("classes", classes)
        else:
            given.setdefault("num_classes", classes)
        try:
            net = make(**given)
        except TypeError as error:
            raise validation.fail("architecture.arguments", f"arguments of {self.name}", str(error)) from error
        if not isinstance(net, nn.Module):
            raise validation.fail("architecture.name", "something that makes a torch.nn.Module", type(net).__name__)
        # A plain attribute, so that whoever saves the weights can say how to build what they fit.
        net.architecture = Architecture(self.name, given)  # type: ignore[assignment]
        return net

    def _constructor(self) -> Any:
        if self.name == "small_cnn":
            return SmallCNN
        if self.name.startswith(_TORCHVISION):
            import torchvision

            try:
                return torchvision.models.get_model_builder(self.name.removeprefix(_TORCHVISION))
            except ValueError as error:
                raise validation.fail(
                    "architecture.name", "the name of a torchvision model", repr(self.name)
                ) from error
        module, _, attribute = self.name.rpartition(".")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            expected = '"small_cnn", "torchvision:NAME" or the dotted path of a class'
            raise validation.fail("architecture.name", expected, f"{self.name!r} ({error})") from error


def network(name: str, channels: int, classes: int, arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """Return a network by name, for YAML files: `net: {class_path: robustsigma.models.network, init_args: …}`."""
    return Architecture(name, dict(arguments or {})).build(channels, classes)
