import pickle

import captum.attr
import cases
import jsonargparse
import numpy as np
import pytest
import recorded
import torch

from robustsigma import Attributor, Classifier, IntegratedGradients
from robustsigma.engine.attributors.integrated_gradients import RULES, quadrature
from robustsigma.engine.attributors.published import CaptumIntegratedGradients


def darker(images, seeds):
    """Return a baseline that depends on the image and on its seed."""
    return images * (seeds % 7)[:, None, None, None] / 10


BASELINES = {
    "black": "black",
    "white": "white",
    "mean": "mean",
    "gaussian": "gaussian",
    "blur": "blur",
    "one tensor for each image": cases.images(seed=9),
    "one tensor": cases.images(1, seed=9)[0],
    "a color": torch.tensor([0.1, 0.2, 0.9])[:, None, None],
    "a function": darker,
    "several": ("white", "gaussian", darker),
}


def weights(net, target):
    return net[1].weight.detach()[target].reshape(-1, cases.CHANNELS, cases.SIZE, cases.SIZE)


@pytest.mark.parametrize("baseline", BASELINES.values(), ids=BASELINES.keys())
@pytest.mark.parametrize("rule", RULES)
def test_linear(rule, baseline):
    """On a linear network values are w (x - x'), with any rule and baseline."""
    net = cases.linear().double()
    x = cases.images(dtype=torch.float64)
    result = IntegratedGradients(5, rule, baseline)(Classifier(net), x, cases.labels(), seed=cases.seeds())
    bases = result.endpoint if result.endpoints is None else result.endpoints.mean(1)
    torch.testing.assert_close(result.values, weights(net, cases.labels()) * (x - bases))
    assert (result.gap() < 1e-12).all()


@pytest.mark.parametrize(
    ("rule", "mean"),
    # The mean of the points: what the rule makes of the integral of a over [0, 1].
    [
        ("gauss_legendre", 0.5),
        ("midpoint", 0.5),
        ("trapezoid", 0.5),
        ("inclusive_mean", 0.5),
        ("left", 0.4),
        ("right", 0.6),
    ],
)
def test_quadratic(rule, mean):
    """The gradient b + a p is linear along the line, so its integral is its value at the mean of the points."""
    net = cases.quadratic().double()
    x, target = cases.images(dtype=torch.float64), cases.labels()
    result = IntegratedGradients(5, rule, "white")(Classifier(net), x, target)
    a, b = net.a[target].detach().reshape(x.shape), net.b[target].detach().reshape(x.shape)
    torch.testing.assert_close(result.values, (x - 1) * (b + a * (1 + mean * (x - 1))))
    assert (result.gap().max() < 1e-10) == (mean == 0.5)


@pytest.mark.parametrize("rule", RULES)
def test_rules_are_means(rule):
    points, shares = map(np.array, quadrature(rule, 7))
    assert shares.sum() == pytest.approx(1)
    assert (shares > 0).all()
    assert (np.diff(points) > 0).all()
    assert points[0] >= 0
    assert points[-1] <= 1
    ends = {"trapezoid": 0.5}.get(rule, 1.0)
    if rule != "gauss_legendre":
        np.testing.assert_allclose(shares / shares[3], [ends, 1, 1, 1, 1, 1, ends])


def test_the_curve_runs_from_the_image_to_the_baseline():
    clf, x = cases.classifier(), cases.images()
    result = IntegratedGradients(4, "midpoint", "white", score="prob")(clf, x)
    with clf.frozen():
        for place, share in enumerate([0, 1 / 8, 3 / 8, 5 / 8, 7 / 8, 1]):
            score = clf.score(x + share * (1 - x), result.target)
            torch.testing.assert_close(result.confidence[:, 0, place], score)
    torch.testing.assert_close(result.drop, result.confidence[:, 0, 0] - result.confidence[:, 0, -1])
    assert torch.equal(result.endpoint, torch.ones_like(x))


