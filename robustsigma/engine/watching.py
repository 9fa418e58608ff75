"""Watch: finds in a pass what `Folding` can give for less in the next ones."""

from __future__ import annotations

from typing import Any, NamedTuple
from weakref import ReferenceType, ref

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from robustsigma.engine.folding import METADATA, Cheaper, Folded, Normalisation, Pair, checkpointed


class _Convolution(NamedTuple):
    """The last call of a convolution, and what it returned."""

    result: Tensor
    arguments: tuple[Any, ...]
    settings: dict[str, Any]


class Watch(Cheaper):
    """Finds convolutions whose result goes at once into a batch normalisation of fixed statistics, and nowhere else.

    The normalisations' results are those of the folded convolutions already, so that this pass gives what later ones
    give, to the last bit.

    Args:
        net: the network.
        folded: as of `Cheaper`; is given the weights.
        order: as of `Cheaper`.
        strict: as of `Cheaper`.
    """

    def __init__(self, net: nn.Module, folded: Folded, order: torch.memory_format, *, strict: bool = False) -> None:
        super().__init__(folded, order, strict=strict)
        self._held = {module: {*map(id, (*module.parameters(), *module.buffers()))} for module in net.modules()}
        self._own = self._held[net]
        self._grad = torch.is_grad_enabled()
        self._last: _Convolution | None = None
        self._calls: dict[int, int] = {}
        self._found: dict[int, Pair] = {}
        self._results: dict[int, tuple[ReferenceType[Tensor], int]] = {}
        self._read: set[int] = set()
        self._reads = _Reads(self)

    def __enter__(self) -> Watch:
        self._reads.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._reads.__exit__(*exception)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm and args:
            pair = self._pair(args[0], Normalisation.of(*args[1:], **kwargs))
            if pair is not None:
                return self._fold(pair)
        if func not in METADATA:
            self.note((args, kwargs))
        result = self.call(func, args, kwargs)
        if func is F.conv2d and len(args) > 2:  # as nn.Conv2d calls it
            self._convolved(result, args, kwargs)
        return result

    def note(self, given: Any) -> None:
        """Note which results of convolutions are among what a function is given, which may change any tensor."""
        self._last = None
        for leaf in tree_leaves(given):
            result, key = self._results.get(id(leaf), (None, 0))
            if result is not None and result() is leaf:
                self._read.add(key)

    def pairs(self) -> dict[int, Pair]:
        """Return what can be folded, by id of the weight, once the pass came to its end."""
        self._last = None
        kept = {key for result, key in self._results.values() if result() is not None}
        once = {key for key, calls in self._calls.items() if calls == 1}
        return {key: pair for key, pair in self._found.items() if key in once - kept - self._read}

    def _convolved(self, result: Tensor, arguments: tuple[Any, ...], settings: dict[str, Any]) -> None:
        key = id(arguments[1])
        self._calls[key] = self._calls.get(key, 0) + 1
        self._results[id(result)] = ref(result), key
        # Only the last is kept: the memory of a pass stays what it was.
        self._last = _Convolution(result, arguments, settings)

    def _pair(self, images: Tensor, norm: Normalisation) -> Pair | None:
        if self._last is None or images is not self._last.result or not norm.fixed:
            return None
        weight, bias = self._last.arguments[1:3]
        owners = tuple(m for m, held in self._held.items() if (id(weight) in held) != (id(norm.mean) in held))
        pair = Pair(weight, bias, norm, owners)
        # A checkpointed part is run again in the backward pass, where nothing is folded.
        whole = torch.is_grad_enabled() == self._grad and not checkpointed()
        known = id(weight) in self._own and id(weight) not in self._found
        return pair if known and whole and pair.exact and not pair.hooked else None

    def _fold(self, pair: Pair) -> Tensor:
        assert self._last is not None
        key, (_, arguments, settings) = id(pair.weight), self._last
        self._last = None
        self._found[key], self.folded[key] = pair, pair.fold(self.order)
        return F.conv2d(arguments[0], *self.folded[key][:2], *arguments[3:], **settings)


class _Reads(TorchDispatchMode):
    """Sees what compiled code reads without a call of torch's functions."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.watch.note((args, kwargs))
        return func(*args, **(kwargs or {}))
