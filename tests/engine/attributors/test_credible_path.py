import pickle

import cases
import pytest
import torch

from robustsigma import Classifier, CrediblePath
from robustsigma.engine.attributors.published import LiteralCrediblePath

GAP = 2 / 255


def distance(clf, x, points):
    """Return the distance of logits from the images', as a share of these logits' norm."""
    with clf.frozen():
        goal = clf.logits(x)
        return (clf.logits(points) - goal).norm(dim=1) / goal.norm(dim=1)


def per_baseline(result, values):
    """Return the mean over baselines of a function of the baseline."""
    return torch.stack([values(base) for base in result.endpoints.unbind(1)]).mean(0)


def test_linear():
    """On one linear piece every gradient counts: values are w (x - x'), complete (the paper's proposition 2)."""
    net = cases.linear().double()
    x, target = cases.images(dtype=torch.float64), cases.labels()
    result = CrediblePath(9)(Classifier(net), x, target)
    weights = net[1].weight.detach()[target].reshape(x.shape)
    torch.testing.assert_close(result.values, per_baseline(result, lambda base: weights * (x - base)))
    assert (result.valid == 1).all()
    assert (result.gap() < 1e-10).all()
    # The paper's example 2: attributions per unit of way are in the ratio of the weights.
    ways = per_baseline(result, lambda base: x - base)
    ratio = result.values[:, 0, 0, 0] / ways[:, 0, 0, 0] / (result.values[:, 0, 0, 1] / ways[:, 0, 0, 1])
    torch.testing.assert_close(ratio, weights[:, 0, 0, 0] / weights[:, 0, 0, 1])


def test_linear_as_the_algorithm_reads():
    """|(x - x~) w| < |w| always, so what counts is where x - x' is positive and the signs therefore agree."""
    net = cases.linear().double()
    x, target = cases.images(dtype=torch.float64), cases.labels()
    result = LiteralCrediblePath(9)(Classifier(net), x, target)
    weights = net[1].weight.detach()[target].reshape(x.shape)
    torch.testing.assert_close(result.values, per_baseline(result, lambda base: weights * (x - base).clamp(min=0)))
    assert ((result.valid > 0.1) & (result.valid < 0.9)).all()


@pytest.mark.parametrize("kind", [CrediblePath, LiteralCrediblePath])
@pytest.mark.parametrize("divisor", ["count", "steps"])
@pytest.mark.parametrize("chunk", [2, 100])
@pytest.mark.parametrize("reverse", [False, True])
def test_quadratic(divisor, chunk, kind, reverse):
    """With known gradients b + a p, the accumulation of algorithm 2 feature by feature."""
    net = cases.quadratic().double()
    net.b.data *= 0.2  # so that gradients change sign and size along the way
    x, target = cases.images(dtype=torch.float64), cases.labels()
    a, b = (p[target].detach().reshape(x.shape) for p in (net.a, net.b))
    alphas = torch.tensor([0.9, 0.1, 0.4, 0.55], dtype=torch.float64)
    method = kind(8, (0.2, 0.4), 0.1, divisor=divisor, alphas=alphas, max_search=3, reverse=reverse)
    result = method(Classifier(net, chunk_size=chunk), x, target)
    at_image = b + a * x
    counts = []

    def values(base):
        total, count = torch.zeros_like(x), torch.zeros_like(x)
        for alpha in alphas:
            point = base + alpha * (x - base)
            gradient = b + a * point
            if kind is CrediblePath:
                seen = gradient.abs() * (1 + 1e-4 if reverse else 1), at_image.abs() * (1 if reverse else 1 + 1e-4)
                counted = (gradient.sign() == at_image.sign()) & (seen[0] >= seen[1] if reverse else seen[0] <= seen[1])
            else:
                left = (x - point) * gradient
                smaller = left.abs() > at_image.abs() if reverse else left.abs() < at_image.abs()
                counted = (left.sign() == at_image.sign()) & smaller
            total += counted * gradient
            count += counted
        counts.append(count)
        return (x - base) * total / (count.clamp(min=1) if divisor == "count" else 4)

    torch.testing.assert_close(result.values, per_baseline(result, values))
    share = torch.stack(counts).flatten(2).mean((0, 2)) / 4
    torch.testing.assert_close(result.valid, share)
    assert (share < 0.95).all()
    assert (share > 0.05).all() or (reverse and kind is LiteralCrediblePath)


@pytest.mark.parametrize("value", [None, 0.0, 0.5, 1.0, 1 - 1 / 255])
def test_every_pixel_keeps_the_gap(value):
    x = cases.images() if value is None else torch.full((4, 3, 8, 8), value)
    result = CrediblePath(3, max_search=4)(cases.classifier(), x)
    assert ((result.endpoints - x[:, None]).abs() >= GAP - 1e-6).all()
    assert ((result.endpoints >= 0) & (result.endpoints <= 1)).all()


