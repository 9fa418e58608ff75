"""Networks by name, so that a file can say how to build the network whose weights it holds."""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from robustsigma.engine import validation
from robustsigma.engine.perturbations.global_rng import temporary_seed
from robustsigma.models.published import HALVES, PUBLISHED, TIMM, TORCHVISION, published, published_state, timm_builder
from robustsigma.models.same_padding import with_same_padding
from robustsigma.models.small import SmallCNN
from robustsigma.models.weights import State, fit_state, read_state
from robustsigma.runs import fingerprint

# Where networks come from that a file may name without being asked.
_KNOWN = ("robustsigma.", "torchvision.models.")


@dataclass(frozen=True)
class Architecture(validation.Settings):
    """A network described by its name and arguments.

    Args:
        name: "small_cnn"; "torchvision:resnet18" or another of torchvision's classification models; "timm:NAME" where
            timm is installed; or the dotted path of a class or function, which is imported.
        arguments: of the constructor, beside the numbers of channels and classes.
        weights: file of weights that training starts from; "published" for those that torchvision or timm publish
            beside their network; or None for fresh ones. A last layer of another number of classes stays fresh.
        padding: "same" for a network whose weights come from TensorFlow (see `with_same_padding`), or None.
    """

    name: str = "small_cnn"
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)
    weights: str | None = None
    padding: Literal["same"] | None = None

    def __post_init__(self) -> None:
        if self.padding is not None:
            validation.choice("architecture.padding", self.padding, ("same",))
        if self.weights == PUBLISHED and not self.has_publisher:
            told = "a file; published is for torchvision:NAME and timm:NAME"
            raise validation.fail("architecture.weights", told, f"{PUBLISHED} for {self.name}")

    def build(self, channels: int, classes: int) -> nn.Module:
        """Return the network; fresh weights are drawn from the global generator as torch's initializers do.

        Args:
            channels: of the images; passed on where the constructor takes `channels`, else it must be 3.
            classes: number of logits; passed on as `classes` or `num_classes`.

        Raises:
            ValueError: an unknown name, arguments that the constructor does not take, or weights of another network.
        """
        parameters = self._parameters()
        given = dict(self.arguments)
        if self.weights == PUBLISHED:
            known = published(self.name)
            given = {**({} if known is None else known.arguments), **given}
        if "channels" in parameters:
            given.setdefault("channels", channels)
        elif self.name.startswith(TIMM):
            given.setdefault("in_chans", channels)
        elif channels != 3:
            raise validation.fail(
                "architecture.name", f"a network with an argument `channels`, for {channels}", self.name
            )
        given.setdefault("classes" if "classes" in parameters else "num_classes", classes)
        net = self.make(given)
        if self.weights is not None:
            fit_state(net, *self.state(), classes=classes)
        return net

    def state(self) -> tuple[State, str]:
        """Return the weights that training starts from, and where they come from; there must be some.

        Raises:
            ValueError: a file that cannot be read, or published weights that cannot be had.
        """
        assert self.weights is not None
        if self.weights == PUBLISHED:
            return published_state(self.name, self.arguments)
        return read_state(self.weights, "architecture.weights"), self.weights

    def make(self, given: Mapping[str, Any]) -> nn.Module:
        """Return the network of exactly these arguments, without the weights of the file."""
        given = {**(_quirks(self.name, self.weights) if self.name.startswith(TORCHVISION) else {}), **given}
        self._parameters()
        try:
            net = constructor(self.name)(**given)
        except (TypeError, AssertionError) as error:
            raise validation.fail("architecture.arguments", f"arguments of {self.name}", str(error)) from error
        if not isinstance(net, nn.Module):
            raise validation.fail("architecture.name", "something that makes a torch.nn.Module", type(net).__name__)
        if self.is_foreign:
            net = _own(net, lambda: constructor(self.name)(**given))
        if self.padding == "same":
            with_same_padding(net)
        # A plain attribute, so that whoever saves the weights can say how to build what they fit.
        net.architecture = Architecture(self.name, given, padding=self.padding)  # type: ignore[assignment]
        return net

    @property
    def has_publisher(self) -> bool:
        """Whether it is a network that torchvision or timm may publish weights of."""
        return self.name.startswith((TORCHVISION, TIMM))

    @property
    def is_foreign(self) -> bool:
        """Whether code makes it that is neither ours nor torchvision's nor timm's."""
        return not self.name.startswith(("small_cnn", TORCHVISION, TIMM, *_KNOWN))

    @property
    def trained(self) -> bool:
        """Whether the network may come with weights: those of a file, or what code of yours gives it."""
        return self.weights is not None or self.is_foreign

    def fingerprint(self, shape: Sequence[int], classes: int, *, trained: bool) -> dict[str, Any]:
        """Return what tells the network from others of the same description, in plain JSON types.

        It is of the weights that training starts from, and of what your code makes of the same random numbers.

        Args:
            shape: (C, H, W) of the images.
            classes: number of logits.
            trained: whether nobody trains it further.

        Raises:
            ValueError: code that gives other weights at each call, in a network that nobody trains further.
        """
        found: dict[str, Any] = {}
        if self.weights is not None:
            found["file"] = fingerprint.state(self.state()[0])
        if self.is_foreign:
            made = []
            for _ in range(2):
                with temporary_seed(0):
                    made.append(fingerprint.network(self.build(shape[0], classes), shape))
            if made[0]["weights"] != made[1]["weights"]:
                if trained:
                    raise validation.fail(
                        "architecture.name", "code that gives the same weights at each call", f"others of {self.name}"
                    )
                made[0] |= {"weights": None, "logits": None}
            found |= made[0]
        return found

    def takes(self, argument: str) -> bool:
        """Return whether the constructor names an argument, or is one of torchvision's, which pass theirs on."""
        return self.has_publisher or argument in self._parameters()

    def check_origin(self, allow: Sequence[str] = ()) -> None:
        """Raise ValueError if to build this network may run code that is neither ours nor torchvision's nor allowed.

        Args:
            allow: dotted paths of modules, classes or functions; what is below one of them is allowed.
        """
        named = any(self.name == each or self.name.startswith(f"{each}.") for each in allow)
        if named or self.name == "small_cnn" or self.name.startswith(TORCHVISION):
            return
        if self.name.startswith(TIMM) and self.name.removeprefix(TIMM).replace("_", "").replace(".", "").isalnum():
            return
        if self.name.startswith(_KNOWN) and _is_network(constructor(self.name)):
            return
        expected = (
            "a network of robustsigma, torchvision or timm, or of code that the command line allows (--allow NAME)"
        )
        dotted = all(part.isidentifier() for part in self.name.split(".")) and "." in self.name
        told = f"; add --allow {self.name} if you trust it" if dotted else meant(self.name)
        raise validation.fail("architecture.name", expected, f"{self.name!r}{told}")

    def _parameters(self) -> Mapping[str, inspect.Parameter]:
        try:
            return inspect.signature(constructor(self.name)).parameters
        except (TypeError, ValueError) as error:
            if str(error).startswith("architecture."):
                raise
            raise validation.fail("architecture.name", "a class or function of networks", repr(self.name)) from error


