"""Training regimes against conditions: the robustness matrix."""

from robustsigma.evaluation.evaluate import evaluate
from robustsigma.evaluation.parsing import preset
from robustsigma.evaluation.settings import Evaluation, Retraining, Training

__all__ = ["Evaluation", "Retraining", "Training", "evaluate", "preset"]