def test_several_baselines_are_averaged():
    clf, x = cases.classifier(), cases.images()
    names = ("black", "white", "blur")
    whole = IntegratedGradients(6, baseline=names)(clf, x)
    single = [IntegratedGradients(6, baseline=name)(clf, x) for name in names]
    torch.testing.assert_close(whole.values, sum(one.values for one in single) / 3)
    torch.testing.assert_close(whole.drop, sum(one.drop for one in single) / 3)
    torch.testing.assert_close(whole.endpoints, torch.stack([one.endpoint for one in single], 1))
    torch.testing.assert_close(whole.confidence, torch.cat([one.confidence for one in single], 1))
    maps = torch.stack([one.heatmap() for one in single])
    torch.testing.assert_close(whole.stderr, maps.std(0) / 3**0.5)
    assert (whole.forwards == 1 + 3 * 7).all()
    assert (whole.backwards == 18).all()


@pytest.mark.parametrize(
    "function",
    [
        torch.zeros_like,  # a built-in, whose arguments Python does not tell
        lambda images: 0 * images,
        lambda images, share=0.0: share * images,
        lambda images, seeds: 0 * images * seeds.reshape(-1, 1, 1, 1),
        lambda images, seeds=None: 0 * images * seeds.reshape(-1, 1, 1, 1),
        lambda *given: 0 * given[0] * given[1].reshape(-1, 1, 1, 1),
    ],
)
def test_a_baseline_function_takes_seeds_or_not(function):
    clf, x = cases.classifier(), cases.images()
    expected = IntegratedGradients(4, baseline="black")(clf, x, 1, seed=cases.seeds())
    result = IntegratedGradients(4, baseline=function)(clf, x, 1, seed=cases.seeds())
    assert torch.equal(result.values, expected.values)


def test_random_baselines_differ_between_draws_and_seeds():
    seeds = torch.tensor([1, 1, 2, 3])
    result = IntegratedGradients(2, baseline=["gaussian", "gaussian"])(cases.classifier(), cases.images(), seed=seeds)
    first, second = result.endpoints.unbind(1)
    assert not torch.equal(first, second)
    assert torch.equal(first[0], first[1])  # images with equal seeds share their noise
    other = IntegratedGradients(2, baseline="gaussian")(cases.classifier(), cases.images(), seed=seeds + 1)
    assert not torch.equal(first, other.endpoint)


def test_tensors_compare_by_content():
    pixels = torch.full((3, 1, 1), 0.5)
    one, same = IntegratedGradients(baseline=pixels), IntegratedGradients(baseline=pixels.clone())
    other = IntegratedGradients(baseline=torch.zeros(3, 1, 1))
    pixels.zero_()
    assert one == same
    assert hash(one) == hash(same)
    assert one not in (other, IntegratedGradients())
    assert pickle.loads(pickle.dumps(one)) == one
    assert "shape (3, 1, 1)" in repr(one)
    assert (one(cases.classifier(), cases.images()).endpoint == 0.5).all()


@pytest.mark.parametrize(
    "baseline",
    ["gray", None, [], ["black", "gray"], [["black"]], torch.zeros(3, 1, 1, dtype=torch.int64), torch.zeros(0)],
    ids=str,
)
def test_a_bad_baseline_is_refused_when_made(baseline):
    with pytest.raises(ValueError, match=r"^baseline: expected .*, got "):
        IntegratedGradients(baseline=baseline)


@pytest.mark.parametrize(
    "baseline",
    [torch.zeros(3, 9, 9), torch.full((3, 1, 1), 1.5), torch.zeros(5, 3, 8, 8), lambda images, seeds: None],
    ids=["size", "range", "count", "no tensor"],
)
def test_a_bad_baseline_is_refused_when_used(baseline):
    with pytest.raises(ValueError, match=r"^baseline: .*expected .*, got "):
        IntegratedGradients(baseline=baseline)(cases.classifier(), cases.images())


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": 1, "rule": "trapezoid"}, "steps"),
        ({"steps": 1, "rule": "inclusive_mean"}, "steps"),
        ({"rule": "simpson"}, "rule"),
        ({"score": "loss"}, "score"),
    ],
)
def test_bad_settings(arguments, name):
    with pytest.raises(ValueError, match=f"^{name}: expected .*, got "):
        IntegratedGradients(**arguments)


