"""Classifier: the one owner of normalisation, bounds, target score, gradients, chunking, precision and mode."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, NamedTuple, get_args
from weakref import WeakSet

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustsigma.engine import validation
from robustsigma.engine.chunks import sizes
from robustsigma.engine.fast_net import FastNet
from robustsigma.engine.precision import full_precision, tf32
from robustsigma.engine.validation import choice, fail, integer, target_range

Score = Literal["logit", "log_prob", "prob"]
SCORES: tuple[Score, ...] = get_args(Score)

# Elements of one chunk on a CPU: 170 images of 3x64x64 or 13 of 3x224x224. In chunks of twice that, an image's gradient
# takes up to twice as long (EfficientNet-Lite0 at 224: 43 against 22 ms); in chunks of half that, as long or a little
# longer. On a GPU the 256 images of 3x224x224 at which an H200 is fastest.
_CPU_CHUNK_ELEMENTS = 2**21
_GPU_CHUNK_ELEMENTS = 256 * 3 * 224**2


class Bounds(NamedTuple):
    """The valid pixel range."""

    low: float
    high: float


def _statistic(name: str, values: Sequence[float], positive: bool) -> Tensor:
    try:
        tensor = torch.as_tensor(values, dtype=torch.float32).flatten()
    except (TypeError, ValueError, RuntimeError):
        raise fail(name, "numbers, one per channel", repr(values)[:80]) from None
    if len(tensor) == 0 or not torch.isfinite(tensor).all() or (positive and bool((tensor <= 0).any())):
        raise fail(name, f"{'positive' if positive else 'finite'} numbers, one per channel", repr(values))
    if bool((tensor > (10 if positive else 1)).any()):  # no pixel in [0, 1] has such a mean or standard deviation
        raise fail(name, "numbers for images in [0, 1]", f"{values!r}; divide mean and std of images in 0..255 by 255")
    return tensor.reshape(-1, 1, 1)


def _rounded(dtype: Any) -> torch.dtype | Literal["tf32"] | None:
    by_name = {"bfloat16": torch.bfloat16, "float16": torch.float16}
    found: Any = by_name.get(dtype, dtype) if isinstance(dtype, str) else dtype
    known = isinstance(found, (str, torch.dtype)) and found in (*by_name.values(), "tf32")
    if found is not None and not known:
        raise fail("gradient_dtype", "bfloat16, float16, tf32 or None", repr(dtype)[:80])
    return found


class Classifier(nn.Module):
    """An image classifier seen from outside: images in [0, 1] in, logits out.

    Args:
        net: any module from normalised images (B, C, H, W) to logits (B, K), or to an object with `.logits`.
        mean: per channel, subtracted before `net`; one number stands for every channel.
        std: per channel, divided by before `net`.
        chunk_size: the most images in one network pass; None chooses by image size. Halved for the rest of a
            method's call where the device runs out of memory. It does not change results beyond rounding.
        gradient_dtype: what gradient passes may round to: torch.bfloat16 or torch.float16, also by their names
            "bfloat16" and "float16" (autocast; float16 loses gradients below 6e-8), or "tf32" on GPUs. None: full
            precision, in which passes are made whatever PyTorch is set to (by default it rounds convolutions to TF32 on
            GPUs). Forward-only passes stay in full precision in any case, since SIGMA's search is a difference of two
            near-equal scores.

    Raises:
        ValueError: statistics that are not positive finite numbers, a chunk size below 1, or another dtype.
    """

    bounds = Bounds(0.0, 1.0)

    def __init__(
        self,
        net: nn.Module,
        *,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        chunk_size: int | None = None,
        gradient_dtype: torch.dtype | Literal["bfloat16", "float16", "tf32"] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(net, nn.Module):
            raise fail("net", "a torch.nn.Module", type(net).__name__)
        if chunk_size is not None:
            chunk_size = integer("chunk_size", chunk_size, 1)
        self.net = net
        self._classes: int | None = None  # of the last pass
        self._first: Tensor | None = None  # some outputs of the first pass of the network, until they are checked
        self._sound = False  # they were no probabilities
        self._fits: int | None = None  # elements of a pass, where more did not fit
        self._fast = FastNet()
        self.chunk_size = chunk_size
        self.gradient_dtype = _rounded(gradient_dtype)
        self.mean: Tensor
        self.std: Tensor
        parameter = next(net.parameters(), None)
        device = None if parameter is None else parameter.device
        self.register_buffer("mean", _statistic("mean", mean, positive=False).to(device), persistent=False)
        self.register_buffer("std", _statistic("std", std, positive=True).to(device), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K) of images in [0, 1]; part of the autograd graph, in the net's current mode."""
        parameter = next(self.net.parameters(), None)
        if parameter is not None and parameter.is_floating_point():
            images = images.to(parameter.dtype)
        channels = images.shape[1]
        for name, statistic in (("mean", self.mean), ("std", self.std)):
            if len(statistic) not in (1, channels):
                raise fail(
                    name,
                    f"1 or {channels} numbers, one per channel of the images",
                    f"{len(statistic)}, and images of shape {tuple(images.shape)}",
                )
        mean, std = self.mean.to(images.dtype), self.std.to(images.dtype)
        try:
            output = self._fast(self.net, lambda: (images - mean).div_(std))
        except RuntimeError as error:
            wrong = validation.wrong_channels(error, images)
            if wrong is None:
                raise
            raise wrong from error
        logits = getattr(output, "logits", output)
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
            got = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            raise fail("net", f"logits of shape ({len(images)}, K)", got)
        if logits.shape[1] < 2:
            raise fail("net", "logits of at least two classes", f"shape {tuple(logits.shape)}")
        self._classes = logits.shape[1]
        return logits

    def check_target(self, target: Tensor, images: Tensor, name: str = "target") -> None:
        """Raise unless every class index is one of the network's; call inside `frozen()`.

        A wrong index must not reach the network's device, where it may end the process. The number of classes is
        that of the last pass; where none was made, or the net may have changed since, one image is passed.
        """
        low, high = validation.extent(target)
        if self._classes is None or high >= self._classes:
            self.logits(images[:1])
        assert self._classes is not None
        target_range((low, high), self._classes, name)

    def check_logits(self) -> None:
        """Raise where the net returns probabilities, as its first pass told; looked at once, as it waits for it."""
        if self._first is not None:
            validation.logits(self._first)
            self._first, self._sound = None, True

    def _seen(self, logits: Tensor) -> Tensor:
        if self._first is None and not self._sound:
            self._first = logits.detach()[:8].clone()
        return logits

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Run the body in eval mode and full precision, without parameter gradients, autocast or inference mode.

        Gradients are enabled. Inside, the weights are taken not to change, which makes passes cheaper (`FastNet`).
        Every submodule's own mode and every parameter's own flag come back, also when the body raises. Usable
        under `no_grad`, `inference_mode` and autocast; gradients work inside all the same.

        Raises:
            RuntimeError: another thread is in such a body. Threads need a copy of the classifier each.
        """
        modes = [(module, module.training) for module in self.modules() if hasattr(module, "training")]
        flags = [(parameter, parameter.requires_grad) for parameter in self.parameters()]
        device = self.mean.device.type
        if self._fast.freeze(self.net):
            self._classes, self._first, self._sound = None, None, False
        try:
            # Attribute by attribute: .train() of a parent would overwrite deliberately frozen children. And only what
            # differs: setting a module's attribute takes many times as long as reading it.
            for module, mode in modes:
                if mode:
                    module.training = False
            for parameter, flag in flags:
                if flag:
                    parameter.requires_grad_(False)
            apart = torch.inference_mode(False), torch.enable_grad(), torch.autocast(device, enabled=False)
            with apart[0], apart[1], apart[2], full_precision():
                yield
        finally:
            self._fast.thaw()
            if not self._fast.frozen:
                self._fits = None
            for module, mode in modes:
                if module.training is not mode:
                    module.training = mode
            for parameter, flag in flags:
                if parameter.requires_grad is not flag:
                    parameter.requires_grad_(flag)

    def admit(self, images: Tensor) -> Tensor:
        """Return a copy that may enter autograd, in at least single precision and in bounds; call inside `frozen()`.

        Inference tensors cannot enter autograd: a copy made outside inference mode can.
        """
        return at_least_single(images.detach()).clamp(*self.bounds)

    def logits(self, images: Tensor) -> Tensor:
        """Return logits (B, K) without a graph, chunked; call inside `frozen()`."""

        def run(chunk: Tensor) -> Tensor:
            with torch.inference_mode():
                return self._seen(self(chunk))

        # The clone leaves inference mode, so that callers may compute with the result as with any tensor.
        return at_least_single(self.chunked(run, images).clone())

    def score(self, images: Tensor, target: Tensor, of: Score = "prob") -> Tensor:
        """Return the target's score (B,) without a graph, chunked; call inside `frozen()`."""
        return pick(self.logits(images), target, of)

    def score_and_gradient(self, images: Tensor, target: Tensor, of: Score = "logit") -> tuple[Tensor, Tensor]:
        """Return logits (B, K) and the gradient (B, C, H, W) of the target's score; call inside `frozen()`.

        The logits come from the same forward pass as the gradient. Gradients are of the sum over the batch, so
        each image's own, and never reach `.grad`.
        """
        return self.gradient_of(lambda logits, at: pick(logits, at, of).sum(), images, target)

    def loss_gradient(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, K) and the gradient (B, C, H, W) of the summed cross-entropy; call inside `frozen()`."""
        return self.gradient_of(lambda logits, at: F.cross_entropy(logits, at, reduction="sum"), images, labels)

    def gradient_of(
        self, objective: Callable[[Tensor, Tensor], Tensor], images: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return logits (B, K) and the gradient (B, C, H, W) of a scalar of logits and target, summed over images.

        Call inside `frozen()`. `target` is any tensor with a row an image; it is chunked with the images.
        """
        logits, gradient = self.gradients_of((objective,), images, target)
        return logits, gradient

    def gradients_of(
        self, objectives: Sequence[Callable[[Tensor, Tensor], Tensor]], images: Tensor, target: Tensor
    ) -> tuple[Tensor, ...]:
        """Return logits (B, K) and the gradient of each scalar, of one forward pass and a backward pass each.

        Everything else is as in `gradient_of`.
        """

        def run(chunk: Tensor, at: Tensor) -> tuple[Tensor, ...]:
            with tf32() if self.gradient_dtype == "tf32" else nullcontext():
                return self._gradients(objectives, chunk.detach().requires_grad_(True), at)

        found: tuple[Tensor, ...] = self.chunked(run, images, target)
        return found

    def _gradients(
        self, objectives: Sequence[Callable[[Tensor, Tensor], Tensor]], chunk: Tensor, at: Tensor
    ) -> tuple[Tensor, ...]:
        with self._autocast(chunk.device.type):
            logits = self._seen(self(chunk))
        if not logits.requires_grad:  # a constant network has no graph and a zero gradient
            return at_least_single(logits.detach()), *(torch.zeros_like(chunk) for _ in objectives)
        wide = at_least_single(logits)
        gradients = []
        for place, objective in enumerate(objectives, 1):
            kept = place < len(objectives)
            (gradient,) = torch.autograd.grad(objective(wide, at), chunk, retain_graph=kept, allow_unused=True)
            gradients.append(torch.zeros_like(chunk) if gradient is None else gradient.contiguous())
        return wide.detach(), *gradients

    def _autocast(self, device: str) -> AbstractContextManager[Any]:
        """Return what the forward half of a gradient pass runs under."""
        dtype = self.gradient_dtype
        return torch.autocast(device, dtype) if isinstance(dtype, torch.dtype) else nullcontext()

    def chunk_for(self, images: Tensor) -> int:
        """Return how many images like these go through the network at once."""
        each = max(1, images[0].numel())
        elements = _CPU_CHUNK_ELEMENTS if images.device.type == "cpu" else _GPU_CHUNK_ELEMENTS
        size = max(1, elements // each) if self.chunk_size is None else self.chunk_size
        return size if self._fits is None else min(size, max(1, self._fits // each))

    def chunked(self, run: Callable[..., Any], images: Tensor, *others: Tensor) -> Any:
        """Return what `run` gives for images and others, called for as many rows as memory allows and joined."""
        size = min(self.chunk_for(images), len(images))
        while True:
            try:
                return self._in_chunks(run, size, images, *others)
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
            # Outside the handler, whose traceback holds the failed pass's tensors.
            torch.cuda.empty_cache()
            size //= 2
            self._fits = size * images[0].numel()

    @staticmethod
    def _in_chunks(run: Callable[..., Any], size: int, *tensors: Tensor) -> Any:
        if len(tensors[0]) <= size:
            return run(*tensors)
        lengths = sizes(len(tensors[0]), size)
        parts = [run(*chunk) for chunk in zip(*(t.split(lengths) for t in tensors), strict=True)]
        if isinstance(parts[0], tuple):
            return tuple(torch.cat(column) for column in zip(*parts, strict=True))
        return torch.cat(parts)


_BARE: WeakSet[nn.Module] = WeakSet()  # networks that a warning was given for


def as_classifier(model: Any, name: str = "classifier") -> Classifier:
    """Return a `Classifier`, that of a module which has one as its attribute `classifier`, or a bare network in one.

    A bare network is taken as one for images in [0, 1]. One warning for each network says so.

    Args:
        model: the network.
        name: of the argument, for the error.

    Raises:
        ValueError: `model` is not a module.
    """
    if isinstance(model, Classifier):
        return model
    if isinstance(getattr(model, "classifier", None), Classifier):
        return model.classifier  # type: ignore[no-any-return]
    if not isinstance(model, nn.Module):
        got = f"{model!r}"[:80] if not isinstance(model, type) else f"the class {model.__name__}, not an instance"
        raise fail(name, "a robustsigma.Classifier or a torch.nn.Module", got)
    if model not in _BARE:
        _BARE.add(model)
        told = f"{name}: {type(model).__name__} is used as a network for images in [0, 1], with mean 0 and std 1"
        warnings.warn(f"{told}. If it takes normalized images, pass Classifier(net, mean=…, std=…).", stacklevel=3)
    return Classifier(model)


def at_least_single(values: Tensor) -> Tensor:
    """Return values in float32 or float64."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def pick(logits: Tensor, target: Tensor, of: Score) -> Tensor:
    """Return the target's score (B,) from logits (B, K): the logit, the log-softmax or the softmax.

    The log-softmax is taken from the margin z_c - logsumexp of the other logits, whose logistic function the softmax
    is: it keeps its digits when p rounds to 1, where SIGMA's search would otherwise stand still. The softmax is
    PyTorch's own, as in the code of others, whose gradients in single precision it then has: next to 1 they are of
    few digits, and those of the log-softmax are the ones to take.
    """
    choice("score", of, SCORES)
    chosen = logits.gather(1, target[:, None])[:, 0]
    if of == "logit":
        return chosen
    if of == "prob":
        return logits.softmax(1).gather(1, target[:, None])[:, 0]
    others = logits.scatter(1, target[:, None], -torch.inf).logsumexp(1)
    return F.logsigmoid(chosen - others)
