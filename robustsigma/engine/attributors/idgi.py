"""Important Direction Gradient Integration."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustsigma.engine import validation
from robustsigma.engine.attributors.base import Attribution, Attributor
from robustsigma.engine.attributors.integrated_gradients import IntegratedGradients, quadrature
from robustsigma.engine.attributors.straight_line import Line, Path, PathMethod, mean_over_paths
from robustsigma.engine.classifier import Classifier

_SUCH = "IntegratedGradients, GuidedIntegratedGradients, BlurIG or SIG"


@dataclass(frozen=True)
class IDGI(Attributor):
    """IDGI_i = sum over steps k of g_ki^2 / |g_k|^2 * (F(x_{k+1}) - F(x_k)) (Yang et al., 2023, algorithm 1).

    Along the path of another method, each step's change of F goes to the pixels as the square of the gradient at its
    start, so the values sum to F(image) - F(baseline). Where a gradient is zero, its step's change goes to
    no pixel, and `converged` is False.

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

    def _summed(self, line: Line) -> Path:
        starts = line.expanded(quadrature("left", self.attributor.steps)[0])
        values, curve = torch.zeros_like(line.images), torch.empty_like(starts)
        converged = torch.ones_like(line.high, dtype=torch.bool)
        # The last point's squares, as shares of their sum, wait for the next point's score.
        waiting, before = torch.zeros_like(line.images), line.low.clone()
        for part in line.gradients(starts):
            rows = part.rows
            # The largest is 1, so that no square vanishes for its size alone.
            largest = part.gradients.abs().amax((2, 3, 4), keepdim=True)
            squares = (part.gradients / torch.where(largest > 0, largest, 1)).square()
            shares = squares / squares.sum((2, 3, 4), keepdim=True).clamp(min=1)
            changes = torch.cat([before[rows, None], part.scores], 1).diff(dim=1)[..., None, None, None]
            values[rows] += waiting[rows] * changes[:, 0] + (shares[:, :-1] * changes[:, 1:]).sum(1)
            waiting[rows], before[rows] = shares[:, -1], part.scores[:, -1]
            converged[rows] &= (largest > 0).flatten(1).all(1)
            curve[rows, part.columns] = part.scores
        values += waiting * (line.high - before).reshape(-1, 1, 1, 1)
        return Path(line, values, curve, converged=converged)
