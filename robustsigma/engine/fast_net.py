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
from collections.abc import Callable
from threading import Lock, get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from robustsigma.engine.folding import Folded, Folding, Pair, UnlikeError, hooked
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
        self._frozen: nn.Module | None = None
        self._modules: list[nn.Module] = []  # of the frozen network: to find them takes longer than to look at them
        self._parts: tuple[int, ...] = ()  # modules and tensors of the network that was watched
        self._hooks: tuple[int, ...] = ()  # modules that had hooks then
        self._watched = False
        self._strict = False  # the network's code needs what it reads in PyTorch's own order in memory
        self._plain = False  # its passes cannot be watched
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

    def freeze(self, net: nn.Module) -> bool:
        """Begin: `net` does not change until `thaw`. Calls nest. Return whether it is of other parts than the last.

        Raises:
            RuntimeError: another thread froze it, here or in another classifier.
        """
        if self._depth == 0:
            _hold(net)
            self._frozen = net
        else:
            assert self._frozen is not None
            _hold(self._frozen)
        self._depth += 1
        return self._depth == 1 and self._look(net)

    def _look(self, net: nn.Module) -> bool:
        self._modules = modules = list(net.modules())
        # Not by net.parameters(), which takes several times as long: a call of few passes is made of such things.
        held = (own for module in modules for own in (module._parameters, module._buffers))
        parts = (*map(id, modules), *(id(tensor) for own in held for tensor in own.values()))
        if parts == self._parts:
            return False
        self._parts, self._watched, self._strict = parts, False, False
        self._plain = any(map(_own_passes, modules))
        convolutions = [module for module in modules if isinstance(module, nn.Conv2d)]
        self._convolves = bool(convolutions)
        self._attends = any(isinstance(module, nn.MultiheadAttention) for module in modules)
        self._weights = sum(map(_count, convolutions))
        return True

    @property
    def frozen(self) -> bool:
        """Whether the network is taken not to change."""
        return self._depth > 0

    def thaw(self) -> None:
        """End, and forget the folded weights, which are as large as the network's own, in each order."""
        assert self._frozen is not None
        _let_go(self._frozen)
        self._depth -= 1
        if self._depth == 0:
            self._folded, self._frozen, self._modules = {}, None, []

    def __call__(self, net: nn.Module, make: Callable[[], Tensor]) -> Any:
        """Return what `net` returns, up to rounding, of the images that `make` makes.

        They are made anew for a pass that is made again: the network may have changed the first ones in place.
        """
        images = make()
        few = images.numel() < WORTH_IT or images.numel() * _WEIGHTS_PER_ELEMENT < self._weights
        if self._depth == 0 or few or self._plain or torch_module._has_any_global_hook():
            return net(images)
        hooks = tuple(id(module) for module in self._modules if hooked(module))
        if hooks != self._hooks:  # a new one would be handed what was never computed
            self._hooks, self._watched = hooks, False
        last = self._convolves and not self._strict and faster_last(images.device)
        order = torch.channels_last if last else torch.contiguous_format
        attends = self._attends and not self._strict and attends_for_less(images.device)
        if self._watched and not self._pairs and not last and not attends:
            return net(images)
        if not self._watched:
            self._pairs, self._folded = {}, {}
        folded = self._folded.setdefault(order, {})
        mode = (
            Folding(self._pairs, folded, order, strict=self._strict)
            if self._watched
            else Watch(net, folded, order, strict=self._strict)
        )
        try:
            with mode:
                output = net(_ordered(images, order))
            mode.check()
        except torch.OutOfMemoryError:
            raise
        except UnlikeError:
            self._pairs, self._folded, at_fault = {}, {}, False
        except Exception:
            at_fault = True
        else:
            if isinstance(mode, Watch):
                self._watched, self._pairs = True, mode.pairs()
            return output
        # Outside the handler, whose traceback holds the failed pass's tensors. The network's own errors come again.
        output = net(make())
        if not at_fault:
            return output
        self._plain, self._strict, self._watched = self._strict, True, False
        # Once more, so that the first pass gives the bits of later ones.
        return self(net, make)


_LOCK = Lock()
_HOLDERS: dict[int, tuple[int, int]] = {}  # thread and depth, by id of a network that is frozen


def _hold(net: nn.Module) -> None:
    with _LOCK:
        thread, depth = _HOLDERS.get(id(net), (get_ident(), 0))
        if thread != get_ident():
            raise RuntimeError(
                "classifier: expected calls of one thread at a time for a network, got calls of two; "
                "give each a copy of the classifier, which copies its network"
            )
        _HOLDERS[id(net)] = thread, depth + 1


def _let_go(net: nn.Module) -> None:
    with _LOCK:
        thread, depth = _HOLDERS.pop(id(net))
        if depth > 1:
            _HOLDERS[id(net)] = thread, depth - 1


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
