from dataclasses import replace

import cases
import numpy as np
import pytest
import torch
from recorded import TOLERANCE, check, problem, stacked
from torch import nn

from robustsigma import Classifier, GuidedIntegratedGradients

GIG = GuidedIntegratedGradients
SETTINGS = {
    "default": {},
    "nb": {"steps": 50, "fraction": 0.5, "max_dist": 1.0},
    "p10": {"steps": 50, "fraction": 0.1, "max_dist": 0.1},
    "straight": {"steps": 50, "fraction": 0.25, "max_dist": 0.0},
}


def clf64(net=None):
    return cases.classifier((cases.mlp() if net is None else net).double())


class Spy(torch.nn.Module):
    """Keeps every batch that passes."""

    def __init__(self, net):
        super().__init__()
        self.net, self.seen = net, []

    def forward(self, x):
        self.seen.append(x.detach().clone())
        return self.net(x)


def points_of(method, x, target=0, net=None):
    """Return the path (steps, B, D) that a method took, and its result."""
    spy = Spy(cases.mlp().to(x.dtype) if net is None else net)
    result = method(Classifier(spy), x, target)
    return torch.stack(spy.seen[1:]).flatten(2), result


def test_exact_on_a_linear_net_along_any_path():
    clf, x = clf64(cases.linear()), cases.images(dtype=torch.float64)
    weight = clf.net[1].weight.detach()[cases.labels()].reshape(x.shape) / clf.std.double()
    for kwargs in SETTINGS.values():
        result = GIG(**{"score": "logit", **kwargs})(clf, x, cases.labels())
        torch.testing.assert_close(result.values, x * weight, rtol=1e-9, atol=1e-12)
        assert result.gap().max() < 1e-9


@pytest.mark.parametrize("score", ["logit", "log_prob", "prob"])
def test_completeness_gap_shrinks_with_steps(score):
    clf, x = clf64(), cases.images(dtype=torch.float64)
    gaps = [GIG(steps, score=score)(clf, x).gap().max() for steps in (10, 40, 160)]
    assert gaps[1] < gaps[0] / 2
    assert gaps[2] < gaps[1] / 2


def test_the_path():
    """Every step ends at its share of the L1 length, and no feature leaves the corridor; the first to move are flat."""
    x = cases.images(3, dtype=torch.float64)
    points, _ = points_of(GIG(20, 0.25, 0.15), x)
    goal = x.flatten(1)
    left = (goal - points).abs().sum(2) / goal.abs().sum(1)
    torch.testing.assert_close(
        left, 1 - torch.arange(20, dtype=torch.float64)[:, None].expand(20, 3) / 20, rtol=0, atol=1e-9
    )
    share = points / goal
    alpha = torch.arange(20, dtype=torch.float64)[:, None, None] / 20
    assert (share <= (alpha + 0.15).clamp(max=1) + 1e-9).all()
    assert (share >= (alpha - 0.15).clamp(min=0) - 1e-9).all()
    assert (share[1:] >= share[:-1] - 1e-12).all()
    clf = Classifier(cases.mlp().double())
    with clf.frozen():
        _, gradient = clf.score_and_gradient(torch.zeros_like(x), torch.zeros(3, dtype=torch.int64), "prob")
    size, moved = gradient.flatten(1).abs(), points[1] > 0
    for i in range(3):
        assert 0 < moved[i].sum() < moved[i].numel()
        assert size[i][moved[i]].max() <= size[i][~moved[i]].min()


def test_no_distance_is_the_straight_line():
    x = cases.images(2, dtype=torch.float64)
    points, result = points_of(GIG(10, max_dist=0.0, score="logit"), x)
    line = torch.arange(10, dtype=torch.float64)[:, None, None] / 10 * x.flatten(1)
    torch.testing.assert_close(points, line, rtol=1e-12, atol=1e-14)
    assert result.confidence.shape == (2, 1, 11)


