"""Robustness evaluation: training regimes against test conditions, with attack checks and statistics."""

from robustsigma.evaluation.evaluate import evaluate
from robustsigma.evaluation.parsing import preset
from robustsigma.evaluation.settings import Checks, Evaluation, Retraining, Sweep, Training
from robustsigma.report import RobustnessReport
from robustsigma.runs.results import RobustnessResults

__all__ = [
    "Checks", "Evaluation", "Retraining", "RobustnessReport", "RobustnessResults", "Sweep", "Training", "evaluate",
    "preset",
]  # fmt: skip
