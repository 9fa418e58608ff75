"""The mean corruption error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from robustsigma.engine.validation import fail

Errors = Mapping[str, Sequence[float]]


def corruption_errors(errors: Errors, reference: Errors) -> dict[str, float]:
    """Return the corruption error CE of each corruption: its error over that of a reference network.

    CE = sum over severities of E / sum over severities of E of the reference (Hendrycks and Dietterich, 2019,
    section 4). 1 is as robust as the reference, 0 perfect; papers print percent.

    Args:
        errors: error rates in [0, 1] by corruption, one for each severity.
        reference: those of another network on the same corruptions and severities (AlexNet, on ImageNet-C).

    Raises:
        ValueError: other corruptions or severities in one than in the other, rates outside [0, 1], none at all, or a
            reference that makes no error.
    """
    if not errors or set(errors) != set(reference):
        raise fail(
            "reference", f"the corruptions {', '.join(sorted(errors)) or '(none)'}", ", ".join(sorted(reference))
        )
    result = {}
    for name in errors:
        own, other = (np.asarray(of[name], dtype=np.float64) for of in (errors, reference))
        for argument, rates in (("errors", own), ("reference", other)):
            if rates.ndim != 1 or len(rates) == 0 or not ((rates >= 0) & (rates <= 1)).all():
                raise fail(argument, f"error rates in [0, 1] of {name}, one for each severity", repr(rates.tolist()))
        if len(own) != len(other):
            raise fail("reference", f"{len(own)} severities of {name}", len(other))
        if other.sum() == 0:
            raise fail("reference", f"an error above 0 on {name}", 0)
        result[name] = float(own.sum() / other.sum())
    return result


def mean_corruption_error(errors: Errors, reference: Errors) -> float:
    """Return mCE, the mean of `corruption_errors` over the corruptions.

    Args:
        errors: as there.
        reference: as there.

    Raises:
        ValueError: as there.
    """
    return float(np.mean(list(corruption_errors(errors, reference).values())))
