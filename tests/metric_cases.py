"""Images with an object, a network that sees it, and cheap settings of every metric."""

from __future__ import annotations

import inspect

import cases
import torch
from torch import Tensor, nn

from robustsigma.engine import metrics as public
from robustsigma.engine.metrics import (
    AttributionMetric,
    CompletenessGap,
    Cost,
    DiffID,
    Infidelity,
    InsertionDeletion,
    LerfMorf,
    Localization,
    MagnitudeAlignedScore,
    MetricContext,
    Monotonicity,
    PerformanceInformation,
    RelativeStandardError,
    RelevanceAccuracy,
    SensitivityN,
    Sparseness,
)
from robustsigma.engine.metrics.diagnostics import ResultMetric
from robustsigma.engine.metrics.published import (
    CumulativeMonotonicity,
    IDGRepositoryPerformanceInformation,
    SaliencyBenchLocalization,
)

SIDE, OBJECT = 16, 5

CHEAP: dict[type[AttributionMetric], tuple[AttributionMetric, ...]] = {
    CompletenessGap: (CompletenessGap(),),
    Cost: (Cost(),),
    Infidelity: (Infidelity(samples=12), Infidelity(samples=8, normalize=False, baseline="black", reduction="abs_sum")),
    InsertionDeletion: (
        InsertionDeletion(),
        InsertionDeletion(insertion="black", deletion="blur", step=5, score="logit", tie_break="index"),
        InsertionDeletion(normalized=True, reduction="sum_abs"),
    ),
    DiffID: (DiffID(), DiffID((0.2, 0.7), "confidence"), DiffID((0.3, 0.6), tie_break="index", features="values")),
    LerfMorf: (LerfMorf(), LerfMorf(baseline="blur", step=7, score="logit", tie_break="reference")),
    Localization: (Localization(), SaliencyBenchLocalization(), Localization(threshold=0.3, marked=1.0)),
    MagnitudeAlignedScore: (MagnitudeAlignedScore(), MagnitudeAlignedScore("blur11", "black", step=9)),
    Monotonicity: (Monotonicity(), Monotonicity(groups=10, baseline="blur", score="prob"), CumulativeMonotonicity()),
    PerformanceInformation: (
        PerformanceInformation(min_confidence=0.0),
        PerformanceInformation(min_confidence=0.0, interpolation="exact", monotone=False, tie_break="reference"),
        IDGRepositoryPerformanceInformation(tie_break="reference"),
    ),
    RelativeStandardError: (RelativeStandardError(),),
    RelevanceAccuracy: (RelevanceAccuracy(), RelevanceAccuracy(marked=1.0, reduction="sum_abs")),
    Sparseness: (Sparseness(),),
    SensitivityN: (SensitivityN(subsets=12), SensitivityN(fractions=(0.2, 0.6), subsets=9, baseline="blur")),
}
# Those of an attributor's result, not a map.
OF_RESULTS = tuple(kind for kind in CHEAP if issubclass(kind, ResultMetric))


def every_kind() -> list[type[AttributionMetric]]:
    """Return the concrete metrics of the public list."""
    found = (getattr(public, name) for name in public.__all__)
    return [
        kind
        for kind in found
        if inspect.isclass(kind) and issubclass(kind, AttributionMetric) and not inspect.isabstract(kind)
    ]


class Colors(nn.Module):
    """Logits: the greatest of the smoothed excess of each channel over some of the mean of all.

    Some, and not the same for each: the gradients of a pure contrast between classes sum to zero, which SIGMA cannot
    divide by.
    """

    def __init__(self, gain: float = 60.0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))

    def forward(self, x: Tensor) -> Tensor:
        part = torch.tensor([0.45, 0.5, 0.55], dtype=x.dtype, device=x.device).reshape(3, 1, 1)
        excess = nn.functional.avg_pool2d(x - part * x.mean(1, keepdim=True), 3, 1)
        return self.gain * torch.logsumexp(20 * excess.flatten(2), 2) / 20


def scene(count: int, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Return noisy gray images with a square of one color, its class, and its mask (count, SIDE, SIDE)."""
    source = cases.generator(seed)
    images = 0.5 + 0.05 * torch.randn(count, 3, SIDE, SIDE, generator=source, dtype=torch.float64)
    labels = torch.arange(count) % 3
    corner = torch.randint(0, SIDE - OBJECT + 1, (count, 2), generator=source)
    at = torch.arange(SIDE)
    rows, columns = ((at >= corner[:, k, None]) & (at < corner[:, k, None] + OBJECT) for k in range(2))
    masks = rows[:, :, None] & columns[:, None, :]
    images[torch.arange(count), labels] += 0.35 * masks
    return images.clamp(0, 1).to(dtype), labels, masks


def subject(count: int = 4, *, seed: int = 0, dtype: torch.dtype = torch.float32, **kwargs: object) -> MetricContext:
    images, labels, masks = scene(count, seed=seed, dtype=dtype)
    seeds = torch.arange(count) + 100
    return MetricContext(cases.Classifier(Colors().to(dtype), **kwargs), images, labels, masks=masks, seed=seeds)
