import cases
import numpy as np
import pytest
import recorded
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustsigma import IDG, Classifier, IntegratedGradients
from robustsigma.engine.attributors.idg import schedule
from robustsigma.engine.attributors.published.path_methods import AuthorsIDG, authors_schedule, authors_slopes


def sorted_in_unit_interval(points):
    assert (points.diff(dim=1) >= 0).all()
    assert (points >= 0).all()
    assert (points <= 1).all()


RISES = st.lists(st.floats(0, 1e3, width=32), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(RISES, st.integers(1, 40))
def test_places_of_samples(rises, samples):
    """Algorithm 1's alpha = i / N + j / (N samples[i]), and half a part further."""
    rises = torch.tensor([rises], dtype=torch.float64)
    counts, left, weights = schedule(rises, samples, "left")
    wanted = [(i + j / n) / len(counts[0]) for i, n in enumerate(counts[0].tolist()) for j in range(n)]
    torch.testing.assert_close(left[0], torch.tensor(wanted, dtype=torch.float64))
    same, middle, alike = schedule(rises, samples)
    torch.testing.assert_close(middle, left + weights / 2)
    assert torch.equal(same, counts)
    assert torch.equal(alike, weights)


@settings(max_examples=60, deadline=None)
@given(RISES, st.integers(1, 40))
def test_schedule(rises, samples):
    counts, points, weights = schedule(torch.tensor([rises], dtype=torch.float64), samples)
    assert (counts >= 0).all()
    assert counts.sum() == samples
    assert points.shape == weights.shape == (1, samples)
    sorted_in_unit_interval(points)
    # The samples of an interval share its width; intervals without samples have none.
    torch.testing.assert_close(weights.sum(1), (counts > 0).double().sum(1) / len(rises))
    quota = torch.tensor(rises, dtype=torch.float64)
    if quota.sum() > 1e-9:
        assert ((counts[0] - samples * quota / quota.sum()).abs() < 1 + 1e-3).all()
        assert not counts[0, quota == 0].any()


def test_schedule_of_a_step_samples_the_step():
    rises = torch.zeros(1, 50)
    rises[0, 25] = 7.0
    counts, points, weights = schedule(rises, 50)
    assert counts[0, 25] == 50
    torch.testing.assert_close(points[0], 0.5 + 0.02 * (torch.arange(50) + 0.5) / 50)
    torch.testing.assert_close(weights[0], torch.full((50,), 0.02 / 50))


@pytest.mark.parametrize("samples", [4, 5, 10])
def test_schedule_of_a_flat_curve_is_uniform(samples):
    counts, points, _ = schedule(torch.zeros(1, 5), samples)
    assert torch.equal(counts, schedule(torch.ones(1, 5), samples)[0])
    if samples % 5 == 0:
        torch.testing.assert_close(points[0], (torch.arange(samples) + 0.5) / samples)


def test_schedule_is_not_decided_by_rounding():
    noise = 1e-7 * torch.randn(20, 32, generator=cases.generator(0))
    for samples, intervals in ((8, 8), (12, 8), (21, 8), (33, 32), (50, 32), (7, 20)):
        noisy = 1 + noise[:, :intervals]
        expected, _, _ = schedule(torch.ones(1, intervals), samples)
        assert torch.equal(schedule(noisy, samples)[0], expected.expand(20, -1))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=12))
def test_authors_schedule_is_finite_and_ordered(slopes):
    points, weights = authors_schedule(torch.tensor([[0.0, *slopes]], dtype=torch.float64))
    sorted_in_unit_interval(points)
    assert torch.isfinite(weights).all()
    assert (weights > 0).all()


def test_authors_schedule_slides():
    """A step at 0.5 gets all of the authors' 50 samples in [0, 0.02]."""
    slopes = torch.zeros(1, 50)
    slopes[0, 25] = 9.0
    points, _ = authors_schedule(slopes)
    assert points.max() < 1 / 49


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [7, 20, 50, 200])
@pytest.mark.parametrize("kind", ["walk", "steps", "integers"])
def test_authors_schedule_serves_equal_shares_in_the_order_of_an_unstable_sort(kind, steps, dtype):
    generator = torch.Generator().manual_seed(steps)
    drawn = torch.randn(40, steps, generator=generator, dtype=dtype)
    curves = {"walk": drawn, "steps": (drawn > 1).to(dtype), "integers": drawn.round()}[kind].cumsum(1)
    for curve in curves:
        slopes = torch.cat([curve.new_zeros(1), curve.diff() * (steps - 1)])
        share = (slopes - slopes.min()) / (slopes.max() - slopes.min())
        share[0] = 0
        share = share / share.sum() * steps
        counts = share.int()
        empty = torch.where(counts > 0, -1, share)
        for entry in torch.flip(torch.sort(empty)[1], [0])[: steps - int(counts.sum())]:
            counts[entry] = 1
        found, start = [], 0.0
        for count in counts[counts > 0].tolist():
            found += [start + k / count / (steps - 1) for k in range(count)]
            start += 1 / (steps - 1)
        points, _ = authors_schedule(slopes[None])
        torch.testing.assert_close(points[0], torch.tensor(found, dtype=dtype), rtol=0, atol=1e-6)


