"""Robustness evaluation: training regimes against test conditions, with attack checks and statistics."""

# ruff: noqa: F401  (type checkers read the imports below, Python the table)

from typing import TYPE_CHECKING

from robustsigma.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from robustsigma.evaluation.model_evaluation import RobustAccuracy, evaluate, robust_accuracy
    from robustsigma.evaluation.robustness_report import RobustnessReport
    from robustsigma.evaluation.settings import Checks, Evaluation, Retraining, Sweep, Training
    from robustsigma.evaluation.study import run_study
    from robustsigma.runs.results import RobustnessResults

_MODULES = {
    "robustsigma.evaluation.model_evaluation": ("RobustAccuracy", "evaluate", "robust_accuracy"),
    "robustsigma.evaluation.robustness_report": ("RobustnessReport",),
    "robustsigma.evaluation.settings": ("Checks", "Evaluation", "Retraining", "Sweep", "Training"),
    "robustsigma.evaluation.study": ("run_study",),
    "robustsigma.runs.results": ("RobustnessResults",),
}

if not TYPE_CHECKING:
    __getattr__, __dir__, __all__ = lazy_imports(__name__, _MODULES)
