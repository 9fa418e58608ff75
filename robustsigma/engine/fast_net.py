"""FastNet: a frozen network's own results for less, without touching the network.

A batch normalisation that follows a convolution is folded into the convolution's weights, and images are handed over
with their channels last in memory where convolutions are faster so: on a CPU, and on a GPU where they round. Tokens
that attend to themselves are projected as they lie in memory (`self_attention`).

The network's own code runs in every pass: the functions that it calls are watched, not traced, so that its control
flow, side effects and hooks are as they would be. A pass that goes otherwise than the watched one is made again as it
is.
"""

from __future__ import annotations

import math
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from robustsigma.engine.folding import Folded, Folding, Pair, UnlikeError
from robustsigma.engine.precision import rounds
from robustsigma.engine.self_attention import attends_for_less
from robustsigma.engine.watching import Watch

# Images of fewer elements in all gain nothing: such passes are made of overhead, to which watching them adds.
WORTH_IT = 2**16
# Nor do those of a network with more weights than so many for each element: to fold and to reorder those of a ResNet-18
# takes longer than a pass of 16 images of 64 x 64 saves. Weights of 1 x 1 are in any order at once.
_WEIGHTS_PER_ELEMENT = 24


class FastNet:
    """Calls a network, for less while it is frozen.

    Between `freeze` and `thaw` its weights are taken not to change: they are folded once, at the first pass that
    needs them.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._thread = 0
        self._tensors: tuple[int, ...] = ()  # of the network that was watched
        self._watched = False
        self._strict = False  # the network's code needs what it reads in PyTorch's own order in memory
        self._pairs: dict[int, Pair] = {}  # by id of the weight
        self._folded: dict[torch.memory_format, Folded] = {}
        self._convolves = False
        self._attends = False
        self._weights = 0  # of convolutions larger than 1 x 1

    # A copy of the network has other weights: its copy of this starts anew.
    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        FastNet.__init__(self)

    def freeze(self, net: nn.Module) -> None:
        """Begin: `net` does not change until `thaw`. Calls nest.

        Raises:
            RuntimeError: another thread froze it.
        """
        if self._depth > 0 and self._thread != get_ident():
            raise RuntimeError("classifier: expected calls of one thread at a time, got calls of two; copy it for each")
        self._depth += 1
        if self._depth == 1:
            self._thread = get_ident()
            # Not by net.parameters(), which takes several times as long: a call of few passes is made of such things.
            held = (own for module in net.modules() for own in (module._parameters, module._buffers))
            tensors = tuple(id(tensor) for own in held for tensor in own.values())
            if tensors != self._tensors:
                self._tensors, self._watched, self._strict = tensors, False, False
                convolutions = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
                self._convolves = bool(convolutions)
                self._attends = any(isinstance(module, nn.MultiheadAttention) for module in net.modules())
                self._weights = sum(map(_count, convolutions))

    @property
    def frozen(self) -> bool:
        """Whether the network is taken not to change."""
        return self._depth > 0

    def thaw(self) -> None:
        """End, and forget the folded weights, which are as large as the network's own, in each order."""
        self._depth -= 1
        if self._depth == 0:
            self._folded = {}

    def __call__(self, net: nn.Module, images: Tensor) -> Any:
        """Return what `net` returns of images, up to rounding."""
        few = images.numel() < WORTH_IT or images.numel() * _WEIGHTS_PER_ELEMENT < self._weights
        if self._depth == 0 or few or torch_module._has_any_global_hook():
            return net(images)
        last = self._convolves and not self._strict and faster_last(images.device)
        order = torch.channels_last if last else torch.contiguous_format
        if not self._watched:
            return self._watch(net, images, order)
        pairs = {key: pair for key, pair in self._pairs.items() if not pair.hooked}
        attends = self._attends and not self._strict and attends_for_less(images.device)
        if not pairs and not last and not attends:
            return net(images)
        return self._pass(net, images, Folding(pairs, self._folded.setdefault(order, {}), order, strict=self._strict))

    def _watch(self, net: nn.Module, images: Tensor, order: torch.memory_format) -> Any:
        """Return what `net` returns, and note what of it can be had for less."""
        self._pairs, self._folded = {}, {}
        if any(_own_passes(module) for module in net.modules()):
            self._watched, self._convolves, self._attends = True, False, False
            return net(images)
        watch = Watch(net, self._folded.setdefault(order, {}), order, strict=self._strict)
        try:
            with watch:
                output = net(_ordered(images, order))
        except RuntimeError as error:
            if not self._disordered(error, order):
                raise
        else:
            self._watched, self._pairs = True, watch.pairs()
            return output
        # Outside the handler, whose traceback holds the failed pass's tensors. What was seen of it is not the whole.
        return self._watch(net, images, torch.contiguous_format)

    def _pass(self, net: nn.Module, images: Tensor, folding: Folding) -> Any:
        try:
            with folding:
                output = net(_ordered(images, folding.order))
            folding.check()
        except UnlikeError:
            self._pairs, self._folded = {}, {}
        except RuntimeError as error:
            if not self._disordered(error, folding.order):
                raise
        else:
            return output
        return net(images)

    def _disordered(self, error: RuntimeError, order: torch.memory_format) -> bool:
        """Return whether a pass failed of the order in memory, which is then left as it is."""
        if self._strict or "view size is not compatible" not in str(error):
            return False
        self._strict = True
        self._folded.pop(order, None)
        return True


def faster_last(device: torch.device) -> bool:
    """Return whether convolutions are faster with the channels last in memory.

    On a GPU only where they round: in full precision a ResNet-18 took a tenth longer on an H200, in TF32 a fifth less.
    """
    return device.type == "cpu" or rounds(device)


def _ordered(images: Tensor, order: torch.memory_format) -> Tensor:
    if order is not torch.channels_last:
        return images
    ordered = images.contiguous(memory_format=order)
    if ordered.requires_grad:  # the gradient's further way, through the normalisation, is several times faster so
        ordered.register_hook(Tensor.contiguous)
    return ordered


def _count(convolution: nn.Conv2d) -> int:
    """Return how many weights have an order in memory."""
    if convolution.kernel_size == (1, 1):
        return 0
    return convolution.out_channels * convolution.in_channels // convolution.groups * math.prod(convolution.kernel_size)


def _own_passes(module: nn.Module) -> bool:
    """Return whether a module's passes are compiled, or made by other threads: they can't be watched from here."""
    compiled = getattr(module, "_compiled_call_impl", None) is not None or hasattr(module, "_orig_mod")
    return compiled or isinstance(module, (torch.jit.ScriptModule, nn.DataParallel))
