"""Run a network on images: input dtype, memory format, compilation, and chunks that fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustsigma.engine import validation
from robustsigma.engine.network_state import floating_dtypes, is_compiled, logits_of, takes_channels_last
from robustsigma.engine.validation import fail

# A batch of fewer elements gains nothing from another order in memory: such passes consist of overhead.
_WORTH_REORDERING = 2**16


class NetworkPass:
    """Normalizes images and runs a network on them; remembers which dtype and memory format it accepts.

    Args:
        dtype: dtype of the images that the network is given; None takes that of its parameters.
        compile: whether passes inside `frozen()` run by `torch.compile`.
    """

    def __init__(self, dtype: torch.dtype | None, compile: bool) -> None:
        self.dtype = dtype
        self.compile = compile
        self.channels_last: bool | None = None  # whether passes on a CPU may have them; None before a pass was tried
        self._dtypes: frozenset[torch.dtype] = frozenset()  # of the parameters, inside `frozen`
        self._accepted: torch.dtype | None = None  # of several dtypes, the one that the network takes
        self._compiled: Any = None

    def __getstate__(self) -> dict[str, Any]:
        # Compiled code is the original's: it would run a copy with the original's weights.
        return {**self.__dict__, "_compiled": None}

    def reset(self, modules: Sequence[nn.Module], parameters: Sequence[nn.Parameter]) -> None:
        """Reset what is remembered, for a network whose modules or parameters changed."""
        plain = any(isinstance(module, nn.Conv2d) for module in modules) and not any(map(is_compiled, modules))
        self.channels_last = None if plain else False
        self._dtypes, self._accepted, self._compiled = floating_dtypes(parameters), None, None

    def __call__(self, net: nn.Module, images: Tensor, mean: Tensor, std: Tensor, frozen: bool) -> Any:
        """Return the network's output for images in [0, 1].

        Raises:
            ValueError: a network with parameters of several dtypes that takes images in none of them.
        """
        if self.dtype is not None:
            return self._normalized(net, images, mean, std, self.dtype, frozen)
        dtypes = self._dtypes if frozen else floating_dtypes(net.parameters())
        if len(dtypes) < 2:
            return self._normalized(net, images, mean, std, next(iter(dtypes), images.dtype), frozen)
        if self._accepted in dtypes:
            return self._normalized(net, images, mean, std, self._accepted, frozen)
        errors = []
        # The widest first: images lose no digits where several dtypes would do.
        for dtype in sorted(dtypes, key=lambda each: torch.finfo(each).eps):
            try:
                output = self._normalized(net, images, mean, std, dtype, frozen)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                errors.append(error)
            else:
                self._accepted = dtype
                return output
        names = ", ".join(sorted(map(str, dtypes)))
        hint = "cast the network to one dtype, or set that of the images with Classifier(dtype=...)"
        expected = f"a network that takes images in the dtype of some parameter ({names})"
        raise fail("net", expected, f"{errors[0]}; {hint}")

    def _normalized(
        self, net: nn.Module, images: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype, frozen: bool
    ) -> Any:
        images, mean, std = images.to(dtype), mean.to(dtype), std.to(dtype)
        normalized = (images - mean).div_(std)
        if not frozen:
            return net(normalized)
        if self.compile:
            return self._compiled_pass(net, normalized)
        ordered = self._in_memory_format(net, normalized)
        if ordered is normalized:
            return net(normalized)
        try:
            return net(ordered)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # such as of a `view`, on a way through the network that was not taken before
            self.channels_last = False
        # Outside the handler, whose traceback holds the failed pass's tensors. The network's own errors come again.
        return net((images - mean).div_(std))

    def _compiled_pass(self, net: nn.Module, images: Tensor) -> Tensor:
        """Return the logits of a batch that is padded to one of a few sizes, each of which is compiled once."""
        if self._compiled is None:

            def logits(x: Tensor) -> Any:
                return logits_of(net(x))

            self._compiled = torch.compile(logits, mode="reduce-overhead", dynamic=False)
        count = len(images)
        padded = F.pad(images, (0, 0) * 3 + (0, _padded_size(count) - count))
        try:
            # One code for each size, with and without a gradient; PyTorch's limit is 8.
            with torch._dynamo.config.patch(recompile_limit=64):
                # A copy, because the next pass of a CUDA graph writes to the same memory.
                return self._compiled(padded)[:count].clone()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            validation.warn(f"compile: the network does not compile, and runs uncompiled ({error!r:.200})")
            self.compile = False
        return logits_of(net(images))

    def _in_memory_format(self, net: nn.Module, images: Tensor) -> Tensor:
        """Return images with their channels last in memory where passes of the frozen network are faster so: on CPUs.

        On GPUs full precision is slower that way: an H200 takes a tenth longer for a ResNet-18.
        """
        if self.channels_last is False or images.device.type != "cpu" or images.numel() < _WORTH_REORDERING:
            return images
        if self.channels_last is None:
            self.channels_last = takes_channels_last(net, images[:2].detach())
            if not self.channels_last:
                return images
        ordered = images.contiguous(memory_format=torch.channels_last)
        if ordered.requires_grad:  # the backward pass through the normalization is several times faster so
            ordered.register_hook(Tensor.contiguous)
        return ordered


def _padded_size(count: int) -> int:
    """Return a power of two, from 512 on a multiple of 512."""
    return 1 << (count - 1).bit_length() if count <= 512 else -(-count // 512) * 512


def check_channels(statistics: Mapping[str, Tensor], images: Tensor) -> None:
    """Raise ValueError unless each statistic has one number, or one for each channel of the images."""
    channels = images.shape[1]
    for name, each in statistics.items():
        if len(each) not in (1, channels):
            got = f"{len(each)}, and images of shape {tuple(images.shape)}"
            numbers = "1 number" if channels == 1 else f"1 or {channels} numbers, one per channel of the images"
            raise fail(name, numbers, got)


# Elements of one chunk on a CPU: 170 images of 3x64x64 or 13 of 3x224x224. In chunks of twice that, an image's gradient
# takes up to twice as long (EfficientNet-Lite0 at 224: 43 against 22 ms); in chunks of half that, as long or a little
# longer. On a GPU the 256 images of 3x224x224 at which an H200 is fastest.
_CPU_ELEMENTS = 2**21
_GPU_ELEMENTS = 256 * 3 * 224**2


def split_sizes(count: int, most: int) -> list[int]:
    """Return the sizes of the fewest parts of `count` items: `most` each.

    Where less than half of that is left, the last two share evenly.
    """
    full, rest = divmod(count, most)
    if full == 0 or rest == 0:
        return [most] * full if full else [count]
    if 2 * rest >= most:
        return [*[most] * full, rest]
    half = (most + rest) // 2
    return [*[most] * (full - 1), most + rest - half, half]


class Chunks:
    """Runs functions of batches in chunks, and remembers how many elements fit where memory ran out."""

    def __init__(self) -> None:
        self.max_elements: int | None = None  # of a chunk, set when memory ran out

    def size_for(self, images: Tensor, most: int | None) -> int:
        """Return how many images like these make a chunk: `most`, or without it a number chosen by image size."""
        each = max(1, images[0].numel())
        elements = _CPU_ELEMENTS if images.device.type == "cpu" else _GPU_ELEMENTS
        size = max(1, elements // each) if most is None else most
        return size if self.max_elements is None else min(size, max(1, self.max_elements // each))

    def run(self, function: Callable[..., Any], most: int | None, images: Tensor, *others: Tensor) -> Any:
        """Return what a function gives for images and others, called for as many rows as fit and joined."""
        size = min(self.size_for(images, most), len(images))
        while True:
            try:
                if len(images) <= size:
                    return function(images, *others)
                lengths = split_sizes(len(images), size)
                parts = [function(*each) for each in zip(*(t.split(lengths) for t in (images, *others)), strict=True)]
                if isinstance(parts[0], tuple):
                    return tuple(torch.cat(column) for column in zip(*parts, strict=True))
                return torch.cat(parts)
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
            # Outside the handler, whose traceback holds the failed pass's tensors.
            torch.cuda.empty_cache()
            size //= 2
            self.max_elements = size * images[0].numel()
