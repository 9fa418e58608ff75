"""Important Direction Gradient Integration."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustsigma.engine import validation
from robustsigma.engine.attributors.base import Attribution, Attributor
from robustsigma.engine.attributors.integrated_gradients import IntegratedGradients, quadrature
from robustsigma.engine.attributors.path_methods import Line, PathMethod, PathResult, mean_over_paths
from robustsigma.engine.classifier import Classifier

_SUCH = "IntegratedGradients, GuidedIntegratedGradients, BlurIG or SIG"


@dataclass(frozen=True)
class IDGI(Attributor):
    """IDGI_i = sum over steps k of g_ki^2 / |g_k|^2 * (F(x_{k+1}) - F(x_k)) (Yang et al., 2023, algorithm 1).

    Along the path of another method, each step's change of F goes to the pixels as the square of the gradient at its
    start, so the values sum to F(image) - F(baseline). Where a gradient is zero, for which the formula
    divides 0 by 0, its step's change goes with the next step's; `converged` is False where there is none.

    Steps are equal, whatever rule or schedule the method has. It costs a forward and a backward pass for each step and
    path, and one forward pass for each end.

    Args:
        attributor: the method whose path, score and number of steps are used: IntegratedGradients,
            GuidedIntegratedGradients, BlurIG, SIG or another `PathMethod`.

    Example:
        >>> IDGI(BlurIG(steps=50))(classifier, images, target).heatmap()
    """

    attributor: PathMethod = field(default_factory=IntegratedGradients)

    def __post_init__(self) -> None:
        if not isinstance(self.attributor, PathMethod):
            raise validation.fail("attributor", f"a method with a path, such as {_SUCH}", repr(self.attributor))

    @property
    def stochastic(self) -> bool:
        """Whether the path depends on the seed."""
        return self.attributor.stochastic

    def attribute(
        self, classifier: Classifier, images: Tensor, target: Tensor, logits: Tensor, seeds: Tensor
    ) -> Attribution:
        """Return the mean over the method's paths."""
        lines = self.attributor.lines(classifier, images, target, logits, seeds)
        return mean_over_paths([self._summed(line) for line in lines], forwards=1 + len(lines))

    def _summed(self, line: Line) -> PathResult:
        starts = line.expanded(quadrature("left", self.attributor.steps)[0])
        values, curve = torch.zeros_like(line.images), torch.empty_like(starts)
        # Of the last point: the squares of its gradient as shares of their sum, whether there are any, and F. What F
        # changed by since the last point that had any is owed to the next one.
        shares, found = torch.zeros_like(line.images), torch.zeros_like(line.high, dtype=torch.bool)
        before, owed = line.low.clone(), torch.zeros_like(line.low)

        def share_out(rows: slice, score: Tensor) -> None:
            change = owed[rows] + score - before[rows]
            values[rows] += shares[rows] * change.reshape(-1, 1, 1, 1)
            owed[rows] = torch.where(found[rows], 0, change)
            before[rows] = score

        for part in line.gradients(starts):
            rows = part.rows
            curve[rows, part.columns] = part.scores
            for score, gradient in zip(part.scores.unbind(1), part.gradients.unbind(1), strict=True):
                share_out(rows, score)
                # The largest is 1, so that no square vanishes for its size alone.
                largest = gradient.abs().amax((1, 2, 3), keepdim=True)
                squares = (gradient / torch.where(largest > 0, largest, 1)).square()
                shares[rows] = squares / squares.sum((1, 2, 3), keepdim=True).clamp(min=1)
                found[rows] = (largest > 0).flatten()
        share_out(slice(None), line.high)
        return PathResult(line, values, curve, converged=found)
