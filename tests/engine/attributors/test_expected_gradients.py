import pickle

import cases
import numpy as np
import pytest
import recorded
import torch

from robustsigma import Classifier, ExpectedGradients

REFERENCES = cases.images(5, seed=60, dtype=torch.float64)


def linear():
    net = cases.linear().double()
    return Classifier(net), net[1].weight.detach()[cases.labels()].reshape(4, 3, 8, 8)


def used(clf, result):
    """Return which of REFERENCES each draw used, (B, draws), by their scores."""
    with clf.frozen():
        scores = clf.logits(REFERENCES)[:, result.target].T
    return (result.confidence[:, :, 2, None] - scores[:, None]).abs().argmin(2)


@pytest.mark.parametrize("stratified", [True, False])
@pytest.mark.parametrize("draws", [1, 3, 5, 12])
def test_linear(draws, stratified):
    """On a linear network values are w (x - mean of the drawn references), and the sum is complete."""
    clf, weights = linear()
    x = cases.images(dtype=torch.float64)
    result = ExpectedGradients(draws, REFERENCES, stratified)(clf, x, cases.labels(), seed=cases.seeds())
    drawn = used(clf, result)
    torch.testing.assert_close(result.values, weights * (x - REFERENCES[drawn].mean(1)))
    assert (result.gap() < 1e-10).all()
    torch.testing.assert_close(result.endpoint, REFERENCES[drawn[:, 0]])
    if draws > 1:
        maps = (weights[:, None] * (x[:, None] - REFERENCES[drawn])).abs().sum(2)
        torch.testing.assert_close(result.stderr, maps.std(1) / draws**0.5)
    else:
        assert result.stderr is None


def test_no_reference_is_used_again_before_all_are():
    clf, _ = linear()
    result = ExpectedGradients(12, REFERENCES)(clf, cases.images(dtype=torch.float64), seed=cases.seeds())
    drawn = used(clf, result)
    for rounds in (drawn[:, :5], drawn[:, 5:10]):
        assert torch.equal(rounds.sort(dim=1).values, torch.arange(5).expand(4, -1))
    assert not torch.equal(drawn[:, :5], drawn[:, 5:10])
    assert not torch.equal(drawn[0], drawn[1])  # another seed, another order


@pytest.mark.parametrize("stratified", [True, False])
def test_points_lie_in_their_strata(stratified):
    """On a linear network t is how far the score has risen from the reference's."""
    clf, _ = linear()
    result = ExpectedGradients(40, REFERENCES, stratified)(clf, cases.images(dtype=torch.float64), seed=cases.seeds())
    image, point, reference = result.confidence.unbind(2)
    t = (point - reference) / (image - reference)
    assert ((t > 0) & (t < 1)).all()
    assert torch.equal((t * 40).floor(), torch.arange(40.0).expand(4, -1).double()) == stratified


def quadratic_closed_form(net, x, target):
    """Return the mean over REFERENCES of the exact path integral (x - r) (b + a (x + r) / 2)."""
    a, b = (p[target].detach().reshape(len(x), 1, 3, 8, 8) for p in (net.a, net.b))
    both = x[:, None]
    return ((both - REFERENCES) * (b + a * (both + REFERENCES) / 2)).mean(1)


def test_completeness_and_values_in_expectation():
    """Means over many seeds approach the closed form and the drop at the rate of the standard error."""
    net = cases.quadratic().double()
    x, target = cases.images(1, dtype=torch.float64), cases.labels(1)
    expected = quadratic_closed_form(net, x, target)[0]
    count = 400
    spread = {}
    for stratified in (False, True):
        method = ExpectedGradients(10, REFERENCES, stratified)
        result = method(Classifier(net), x.expand(count, -1, -1, -1), target.expand(count), seed=cases.seeds(count))
        error = (result.values.mean(0) - expected) / (result.values.std(0) / count**0.5)
        assert error.abs().max() < 5
        sums = result.values.flatten(1).sum(1) - result.drop
        assert sums.mean().abs() < 4 * sums.std() / count**0.5
        spread[stratified] = sums.std()
    assert spread[True] < 0.3 * spread[False]


@pytest.mark.parametrize("shape", [(6,), (4, 6)])
def test_injected_draws(shape):
    clf = cases.classifier(cases.quadratic().double(), mean=(0.0,), std=(1.0,))
    x, target = cases.images(dtype=torch.float64), cases.labels()
    index = torch.arange(24).reshape(4, 6)[: shape[0] if len(shape) > 1 else 1].reshape(shape) % 5
    t = torch.linspace(0, 1, 6, dtype=torch.float64).expand(shape)
    result = ExpectedGradients(6, REFERENCES, index=index, t=t)(clf, x, target)
    way = x[:, None] - REFERENCES[index.expand(4, 6)]
    points = x[:, None] - (1 - t.expand(4, 6))[..., None, None, None] * way
    a, b = (p[target].detach().reshape(4, 1, 3, 8, 8) for p in (clf.net.a, clf.net.b))
    torch.testing.assert_close(result.values, (way * (b + a * points)).mean(1))
    assert result.forwards.sum() == 4 * (1 + 6) + 5  # each of the references once


