"""Training regimes against conditions: the robustness matrix."""

from robustsigma.evaluation.evaluate import evaluate
from robustsigma.evaluation.parsing import preset
from robustsigma.evaluation.settings import Checks, Evaluation, Retraining, Sweep, Training
from robustsigma.report import RobustnessReport

__all__ = ["Checks", "Evaluation", "Retraining", "RobustnessReport", "Sweep", "Training", "evaluate", "preset"]
