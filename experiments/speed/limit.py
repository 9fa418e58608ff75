"""The physical limit: what one pass of the network costs at its best batch size, in the cheapest of four forms.

The forms are made here from the user's network, and not by the engine, so that the engine is measured against what
can be had: the plain network, its BatchNorm folded into the convolutions, its channels last in memory, or both.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from experiments.speed.clock import timed
from experiments.speed.passes import Passes

KINDS = ("forward", "pair")
_MOST_REPEATS = 3
_LAST = {"memory_format": torch.channels_last}


@dataclass(frozen=True)
class Cost:
    """Seconds of one image's forward pass, and of its forward and backward pass."""

    forward: float
    pair: float

    def of(self, passes: Passes) -> float:
        """Return the seconds of so many passes."""
        return passes.forwards * self.forward + passes.backwards * (self.pair - self.forward)


def forms(net: nn.Module) -> dict[str, nn.Module]:
    """Return a network, in eval mode and without parameter gradients, in the four forms."""
    plain = copy.deepcopy(net).eval().requires_grad_(False)
    found = {"plain": plain}
    if any(isinstance(module, nn.BatchNorm2d) for module in net.modules()):
        found["folded"] = fuse(plain)
    found["channels_last"] = copy.deepcopy(plain).to(**_LAST)
    if "folded" in found:
        found["both"] = copy.deepcopy(found["folded"]).to(**_LAST)
    return found


def _pass(net: nn.Module, images: Tensor, kind: str) -> Callable[[], Any]:
    def forward() -> Tensor:
        with torch.inference_mode():
            return net(images)

    def pair() -> Tensor:
        at = images.detach().requires_grad_(True)
        return torch.autograd.grad(net(at)[:, 0].sum(), at)[0]

    return forward if kind == "forward" else pair


class Limit:
    """Finds the cheapest pass of each kind, and times it whenever asked, beside what it is compared with.

    Args:
        net: from normalised images to logits.
        images: (B, C, H, W) those that will be used; they are repeated to fill a batch.
        batches: sizes to try.
        repeats: how often each combination is timed, in turns.
        best: form and batch size of each kind where they are known already.
    """

    def __init__(
        self,
        net: nn.Module,
        images: Tensor,
        batches: Sequence[int],
        repeats: int,
        best: dict[str, list[Any]] | None = None,
    ) -> None:
        self.images, self.device, self.forms = images, images.device, forms(net)
        self.seconds: dict[tuple[str, int, str], float] = {}
        if best is None:
            self._calibrate(batches, repeats)
            best = {kind: list(min((k for k in self.seconds if k[2] == kind), key=self.seconds.__getitem__)[:2])
                    for kind in KINDS}  # fmt: skip
        self.best = best
        self._calls = {kind: self._call(form, batch, kind) for kind, (form, batch) in best.items()}

    def _call(self, form: str, batch: int, kind: str) -> Callable[[], Any]:
        images = self.images.repeat(-(-batch // len(self.images)), 1, 1, 1)[:batch]
        if form in ("channels_last", "both"):
            images = images.contiguous(**_LAST)
        return _pass(self.forms[form], images, kind)

    def _calibrate(self, batches: Sequence[int], repeats: int) -> None:
        keys = [(form, batch, kind) for batch in batches for form in self.forms for kind in KINDS]
        calls = {key: self._call(*key) for key in keys}
        found: dict[tuple[str, int, str], list[float]] = {key: [] for key in keys}
        for (_, batch, _), call in calls.items():
            if batch == min(batches):  # warms up
                call()
        for _ in range(min(repeats, _MOST_REPEATS)):
            for key, call in calls.items():
                found[key].append(timed(call, self.device)[0] / key[1])
        self.seconds = {key: statistics.median(values) for key, values in found.items()}

    def call(self, kind: str) -> Any:
        """Make one pass of a kind, of the best form and batch size."""
        return self._calls[kind]()

    def sample(self) -> Cost:
        """Time a pass of each kind now."""
        each = {kind: timed(call, self.device)[0] / self.best[kind][1] for kind, call in self._calls.items()}
        return Cost(each["forward"], each["pair"])

    def ratios(self) -> list[dict[str, Any]]:
        """Return each form's cost at each batch size, in units of the plain network's at its best batch size."""
        plain = {k: min(s for key, s in self.seconds.items() if (key[0], key[2]) == ("plain", k)) for k in KINDS}
        return [
            {"form": form, "batch": batch, "kind": kind, "ratio": seconds / plain[kind]}
            for (form, batch, kind), seconds in self.seconds.items()
        ]


def mean(costs: Sequence[Cost]) -> Cost:
    """Return the mean of costs sampled before and after what they are compared with."""
    return Cost(*(statistics.fmean(getattr(cost, kind) for cost in costs) for kind in KINDS))
