"""Plain functions as methods: what they get, what they may return, and what is refused."""

from __future__ import annotations

import functools
import random

import cases
import numpy as np
import pytest
import torch
from settings import saliency

from robustsigma import Classifier, FunctionMethod, Gradient

X, TARGET, SEEDS = cases.images(), torch.tensor([0, 1, 2, 0]), cases.seeds()


def test_it_gives_what_the_function_gives():
    clf = cases.classifier()
    found, expected = FunctionMethod(saliency)(clf, X, TARGET), Gradient()(clf, X, TARGET)
    torch.testing.assert_close(found.values, expected.values.abs())
    assert found.forwards.tolist() == expected.forwards.tolist() == [2] * 4
    assert found.backwards.tolist() == [1] * 4


@pytest.mark.parametrize("form", ["BCHW", "B1HW", "BHW", "array", "double", "list"])
def test_forms_of_maps(form):
    whole = cases.images(seed=3)
    one = {"BCHW": whole, "B1HW": whole[:, :1], "BHW": whole[:, 0], "array": whole[:, 0].numpy(),
           "double": whole[:, 0].double(), "list": whole[:, 0].tolist()}[form]  # fmt: skip
    found = FunctionMethod(lambda model, images, target: one)(cases.classifier(), X)
    assert found.values.dtype == torch.float32
    expected = whole.abs().sum(1) if form == "BCHW" else whole[:, 0]
    torch.testing.assert_close(found.heatmap(), expected)
    assert (found.forwards.tolist(), found.backwards.tolist()) == ([1] * 4, [0] * 4)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda x: x[:2], r"^maps of method: expected shape \(4, 3, 8, 8\) or \(4, 1, 8, 8\) or \(4, 8, 8\), got"),
        (lambda x: x[:, :, :4], r"got shape \(4, 3, 4, 8\)"),
        (lambda x: None, "got NoneType"),
        (lambda x: x / 0, "^maps of method: expected finite values, got NaN or infinity"),
    ],
)
def test_maps_that_do_not_fit(made, message):
    def method(model, images, target):
        return made(images)

    with pytest.raises(ValueError, match=message):
        FunctionMethod(method)(cases.classifier(), X)


def test_its_text_is_short_and_the_same_in_any_process():
    assert repr(FunctionMethod(saliency)) == "FunctionMethod(saliency)"
    assert (
        repr(FunctionMethod(functools.partial(saliency), stochastic=True)) == "FunctionMethod(partial, stochastic=True)"
    )


def test_what_is_no_function():
    with pytest.raises(ValueError, match=r"^function: expected a function \(model, images, target\) -> maps, got 3"):
        FunctionMethod(3)


@pytest.mark.parametrize("draw", [torch.rand, lambda n: np.random.rand(n), lambda n: [random.random()]])  # noqa: NPY002
def test_random_numbers_are_seeded_for_each_image_or_refused(draw):
    def method(model, images, target):
        return images * float(sum(draw(1)))

    clf = cases.classifier()
    with pytest.raises(ValueError, match=r"^method: expected a function without random .*Method\(method, stochastic"):
        FunctionMethod(method)(clf, X)
    drawn = FunctionMethod(method, stochastic=True)
    whole, other = drawn(clf, X, TARGET, seed=SEEDS).values, drawn(clf, X, TARGET, seed=SEEDS + 1).values
    assert torch.equal(drawn(clf, X[1:3], TARGET[1:3], seed=SEEDS[1:3]).values, whole[1:3])
    assert not torch.allclose(whole, other)


def test_what_a_function_does_to_the_network_and_its_images_is_undone():
    def method(model, images, target):
        model.net[0].register_forward_hook(lambda *_: None)
        model.net[0].mine = 3
        return images.zero_() + 1

    clf, x = Classifier(cases.cnn_bn_dropout()), cases.images()
    before = cases.state_of(clf)
    FunctionMethod(method)(clf, x, TARGET)
    assert cases.state_of(clf) == before
    assert not hasattr(clf.net[0], "mine")
    assert torch.equal(x, cases.images())


def test_methods_of_the_package_saliency(monkeypatch):
    """Guided IG, integrated gradients, SmoothGrad and XRAI of PAIR, by one function."""
    core = pytest.importorskip("saliency.core")
    quantile = np.quantile
    monkeypatch.setattr(np, "quantile", lambda *a, interpolation: quantile(*a, method=interpolation))  # NumPy 2.4

    def called(method, **arguments):
        def function(model, images, target):
            def call(batch, call_model_args=None, expected_keys=None):
                x = torch.tensor(np.asarray(batch), dtype=images.dtype).permute(0, 3, 1, 2).requires_grad_(True)
                (gradient,) = torch.autograd.grad(model(x)[:, call_model_args["class"]].sum(), x)
                return {core.INPUT_OUTPUT_GRADIENTS: gradient.permute(0, 2, 3, 1).numpy()}

            found = (
                method(image, call, {"class": label}, **arguments)
                for image, label in zip(images.permute(0, 2, 3, 1).numpy(), target.tolist(), strict=True)
            )
            return np.stack([each if each.ndim == 2 else each.transpose(2, 0, 1) for each in found])

        return function

    def explain(method, *, stochastic=False, count=4, **arguments):
        return FunctionMethod(called(method, **arguments), stochastic)(clf, X[:count], TARGET[:count])

    black, clf = np.zeros((8, 8, 3), np.float32), cases.classifier()
    ig = explain(core.IntegratedGradients().GetMask, x_baseline=black, x_steps=20, batch_size=21)
    with clf.frozen():
        gradients = [clf.score_and_gradient(X * share, TARGET)[1] for share in torch.linspace(0, 1, 20)]
    torch.testing.assert_close(ig.values, X * sum(gradients) / 20, rtol=1e-4, atol=1e-6)
    assert ig.backwards.tolist() == [20] * 4
    guided = explain(core.GuidedIG().GetMask, x_baseline=black, x_steps=10)
    pairs = torch.stack([guided.values.flatten(1), ig.values.flatten(1)], 1)
    assert all(torch.corrcoef(pair)[0, 1] > 0.8 for pair in pairs)
    smooth = explain(core.GradientSaliency().GetSmoothedMask, stochastic=True, nsamples=5)
    assert smooth.backwards.tolist() == [5] * 4
    xrai = explain(core.XRAI().GetMask, count=1, baselines=[black], batch_size=50)
    assert xrai.heatmap().unique().numel() > 1