@pytest.mark.parametrize("baseline", ["black", "white", "mean", "gaussian", "blur", torch.tensor(0.3)])
@pytest.mark.parametrize("max_dist", [0.0, 0.02, 1.0])
def test_ends_for_every_baseline_in_single_precision(baseline, max_dist):
    """In float32 bookkeeping the path waits for ever for its length to come close."""
    x = cases.images(5)
    x[1] = 0.3
    x[2, :, ::2] = 1.0
    for fraction in (0.0, 0.1, 1.0):
        result = GIG(7, fraction, max_dist, baseline, "logit")(cases.classifier(), x, seed=cases.seeds(5))
        assert torch.isfinite(result.values).all()
        spread = GIG(7, fraction, max_dist, baseline, "logit")(cases.classifier(cases.linear()), x, seed=cases.seeds(5))
        assert (spread.gap() < 1e-4 * (1 + spread.drop.abs())).all()  # arrived, else a part of the drop is missing


def test_ties_and_degenerate_images():
    x = cases.images(4)
    x[0] = 0.0  # the baseline
    x[1] = 0.5
    for net in (cases.constant(), cases.saturated()):
        for kwargs in SETTINGS.values():
            result = GIG(**{**kwargs, "steps": 5})(cases.classifier(net), x, 0)
            assert torch.isfinite(result.values).all()
    result = GIG(5)(cases.classifier(), x, 0)
    assert not result.values[0].any()
    assert result.drop[0] == 0


def test_several_baselines_are_paths():
    clf, x, seeds = clf64(), cases.images(dtype=torch.float64), cases.seeds()
    result = GIG(6, baseline=("black", "mean"))(clf, x, seed=seeds)
    singles = [GIG(6, baseline=name)(clf, x, seed=seeds) for name in ("black", "mean")]
    torch.testing.assert_close(result.values, torch.stack([s.values for s in singles]).mean(0))
    torch.testing.assert_close(result.drop, torch.stack([s.drop for s in singles]).mean(0))
    assert result.confidence.shape == (4, 2, 7)
    assert result.endpoints.shape == (4, 2, 3, 8, 8)
    torch.testing.assert_close(result.stderr, torch.stack([s.heatmap() for s in singles]).std(0) / 2**0.5)
    assert singles[0].stderr is None


def test_passes_and_curve():
    counter = cases.PassCounter(cases.mlp())
    clf, x = cases.classifier(counter), cases.images()
    result = GIG(6)(clf, x)
    assert (counter.forwards, counter.backwards, counter.calls) == (4 * 7, 4 * 6, 7)
    assert result.forwards.tolist() == [7] * 4
    assert result.backwards.tolist() == [6] * 4
    with clf.frozen():
        torch.testing.assert_close(result.confidence[:, 0, 0], clf.score(x, result.target))
        torch.testing.assert_close(result.confidence[:, 0, -1], clf.score(torch.zeros_like(x), result.target))
    torch.testing.assert_close(result.drop, result.confidence[:, 0, 0] - result.confidence[:, 0, -1])


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("steps", {"steps": 0}),
        ("fraction", {"fraction": 1.5}),
        ("max_dist", {"max_dist": -0.1}),
        ("score", {"score": "loss"}),
        ("baseline", {"baseline": "gray"}),
    ],
)
def test_bad_settings(name, arguments):
    with pytest.raises(ValueError, match=f"^{name}: expected .*, got "):
        GIG(**arguments)