def test_references_by_function_and_by_default():
    clf, x = cases.classifier(), cases.images()
    given = []

    def function(images, seeds):
        given.append((images.shape, seeds.tolist()))
        return REFERENCES

    by_function = ExpectedGradients(4, function)(clf, x, seed=cases.seeds())
    assert given == [(x.shape, cases.seeds().tolist())]
    assert torch.equal(by_function.values, ExpectedGradients(4, REFERENCES)(clf, x, seed=cases.seeds()).values)
    stand_ins = ExpectedGradients(64)(clf, x, seed=cases.seeds())
    assert (stand_ins.forwards == 1 + 64 + 32 // 4).all()
    alone = ExpectedGradients(64)(clf, x[1:2], seed=cases.seeds()[1:2])
    torch.testing.assert_close(alone.values[0], stand_ins.values[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("references", "scored"), [(3, 3), (5, 5), (20, 8)])
def test_passes(references, scored):
    """A reference is scored once, however many images drew it; images of one seed draw the same."""
    counter = cases.PassCounter(cases.mlp())
    method, seeds = ExpectedGradients(8, cases.images(references, seed=1)), torch.full((4,), 0)
    result = method(cases.classifier(counter), cases.images(), seed=seeds)
    assert counter.forwards == result.forwards.sum() == 4 * (1 + 8) + scored
    assert counter.backwards == result.backwards.sum() == 4 * 8


def test_tensors_compare_by_content():
    index, t = torch.tensor([0, 1]), torch.tensor([0.1, 0.9])
    one = ExpectedGradients(2, REFERENCES, index=index, t=t)
    assert one == ExpectedGradients(2, REFERENCES.clone(), index=index.clone(), t=t.clone())
    assert one != ExpectedGradients(2, REFERENCES, index=index.flip(0), t=t)
    assert hash(pickle.loads(pickle.dumps(one))) == hash(one)
    assert len(repr(one)) < 300


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"draws": 0}, "draws"),
        ({"references": "train"}, "references"),
        ({"references": REFERENCES[:0]}, "references"),
        ({"references": REFERENCES * torch.nan}, "references"),
        ({"index": torch.tensor([0.5])}, "index"),
        ({"t": torch.tensor([1])}, "t"),
        ({"score": "loss"}, "score"),
    ],
)
def test_bad_settings(arguments, name):
    with pytest.raises(ValueError, match=f"^{name}: expected .*, got "):
        ExpectedGradients(**arguments)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"references": REFERENCES[:, :1]}, "references"),
        ({"references": REFERENCES[0]}, "references"),
        ({"references": REFERENCES * 255}, "references"),
        ({"references": lambda images, seeds: None}, "references"),
        ({"index": torch.tensor([0, 5])}, "index"),
        ({"index": torch.tensor([0, -1])}, "index"),
        ({"index": torch.tensor([0, 1, 2])}, "index"),
        ({"t": torch.tensor([0.0, 1.5])}, "t"),
        ({"t": torch.zeros(3, 2)}, "t"),
    ],
)
def test_bad_tensors(arguments, name):
    with pytest.raises(ValueError, match=f"^{name}: .*expected .*, got "):
        ExpectedGradients(2, **{"references": REFERENCES, **arguments})(cases.classifier(), cases.images())


@pytest.mark.reference
@pytest.mark.parametrize("precision", ["f32", "f64"])
@pytest.mark.parametrize("draws", [50, 200])
def test_recorded_authors(vectors, draws, precision):
    clf, x, targets, refs = recorded.problem(vectors, precision)
    stored = np.load(vectors / "eg.npz")
    name = f"eg{draws}_{precision}"
    expected = torch.tensor(stored[name])
    count = len(expected)
    index, t = torch.tensor(stored[f"{name}_ref_index"]), torch.tensor(stored[f"{name}_alpha"])
    method = ExpectedGradients(draws, refs, index=index[:count], t=t[:count])
    recorded.check(method(clf, x[:count], targets[:count]).values, expected, max(recorded.TOLERANCE[precision], 1e-7))
    rounded = Classifier(recorded.SingleGradients(clf.net))  # their code rounds every gradient to float32
    recorded.check(method(rounded, x[:count], targets[:count]).values, expected, recorded.TOLERANCE[precision])
