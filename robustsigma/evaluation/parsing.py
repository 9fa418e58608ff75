"""Evaluations from YAML; the embedded datasets have presets."""

from __future__ import annotations

from robustsigma.evaluation.settings import Evaluation
from robustsigma.parser import Presets

PRESETS = Presets(Evaluation, "robustsigma.evaluation")


def preset(name: str = "baggage") -> Evaluation:
    """Return the settings of an embedded dataset.

    Args:
        name: "baggage", "digits" or "mnist5k".

    Raises:
        ValueError: another name.
    """
    return PRESETS.load(name)
