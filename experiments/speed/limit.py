"""The physical limit: the cost of one pass of the network at its best batch size, in the cheapest of four forms.

The forms are the plain network, its BatchNorm folded into the convolutions, its channels last in memory, and both. They
are made here from the user's network, and not by the engine, so that the engine is compared with what is possible.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

KINDS = ("forward", "pair")
LAST = {"memory_format": torch.channels_last}


def seconds(call: Callable[[], Any], least: float = 0.0) -> float:
    """Return the median seconds of a call, which is repeated for at least `least` seconds after a warm-up."""
    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=least).median


@dataclass
class Passes:
    """The number of images that went forward, also for a gradient, and of images whose gradient came back."""

    forwards: float = 0
    backwards: float = 0

    @property
    def total(self) -> float:
        """The number of forward and backward passes."""
        return self.forwards + self.backwards

    def per(self, images: int) -> dict[str, float]:
        """Return both numbers per image."""
        return {"forwards": self.forwards / images, "backwards": self.backwards / images}


@contextmanager
def counted(network: nn.Module) -> Iterator[Passes]:
    """Count the passes that a network or a `Classifier` makes in the body."""
    passes = Passes()

    def back(gradient: Tensor) -> None:
        passes.backwards += len(gradient)

    def forward(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        passes.forwards += len(inputs[0])
        if inputs[0].requires_grad and torch.is_grad_enabled():
            inputs[0].register_hook(back)

    hook = network.register_forward_pre_hook(forward)
    try:
        yield passes
    finally:
        hook.remove()


class Cost(NamedTuple):
    """Seconds of a forward pass, and of a forward and backward pass, of one image."""

    forward: float
    pair: float

    def of(self, passes: Passes) -> float:
        """Return the seconds of a number of passes."""
        return passes.forwards * self.forward + passes.backwards * (self.pair - self.forward)


def forms(net: nn.Module) -> dict[str, nn.Module]:
    """Return a network, in eval mode and without parameter gradients, in the four forms."""
    found = {"plain": copy.deepcopy(net).eval().requires_grad_(False)}
    if any(isinstance(module, nn.BatchNorm2d) for module in net.modules()):
        found["folded"] = fuse(found["plain"])
    names = {"plain": "channels_last", "folded": "both"}
    return found | {names[name]: copy.deepcopy(form).to(**LAST) for name, form in found.items()}


class Limit:
    """Finds the cheapest pass of each kind, and times it on request.

    Args:
        net: network that maps normalized images to logits.
        images: images (B, C, H, W) that will be used; they are repeated to fill a batch.
        batches: batch sizes to try.
        best: form and batch size of each kind, if they are known already.
        least: seconds for which short calls are repeated.
    """

    def __init__(
        self,
        net: nn.Module,
        images: Tensor,
        batches: Sequence[int],
        best: dict[str, list[Any]] | None = None,
        least: float = 0.5,
    ) -> None:
        self.images, self.forms, self.least = images, forms(net), least
        self.seconds: dict[tuple[str, int, str], float] = {}
        if best is None:
            keys = [(form, batch, kind) for batch in batches for form in self.forms for kind in KINDS]
            self.seconds = {key: seconds(self._call(*key), least) / key[1] for key in keys}
            best = {kind: list(min((k for k in keys if k[2] == kind), key=self.seconds.__getitem__)[:2])
                    for kind in KINDS}  # fmt: skip
        self.best = best
        self.calls = {kind: self._call(form, batch, kind) for kind, (form, batch) in best.items()}

    def _call(self, form: str, batch: int, kind: str) -> Callable[[], Tensor]:
        images = self.images.repeat(-(-batch // len(self.images)), 1, 1, 1)[:batch]
        if form in ("channels_last", "both"):
            images = images.contiguous(**LAST)
        net = self.forms[form]

        def forward() -> Tensor:
            with torch.inference_mode():
                return net(images)

        def pair() -> Tensor:
            at = images.detach().requires_grad_(True)
            return torch.autograd.grad(net(at)[:, 0].sum(), at)[0]

        return forward if kind == "forward" else pair

    def sample(self) -> Cost:
        """Time a pass of each kind now."""
        return Cost(*(seconds(self.calls[kind]) / self.best[kind][1] for kind in KINDS))

    def ratios(self) -> list[dict[str, Any]]:
        """Return the cost of each form at each batch size, relative to the plain network at its best batch size."""
        plain = {k: min(s for key, s in self.seconds.items() if (key[0], key[2]) == ("plain", k)) for k in KINDS}
        return [
            {"form": form, "batch": batch, "kind": kind, "ratio": cost / plain[kind]}
            for (form, batch, kind), cost in self.seconds.items()
        ]

    def operations(self) -> float:
        """Return the multiplications and additions of the forward pass of one image.

        A backward pass to the image takes as many: weights get no gradient, and the products of attention, which take
        twice as many, are few.
        """
        with FlopCounterMode(display=False) as counter:
            self.calls["forward"]()
        return counter.get_total_flops() / self.best["forward"][1]

    def share_of_matmul(self) -> dict[str, float]:
        """Return the rate of each kind of pass relative to the device's rate of large matrix products."""
        device = self.images.device
        side = 2048 if device.type == "cpu" else 8192
        a, b = torch.rand(2, side, side, device=device, generator=torch.Generator(device).manual_seed(0))
        rate = 2 * side**3 / seconds(lambda: torch.mm(a, b))
        cost, needed = self.sample(), self.operations()
        return {"forward": needed / cost.forward / rate, "pair": 2 * needed / cost.pair / rate}
