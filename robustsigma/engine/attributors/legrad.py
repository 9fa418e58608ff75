"""LeGrad: how sensitive the features that each layer of a vision transformer forms are to its attention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from robustsigma.engine.attributors.attention_hooks import attention_blocks, first_of
from robustsigma.engine.attributors.base import Attribution
from robustsigma.engine.attributors.patch_maps import PatchAttributor, seen_blocks
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.network_state import logits_of
from robustsigma.engine.scores import Score, target_score
from robustsigma.engine.validation import fail

_LAYERS = "transformer layers, one attention block in each, that pass the same tokens on"


@dataclass(frozen=True)
class LeGrad(PatchAttributor):
    """LeGrad: the gradient of each layer's score by its own attention weights (Bousselham et al., 2024, section 3).

    The tokens that layer l gives go through the network's own head (its last norm, pooling and classifier), whose score
    is F_l. The layer's map is the mean over heads and query tokens of (dF_l/dA_l)+, A_l its attention weights;
    the result is the mean over layers, without the tokens in front of the patches, laid out as the grid of patches,
    interpolated bilinearly to the image and scaled to [0, 1].

    There is no completeness: `drop` is 0, so that `gap()` is the sum of values. The map is spread evenly over
    channels, so that `heatmap()` is the map.

    torchvision's `VisionTransformer` qualifies, and transformers of timm's or Hugging Face's attention blocks, also
    those whose head pools the patches.

    Args:
        score: F.

    Example:
        >>> LeGrad()(classifier, images, target).heatmap()
    """

    needs_class_token = False

    score: Score = "logit"

    def attribute(
        self, classifier: Classifier, images: Tensor, target: Tensor, logits: Tensor, seeds: Tensor
    ) -> Attribution:
        """Return the map: one more forward pass and a backward pass."""
        result = super().attribute(classifier, images, target, logits, seeds)
        above = result.values - result.values.amin((1, 2, 3), keepdim=True)
        highest = above.amax((1, 2, 3), keepdim=True)
        return replace(result, values=above / torch.where(highest > 0, highest, 1) / images.shape[1])

    def tokens(self, classifier: Classifier, images: Tensor, target: Tensor) -> Tensor:
        """Return the mean over layers for every token."""
        at = images.detach().requires_grad_(True)
        net = classifier.net
        with seen_blocks(net, images) as blocks, _every_layer_through_the_head(net, len(images)) as outputs:
            classifier(at)
        (logits,) = outputs
        if len(logits) != len(blocks) * len(images):
            raise fail("net", _LAYERS, "attention blocks without such a layer around them")
        total = target_score(logits, target.repeat(len(blocks)), self.score).sum()
        inputs = [*(block.output for block in blocks), at]
        *gradients, _ = torch.autograd.grad(total, inputs, allow_unused=True, materialize_grads=True)
        maps = [
            torch.cat([part.weight_gradient(own).clamp(min=0).mean((1, 2)) for part, own in block.split(gradient)])
            for block, gradient in zip(blocks, gradients, strict=True)
        ]
        return torch.stack(maps).mean(0)


def _layers(net: nn.Module) -> list[nn.Module]:
    """Return the largest module around each attention block that holds no other one."""
    blocks = attention_blocks(net)
    holds = {module: sum(part in blocks for part in module.modules()) for module in net.modules()}
    around = {child: module for module in net.modules() for child in module.children()}
    # The largest around a single one would be the network: it is the one that is a member of a list.
    lists = (nn.ModuleList, nn.Sequential) if len(blocks) == 1 else ()
    found = []
    for layer in blocks:
        while layer in around and holds[around[layer]] == 1 and not isinstance(around[layer], lists):
            layer = around[layer]
        found.append(layer)
    return [module for module in net.modules() if module in found]


@contextmanager
def _every_layer_through_the_head(net: nn.Module, count: int) -> Iterator[list[Tensor]]:
    """Put what every layer gives behind the last one, as one batch; yield the list to which its logits are added.

    Every layer but the first gets its tokens without their history, so that a layer's score depends on its own
    attention alone. The network's own output is that of the last layer, as without.
    """
    given: list[Tensor] = []
    outputs: list[Tensor] = []
    layers = _layers(net)

    def before(_: nn.Module, args: tuple[Any, ...]) -> Any:
        if not args or not isinstance(args[0], Tensor):
            raise fail("net", _LAYERS, "a layer that is given something else")
        return (args[0].detach().requires_grad_(True), *args[1:]) if given else None

    def after(layer: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        tokens = first_of(output)
        given.append(tokens)
        if layer is not layers[-1]:
            return None
        if len(given) != len(layers) or len({(each.shape, each.dtype) for each in given}) > 1:
            raise fail("net", _LAYERS, f"{len(given)} layers that ran, of {len(layers)}, or other shapes")
        every = torch.cat(given)
        return (every, *output[1:]) if isinstance(output, tuple) else every

    def last(_: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor:
        outputs.append(logits_of(output))
        return outputs[0][-count:]

    with ExitStack() as handles:
        for layer in layers:
            handles.enter_context(layer.register_forward_pre_hook(before))
            handles.enter_context(layer.register_forward_hook(after))
        handles.enter_context(net.register_forward_hook(last))
        yield outputs
