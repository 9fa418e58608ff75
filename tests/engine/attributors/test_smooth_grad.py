"""SmoothGrad against closed forms, and against other libraries with the same noise."""

import cases
import numpy as np
import pytest
import torch

from robustsigma import Classifier, Gradient, InputXGradient, IntegratedGradients, Sigma, SmoothGrad
from robustsigma.engine import noise


def copies(x, seeds, samples, std=0.15):
    """Return the noisy copies (B, samples, C, H, W)."""
    drawn = [noise.gaussian(noise.fold(seeds, "smooth_grad", j), x.shape[1:], x.dtype) for j in range(samples)]
    spread = torch.stack([each.max() - each.min() for each in x]).reshape(-1, 1, 1, 1)
    return torch.stack([x + std * spread * each for each in drawn], 1)


def test_a_linear_net_gives_its_weights():
    net, x = cases.linear().double(), cases.images(dtype=torch.float64)
    result = SmoothGrad(samples=5)(Classifier(net), x, cases.labels())
    torch.testing.assert_close(result.values, net[1].weight.detach()[cases.labels()].reshape(x.shape))
    torch.testing.assert_close(result.stderr, torch.zeros_like(result.stderr), rtol=0, atol=1e-6)


def test_a_quadratic_net_gives_the_gradient_at_the_mean_copy():
    net, x, seeds = cases.quadratic().double(), cases.images(3, dtype=torch.float64), cases.seeds(3)
    result = SmoothGrad(samples=7, std=0.4)(Classifier(net), x, 2, seed=seeds)
    a, b = (p.detach()[2].reshape(3, 8, 8) for p in (net.a, net.b))
    torch.testing.assert_close(result.values, b + a * copies(x, seeds, 7, 0.4).mean(1), rtol=1e-10, atol=1e-12)
    heats = (b + a * copies(x, seeds, 7, 0.4)).abs().sum(2)
    torch.testing.assert_close(result.stderr, heats.std(1) / 7**0.5)


@pytest.mark.parametrize("method", [InputXGradient(), IntegratedGradients(steps=3, baseline="white")])
def test_any_method_is_averaged(method):
    clf, x, seeds = cases.classifier(cases.mlp().double()), cases.images(2, dtype=torch.float64), cases.seeds(2)
    result = SmoothGrad(method, samples=4)(clf, x, 1, seed=seeds)
    with clf.frozen():
        each = [
            method.attribute(clf, copy, result.target, clf.logits(copy), seeds)
            for copy in copies(x, seeds, 4).unbind(1)
        ]
    torch.testing.assert_close(result.values, torch.stack([one.values for one in each]).mean(0))
    torch.testing.assert_close(result.drop, torch.stack([one.drop for one in each]).mean(0))


def test_a_complete_method_stays_complete_and_reports_its_walks():
    walk = Sigma(alpha=0.5, beta=0.3, epsilon=0.2, objective="log_prob", paths=2, max_steps=3)
    result = SmoothGrad(walk, samples=3)(cases.classifier(cases.mlp().double()), cases.images(dtype=torch.float64))
    assert result.gap().max() < 1e-9
    assert result.converged.shape == result.steps.shape == (4, 3)
    assert not result.converged.all()


def test_a_copy_of_the_gradient_costs_one_pass_each_way():
    counter = cases.PassCounter(cases.mlp())
    result = SmoothGrad(samples=6)(Classifier(counter, chunk_size=4), cases.images(5))
    assert (result.forwards == 7).all()
    assert (result.backwards == 6).all()
    assert counter.forwards == 35
    assert counter.largest == 4


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"samples": 0}, "samples"),
        ({"std": 0.0}, "std"),
        ({"std": -1.0}, "std"),
        ({"attributor": Gradient}, "attributor"),
    ],
)
def test_bad_settings(arguments, name):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        SmoothGrad(**arguments)


@pytest.mark.reference
def test_captum_with_the_same_noise(monkeypatch):
    captum = pytest.importorskip("captum.attr")
    clf, x, seeds = cases.classifier(cases.mlp().double()), cases.images(2, dtype=torch.float64), cases.seeds(2)
    ours = SmoothGrad(samples=5, std=0.2)(clf, x, 1, seed=seeds)
    made = (copies(x, seeds, 5, 0.2) - x[:, None]).flatten(0, 1)  # captum repeats each image in a row
    monkeypatch.setattr(torch, "normal", lambda mean, std: made.clone())
    clf.eval()
    tunnel = captum.NoiseTunnel(captum.Saliency(clf))
    theirs = tunnel.attribute(x, target=1, nt_samples=5, stdevs=1.0, nt_type="smoothgrad", abs=False)
    torch.testing.assert_close(ours.values, theirs.detach(), rtol=1e-8, atol=1e-10)


@pytest.mark.reference
def test_captums_input_x_gradient():
    captum = pytest.importorskip("captum.attr")
    clf, x = cases.classifier(cases.mlp().double()).eval(), cases.images(dtype=torch.float64)
    theirs = captum.InputXGradient(clf).attribute(x.clone().requires_grad_(True), target=cases.labels())
    torch.testing.assert_close(InputXGradient()(clf, x, cases.labels()).values, theirs.detach())


@pytest.mark.reference
def test_pair_with_the_same_noise(monkeypatch):
    core = pytest.importorskip("saliency.core")
    clf, x, seeds = cases.classifier(cases.mlp().double()), cases.images(1, dtype=torch.float64), cases.seeds(1)
    ours = SmoothGrad(samples=6)(clf, x, 1, seed=seeds).values[0]
    drawn = iter(copies(x, seeds, 6)[0] - x)

    def call(images, call_model_args, expected_keys):
        with clf.frozen():
            at = torch.as_tensor(images).permute(0, 3, 1, 2)
            gradient = clf.score_and_gradient(at, torch.ones(len(at), dtype=torch.int64))[1]
        return {core.INPUT_OUTPUT_GRADIENTS: gradient.permute(0, 2, 3, 1).numpy()}

    monkeypatch.setattr(np.random, "normal", lambda mean, std, shape: next(drawn).permute(1, 2, 0).numpy())
    theirs = core.GradientSaliency().GetSmoothedMask(
        x[0].permute(1, 2, 0).numpy(), call, None, 0.15, 6, magnitude=False
    )
    torch.testing.assert_close(ours, torch.as_tensor(theirs).permute(2, 0, 1).double(), rtol=1e-5, atol=1e-6)
