"""Folding: a convolution and the batch normalisation behind it, as one convolution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn
from weakref import ReferenceType, ref

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from robustsigma.engine.self_attention import self_attention


class FoldedPair(NamedTuple):
    """Weight and bias of a convolution whose result is that of the normalisation behind it.

    Attributes:
        weight: (O, I, kh, kw).
        bias: (O,).
        versions: of the tensors that they were made of.
    """

    weight: Tensor
    bias: Tensor
    versions: tuple[int, ...]


Folded = dict[int, FoldedPair]  # by id of the convolution's own weight

# What may be asked of a convolution's result without reading it.
METADATA = {
    Tensor.size,
    Tensor.dim,
    Tensor.numel,
    Tensor.is_floating_point,
    *(getattr(Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device", "requires_grad", "layout")),
}

_DTYPES = (torch.float32, torch.float64)  # in lower ones the folded weights would be rounded once more


class Normalisation(NamedTuple):
    """What F.batch_norm is given beside its input."""

    mean: Tensor | None
    var: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    training: bool
    eps: float

    @classmethod
    def of(
        cls,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
        **_: Any,
    ) -> Normalisation:
        """Return it from F.batch_norm's arguments after the input."""
        return cls(running_mean, running_var, weight, bias, training, eps)

    @property
    def fixed(self) -> bool:
        """Whether its statistics do not come from the batch."""
        return not self.training and self.mean is not None and self.var is not None

    def same(self, other: Normalisation) -> bool:
        """Return whether both hold the same tensors and settings."""
        tensors = all(mine is its for mine, its in zip(self[:4], other[:4], strict=True))
        return tensors and self[4:] == other[4:]


def hooked(module: nn.Module) -> bool:
    """Return whether somebody looks at what a module is given or gives."""
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return any(hooks)


class Pair(NamedTuple):
    """A convolution and the normalisation that alone reads its result.

    Attributes:
        weight: of the convolution, (O, I, kh, kw).
        bias: of the convolution, (O,), or None.
        norm: the normalisation.
        owners: modules that hold, also in modules of theirs, the weight or the statistics, but not both.
    """

    weight: Tensor
    bias: Tensor | None
    norm: Normalisation
    owners: tuple[nn.Module, ...]

    @property
    def hooked(self) -> bool:
        """Whether somebody looks at what passes between the two."""
        return any(map(hooked, self.owners))

    @property
    def exact(self) -> bool:
        """Whether folding changes no more than rounding."""
        return all(tensor.dtype in _DTYPES and tensor.device == self.weight.device for tensor in self._tensors())

    def _tensors(self) -> list[Tensor]:
        return [t for t in (self.weight, self.bias, *self.norm[:4]) if isinstance(t, Tensor)]

    def versions(self) -> tuple[int, ...]:
        """Return numbers that differ once the network's own code has written into one of the tensors."""
        return tuple(-1 if tensor.is_inference() else tensor._version for tensor in self._tensors())

    def fold(self, order: torch.memory_format) -> FoldedPair:
        """Return weight and bias of the convolution whose result is that of the normalisation.

        Args:
            order: of the weight in memory, which a convolution's result takes over.
        """
        mean, var, gain, shift = self.norm[:4]
        assert mean is not None
        assert var is not None
        # Not an inference tensor, whatever the pass: later passes save the weights for the backward pass.
        with torch.inference_mode(False), torch.no_grad():
            scale = (var + self.norm.eps).rsqrt()
            if gain is not None:
                scale = scale * gain
            bias = (-mean if self.bias is None else self.bias - mean) * scale
            if shift is not None:
                bias = bias + shift
            weight = self.weight * scale[:, None, None, None]
            return FoldedPair(weight.contiguous(memory_format=order), bias, self.versions())


class UnlikeError(Exception):
    """A pass does not go as the watched one went."""


class OrderError(Exception):
    """The network's code asks how a tensor lies in memory."""


_ORDER = {
    torch.as_strided,
    Tensor.as_strided,
    Tensor.stride,
    Tensor.is_contiguous,
    Tensor.data_ptr,
    Tensor.storage_offset,
    Tensor.untyped_storage,
}


