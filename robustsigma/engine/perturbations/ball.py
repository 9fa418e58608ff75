"""The ball that a bounded attack stays in: starts, steps and projections in the L-infinity, L2 and L1 norms."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from robustsigma.engine import noise, validation
from robustsigma.engine.perturbations.projections import Norm, lengths, onto_l1_ball


def check_radius(eps: Any, norm: Norm) -> None:
    """Raise ValueError unless `eps` is a radius of a norm; L-infinity radii above 1 bound nothing."""
    validation.number("eps", eps, 0, *((1,) if norm == "linf" else ()))


@dataclass(frozen=True, eq=False)
class Ball:
    """All images within a distance of each clean image, and in bounds. B images.

    Attributes:
        center: (B, C, H, W) clean images.
        eps: radius, one or (B, 1, 1, 1); a largest pixel change for "linf", over all pixels and channels a Euclidean
            length for "l2" and a sum of changes for "l1".
        norm: "linf", "l2" or "l1".
        bounds: the valid pixel range.
    """

    center: Tensor
    eps: float | Tensor
    norm: Norm
    bounds: tuple[float, float]

    @cached_property
    def _sides(self) -> tuple[Tensor, Tensor]:
        """The lowest and the highest value of each pixel in an L-infinity ball and in bounds."""
        return (self.center - self.eps).clamp_(*self.bounds), (self.center + self.eps).clamp_(*self.bounds)

    def start(self, seeds: Tensor) -> Tensor:
        """Return a point drawn uniformly from each ball of "linf" or "l2", clipped to the bounds, (B, C, H, W)."""
        x = self.center
        shape = tuple(x.shape[1:])
        if self.norm == "linf":
            drawn = noise.uniform(noise.fold(seeds, "start"), shape, x.dtype)
            return (x + self.eps * (2 * drawn - 1)).clamp(*self.bounds)
        # A uniform point of a ball: a uniform direction, and a radius whose d-th power is uniform.
        direction = unit(noise.gaussian(noise.fold(seeds, "start"), shape, x.dtype))
        radius = noise.uniform(noise.fold(seeds, "radius"), (1, 1, 1), x.dtype) ** (1 / x[0].numel())
        return self.project(x + self.eps * radius * direction)

    def start_at_surface(self, seeds: Tensor) -> Tensor:
        """Return a random point in bounds that was drawn at the surface of each ball, as APGD starts, (B, C, H, W)."""
        keys, shape, dtype = noise.fold(seeds, "start"), tuple(self.center.shape[1:]), self.center.dtype
        drawn = 2 * noise.uniform(keys, shape, dtype) - 1 if self.norm == "linf" else noise.gaussian(keys, shape, dtype)
        if self.norm == "l1":
            return self.project(self.center + drawn)
        change = drawn / lengths(drawn, self.norm).view(-1, 1, 1, 1)
        return (self.center + self.eps * change).clamp(*self.bounds)

    def project(self, point: Tensor) -> Tensor:
        """Return points (B, C, H, W) put back into the ball and the bounds: for "l1" the nearest points of both.

        For the other norms first into the ball, then into the bounds. The center lies in the bounds, so the second
        step only brings a point nearer to it: both hold to rounding.
        """
        if self.norm == "linf":
            return point.clamp(*self._sides)
        moved = point - self.center
        if self.norm == "l1":
            room = torch.where(moved > 0, self.bounds[1] - self.center, self.center - self.bounds[0])
            eps = torch.as_tensor(self.eps, dtype=torch.float64, device=point.device).expand(len(point), 1, 1, 1)
            change = onto_l1_ball(moved.flatten(1), room.flatten(1), eps.flatten()).view_as(moved)
            return (self.center + change).clamp(*self.bounds)
        length = lengths(moved, self.norm).view(-1, 1, 1, 1)
        inside = torch.where(length > self.eps, moved * (self.eps / length), moved)
        return (self.center + inside).clamp(*self.bounds)

    def step(self, gradient: Tensor, size: float | Tensor) -> Tensor:
        """Return the steepest ascent of "linf" or "l2" of length `size`; NaN where the gradient is not finite."""
        direction = sign(gradient) if self.norm == "linf" else unit(gradient)
        return size * direction.to(self.center.dtype)


def sign(gradient: Tensor) -> Tensor:
    """Return the sign, NaN where not finite: `sign(NaN)` is 0, and a broken gradient would pass for a robust image."""
    return gradient.sign().add_(gradient, alpha=0)  # 0 times infinity is NaN; `torch.where` takes ten times as long


def unit(values: Tensor) -> Tensor:
    """Return images (B, C, H, W) of Euclidean length 1; one that is all zero stays so, a non-finite one gets NaN."""
    flat = values.flatten(1)
    largest = flat.abs().amax(1, keepdim=True)
    scaled = flat / largest  # first, since the squares of a saturated network's gradients underflow
    return torch.where(largest > 0, scaled / scaled.norm(dim=1, keepdim=True), flat).reshape(values.shape)