def test_the_search_brings_the_logits_near():
    clf, x = cases.classifier(cases.mlp().double()), cases.images(dtype=torch.float64)
    start = CrediblePath(3, (0.3,), max_search=0, tolerance=0.05)(clf, x)
    assert not start.converged.any()
    assert (start.backwards == 1 + 1 + 3).all()
    short = CrediblePath(3, (0.3,), max_search=5, tolerance=0.05)(clf, x)
    assert (distance(clf, x, short.endpoint) < distance(clf, x, start.endpoint)).all()
    long = CrediblePath(3, (0.3,), max_search=200, tolerance=0.05)(clf, x)
    assert long.converged.all()
    assert (distance(clf, x, long.endpoint) <= 0.05).all()
    assert (long.backwards < 1 + 201 + 3).all()
    assert len(set(long.backwards.tolist())) > 1  # each image stops by itself
    torch.testing.assert_close(long.drop, long.confidence[:, 0, 0] - long.confidence[:, 0, -1])


def test_the_nearest_point_is_kept_where_the_search_overshoots():
    clf, x = cases.classifier(cases.mlp().double()), cases.images(dtype=torch.float64)
    found = [CrediblePath(3, (0.3,), 0.2, max_search=n, tolerance=0.0)(clf, x) for n in range(6)]
    apart = torch.stack([distance(clf, x, result.endpoint) for result in found])
    assert (apart.diff(dim=0) <= 0).all()
    assert (apart[1] < apart[0]).any()
    assert not found[-1].converged.any()


def test_the_literal_search_descends_cross_entropy():
    clf, x = cases.classifier(), cases.images()
    method = LiteralCrediblePath(3, (0.3,), max_search=10, tolerance=0.0)
    with clf.frozen():
        target = clf.logits(x).argmin(1)
    result = method(clf, x, target)
    assert torch.isfinite(result.values).all()
    assert (result.backwards == 1 + 11 + 3).all()


def test_the_search_may_descend_cross_entropy():
    """It makes the class more probable, which is not what brings the logits near; steps are halved all the same."""
    clf, x = cases.classifier(cases.mlp().double()), cases.images(dtype=torch.float64)
    ours = {"steps": 3, "blurs": (0.3,), "max_search": 4, "tolerance": 0.0, "step_size": 0.02}
    start, far = (CrediblePath(**{**ours, "max_search": n}, objective="cross_entropy")(clf, x) for n in (0, 4))
    near = CrediblePath(**ours)(clf, x)
    assert (distance(clf, x, far.endpoint) >= distance(clf, x, near.endpoint)).all()
    assert not torch.equal(far.endpoint, near.endpoint)
    for tried in (far, near):  # the nearest that was found
        assert (distance(clf, x, tried.endpoint) <= distance(clf, x, start.endpoint)).all()


def test_passes():
    counter = cases.PassCounter(cases.mlp())
    result = CrediblePath(9, max_search=7)(cases.classifier(counter), cases.images())
    assert counter.forwards == result.forwards.sum()
    assert counter.backwards == result.backwards.sum()
    assert (result.forwards == result.backwards + 1).all()
    assert result.confidence.shape == (4, 3, 5)
    assert (result.steps == 3).all()


def test_points():
    method = CrediblePath(10)
    assert pickle.loads(pickle.dumps(method)) == method
    fixed = CrediblePath(6, alphas=torch.tensor([0.2, 0.7]))
    assert fixed == CrediblePath(6, alphas=torch.tensor([0.2, 0.7]))
    assert fixed != CrediblePath(6)
    net = cases.linear().double()
    result = fixed(Classifier(net), cases.images(dtype=torch.float64))
    image, low = result.confidence[:, :, 0], result.confidence[:, :, -1]
    torch.testing.assert_close(result.confidence[:, :, 1], low + 0.7 * (image - low), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(result.confidence[:, :, 2], low + 0.2 * (image - low), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"steps": 2}, "steps"),
        ({"blurs": ()}, "blurs"),
        ({"blurs": 3.0}, "blurs"),
        ({"blurs": (2.0,)}, "blurs"),
        ({"blurs": ("wide",)}, "blurs"),
        ({"step_size": 0.0}, "step_size"),
        ({"gap": 0.3}, "gap"),
        ({"tolerance": -0.1}, "tolerance"),
        ({"max_search": -1}, "max_search"),
        ({"divisor": "m"}, "divisor"),
        ({"objective": "mse"}, "objective"),
        ({"reverse": 1}, "reverse"),
        ({"score": "loss"}, "score"),
        ({"alphas": [0.5]}, "alphas"),
    ],
)
def test_bad_settings(arguments, name):
    with pytest.raises(ValueError, match=f"^{name}: expected .*, got "):
        CrediblePath(**arguments)


@pytest.mark.parametrize("alphas", [torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.1, 1.1])])
def test_bad_points(alphas):
    with pytest.raises(ValueError, match=r"^alphas: expected .*, got "):
        CrediblePath(6, alphas=alphas)(cases.classifier(), cases.images())
