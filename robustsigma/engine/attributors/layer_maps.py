"""Layer outputs as spatial grids (also of tokens), and maps of other code as values of the image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustsigma.engine import validation
from robustsigma.engine.classifier import Classifier

_MOST_PREFIX_TOKENS = 16  # before a grid, fewer than this


def layer_of(net: nn.Module, name: str) -> nn.Module:
    """Return a module of a network by its name.

    Raises:
        ValueError: the network has no such module.
    """
    found = dict(net.named_modules())
    if name not in found or not name:
        near = validation.near(name, found) or f"; its children are {', '.join(n for n, _ in net.named_children())}"
        raise validation.fail("layer", f"the name of a module of {type(net).__name__}", repr(name) + near)
    return found[name]


def prefix_tokens(net: nn.Module) -> int | None:
    """Return how many tokens a network puts before those of the patches, where it states that as timm's do."""
    named = (getattr(module, "num_prefix_tokens", None) for module in net.modules())
    return next((count for count in named if isinstance(count, int)), None)


def find_patches(tokens: int, size: tuple[int, int], prefixes: Iterable[int]) -> tuple[int, tuple[int, int]] | None:
    """Return the first of some numbers of prefix tokens that leaves a grid with the image's proportions, and its sides.

    Args:
        tokens: number of tokens.
        size: (H, W) of the image; patches are squares.
        prefixes: numbers of tokens that may be before the grid.
    """
    ratio = size[0] / size[1]
    for prefix in prefixes:
        count = max(tokens - prefix, 0)
        rows, columns = round((count * ratio) ** 0.5), round((count / ratio) ** 0.5)
        if count and rows * columns == count:
            return prefix, (rows, columns)
    return None


class Grid:
    """Where in a layer's output the image's places are.

    Args:
        output: tensor of a layer: (B, D, h, w), (B, h, w, D), or tokens (B, N, D) of which the last are a grid.
        size: (H, W) of the image.
        prefix: number of tokens before the grid, such as a class token; None finds the smallest that leaves a grid.

    Raises:
        ValueError: an output of another kind.
    """

    def __init__(self, output: Any, size: tuple[int, int], prefix: int | None = None) -> None:
        shape = tuple(output.shape) if isinstance(output, Tensor) else ()
        if len(shape) == 4:
            # Windows of a Swin transformer have their channels last.
            ratio = size[0] / size[1]
            last = shape[1] == round(shape[2] * ratio) and shape[2] != round(shape[3] * ratio)
            self.kind = "channels last" if last else "channels first"
            return
        self.kind = "tokens"
        prefixes = range(_MOST_PREFIX_TOKENS) if prefix is None else (prefix,)
        found = find_patches(shape[1], size, prefixes) if len(shape) == 3 else None
        if found is None:
            got = f"shape {shape}" if shape else type(output).__name__
            raise validation.fail("layer", "a module whose output is (B, D, h, w) or a grid of tokens (B, N, D)", got)
        self.prefix, self.sides = found

    def unfold(self, output: Tensor) -> Tensor:
        """Return (B, D, h, w)."""
        if self.kind == "channels first":
            return output
        if self.kind == "channels last":
            return output.permute(0, 3, 1, 2)
        return output[:, self.prefix :].transpose(1, 2).unflatten(2, self.sides)

    def fold(self, grid: Tensor, output: Tensor) -> Tensor:
        """Return the output with another grid in it."""
        if self.kind == "channels first":
            return grid
        if self.kind == "channels last":
            return grid.permute(0, 2, 3, 1)
        return torch.cat([output[: len(grid), : self.prefix], grid.flatten(2).transpose(1, 2)], 1)


def _tensor(output: Any) -> Any:
    return output[0] if isinstance(output, (tuple, list)) and output else output


def grid_of(classifier: Classifier, layer: nn.Module, images: Tensor) -> Grid:
    """Return where the image's places are in the output of a layer; one pass of one image."""
    seen: list[Any] = []
    handle = layer.register_forward_hook(lambda module, args, output: seen.append(_tensor(output)))
    try:
        with torch.no_grad():
            classifier(images[:1])
    finally:
        handle.remove()
    if not seen:
        raise validation.fail("layer", "a module that takes part in the forward pass", "one that does not run")
    return Grid(seen[0], (images.shape[2], images.shape[3]), prefix_tokens(classifier.net))


@contextmanager
def as_channels(layer: nn.Module, grid: Grid) -> Iterator[nn.Module]:
    """Yield a module that runs after a layer and whose output is the layer's as (B, D, h, w).

    It is the layer itself where its output has that shape. Else the places of tokens would be taken for channels.
    """
    if grid.kind == "channels first":
        yield layer
        return
    place = nn.Identity()

    def through(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        values = _tensor(output)
        changed = grid.fold(place(grid.unfold(values)), values)
        return (changed, *output[1:]) if isinstance(output, (tuple, list)) else changed

    handle = layer.register_forward_hook(through)
    try:
        yield place
    finally:
        handle.remove()


def spread(maps: Tensor, images: Tensor) -> Tensor:
    """Return one map for each image (B, 1, h, w), upsampled and divided evenly among the channels (B, C, H, W)."""
    size = (images.shape[2], images.shape[3])
    if maps.shape[2:] != size:
        maps = F.interpolate(maps, size, mode="bilinear", align_corners=False)
    return (maps / images.shape[1]).expand_as(images).contiguous()


def as_values(maps: Any, images: Tensor, name: str) -> Tensor:
    """Return maps that other code made as values (B, C, H, W).

    Args:
        maps: (B, C, H, W), or one for each image, (B, 1, H, W) or (B, H, W), which is divided among the channels.
        images: (B, C, H, W).
        name: name of the maps, for errors.

    Raises:
        ValueError: another shape, or values that are not finite.
    """
    values = torch.as_tensor(maps) if isinstance(maps, (np.ndarray, list)) else maps
    count, channels, height, width = images.shape
    shapes = [(count, channels, height, width), (count, 1, height, width), (count, height, width)]
    if not isinstance(values, Tensor) or tuple(values.shape) not in shapes:
        got = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(maps).__name__
        raise validation.fail(name, "shape " + " or ".join(map(str, dict.fromkeys(shapes))), got)
    values = values.detach().to(images)
    if not torch.isfinite(values).all():
        raise validation.fail(name, "finite values", "NaN or infinity")
    return values.clone() if values.shape == images.shape else spread(values.reshape(shapes[1]), images)