def constructor(name: str) -> Any:
    """Return what makes a network, by its name; a dotted path is imported.

    Raises:
        ValueError: nothing of that name.
    """
    if name == "small_cnn":
        return SmallCNN
    if name.startswith(TIMM):
        return timm_builder(name.removeprefix(TIMM))
    if name.startswith(TORCHVISION):
        import torchvision

        try:
            return torchvision.models.get_model_builder(name.removeprefix(TORCHVISION))
        except ValueError as error:
            raise validation.fail(
                "architecture.name", "the name of a torchvision model", f"{name!r}{meant(name)}"
            ) from error
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        outer, _, method = module.rpartition(".")
        found = _method(outer, method, attribute) if outer else None
        if found is not None:
            return found
        raise _unknown(name, error) from error
    except (ImportError, AttributeError, ValueError) as error:
        raise _unknown(name, error) from error


def _method(module: str, kind: str, attribute: str) -> Any:
    """Return a class's method such as `from_pretrained`, or None."""
    try:
        return getattr(getattr(importlib.import_module(module), kind, None), attribute, None)
    except (ImportError, ValueError):
        return None


def _own(net: nn.Module, again: Callable[[], nn.Module]) -> nn.Module:
    """Return a network that is nobody else's: code may return the one that its caller works with."""
    try:
        return copy.deepcopy(net)
    except Exception as error:  # not every network can be copied
        other = again()
        if {*map(id, net.parameters())} & {*map(id, other.parameters())} or other is net:
            told = "code that makes a new network at each call, or one that copy.deepcopy copies"
            raise validation.fail("architecture.name", told, f"the same one twice ({error})") from error
        return other


def _unknown(name: str, error: Exception) -> ValueError:
    expected = '"small_cnn", "torchvision:NAME", "timm:NAME" or the dotted path of a class'
    why = f" ({error})" if "." in name else ""
    return validation.fail("architecture.name", expected, f"{name!r}{why}{meant(name)}")


def meant(name: str) -> str:
    """Return a question that names what an unknown name of a network may stand for, or nothing."""
    import torchvision

    known = torchvision.models.list_models(torchvision.models)
    publisher, colon, model = name.rpartition(":")
    if not colon and model in known:
        return f"; {TORCHVISION}{model} is one"
    if f"{publisher}:" == TORCHVISION or not colon:
        return validation.near(f"{TORCHVISION}{model}", ["small_cnn", *(TORCHVISION + each for each in known)])
    return validation.near(name, [TORCHVISION + model, TIMM + model])


def _quirks(name: str, weights: str | None) -> dict[str, Any]:
    """Return arguments without which Inception and GoogLeNet normalize twice, and return more than logits."""
    if name.removeprefix(TORCHVISION) not in HALVES:
        return {}
    return {"aux_logits": False, "transform_input": False, "init_weights": weights is None}


def _is_network(made: Any) -> bool:
    """Return whether this is a class of networks that is defined where a file may name one, or a model of torchvision.

    What else a module has, such as what it imports, is not for files to call.
    """
    if inspect.isclass(made) and issubclass(made, nn.Module):
        return made.__module__.startswith(_KNOWN)
    import torchvision

    name = getattr(made, "__name__", "")
    return name in torchvision.models.list_models() and torchvision.models.get_model_builder(name) is made


def network(name: str, channels: int, classes: int, arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """Return a network by name, for YAML files: `net: {class_path: robustsigma.models.network, init_args: …}`.

    Args:
        name: as in `Architecture`.
        channels: of its images.
        classes: how many logits it gives.
        arguments: of its constructor, beside the two; None for its defaults.

    Raises:
        ValueError: an unknown name or an argument that it does not take.
    """
    return Architecture(name, dict(arguments or {})).build(channels, classes)
