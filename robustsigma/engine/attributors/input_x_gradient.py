"""Input x gradient."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from robustsigma.engine.attributors.controls import Gradient


@dataclass(frozen=True)
class InputXGradient(Gradient):
    """x_i * dF/dx_i (Shrikumar et al., 2016), which vanishes on black pixels.

    The sum is F on a network that is positively homogeneous (piecewise linear without biases), and nothing in
    particular elsewhere: `drop` is 0, so that `gap()` is the |sum of values|.

    Args:
        score: F.

    Example:
        >>> InputXGradient()(classifier, images, target).heatmap()
    """

    def _values(self, gradient: Tensor, images: Tensor) -> Tensor:
        return gradient * images