@pytest.mark.parametrize("rest", [0.0, -2.0, 3.0])
def test_authors_schedule_of_equal_slopes(rest):
    """Equal slopes, and falls that are equal but for the first entry's 0, divide 0 by 0 in the authors' code."""
    points, weights = authors_schedule(torch.tensor([[0.0 if rest < 0 else rest, *[rest] * 9]]))
    torch.testing.assert_close(points[0], torch.arange(10) / 9)
    torch.testing.assert_close(weights[0], torch.full((10,), 1 / 9))


def quadratic_closed_form(net, x, target):
    """Return way * integral of g(a) s(a), where the gradient g and the slope s = <g, way> are linear in a."""
    a, b = net.a[target].detach().reshape(x.shape), net.b[target].detach().reshape(x.shape)
    constant, linear = (b * x).flatten(1).sum(1), (a * x.square()).flatten(1).sum(1)
    constant, linear = (s.reshape(-1, 1, 1, 1) for s in (constant, linear))
    return x * (b * constant + (b * linear + a * x * constant) / 2 + a * x * linear / 3)


def rising():
    net = cases.quadratic().double()
    net.a.data.abs_()
    net.b.data.abs_()
    return net


@pytest.mark.parametrize("place", ["middle", "left"])
@pytest.mark.parametrize("sampling", ["adaptive", "uniform"])
@pytest.mark.parametrize(("factor", "tolerance"), [("exact", 1e-4), ("difference", 1e-2)])
@pytest.mark.parametrize("chunk", [4, 1000])
def test_quadratic(sampling, factor, tolerance, chunk, place):
    net, x, target = rising(), cases.images(dtype=torch.float64), cases.labels()
    method = IDG(300, 20, sampling=sampling, factor=factor, place=place)
    result = method(Classifier(net, chunk_size=chunk), x, target)
    tolerance = tolerance if place == "middle" else 1e-2
    expected = quadratic_closed_form(net, x, target)
    assert ((result.values - expected).abs().max() / expected.abs().max()).item() < tolerance
    assert result.converged.all()
    torch.testing.assert_close(result.drop, result.confidence[:, 0, 0] - result.confidence[:, 0, -1])


class Saturating(torch.nn.Module):
    """z_0 = min(2 x_0, 1) + x_1 - x_2: on the line from black to ones, F rises until a = 0.5 and is flat after."""

    def forward(self, x):
        x0, x1, x2 = x.flatten(1).T
        z = (2 * x0).clamp(max=1) + x1 - x2
        return torch.stack([z, -z], 1)


def test_the_decision_region_is_favored():
    """IG gives each pixel its gradient's mean; IDG doubles what lies in the half where F rises, and only that."""
    x = torch.ones(1, 1, 1, 3, dtype=torch.float64)
    clf = Classifier(Saturating())
    ig = IntegratedGradients(10, "midpoint")(clf, x, 0).values.flatten()
    torch.testing.assert_close(ig, torch.tensor([1.0, 1, -1], dtype=torch.float64))
    for sampling in ("uniform", "adaptive"):
        result = IDG(10, sampling=sampling)(clf, x, 0)
        torch.testing.assert_close(result.values.flatten(), torch.tensor([2.0, 1, -1], dtype=torch.float64))
    # The curve of the adaptive samples, from the image: none is in the flat half but the image itself.
    assert (result.confidence[0, 0, 1:] < 1).all()


def test_values_depend_on_the_path():
    """Two baselines with the same score and the same way up to order give other shares of importance."""
    clf, x = cases.classifier(cases.mlp().double()), cases.images(dtype=torch.float64)
    black, white = (IDG(40, baseline=name)(clf, x, 0).values for name in ("black", "white"))
    assert (black - white).abs().max() > 0.1 * black.abs().max()


