"""BlurIG, SIG and IDGI against closed forms, against loops written by hand and against PAIR's library."""

import cases
import pytest
import torch

from robustsigma import (
    IDGI,
    SIG,
    BlurIG,
    Classifier,
    CrediblePath,
    GuidedIntegratedGradients,
    IntegratedGradients,
    LeftIntegratedGradients,
)
from robustsigma.engine.attributors.blur_ig import blurred

X = cases.images(3, dtype=torch.float64)
LABELS = cases.labels(3)


def smooth():
    return cases.classifier(cases.mlp().double())


def gradients_at(clf, points, of="logit"):
    """Return scores (S, B) and gradients (S, B, C, H, W) at points (S, B, C, H, W)."""
    with clf.frozen():
        found = [clf.score_and_gradient(each, LABELS, of) for each in points]
        scores = [clf.score(each, LABELS, of) for each in points]
    return torch.stack(scores), torch.stack([gradient for _, gradient in found])


def by_gauss(image, std):
    """Return (C, H, W) blurred pixel by pixel; black lies beyond the borders."""
    place = torch.arange(-40, 41, dtype=torch.float64)
    line = torch.exp(-place.square() / (2 * std**2))
    line = line / line.sum()
    kernel = (line[:, None] * line).reshape(1, 1, 81, 81)
    return torch.nn.functional.conv2d(image[:, None], kernel, padding=40)[:, 0]


def test_blurred_images():
    found = blurred(X[:, :, :, :6], torch.tensor([0.0, 0.4, 1.5, 5.0], dtype=torch.float64))
    assert torch.equal(found[:, 0], X[:, :, :, :6])
    for place, std in ((1, 0.4), (2, 1.5), (3, 5.0)):
        expected = torch.stack([by_gauss(image, std) for image in X[:, :, :, :6]])
        torch.testing.assert_close(found[:, place], expected, rtol=1e-10, atol=1e-12)
    assert blurred(X, torch.tensor([1e4], dtype=torch.float64)).max() < 1e-6


@pytest.mark.parametrize("method", [BlurIG(3, 2.0), SIG(3, score="logit"), IDGI(BlurIG(4, 2.0))])
def test_a_linear_net_is_complete_in_any_number_of_steps(method):
    clf = cases.classifier(cases.linear(gain=1.0).double())
    result = method(clf, X, LABELS)
    assert result.gap().max() < 1e-10
    if not isinstance(method, IDGI):
        weight = clf.net[1].weight.detach()[LABELS].reshape(X.shape) / clf.std.double()
        torch.testing.assert_close(result.values, weight * (X - result.endpoint), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", [BlurIG(400, 3.0), SIG(2000, score="logit")])
def test_a_quadratic_net_is_complete_in_the_limit(method):
    net = cases.quadratic().double()
    result = method(Classifier(net), X, LABELS)
    with torch.no_grad():
        rise = (net(X) - net(result.endpoint)).gather(1, LABELS[:, None])[:, 0]
    torch.testing.assert_close(result.drop, rise)
    torch.testing.assert_close(result.values.flatten(1).sum(1), rise, rtol=1e-4, atol=1e-4)


def test_blur_ig_by_hand():
    clf, steps, widest = smooth(), 6, 3.0
    width = [widest * (1 - k / steps) for k in range(steps + 1)]
    stops = [torch.stack([by_gauss(i, s) if s else i for i in X]) for s in width]
    middles = [torch.stack([by_gauss(i, widest * (1 - (k + 0.5) / steps)) for i in X]) for k in range(steps)]
    scores, gradients = gradients_at(clf, middles, "log_prob")
    result = BlurIG(steps, widest, "log_prob")(clf, X, LABELS)
    expected = (gradients * torch.stack(stops).diff(dim=0)).sum(0)
    torch.testing.assert_close(result.values, expected, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(result.endpoint, stops[0])
    torch.testing.assert_close(result.confidence[:, 0, 1:-1], scores.flip(0).T)


def spectral_points(places, overlap):
    """Return the points at t of the path from black, component by component."""
    points = []
    for t in places:
        made = torch.zeros_like(X)
        for image in range(len(X)):
            for channel in range(3):
                left, sizes, right = torch.linalg.svd(X[image, channel])
                for k, size in enumerate(sizes):
                    begin = (1 - overlap) * (1 - size / sizes[0])
                    grown = min(max((t - begin) / overlap, 0), 1)
                    made[image, channel] += grown * size * left[:, k, None] @ right[k : k + 1]
        points.append(made)
    return points


def test_sig_by_hand():
    clf, steps = smooth(), 5
    stops = spectral_points([k / steps for k in range(steps + 1)], 0.4)
    _, gradients = gradients_at(clf, spectral_points([(k + 0.5) / steps for k in range(steps)], 0.4), "prob")
    expected = (gradients * torch.stack(stops).diff(dim=0)).sum(0)
    torch.testing.assert_close(SIG(steps)(clf, X, LABELS).values, expected, rtol=1e-8, atol=1e-10)


def test_sig_with_full_overlap_is_integrated_gradients():
    clf = smooth()
    expected = IntegratedGradients(9, "midpoint", "white", "prob")(clf, X, LABELS)
    result = SIG(9, 1.0, "white")(clf, X, LABELS)
    torch.testing.assert_close(result.values, expected.values, rtol=1e-8, atol=1e-10)


def idgi_of(scores, gradients):
    """Return the sum over steps of the squared gradient's share times the rise, for (S + 1, B) and (S, B, ...)."""
    shares = [g.square() / g.square().sum((1, 2, 3), keepdim=True) for g in gradients]
    return sum(s * rise.reshape(-1, 1, 1, 1) for s, rise in zip(shares, scores.diff(dim=0), strict=True))


@pytest.mark.parametrize("chunk", [2, 3, 100])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        (IntegratedGradients(5), [X * k / 5 for k in range(6)]),
        (BlurIG(4, 2.0), list(blurred(X, torch.tensor([2.0, 1.5, 1.0, 0.5, 0.0], dtype=torch.float64)).unbind(1))),
        (SIG(4, score="logit"), spectral_points([0, 0.25, 0.5, 0.75, 1], 0.4)),
    ],
    ids=["line", "blur", "spectral"],
)
def test_idgi_by_hand(method, path, chunk):
    clf = cases.classifier(cases.mlp().double(), chunk_size=chunk)
    scores, gradients = gradients_at(clf, path)
    result = IDGI(method)(clf, X, LABELS)
    torch.testing.assert_close(result.values, idgi_of(scores, gradients[:-1]), rtol=1e-8, atol=1e-10)
    assert result.gap().max() < 1e-10
    assert (result.backwards == len(path) - 1).all()
    assert (result.forwards == len(path) + 1).all()


