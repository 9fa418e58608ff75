"""Any attribution method of captum (Kokhlikyan et al., 2020), as an attributor."""

from __future__ import annotations

import copy
import warnings
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustsigma.engine import validation
from robustsigma.engine.attributors import baselines as our_baselines
from robustsigma.engine.attributors.base import Attribution, Attributor
from robustsigma.engine.attributors.borrowed_network import borrowed, explain_in_chunks
from robustsigma.engine.attributors.captum_adapter import CaptumCall
from robustsigma.engine.attributors.frozen_tensor import FrozenTensor
from robustsigma.engine.attributors.layer_maps import Grid, as_channels, as_values, grid_of, layer_of, spread
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.global_rng import key_of, temporary_seed


@dataclass(frozen=True, init=False)
class CaptumMethod(Attributor):
    """Run an attribution method of the package captum, given by the name of its class and its arguments.

    It explains the target's logit. captum sees the `Classifier`, so images and baselines are in [0, 1], and a baseline
    of 0 is black. There is no endpoint, and `drop` is 0. Passes are counted as they happen. The network is left as it
    was: hooks and attributes that captum leaves on modules are removed, in-place layers work, and a compiled network
    runs uncompiled. Needs the extra: pip install 'robustsigma[captum]'.

    Maps of a layer (`Layer…`, `InternalInfluence`) are summed over the layer's channels, upsampled bilinearly, and
    divided evenly among the image's channels. A layer of a vision transformer works as one of a convolutional network:
    its tokens become a grid, without the class token and other prefix tokens.

    Methods that draw random numbers take them from the global generators, which are seeded for each image by its seed
    and restored afterwards. So they run on one image at a time, and an image's map does not depend on its batch.
    "GradientShap" has all samples of an image in one pass; the passes of others are as small as the classifier wants.

    Heatmaps are sums of absolute values, as for every method. "LayerGradCam" therefore gets `relu_attributions=True`,
    as Grad-CAM is defined; captum's own default keeps negative values.

    Args:
        name: name of the class, such as "IntegratedGradients", "Occlusion", "LayerGradCam", "GradientShap".
            "NoiseTunnel" takes the name of the method that it repeats as `attribution_method`. Methods that explain
            neurons or text, and those that exchange pixels between images, are refused.
        layer: name of a module of the network, as in `net.named_modules()`, for methods that take a layer. A name,
            because a copy of the network with shuffled weights is explained by its own layer.
        arguments: arguments of the class and of its method `attribute`. `baselines` may also be the name of one of our
            baselines, such as "blur", or a function of images; without any, "GradientShap" and "DeepLiftShap" compare
            with 32 noise images, or in a benchmark with its reference images. `feature_mask` may be a function of
            images.
        keywords: more of `arguments`: `CaptumMethod("Occlusion", sliding_window_shapes=(3, 8, 8))`.

    Raises:
        ImportError: captum is not installed.
        ValueError: an unknown name, other arguments, a layer that the network does not have or whose output is no grid,
            or a network that captum cannot explain.

    Example:
        >>> CaptumMethod("LayerGradCam", layer="layer4")(classifier, images).heatmap()
    """

    name: str = "IntegratedGradients"
    layer: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict, hash=False)

    def __init__(
        self,
        name: str = "IntegratedGradients",
        layer: str | None = None,
        arguments: dict[str, Any] | None = None,
        **keywords: Any,
    ) -> None:
        merged = {key: _frozen(value) for key, value in validation.merged(arguments, keywords).items()}
        for key, value in {"name": validation.plain(name), "layer": layer, "arguments": merged}.items():
            object.__setattr__(self, key, value)
        _ = self._call  # raises on a wrong value

    @cached_property
    def _call(self) -> CaptumCall:
        return CaptumCall(self.name, self.layer, self.arguments)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_call"}

    @property
    def stochastic(self) -> bool:
        """Whether the method, or its baseline, draws random numbers."""
        given = self._call.arguments.get("baselines")
        return self._call.draws or (given is not None and our_baselines.is_stochastic(given))

    @property
    def needs_references(self) -> bool:
        """Whether the method compares with a distribution of images, and none is given."""
        return self._call.needs_distribution and "baselines" not in self.arguments

    def with_references(self, images: Tensor) -> CaptumMethod:
        """Return the same method with images (R, C, H, W) that it compares with."""
        return replace(self, arguments={**self.arguments, "baselines": images})

    def attribute(
        self, classifier: Classifier, images: Tensor, target: Tensor, logits: Tensor, seeds: Tensor
    ) -> Attribution:
        """Return captum's values; the number of passes depends on the method."""
        size = 1 if self._call.draws else max(1, classifier.chunk_size_for(images) // self._call.copies)
        with borrowed(classifier), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"captum(\.|$)")  # the network's own warnings stay
            layer = None if self.layer is None else layer_of(classifier.net, self.layer)
            grid = None if layer is None else grid_of(classifier, layer, images)
            made = partial(self._values, classifier, layer, grid)
            return explain_in_chunks(classifier, made, size, images, target, logits, seeds)

    def _values(
        self,
        classifier: Classifier,
        layer: nn.Module | None,
        grid: Grid | None,
        images: Tensor,
        target: Tensor,
        seeds: Tensor,
    ) -> Tensor:
        # Relevance of LRP is read off the layer itself, and what enters a layer may have another shape than its output.
        direct = self._call.inner.__name__ == "LayerLRP" or self.arguments.get("attribute_to_layer_input")
        placed = nullcontext(layer) if layer is None or grid is None or direct else as_channels(layer, grid)
        with temporary_seed(key_of(seeds, "captum")), placed as hooked:
            found = self._call(classifier, hooked, images.detach().clone().requires_grad_(True), target, seeds)
        found = found[0] if isinstance(found, (tuple, list)) else found
        if not self._call.maps_layer:
            return as_values(found, images, f"maps of {self.name}")
        values = found.detach().to(images.dtype)
        if direct:
            values = Grid(values, (images.shape[2], images.shape[3])).unfold(values)
        return spread(values.sum(1, keepdim=True), images)


def _frozen(value: Any) -> Any:
    if isinstance(value, (Tensor, np.ndarray)):
        return FrozenTensor(torch.as_tensor(value))
    return value if callable(value) else copy.deepcopy(value)