def test_a_falling_score_is_sampled_uniformly_and_flagged():
    clf, x = Classifier(Saturating()), torch.ones(1, 1, 1, 3, dtype=torch.float64)
    fallen = IDG(10)(clf, x, 1)
    assert not fallen.converged.any()
    torch.testing.assert_close(fallen.values, IDG(10, sampling="uniform")(clf, x, 1).values)


def test_changes_are_sampled_whatever_their_sign():
    """Class 1's score is class 0's with the other sign: the same points, and the same values but for none."""
    clf, x = Classifier(Saturating()), torch.ones(1, 1, 1, 3, dtype=torch.float64)
    up, down = (IDG(10, follow="changes")(clf, x, target) for target in (0, 1))
    assert down.converged.all()
    torch.testing.assert_close(down.confidence, -up.confidence)
    torch.testing.assert_close(down.values, up.values)  # gradient times growth: both signs turn
    torch.testing.assert_close(up.values, IDG(10)(clf, x, 0).values)
    flat = IDG(10, follow="changes", baseline="white")(clf, x, 0)
    assert not flat.converged.any()


@pytest.mark.parametrize(
    ("method", "forwards"),
    [
        (IDG(6), 1 + 1 + 5 + 6),
        (IDG(6, intervals=1), 1 + 1 + 6),
        (IDG(6, intervals=9), 1 + 1 + 8 + 6),
        (IDG(6, sampling="uniform"), 1 + 1 + 6),
        (AuthorsIDG(6), 1 + 1 + 6 + 6),
    ],
)
def test_passes(method, forwards):
    counter = cases.PassCounter(cases.mlp())
    result = method(cases.classifier(counter), cases.images())
    assert counter.forwards == result.forwards.sum() == 4 * forwards
    assert counter.backwards == result.backwards.sum() == 4 * 6


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"steps": 0}, "steps"),
        ({"intervals": 0}, "intervals"),
        ({"sampling": "random"}, "sampling"),
        ({"factor": "central"}, "factor"),
        ({"follow": "falls"}, "follow"),
        ({"place": "right"}, "place"),
        ({"baseline": "gray"}, "baseline"),
        ({"score": "loss"}, "score"),
    ],
)
def test_bad_settings(arguments, name):
    with pytest.raises(ValueError, match=f"^{name}: expected .*, got "):
        IDG(**arguments)


def test_the_authors_code_needs_two_steps_and_fixes_the_schedule():
    with pytest.raises(ValueError, match=r"^steps: expected .*, got "):
        AuthorsIDG(1)
    with pytest.raises(TypeError, match="sampling"):
        AuthorsIDG(sampling="uniform")


@pytest.mark.reference
@pytest.mark.parametrize("precision", ["f32", "f64"])
@pytest.mark.parametrize("steps", [50, 20])
def test_recorded_authors(vectors, steps, precision):
    clf, x, targets, _ = recorded.problem(vectors, precision)
    stored = np.load(vectors / "ig_lig_idg.npz")
    tolerance = recorded.TOLERANCE[precision]
    expected = recorded.stacked(stored, f"idg{steps}_{precision}_{{}}", 4)
    result = AuthorsIDG(steps)(clf, x[:4], targets[:4])
    recorded.check(result.values, expected, tolerance)
    curve = IntegratedGradients(steps, "inclusive_mean")(clf, x[:4], targets[:4]).confidence[:, 0, 1:-1].flip(1)
    slopes = authors_slopes(curve)
    for name, got in zip(("slopes", "alphas", "sub"), (slopes, *authors_schedule(slopes)), strict=True):
        recorded.check(got, recorded.stacked(stored, f"idg{steps}_{name}_{precision}_{{}}", 4), tolerance)


@pytest.mark.reference
@pytest.mark.parametrize("name", ["linear", "sigmoid", "step", "decreasing", "nonmono", "early", "flat"])
def test_recorded_schedules(vectors, name):
    stored = np.load(vectors / "ig_lig_idg.npz")
    slopes, points, weights = (
        torch.tensor(stored[f"alphaparam_{name}_{kind}"])[None] for kind in ("slopes", "alphas", "sub")
    )
    for got, expected in zip(authors_schedule(slopes), (points, weights), strict=True):
        recorded.check(got, expected, recorded.TOLERANCE["f32"])