@pytest.mark.parametrize("text", ["blur", "[black, white]", "[gaussian, torch.nn.functional.relu]"])
def test_baselines_from_a_configuration(text):
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--m", type=Attributor)
    config = parser.parse_args(["--m=IntegratedGradients", f"--m.baseline={text}"])
    method = parser.instantiate(config).m
    assert parser.instantiate(parser.parse_string(parser.dump(config))).m == method
    assert method != IntegratedGradients()


CAPTUM_RULES = {
    "gausslegendre": "gauss_legendre",
    "riemann_trapezoid": "trapezoid",
    "riemann_right": "right",
    "riemann_left": "left",
    "riemann_middle": "midpoint",
}


@pytest.mark.reference
@pytest.mark.parametrize("steps", [5, 50])
@pytest.mark.parametrize("name", CAPTUM_RULES)
def test_captum(name, steps):
    clf, x = cases.classifier(cases.mlp().double()), cases.images(dtype=torch.float64)
    with clf.frozen():
        expected = captum.attr.IntegratedGradients(clf).attribute(x, 0.25, cases.labels(), n_steps=steps, method=name)
    for kind, tolerance in ((IntegratedGradients, 1e-6), (CaptumIntegratedGradients, 1e-12)):
        method = kind(steps, CAPTUM_RULES[name], baseline=torch.tensor(0.25))
        values = method(clf, x, cases.labels()).values
        if (name, kind) == ("riemann_trapezoid", IntegratedGradients):
            values = values * (1 - 1 / steps)
        torch.testing.assert_close(values, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())


def test_captum_has_no_inclusive_mean():
    with pytest.raises(ValueError, match=r"^rule: expected one of captum's"):
        CaptumIntegratedGradients(rule="inclusive_mean")


@pytest.mark.reference
@pytest.mark.parametrize(
    ("name", "steps", "precision"),
    [*((name, 50, precision) for name in CAPTUM_RULES for precision in recorded.DTYPES), ("gausslegendre", 200, "f64")],
)
def test_recorded_captum(vectors, name, steps, precision):
    clf, x, targets, _ = recorded.problem(vectors, precision)
    expected = torch.tensor(np.load(vectors / "ig_lig_idg.npz")[f"captum_ig_{name}_{steps}_{precision}"])
    count = len(expected)
    rule = CAPTUM_RULES[name]
    method = IntegratedGradients(steps, rule)
    if rule != "trapezoid":
        recorded.check(
            method(clf, x[:count], targets[:count]).values, expected, max(1e-7, recorded.TOLERANCE[precision])
        )
    method = CaptumIntegratedGradients(steps, rule)
    recorded.check(method(clf, x[:count], targets[:count]).values, expected, recorded.TOLERANCE[precision])


@pytest.mark.reference
@pytest.mark.parametrize("precision", ["f32", "f64"])
@pytest.mark.parametrize("steps", [50, 20])
def test_recorded_idg_repository(vectors, steps, precision):
    clf, x, targets, _ = recorded.problem(vectors, precision)
    expected = recorded.stacked(np.load(vectors / "ig_lig_idg.npz"), f"ig{steps}_{precision}_{{}}", 4)
    result = IntegratedGradients(steps, "inclusive_mean")(clf, x[:4], targets[:4])
    recorded.check(result.values, expected, recorded.TOLERANCE[precision])


@pytest.mark.reference
def test_recorded_pair(vectors):
    clf, x, targets, _ = recorded.problem(vectors, "f64")
    expected = recorded.stacked(np.load(vectors / "gig.npz"), "pair_ig25_logit_f64_{}", 4)
    result = IntegratedGradients(25, "inclusive_mean")(clf, x[:4], targets[:4])
    recorded.check(result.values, expected, 1e-6)  # PAIR sums gradients in float32


@pytest.mark.reference
@pytest.mark.parametrize("precision", ["f32", "f64"])
def test_recorded_path_explain(vectors, precision):
    clf, x, targets, _ = recorded.problem(vectors, precision)
    expected = torch.tensor(np.load(vectors / "eg.npz")[f"pe_ig50_{precision}"])
    count = len(expected)
    rounded = Classifier(recorded.SingleGradients(clf.net))
    result = IntegratedGradients(50, "inclusive_mean")(rounded, x[:count], targets[:count])
    recorded.check(result.values, expected, recorded.TOLERANCE[precision])
