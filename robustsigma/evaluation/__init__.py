"""Training regimes against conditions: the robustness matrix."""

from robustsigma.evaluation.evaluate import evaluate
from robustsigma.evaluation.parsing import preset
from robustsigma.evaluation.settings import Checks, Evaluation, Retraining, Training

__all__ = ["Checks", "Evaluation", "Retraining", "Training", "evaluate", "preset"]
