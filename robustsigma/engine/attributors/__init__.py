"""Attribution methods: where in an image the evidence for a class is. A paper has a file; the others are shared."""

from robustsigma.engine.attributors.agi import AGI
from robustsigma.engine.attributors.attention_attribution import AttentionAttribution
from robustsigma.engine.attributors.attention_rollout import AttentionRollout
from robustsigma.engine.attributors.base import Attribution, Attributor
from robustsigma.engine.attributors.blur_ig import BlurIG
from robustsigma.engine.attributors.captum_method import CaptumMethod
from robustsigma.engine.attributors.controls import Gradient, RandomAttribution
from robustsigma.engine.attributors.credible_path import CrediblePath
from robustsigma.engine.attributors.expected_gradients import ExpectedGradients
from robustsigma.engine.attributors.function_method import FunctionMethod
from robustsigma.engine.attributors.guided_integrated_gradients import GuidedIntegratedGradients
from robustsigma.engine.attributors.idg import IDG
from robustsigma.engine.attributors.idgi import IDGI
from robustsigma.engine.attributors.ig2 import IG2
from robustsigma.engine.attributors.input_x_gradient import InputXGradient
from robustsigma.engine.attributors.integrated_gradients import IntegratedGradients
from robustsigma.engine.attributors.left_integrated_gradients import LeftIntegratedGradients
from robustsigma.engine.attributors.legrad import LeGrad
from robustsigma.engine.attributors.sig import SIG
from robustsigma.engine.attributors.sigma import Sigma
from robustsigma.engine.attributors.smooth_grad import SmoothGrad

__all__ = [
    "AGI",
    "IDG",
    "IDGI",
    "IG2",
    "SIG",
    "AttentionAttribution",
    "AttentionRollout",
    "Attribution",
    "Attributor",
    "BlurIG",
    "CaptumMethod",
    "CrediblePath",
    "ExpectedGradients",
    "FunctionMethod",
    "Gradient",
    "GuidedIntegratedGradients",
    "InputXGradient",
    "IntegratedGradients",
    "LeGrad",
    "LeftIntegratedGradients",
    "RandomAttribution",
    "Sigma",
    "SmoothGrad",
]