def checkpointed() -> bool:
    """Return whether what is computed now keeps no intermediate results, and is computed again in the backward pass."""
    hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return hooks is not None and hooks(True) is not None


class Cheaper(TorchFunctionMode):
    """Gives functions' results in another order in memory where that is cheaper, in the passes made inside.

    Args:
        folded: weights by id; those that are missing are added.
        order: of the weights in memory.
        strict: leave what a function returns in its own order in memory.
    """

    def __init__(self, folded: Folded, order: torch.memory_format, *, strict: bool) -> None:
        super().__init__()
        self.folded, self.order, self.strict = folded, order, strict
        self._asked = False  # the network's code may swallow the error

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Return what a function does.

        Raises:
            OrderError: it tells of the order in memory, which is not what it would be.
        """
        if self.strict:
            return func(*args, **kwargs)
        if func in _ORDER:
            self._asked = True
            raise OrderError
        if func is F.multi_head_attention_forward and not checkpointed():
            found = self_attention(*args, **kwargs)
            if found is not None:
                return found
        return func(*args, **kwargs)

    def check(self) -> None:
        """Raise where the pass did not go as it should have.

        Raises:
            OrderError: see `call`.
        """
        if self._asked:
            raise OrderError


class Folding(Cheaper):
    """Gives a normalisation's result by the convolution before it, in the passes made inside.

    The network gets a blank in place of the convolution's result, which was never computed, and the true result for
    the blank from the normalisation. Whoever reads a blank, or keeps it, goes another way than the watched pass.

    Args:
        pairs: what is folded, by id of the weight.
        folded: as of `Cheaper`.
        order: as of `Cheaper`.
        strict: as of `Cheaper`.
    """

    def __init__(
        self, pairs: dict[int, Pair], folded: Folded, order: torch.memory_format, *, strict: bool = False
    ) -> None:
        super().__init__(folded, order, strict=strict)
        self.pairs = pairs
        self.pending: dict[int, tuple[Tensor, Pair]] = {}  # true results that their normalisation has yet to take
        self.blanks: dict[int, ReferenceType[Tensor]] = {}  # by id, while they live
        self.unlike = False  # the network's code may swallow the error

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.conv2d and len(args) > 2:
            pair = self.pairs.get(id(args[1]))
            if pair is not None:
                return self._convolve(pair, *args, **kwargs)
        if self.blanks and func not in METADATA:
            if func is F.batch_norm and args and self._blank(args[0]):
                result, pair = self.pending.pop(id(args[0]), (None, None))
                if result is not None and pair is not None and self._holds(pair, Normalisation.of(*args[1:], **kwargs)):
                    return result
                self._fail()
            if any(map(self._blank, tree_leaves((args, kwargs)))):
                self._fail()
        return self.call(func, args, kwargs)

    def _holds(self, pair: Pair, norm: Normalisation) -> bool:
        return pair.norm.same(norm) and self.folded[id(pair.weight)].versions == pair.versions()

    def _blank(self, value: Any) -> bool:
        known = self.blanks.get(id(value))
        return known is not None and known() is value

    def _convolve(
        self,
        pair: Pair,
        images: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        key = id(weight)
        if bias is not pair.bias or checkpointed():
            self._fail()
        if key not in self.folded:
            self.folded[key] = pair.fold(self.order)
        result = F.conv2d(images, *self.folded[key][:2], *args, **kwargs)
        # Its one number would show where it is read unseen, by compiled code.
        blank = result.new_full((), torch.nan).expand(result.shape).requires_grad_(result.requires_grad)
        self.pending[id(blank)] = result, pair
        self.blanks[id(blank)] = ref(blank, self._forgetting(id(blank)))
        return blank

    def _forgetting(self, key: int) -> Callable[[object], object]:
        return lambda _: self.blanks.pop(key, None)

    def check(self) -> None:
        """Raise unless each folded convolution was followed by its normalisation, and no blank is left anywhere."""
        super().check()
        if self.unlike or self.pending or self.blanks:
            self._fail()

    def _fail(self) -> NoReturn:
        self.unlike = True
        raise UnlikeError
