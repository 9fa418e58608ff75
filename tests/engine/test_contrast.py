"""Two classes told apart: every method explains the difference of their logits, and the network comes back."""

import cases
import pytest
import torch
from torchvision.models import VisionTransformer

from robustsigma import AttentionAttribution, CaptumMethod, Gradient, IntegratedGradients, LeGrad, Sigma
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.contrast import contrasted

METHODS = [
    Gradient(), IntegratedGradients(steps=3), Sigma(objective="logit", max_steps=3, paths=2),
    CaptumMethod("LayerGradCam", layer="0.conv_proj"), AttentionAttribution(), LeGrad(),
]  # fmt: skip


class Difference(torch.nn.Module):
    def forward(self, logits):
        return torch.stack([logits[:, 2] - logits[:, 0], torch.zeros_like(logits[:, 0])], 1)


def vit():
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        net = VisionTransformer(16, 4, 2, 2, 8, 16, num_classes=3)
        torch.nn.init.normal_(net.heads.head.weight)  # it is zero
    return net


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_it_is_the_network_of_the_difference(method):
    net, images = vit(), cases.images(2, channels=3, size=16)
    # The layers have the same names in both.
    plain, whole = (Classifier(torch.nn.Sequential(*parts)) for parts in ([net], [net, Difference()]))
    with contrasted(plain, 2, 0):
        found = method(plain, images, 0, seed=1)
    expected = method(whole, images, 0, seed=1)
    torch.testing.assert_close(found.values, expected.values)
    assert expected.values.abs().sum() > 0
    logits = plain(images)
    assert logits.shape == (2, 3)
    torch.testing.assert_close(whole(images)[:, 0], logits[:, 2] - logits[:, 0])
