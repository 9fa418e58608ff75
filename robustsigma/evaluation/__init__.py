"""Robustness evaluation: training regimes against test conditions, with attack checks and statistics."""

# ruff: noqa: F401  (type checkers read the imports below, Python the table)

from typing import TYPE_CHECKING

from robustsigma.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from robustsigma.evaluation.pipeline import evaluate
    from robustsigma.evaluation.settings import Checks, Evaluation, Retraining, Sweep, Training
    from robustsigma.report import RobustnessReport
    from robustsigma.runs.results import RobustnessResults

_MODULES = {
    "robustsigma.evaluation.pipeline": ("evaluate",),
    "robustsigma.evaluation.settings": ("Checks", "Evaluation", "Retraining", "Sweep", "Training"),
    "robustsigma.report": ("RobustnessReport",),
    "robustsigma.runs.results": ("RobustnessResults",),
}

if not TYPE_CHECKING:
    __getattr__, __dir__, __all__ = lazy_imports(__name__, _MODULES)
