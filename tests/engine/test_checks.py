"""Flags for networks whose robustness numbers would mislead."""

from __future__ import annotations

import cases
import pytest
import torch
from torch import nn

from robustsigma.engine.checks import Soundness, inspect_classifier
from robustsigma.engine.validation import are_probabilities


class Noisy(nn.Module):
    """Other logits at each call, as a randomized defence; draws from its own generator."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.net, self.source, self.size = cases.mlp(), cases.generator(0), size

    def forward(self, x):
        z = self.net(x)
        return z + self.size * torch.randn(z.shape, generator=self.source)


def codes(net: nn.Module, y: torch.Tensor | None = None) -> set[str]:
    return {
        flag.code
        for flag in inspect_classifier(cases.classifier(net), cases.images(), cases.labels() if y is None else y).flags
    }


@pytest.mark.parametrize("make", [cases.linear, cases.quadratic, cases.mlp, cases.cnn_bn_dropout])
def test_sound_nets_have_no_flag(make):
    assert codes(make()) == set()


def test_probabilities_are_flagged():
    assert codes(cases.Probabilities(cases.mlp())) == {"probabilities"}


def test_constant_net_is_flagged():
    assert codes(cases.constant()) == {"zero_gradient"}


def test_saturated_net_is_flagged():
    """Its predicted classes have probability 1 in float32, so the loss has no gradient there."""
    net = cases.saturated()
    clf, x = cases.classifier(net), cases.images()
    with clf.frozen():
        predicted = clf.logits(x).argmax(1)
    assert codes(net, predicted) == {"zero_gradient"}


def test_random_outputs_are_flagged_and_rounding_is_not():
    assert codes(Noisy(0.1)) == {"random_outputs"}
    assert codes(Noisy(1e-7)) == set()


def test_dead_gradients_are_counted_image_by_image():
    net = cases.saturated()
    clf, x = cases.classifier(net), cases.images()
    with clf.frozen():
        predicted = clf.logits(x).argmax(1)
    labels = predicted.clone()
    labels[0] = (labels[0] + 1) % 3  # wrong, so its loss has a gradient
    assert inspect_classifier(clf, x, labels) == Soundness(len(x), False, False, len(x) - 1)
    assert inspect_classifier(cases.classifier(cases.mlp()), x, labels) == Soundness(len(x), False, False, 0)


@pytest.mark.parametrize(("dead", "flagged"), [(0, False), (5, False), (6, True), (50, True)])
def test_more_than_a_tenth_of_dead_gradients_is_flagged(dead, flagged):
    flags = Soundness(50, False, False, dead).flags
    assert [flag.code for flag in flags] == ["zero_gradient"] * flagged
    assert all(f"{dead / 50:.0%} of loss gradients" in flag.message for flag in flags)


def test_labels_are_checked():
    with pytest.raises(ValueError, match=r"labels: expected class indices in \[0, 2\], got \[3, 3\]"):
        codes(cases.mlp(), torch.full((4,), 3))


def test_nothing_is_left_behind():
    clf = cases.classifier(cases.cnn_bn_dropout())
    before = cases.state_of(clf)
    inspect_classifier(clf, cases.images(), cases.labels())
    assert cases.state_of(clf) == before


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [([[0.2, 0.8], [1, 0]], True), ([[0.2, 0.9]], False), ([[-0.2, 1.2]], False), ([[0.3, 0.7], [2.0, 1.0]], False)],
)
def test_are_probabilities(rows, wanted):
    assert are_probabilities(torch.tensor(rows)) is wanted