def test_idgi_along_a_guided_path():
    class Spy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.seen = cases.mlp().double(), []

        def forward(self, x):
            self.seen.append(x.detach().clone())
            return self.net(x)

    method, spy = GuidedIntegratedGradients(6, 0.25, 0.5, score="logit"), Spy()
    result = IDGI(method)(Classifier(spy), X, LABELS)
    path = [*spy.seen[2:], X]  # after the image and the baseline
    guided = Spy()
    method(Classifier(guided), X, LABELS)
    assert all(torch.equal(a, b) for a, b in zip(path[:-1], guided.seen[1:], strict=True))
    scores, gradients = gradients_at(Classifier(spy.net), path)
    torch.testing.assert_close(result.values, idgi_of(scores, gradients[:-1]), rtol=1e-8, atol=1e-10)


def test_a_step_of_idgi_whose_gradient_vanishes_goes_with_the_next():
    """ReLU(z - c) is flat near black, and rises within the first step that has a gradient or the one before."""

    class Flat(torch.nn.Module):
        def forward(self, x):
            total = torch.relu(x.flatten(1).sum(1, keepdim=True) - 40)
            return torch.cat([total, -total], 1)

    result = IDGI(IntegratedGradients(4))(Classifier(Flat()), X, 0)
    assert (result.confidence[:, 0, -2] == 0).all()
    assert (result.drop > 1).all()
    assert result.gap().max() < 1e-10
    assert result.converged.all()
    last = IDGI(IntegratedGradients(1))(Classifier(Flat()), X, 0)  # its only gradient is at black
    assert not last.converged.any()
    assert not last.values.any()


@pytest.mark.parametrize("method", [CrediblePath(), IDGI(), "IntegratedGradients", None])
def test_idgi_takes_methods_with_a_path(method):
    with pytest.raises(ValueError, match=r"^attributor: expected a method with a path, such as IntegratedGradients"):
        IDGI(method)
    IDGI(LeftIntegratedGradients())


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: BlurIG(steps=0), "steps"),
        (lambda: BlurIG(max_sigma=0), "max_sigma"),
        (lambda: BlurIG(score="loss"), "score"),
        (lambda: SIG(overlap=0), "overlap"),
        (lambda: SIG(overlap=1.1), "overlap"),
        (lambda: SIG(steps=0), "steps"),
    ],
)
def test_bad_settings(make, name):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        make()


@pytest.mark.reference
def test_blur_ig_of_pair():
    """PAIR takes each step's sharp end and a difference quotient by s: it comes to the same as steps get small."""
    core = pytest.importorskip("saliency.core")
    clf = smooth()

    def call(images, call_model_args, expected_keys):
        with clf.frozen():
            at = torch.as_tensor(images).permute(0, 3, 1, 2)
            gradient = clf.score_and_gradient(at, torch.ones(len(at), dtype=torch.int64))[1]
        return {core.INPUT_OUTPUT_GRADIENTS: gradient.permute(0, 2, 3, 1).numpy()}

    theirs = [
        core.BlurIG().GetMask(X[0].permute(1, 2, 0).numpy(), call, max_sigma=4.0, steps=steps, grad_step=1e-5)
        for steps in (500, 1000)
    ]
    limit = torch.as_tensor(2 * theirs[1] - theirs[0]).permute(2, 0, 1)
    ours = BlurIG(500, 4.0)(clf, X[:1], 1).values[0]
    torch.testing.assert_close(ours, limit, rtol=0, atol=2e-3 * float(limit.abs().max()))
