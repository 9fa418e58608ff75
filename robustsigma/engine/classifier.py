"""Classifier: the one owner of normalization, bounds, target score, gradients, chunking, precision and mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from operator import attrgetter
from typing import Any, Literal
from weakref import WeakSet

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustsigma.engine import normalization, validation
from robustsigma.engine.network_pass import Chunks, NetworkPass, check_channels
from robustsigma.engine.network_state import (
    at_least_single,
    evaluating,
    gathered,
    locked,
    logits_of,
    refuse_inference,
    tf32,
)
from robustsigma.engine.scores import Score, target_score
from robustsigma.engine.validation import fail, integer, target_range


class Classifier(nn.Module):
    """An image classifier seen from outside: images in [0, 1] in, logits out.

    Args:
        net: any module from normalized images (B, C, H, W) to logits (B, K), or to an object with `.logits`.
        mean: mean per channel, subtracted before `net`; one number applies to all channels, None is 0. It is in the
            state dict: loading one replaces it, also by another number of channels.
        std: standard deviation per channel, divided by before `net`; None is 1. It is stored and loaded as `mean` is.
        chunk_size: the most images in one network pass; None chooses by image size. Halved for the rest of a
            method's call where the device runs out of memory. It does not change results beyond rounding.
        gradient_dtype: what gradient passes may round to: torch.bfloat16 or torch.float16, also by their names
            "bfloat16" and "float16" (autocast; float16 loses gradients below 6e-8), or "tf32" on GPUs. None: full
            precision, in which passes run whatever PyTorch is set to (by default it rounds convolutions to TF32 on
            GPUs). Forward-only passes always run in full precision, because SIGMA's search is a difference of two
            nearly equal scores.
        dtype: dtype of the images that `net` is given. None takes the dtype of its parameters; where they have several,
            the widest that the network accepts.
        compile: run passes inside `frozen()` by `torch.compile`, on a GPU as CUDA graphs. Worthwhile for small networks
            on a GPU, whose passes consist of overhead; the first passes take seconds to minutes. Batches are padded to
            a few sizes. Weights may change between calls. A network that does not compile runs as it is, with a
            warning.

    Raises:
        ValueError: statistics that are not positive finite numbers, a chunk size below 1, another dtype, or a
            network whose weights were created in inference mode.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 10))
        >>> classifier = Classifier(net, mean=(0.5,), std=(0.25,))
        >>> classifier(torch.rand(4, 3, 8, 8)).shape
        torch.Size([4, 10])
    """

    bounds = (0.0, 1.0)  # the valid pixel range

    def __init__(
        self,
        net: nn.Module,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        chunk_size: int | None = None,
        gradient_dtype: torch.dtype | Literal["bfloat16", "float16", "tf32"] | None = None,
        dtype: torch.dtype | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(net, nn.Module):
            raise fail("net", "a torch.nn.Module", type(net).__name__)
        refuse_inference([*net.parameters(), *net.buffers()])
        if chunk_size is not None:
            chunk_size = integer("chunk_size", chunk_size, 1)
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise fail("dtype", "a floating torch.dtype or None", repr(dtype)[:80])
        self.net = net
        self.chunk_size = chunk_size
        self.gradient_dtype = _gradient_dtype(gradient_dtype)
        self.checked = False  # True: no `warn_once`, as the network was inspected or a report will flag it
        self._pass = NetworkPass(dtype, validation.boolean("compile", compile))
        self._chunks = Chunks()
        self._signature: list[Any] = []  # ids of modules and parameters, and dtypes, at the last check
        self._classes: int | None = None  # of the last pass
        self._depth = 0  # of bodies of `frozen`
        self._given = {"mean": mean is not None, "std": std is not None}
        self.forwards = self.backwards = 0  # images that passed inside `frozen`, in total, whoever made the passes
        parameter = next(net.parameters(), None)
        device = None if parameter is None else parameter.device
        self.mean: Tensor
        self.std: Tensor
        with torch.inference_mode(False):  # also usable in a gradient where a hook in inference mode builds it
            self.register_buffer("mean", normalization.statistic("mean", mean, positive=False).to(device))
            self.register_buffer("std", normalization.statistic("std", std, positive=True).to(device))

    @property
    def compile_passes(self) -> bool:
        """Whether passes inside `frozen()` run by `torch.compile`; False once the network turned out not to compile."""
        return self._pass.compile

    @compile_passes.setter
    def compile_passes(self, value: bool) -> None:
        self._pass.compile = value

    @torch.inference_mode(False)  # statistics that a callback loads in a validation are used in gradients later
    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, metadata: Any, strict: bool, missing: list[str], *rest: Any
    ) -> None:
        """Take mean and std in whatever number of channels they are stored; without them keep those that were given."""
        normalization.prepare_loading(self, state_dict, prefix, self._given)
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, *rest)
        kept = [prefix + name for name, given in self._given.items() if given]
        missing[:] = [key for key in missing if key not in kept]

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K) of images in [0, 1]; part of the autograd graph, in the net's current mode."""
        check_channels({"mean": self.mean, "std": self.std}, images)
        try:
            output = self._pass(self.net, images, self.mean, self.std, frozen=self._depth > 0)
        except RuntimeError as error:
            wrong = validation.wrong_channels(error, images)
            if wrong is None:
                raise
            raise wrong from error
        except (TypeError, LookupError, AttributeError) as error:
            if self._classes:  # the network took images before
                raise
            raise validation.takes_no_images(self.net, error) from error
        logits = logits_of(output)
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images) or logits.shape[1] < 2:
            raise validation.no_logits(logits, len(images))
        self._classes = logits.shape[1]
        if self._depth:
            self.forwards += len(images)
            if logits.requires_grad:
                logits.register_hook(partial(self._count_backward, len(images)))
        return logits

    def _count_backward(self, images: int, _: Tensor) -> None:
        self.backwards += images

    def check_target(self, target: Tensor, images: Tensor, name: str = "target") -> None:
        """Raise unless every class index is one of the network's; call inside `frozen()`.

        A wrong index must not reach the network's device, where it may end the process. The number of classes is
        that of the last pass; where none was made, or the net may have changed since, the images are passed.
        """
        low, high = validation.extent(target)
        if self._classes is None or high >= self._classes:
            self.logits(images)  # all of them, as a network may not take one
        assert self._classes is not None
        target_range((low, high), self._classes, name)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Run the body in eval mode and full precision, without parameter gradients, autocast or inference mode.

        Gradients are enabled. A module that overrides `train` is switched by it, so that its side effects
        (merged adapters, layers that keep their mode) apply inside. Every submodule's own mode and every
        parameter's own flag come back, also when the body raises. Usable under `no_grad`, `inference_mode` and
        autocast; gradients work inside all the same. Parameters that FSDP2 shards are gathered for the body.

        Raises:
            RuntimeError: another thread is inside `frozen()` of the same network. Threads need a copy of the classifier
                each.
            ValueError: a network on the meta device, or one that contains this classifier.
        """
        modules = list(self.modules())
        with locked(self.net), gathered(modules):
            parameters = [p for module in modules for p in module._parameters.values() if p is not None]
            if self._depth == 0:
                self._reset_if_changed(modules, parameters)
            self._depth += 1
            try:
                with evaluating(modules, parameters), torch.autocast(self.mean.device.type, enabled=False):
                    yield
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self._chunks.max_elements = None

    def _reset_if_changed(self, modules: list[nn.Module], parameters: list[nn.Parameter]) -> None:
        """Forget what is known of the network if its modules, parameters or dtypes changed."""
        signature = [*map(id, modules), *map(id, parameters), *map(attrgetter("dtype"), parameters)]
        if signature == self._signature:
            return
        self._refuse_cycle()
        refuse_inference(parameters)
        if any(parameter.is_meta for parameter in parameters):
            raise fail("net", "weights with numbers", "the meta device: load its weights first")
        self.checked = self.checked and not self._signature  # what a caller set before the first pass stays
        self._signature, self._classes = signature, None
        self._pass.reset(modules, parameters)

    def _refuse_cycle(self) -> None:
        if any(module is self for module in self.net.modules()):
            hint = "wrap the network inside it, as in `self.classifier = Classifier(self.net)`"
            raise fail("net", "a network that does not contain its classifier", f"{type(self.net).__name__}; {hint}")

    # These would recurse without end if the network contained this classifier.

    def train(self, mode: bool = True) -> Classifier:
        """Set the mode as any module does."""
        self._refuse_cycle()
        return super().train(mode)

    train.sets_mode_alone = True  # type: ignore[attr-defined]

    def _apply(self, *args: Any, **kwargs: Any) -> Classifier:
        self._refuse_cycle()
        return super()._apply(*args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the state as any module does."""
        self._refuse_cycle()
        return super().state_dict(*args, **kwargs)

    def prepare_input(self, images: Tensor) -> Tensor:
        """Return a copy that may enter autograd, in at least single precision and in bounds; call inside `frozen()`.

        Inference tensors cannot enter autograd: a copy made outside inference mode can.
        """
        return at_least_single(images.detach()).clamp(*self.bounds)

    def logits(self, images: Tensor) -> Tensor:
        """Return logits (B, K) without a graph, chunked; call inside `frozen()`."""

        def run(chunk: Tensor) -> Tensor:
            # Not in inference mode: what a network keeps from such a pass could take part in no gradient afterwards.
            with torch.no_grad():
                return self(chunk)

        return at_least_single(self.chunked(run, images))

    def score(self, images: Tensor, target: Tensor, of: Score = "prob") -> Tensor:
        """Return the target's score (B,) without a graph, chunked; call inside `frozen()`."""
        return target_score(self.logits(images), target, of)

    def score_and_gradient(self, images: Tensor, target: Tensor, of: Score = "logit") -> tuple[Tensor, Tensor]:
        """Return logits (B, K) and the gradient (B, C, H, W) of the target's score; call inside `frozen()`.

        The logits come from the same forward pass as the gradient. Gradients are of the sum over the batch, so
        each image's own, and never reach `.grad`.
        """
        return self.gradient_of(lambda logits, at: target_score(logits, at, of).sum(), images, target)

    def loss_gradient(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, K) and the gradient (B, C, H, W) of the summed cross-entropy; call inside `frozen()`."""
        return self.gradient_of(lambda logits, at: F.cross_entropy(logits, at, reduction="sum"), images, labels)

    def gradient_of(
        self, objective: Callable[[Tensor, Tensor], Tensor], images: Tensor, target: Tensor, passes: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Return logits (B, K) and the gradient (B, C, H, W) of a function of logits and target, summed over images.

        Call inside `frozen()`. `target` is any tensor with a row an image; it is chunked with the images. Of several
        `passes`, for networks with random outputs, the gradient is the mean and the logits are those of the last (EOT).
        """
        logits, total = self.gradients_of((objective,), images, target)
        for _ in range(passes - 1):
            logits, gradient = self.gradients_of((objective,), images, target)
            total = total + gradient
        return logits, total / passes if passes > 1 else total

    def gradients_of(
        self, objectives: Sequence[Callable[[Tensor, Tensor], Tensor]], images: Tensor, target: Tensor
    ) -> tuple[Tensor, ...]:
        """Return logits (B, K) and the gradient of each function, of one forward pass and a backward pass each.

        Everything else is as in `gradient_of`.
        """
        rounded = self.gradient_dtype

        def run(chunk: Tensor, at: Tensor) -> tuple[Tensor, ...]:
            chunk = chunk.detach().requires_grad_(True)
            with tf32() if rounded == "tf32" else nullcontext():
                with torch.autocast(chunk.device.type, rounded) if isinstance(rounded, torch.dtype) else nullcontext():
                    logits = self(chunk)
                if not logits.requires_grad:  # a constant network has no graph and a zero gradient
                    return at_least_single(logits.detach()), *(torch.zeros_like(chunk) for _ in objectives)
                wide = at_least_single(logits)
                gradients = []
                for place, objective in enumerate(objectives, 1):
                    value, kept = objective(wide, at).sum(), place < len(objectives)
                    (gradient,) = torch.autograd.grad(value, chunk, retain_graph=kept, allow_unused=True)
                    gradients.append(torch.zeros_like(chunk) if gradient is None else gradient.contiguous())
                return wide.detach(), *gradients

        found: tuple[Tensor, ...] = self.chunked(run, images, target)
        return found

    def chunk_size_for(self, images: Tensor) -> int:
        """Return how many images like these go through the network at once."""
        return self._chunks.size_for(images, self.chunk_size)

    def chunked(self, run: Callable[..., Any], images: Tensor, *others: Tensor) -> Any:
        """Return what `run` gives for images and others, called for as many rows as memory allows and joined."""
        return self._chunks.run(run, self.chunk_size, images, *others)