@pytest.mark.reference
@pytest.mark.parametrize("precision", ["f32", "f64"])
@pytest.mark.parametrize(("score", "stored_score"), [("logit", "logit"), ("prob", "softmax")])
@pytest.mark.parametrize("name", SETTINGS)
def test_authors_runs(vectors, name, score, stored_score, precision):
    stored, (clf, images, targets, _) = np.load(vectors / "gig.npz"), problem(vectors, precision)
    result = GIG(**{**SETTINGS[name], "score": score})(clf, images[:4], targets[:4])
    key = f"{name}_{stored_score}_{precision}"
    found = [i for i in range(4) if f"gig_pair_{key}_{i}" in stored]
    expected = torch.stack([torch.tensor(stored[f"gig_pair_{key}_{i}"]) for i in found])
    check(result.values[found], expected, TOLERANCE[precision])
    if f"gig_idgport_{key}_0" in stored:  # the IDG authors' port keeps its path in float32
        check(result.values, stacked(stored, f"gig_idgport_{key}_{{}}", 4), TOLERANCE[precision])


@pytest.fixture
def numpys_older_names(monkeypatch):
    """NumPy 2.4 dropped the old name of `method`."""
    quantile = np.quantile

    def renamed(*args, interpolation=None, **kwargs):
        return quantile(*args, **kwargs, **({} if interpolation is None else {"method": interpolation}))

    monkeypatch.setattr(np, "quantile", renamed)


class Scaled(nn.Module):
    def __init__(self, gain):
        super().__init__()
        self.gain = gain

    def forward(self, x):
        return self.gain * x


@pytest.mark.reference
@pytest.mark.parametrize("baseline", ["black", "white", "gaussian"])
@pytest.mark.parametrize("name", ["nb", "p10", "straight"])
def test_equals_pairs_library(numpys_older_names, name, baseline):
    saliency = pytest.importorskip("saliency.core")
    method = GIG(**{**SETTINGS[name], "steps": 20, "baseline": baseline, "score": "prob"})
    clf, x, seeds = clf64(cases.cnn_bn_dropout()), cases.images(3, dtype=torch.float64), cases.seeds(3)
    result = method(clf, x, cases.labels(3), seed=seeds)

    def gradients(points, call_model_args, expected_keys):
        batch = torch.from_numpy(points)
        _, gradient = clf.score_and_gradient(batch, torch.full((len(batch),), call_model_args["label"]), "prob")
        return {saliency.base.INPUT_OUTPUT_GRADIENTS: gradient.numpy()}

    for i in range(3):
        with clf.frozen():
            theirs = saliency.GuidedIG().GetMask(
                x[i].numpy(),
                gradients,
                {"label": i},
                x_baseline=result.endpoint[i].numpy(),
                x_steps=20,
                fraction=method.fraction,
                max_dist=method.max_dist,
            )
        check(result.values[i : i + 1], torch.from_numpy(theirs)[None], 1e-9)


@pytest.mark.reference
@pytest.mark.parametrize("margin", [5, 12, 16, 25])
def test_equals_pairs_library_in_single_precision_where_the_softmax_saturates(numpys_older_names, margin):
    saliency = pytest.importorskip("saliency.core")
    plain, x, target = cases.cnn_bn_dropout().eval(), cases.images(3), 0
    with torch.no_grad():
        logits = plain(x)
    nearest = (logits[:, target] - logits[:, target + 1 :].amax(1)).min().item()
    assert nearest > 0
    net = nn.Sequential(plain, Scaled(margin / nearest))
    result = GIG(20, baseline="black", score="prob")(Classifier(net), x, target)

    def gradients(points, call_model_args, expected_keys):
        batch = torch.from_numpy(points.astype(np.float32)).requires_grad_(True)
        (gradient,) = torch.autograd.grad(net(batch).softmax(1)[:, target].sum(), batch)
        return {saliency.base.INPUT_OUTPUT_GRADIENTS: gradient.numpy()}

    for i in range(3):
        black = np.zeros_like(x[i].numpy())
        theirs = saliency.GuidedIG().GetMask(x[i].numpy(), gradients, {}, x_baseline=black, x_steps=20)
        check(result.values[i : i + 1].double(), torch.from_numpy(theirs)[None].double(), 1e-5)


def test_objects():
    assert replace(GIG(), steps=5) == GIG(5)
    assert GIG(baseline=torch.tensor(0.2)) == GIG(baseline=torch.tensor(0.2))
