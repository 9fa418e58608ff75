"""Training regimes against conditions: the robustness matrix."""

from robustsigma.evaluation.evaluate import evaluate
from robustsigma.evaluation.parsing import preset
from robustsigma.evaluation.settings import Checks, Evaluation, Retraining, Sweep, Training

__all__ = ["Checks", "Evaluation", "Retraining", "Sweep", "Training", "evaluate", "preset"]
