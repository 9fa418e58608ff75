"""What `CaptumMethod` knows of the package captum: its methods, their arguments, and how to call them."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from robustsigma.engine import validation
from robustsigma.engine.attributors import baselines as our_baselines
from robustsigma.engine.attributors.frozen_tensor import FrozenTensor
from robustsigma.engine.classifier import Classifier

_DRAWING = (
    "GradientShap",
    "KernelShap",
    "LayerGradientShap",
    "Lime",
    "NoiseTunnel",
    "ShapleyValueSampling",
)
_INNER = "attribution_method"  # of NoiseTunnel, which wraps another method
# Given by the adapter, or of no use to it.
_OURS = ("forward_func", "model", "layer", "device_ids", "inputs", "target", "additional_forward_args",
         "return_convergence_delta", "return_input_shape", "show_progress", "verbose")  # fmt: skip
_STAND_INS = 32  # noise images for methods that need a distribution of baselines, where none are given


def _package() -> Any:
    try:
        import captum.attr
    except ImportError as error:
        message = f"CaptumMethod needs captum, which could not be imported ({error}): pip install 'robustsigma[captum]'"
        raise ImportError(message) from error
    return captum.attr


def refusal(name: str) -> str | None:
    """Return why a public name of `captum.attr` is no method for images and classes, or None if it is one."""
    package = _package()
    kind: Any = getattr(package, name, None)
    if not inspect.isclass(kind) or not issubclass(kind, package.Attribution):
        return "it is no attribution method"
    attribute: Any = getattr(kind, "attribute", None)
    if attribute is None:
        return "it is a base class"
    if issubclass(kind, package.NeuronAttribution):
        return "it explains a neuron of a layer, not a class"
    if "Permutation" in name:
        return "it exchanges pixels between the images of a batch, so that a map would depend on the other images"
    if next(iter(_parameters(attribute))) != "inputs":
        return "it explains text or data loaders, not images"
    made = _parameters(kind.__init__).values()
    if any(each.default is each.empty and each.name not in (*_OURS, _INNER) for each in made):
        return "it returns coefficients of features that your functions define, not a map"
    return None


def _parameters(function: Any) -> dict[str, inspect.Parameter]:
    found = [each for each in inspect.signature(function).parameters.values() if each.name != "self"]
    return {each.name: each for each in found if each.kind is not each.VAR_KEYWORD}


def methods() -> list[str]:
    """Return the names that `CaptumMethod` takes."""
    return [name for name in _package().__all__ if refusal(name) is None]


class CaptumCall:
    """A method of captum with its arguments: NoiseTunnel with the one in it, any other alone.

    Args:
        name: name of the class.
        layer: name of a module of the network, or None.
        arguments: arguments of the class and of its `attribute`.

    Raises:
        ImportError: captum is not installed.
        ValueError: another name, a layer where there is none or no layer where there is one, or other arguments.
    """

    def __init__(self, name: str, layer: str | None, arguments: Mapping[str, Any]) -> None:
        package = _package()
        self.name, self.layer, self.arguments = name, layer, dict(arguments)
        kinds = [_kind(name)]
        while _INNER in _parameters(kinds[-1].__init__):
            if len(kinds) > 1:
                raise validation.fail(_INNER, "a method that wraps no other", repr(kinds[-1].__name__))
            inner = self.arguments.pop(_INNER, None)
            if not isinstance(inner, str):
                raise validation.fail(_INNER, f"the name of the method that {name} repeats", repr(inner)[:80])
            kinds.append(_kind(inner))
        self.kinds, self.inner = kinds, kinds[-1]
        self._taken = [(_parameters(kind.__init__), _parameters(kind.attribute)) for kind in kinds]
        known = {key: each for pair in self._taken for part in pair for key, each in part.items()}
        self.maps_layer = issubclass(self.inner, package.LayerAttribution)
        self._check_layer("layer" in known)
        self._check_arguments({key: each for key, each in known.items() if key not in (*_OURS, _INNER)})
        self.needs_distribution = "baselines" in known and known["baselines"].default is inspect.Parameter.empty
        given = self.arguments.get("baselines")
        if given is not None:  # raises where it is no baseline
            check = our_baselines.checked_references if self.needs_distribution else our_baselines.checked
            self.arguments["baselines"] = checked = check(given)
            if isinstance(checked, tuple):
                raise validation.fail("baselines", "one baseline", f"{len(checked)}")
        self.draws = any(kind.__name__ in _DRAWING for kind in kinds)

    def _check_layer(self, wanted: bool) -> None:
        if wanted and not isinstance(self.layer, str):
            expected = f"the name of a module of the network for {self.name}, such as 'layer4'"
            raise validation.fail("layer", expected, f"{self.layer!r}"[:80])
        if self.layer is not None and not wanted:
            raise validation.fail("layer", f"None, as {self.name} has no layer", repr(self.layer)[:80])

    def _check_arguments(self, known: Mapping[str, inspect.Parameter]) -> None:
        for key in self.arguments:
            if key not in known:
                near = validation.near(key, known)
                raise validation.fail(f"arguments of {self.name}", "some of " + ", ".join(known), repr(key) + near)
        empty = inspect.Parameter.empty
        needed = [key for key, each in known.items() if each.default is empty and key != "baselines"]
        if self.inner.__name__ == "ShapleyValues":  # it tries every order of the features
            needed.append("feature_mask")
        lacking = [key for key in needed if key not in self.arguments]
        if lacking:
            raise validation.fail(f"arguments of {self.name}", f"all of {', '.join(lacking)}", "some without a value")

    @property
    def copies(self) -> int:
        """Number of times that an image is in one pass, where captum cannot split it."""
        if "DeepLift" not in self.inner.__name__:
            return 1
        given = self.arguments.get("baselines")
        many = len(given.tensor) if isinstance(given, FrozenTensor) and given.tensor.ndim == 4 else _STAND_INS
        return 2 * many if self.needs_distribution else 2

    def __call__(
        self, classifier: Classifier, layer: nn.Module | None, images: Tensor, target: Tensor, seeds: Tensor
    ) -> Any:
        """Return what captum gives for images (B, C, H, W), with passes of as many images as the classifier allows.

        Args:
            classifier: the network, borrowed.
            layer: the module of the layer, or None.
            images: (B, C, H, W) that may enter autograd.
            target: (B,).
            seeds: (B,), of baselines that are drawn.

        Raises:
            ValueError: captum refuses the network or the values of arguments.
        """
        limit = classifier.chunk_size_for(images)
        fill = max(1, limit // len(images))
        values = {key: self._value(key, value, classifier, images, seeds) for key, value in self.arguments.items()}
        own: dict[str, Any] = {"target": target, "internal_batch_size": limit, "nt_samples_batch_size": fill}
        if self.layer is None:  # LayerFeatureAblation does not expand a target for each image
            own["perturbations_per_eval"] = fill
        if self.inner.__name__ == "LayerGradCam":
            own["relu_attributions"] = True
        if self.needs_distribution and "baselines" not in values:
            own["baselines"] = our_baselines.references(None, images, seeds, classifier.bounds, _STAND_INS)
        values = {**own, **values}
        try:
            method: Any = classifier
            for kind, (made, _) in zip(reversed(self.kinds), reversed(self._taken), strict=True):
                first = (method, layer) if "layer" in made else (method,)
                method = kind(*first, **{key: value for key, value in values.items() if key in made})
            called = {key for _, taken in self._taken for key in taken}
            return method.attribute(images, **{key: value for key, value in values.items() if key in called})
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if not _is_captums(error):
                raise
            told = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            if isinstance(error, AssertionError):
                raise validation.fail(f"arguments of {self.name}", "values that captum takes", told) from error
            raise validation.fail("net", f"a network that captum's {self.name} can explain", told) from error

    def _value(self, key: str, value: Any, classifier: Classifier, images: Tensor, seeds: Tensor) -> Any:
        if key == "baselines" and value is not None:
            if self.needs_distribution:
                return our_baselines.references(value, images, seeds, classifier.bounds, _STAND_INS)
            return our_baselines.make(value, images, seeds, classifier.bounds)[0]
        if key == "feature_mask" and callable(value) and not isinstance(value, FrozenTensor):
            value = value(images)
        if isinstance(value, FrozenTensor):
            value = value.tensor
        if isinstance(value, Tensor):
            value = value.to(images if value.is_floating_point() else images.device)
            if key == "feature_mask" and value.ndim < 4:
                return value.reshape((1,) * (4 - value.ndim) + tuple(value.shape))
        return tuple(value) if isinstance(value, list) else value


def _kind(name: Any) -> Any:
    package, known = _package(), methods()
    if name not in known:
        reason = refusal(name) if isinstance(name, str) and name in package.__all__ else None
        got = f"{name!r}: {reason}" if reason else repr(name) + validation.near(name, known)
        raise validation.fail("name", f"one of captum's {', '.join(known)}", got)
    return getattr(package, name)


def _is_captums(error: Exception) -> bool:
    """Return whether captum raised an error, or what it called in torch, and not the network."""
    frames: Iterable[Any] = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    names = [frame.f_globals.get("__name__", "").partition(".")[0] for frame in frames]
    return next((name for name in reversed(names) if name != "torch"), "") == "captum"
