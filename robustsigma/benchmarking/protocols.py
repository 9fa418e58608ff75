"""Published evaluation protocols by name: each fixes every choice as its paper or its code has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from robustsigma.engine import validation
from robustsigma.engine.metrics import (
    AttributionMetric,
    DiffID,
    InsertionDeletion,
    LerfMorf,
    MagnitudeAlignedScore,
    PerformanceInformation,
)
from robustsigma.engine.metrics.published import (
    IDGRepositoryPerformanceInformation,
    ProtocolMetric,
    SaliencyBenchLocalization,
)


@dataclass(frozen=True)
class Protocol:
    """A published evaluation.

    Attributes:
        name: as users write it.
        source: paper and code.
        metrics: with every choice of the protocol.
        ranks_by: names of the quantities that its authors rank methods by.
        differences: where paper, code and this package differ, and what is taken.
        also: names of further quantities that they report.
    """

    name: str
    source: str
    metrics: tuple[AttributionMetric, ...]
    ranks_by: tuple[str, ...]
    differences: str
    also: tuple[str, ...] = ()

    def quantity(self, name: str) -> str:
        """Return the name that a quantity of the metrics has in a benchmark, such as "insertion (RISE)"."""
        return f"{name} ({self.name})"


_CODE_TIES = "Equal pixels are ordered as NumPy's unstable sort leaves them, the last first."
_NORMALIZED_ZERO = "Deletion ends at zero after normalization, the mean color."

_LISTED = (
    Protocol(
        "RISE",
        "Petsiuk et al., BMVC 2018; evaluation.py of eclique/RISE",
        (InsertionDeletion(insertion="blur", deletion="mean", tie_break="reference"),),
        ("insertion", "deletion"),
        "The paper deletes to a constant value and inserts on a blurred image without numbers; the code takes the mean "
        f"color, an 11 x 11 window, one row of pixels at a time, and the softmax. {_CODE_TIES} RISE's maps have one "
        "channel; other maps are reduced to |sum over channels|.",
    ),
    Protocol(
        "IDG-2024",
        "Walker et al., AAAI 2024; evalOnImageNet.py of chasewalker26/Integrated-Decision-Gradients",
        (
            InsertionDeletion(insertion="blur", deletion="mean", tie_break="reference"),
            IDGRepositoryPerformanceInformation(interpolation="exact", tie_break="reference"),
        ),
        ("insertion", "deletion", "sic", "aic"),
        f"The paper deletes to black. {_NORMALIZED_ZERO} SIC and AIC skip no image, compare float images, and scale "
        "AIC by softmaxes. The code shows the network images without normalization in SIC and AIC, and one random mask "
        "to all images; neither is repeated here. Maps are reduced to |sum over channels|.",
    ),
    Protocol(
        "MAS-2024",
        "Walker et al., IJCAI 2024; MASTestFunctions.py of chasewalker26/Magnitude-Aligned-Scoring",
        (MagnitudeAlignedScore(insertion="blur11", deletion="mean", tie_break="reference"),),
        ("mas_insertion", "mas_deletion"),
        f"The code blurs with a standard deviation of 11 in an 11 x 11 window. {_NORMALIZED_ZERO} Where the full image "
        "scores no higher than the empty one, the code divides by a negative number or takes .5; here the image is "
        "skipped. The authors' survey code of 2026 blurs with 31 x 31 and leaves such images out, as here.",
        ("mas_difference",),
    ),
    Protocol(
        "DiffID-2026",
        "Kim et al. (SIG), KDD 2026; cleanig/metric/diffid.py of leekwoon/sig",
        (DiffID(features="values", tie_break="index"),),
        ("diffid",),
        "The code orders the values of all channels, not pixels, and replaces them by the mean of the values that are "
        "left, at ratios of .1 to .9; insertion keeps the most relevant values. It reports accuracy after the "
        "replacement and stores confidence as well (`DiffID(retention='confidence')`). Equal values go by their index.",
        ("diffid_insertion", "diffid_deletion"),
    ),
    Protocol(
        "PIC",
        "Kapishnikov et al. (XRAI), ICCV 2019; pic.py of PAIR-code/saliency",
        (PerformanceInformation(interpolation="exact", tie_break="reference"),),
        ("sic", "aic"),
        "The code skips images below a confidence of .8 (the notebook: .5) and where blurring keeps score or size. It "
        "reports the area under the median curve; tables here have the mean of the images' areas, so that differences "
        "of two methods are paired. The random mask is drawn for each image. Maps are reduced to |sum over channels|.",
    ),
    Protocol(
        "Saliency-Bench",
        "Zhang et al., 2023; the evaluation code of the benchmark",
        (SaliencyBenchLocalization(reduction="sum"),),
        ("iou", "pointing_game"),
        "The paper leaves the threshold open; the code takes every positive pixel for IoU and precision, so that "
        "a dense positive map has the object's share of the image as its IoU. A constant map always hits. The code's "
        "recall, of values above .5, depends on the unit of a map and is left out. Maps are summed over channels, so "
        "that signs count. Needs masks.",
        ("precision",),
    ),
    Protocol(
        "LeRF/MoRF",
        "Samek et al., 2017; PosNegPertFunctions.py of chasewalker26/Image-Classification-XAI (Walker and Ewetz, 2026)",
        (LerfMorf(baseline="mean", tie_break="reference"),),
        ("lerf", "morf"),
        "Samek et al. replace squares of 9 x 9 pixels by random colors and average the loss of the score; the code of "
        "2026 removes one row of pixels at a time to the mean color and takes the area under the softmax. With these "
        f"choices MoRF is RISE's deletion. {_CODE_TIES}",
    ),
)
PROTOCOLS: dict[str, Protocol] = {listed.name: listed for listed in _LISTED}


def protocol(name: str, step: int | None = None) -> tuple[AttributionMetric, ...]:
    """Return the metrics of a published protocol, with every choice fixed as its paper or its code has it.

    `PROTOCOLS[name].differences` says where the two differ.

    Args:
        name: a key of `PROTOCOLS`: "RISE", "IDG-2024", "MAS-2024", "DiffID-2026", "PIC", "Saliency-Bench" (which needs
            masks) or "LeRF/MoRF".
        step: pixels that curves replace at a time; None is the protocol's, the width of the image. More are cheaper,
            and areas are then those of coarser curves. DiffID and PIC have steps of their own, which stay.

    Raises:
        ValueError: an unknown name, or a step below 1.

    Example:
        >>> [quantity.name for metric in protocol("RISE") for quantity in metric.quantities]
        ['insertion (RISE)', 'deletion (RISE)']
    """
    validation.choice("protocol", name, tuple(PROTOCOLS))
    listed = PROTOCOLS[name]
    reported = (*listed.ranks_by, *listed.also)
    metrics: list[Any] = list(listed.metrics)
    if step is not None:
        validation.integer("step", step, 1)
        metrics = [replace(metric, step=step) if hasattr(metric, "step") else metric for metric in metrics]
    return tuple(ProtocolMetric(name, metric, reported) for metric in metrics)


def protocol_names(given: str | Sequence[str]) -> tuple[str, ...]:
    """Return names of protocols, from a sequence, from names with commas between them, or all from "all".

    Raises:
        ValueError: an unknown name, or one that is given twice.
    """
    names = [name.strip() for name in given.split(",")] if isinstance(given, str) else list(given)
    if names in (["all"], [""]):
        return tuple(PROTOCOLS) if names == ["all"] else ()
    for name in names:
        validation.choice("protocols", name, ("all", *PROTOCOLS))
    if len(set(names)) < len(names) or "all" in names:
        raise validation.fail("protocols", "each name once, or only 'all'", ", ".join(names))
    return tuple(names)