def _gradient_dtype(given: Any) -> torch.dtype | Literal["tf32"] | None:
    by_name = {"bfloat16": torch.bfloat16, "float16": torch.float16}
    found: Any = by_name.get(given, given) if isinstance(given, str) else given
    known = isinstance(found, (str, torch.dtype)) and found in (*by_name.values(), "tf32")
    if found is not None and not known:
        raise fail("gradient_dtype", "bfloat16, float16, tf32 or None", repr(given)[:80])
    return found


_BARE: WeakSet[nn.Module] = WeakSet()  # networks that a warning was given for


def as_classifier(model: Any, name: str = "classifier") -> Classifier:
    """Return `model` if it is a `Classifier`, else its attribute `classifier` if that is one, else a new one of it.

    A bare network is taken as one for images in [0, 1]. One warning for each network says so.

    Args:
        model: the network.
        name: name of the argument, for the error.

    Raises:
        ValueError: `model` is not a module.
    """
    if isinstance(model, Classifier):
        return model
    if isinstance(getattr(model, "classifier", None), Classifier):
        return model.classifier
    if not isinstance(model, nn.Module):
        got = f"{model!r}"[:80] if not isinstance(model, type) else f"the class {model.__name__}, not an instance"
        raise fail(name, "a robustsigma.Classifier or a torch.nn.Module", got)
    found = Classifier(model)
    if model in _BARE:
        found.checked = True
    else:
        _BARE.add(model)
        message = f"{name}: {type(model).__name__} is used as a network for images in [0, 1], with mean 0 and std 1"
        validation.warn(f"{message}. If it takes normalized images, pass Classifier(net, mean=…, std=…).")
    return found
