from dataclasses import replace

import cases
import jsonargparse
import numpy as np
import pytest
import torch
from recorded import problem, stacked

from robustsigma import AGI, Attributor, Classifier
from robustsigma.engine.attributors.published import AuthorsAGI


def clf64(net=None, **kwargs):
    return cases.classifier((cases.mlp() if net is None else net).double(), **kwargs)


def written_out(clf, x, target, false, eps, steps, *, from_image):
    """The ascent of one false class for one image, with softmax gradients."""
    u, phi, taken = x, torch.zeros_like(x), 0
    for _ in range(steps):
        point = u.clone().requires_grad_(True)
        p = clf(point[None]).softmax(1)[0]
        if p.argmax() == false:
            break
        (ascent,) = torch.autograd.grad(p[false], point, retain_graph=True)
        (g,) = torch.autograd.grad(p[target], point)
        base = x if from_image else u
        new = (base + eps * ascent.sign()).clamp(0, 1)
        phi, u, taken = phi - (new - base) * g, new, taken + 1
    return phi, u, taken


@pytest.mark.parametrize("kind", [AGI, AuthorsAGI])
@pytest.mark.parametrize("average", ["mean", "sum"])
def test_equals_the_ascent_written_out(kind, average):
    clf, x = clf64(), cases.images(3, dtype=torch.float64)
    result = kind(0.02, 6, (0, 2), average=average)(clf, x, 1)
    with clf.frozen():
        for i in range(3):
            each = [written_out(clf, x[i], 1, false, 0.02, 6, from_image=kind is AuthorsAGI) for false in (0, 2)]
            total = torch.stack([e[0] for e in each]).sum(0)
            torch.testing.assert_close(result.values[i], total if average == "sum" else total / 2)
            torch.testing.assert_close(result.endpoints[i], torch.stack([e[1] for e in each]))
            assert result.steps[i].tolist() == [e[2] for e in each]


@pytest.mark.parametrize("average", ["mean", "sum"])
def test_completeness_gap_shrinks_with_steps(average):
    clf, x = clf64(), cases.images(dtype=torch.float64)
    methods = [AGI(0.02 / k, 6 * k, average=average) for k in (1, 4, 16)]
    gaps = [method(clf, x).gap().max() for method in methods]
    assert gaps[1] < gaps[0] / 2
    assert gaps[2] < gaps[1] / 2
    result = methods[0](clf, x)
    with clf.frozen():
        ends = clf.score(result.endpoints.flatten(0, 1), result.target.repeat_interleave(2)).reshape(4, 2)
        falls = clf.score(x, result.target)[:, None] - ends
    torch.testing.assert_close(result.drop, falls.mean(1) if average == "mean" else falls.sum(1))


def test_standard_error_over_classes():
    clf, x = clf64(), cases.images(3, dtype=torch.float64)
    maps = torch.stack([AGI(classes=(false,), steps=4)(clf, x, 0).heatmap() for false in (1, 2)])
    torch.testing.assert_close(AGI(classes=(1, 2), steps=4)(clf, x, 0).stderr, maps.std(0) / 2**0.5)
    total = AGI(classes=(1, 2), steps=4, average="sum")(clf, x, 0)
    torch.testing.assert_close(total.stderr, maps.std(0) * 2**0.5)  # of a sum of two
    left = AGI(classes=(0, 1, 2), steps=4, average="sum")(clf, x, 0)  # the target itself is no path
    torch.testing.assert_close(left.stderr, total.stderr)


def test_a_path_ends_where_its_class_is_predicted():
    clf, x = clf64(), cases.images(6, dtype=torch.float64)
    result = AGI(0.01, 12)(clf, x)
    with clf.frozen():
        predicted = clf.logits(result.endpoints.flatten(0, 1)).argmax(1).reshape(6, 2)
    assert result.converged.any()
    assert (predicted[result.converged] != result.target[:, None].expand(6, 2)[result.converged]).all()
    assert (result.steps[~result.converged] == 12).all()
    early = result.steps < 12
    assert early.any()
    assert result.converged[early].all()
    listed = AGI(0.01, 12, (0, 1, 2))(clf, x)
    false = torch.arange(3).expand(6, 3)
    with clf.frozen():
        predicted = clf.logits(listed.endpoints.flatten(0, 1)).argmax(1).reshape(6, 3)
    others = false != listed.target[:, None]
    assert torch.equal(listed.converged, (predicted == false) & others)
    torch.testing.assert_close(listed.values, result.values)
    torch.testing.assert_close(listed.stderr, result.stderr)


def test_classes_are_drawn_by_seed_without_the_target():
    clf = Classifier(cases.mlp(classes=9))
    x, labels = cases.images(6), torch.arange(6)
    method = AGI(classes=3)
    false = method._false_classes(labels, torch.full((6,), 4), 9)
    assert false.shape == (6, 3)
    assert (false != labels[:, None]).all()
    assert all(len(row.unique()) == 3 for row in false)
    drawn = torch.cat([method._false_classes(labels, torch.full((6,), seed), 9) for seed in range(60)])
    counts = torch.bincount(drawn.flatten(), minlength=9)
    assert counts.min() > 40  # 120 draws each, less for those that are targets
    assert method._false_classes(labels, cases.seeds(6), 9).tolist() != false.tolist()
    assert AGI(classes=20)._false_classes(labels, cases.seeds(6), 9).shape == (6, 8)
    first, again, other = (method(clf, x, labels, seed=s) for s in (1, 1, 2))
    assert torch.equal(first.values, again.values)
    assert not torch.equal(first.values, other.values)
    grid = AuthorsAGI(classes=3)._false_classes(labels, cases.seeds(6), 9)
    assert grid.tolist() == [[0, 3, 6]] * 6


def test_no_class_left_gives_zeros():
    for kind in (AGI, AuthorsAGI):
        result = kind(classes=(1,))(cases.classifier(), cases.images(), cases.labels())
        none = cases.labels() == 1
        assert not result.values[none].any()
        assert not result.drop[none].any()
        assert not result.steps[none].any()
        assert result.values[~none].flatten(1).any(1).all()
        assert result.forwards[none].tolist() == [1]


def test_no_class_left_for_anybody_asks_nothing_of_the_network():
    clf = cases.classifier()
    clf.net.register_forward_pre_hook(lambda _, given: given[0].view(len(given[0]), -1))  # fails of an empty batch
    result = AGI(classes=(1,))(clf, cases.images(), 1)
    assert not result.values.any()
    assert not result.walked.any()
    assert result.all_converged().all()


def test_degenerate_cases():
    x = cases.images(3)
    x[0] = 0.5
    for kind in (AGI, AuthorsAGI):
        flat = kind(steps=3)(cases.classifier(cases.constant()), x)
        assert not flat.values.any()
        sharp = kind(steps=3)(cases.classifier(cases.saturated()), x)
        assert torch.isfinite(sharp.values).all()
        pair = kind(steps=3)(cases.classifier(cases.mlp(classes=2)), x)
        assert pair.stderr is None
    sharp = AGI(0.2, 3)(cases.classifier(cases.saturated()), x)
    assert (
        (sharp.endpoints != x[:, None]).flatten(2).any(2)[sharp.steps > 0].all()
    )  # log p has a gradient where p has none
    with cases.classifier(cases.saturated()).frozen():
        lost = cases.classifier(cases.saturated())(x).argmin(1)
    already = AGI(steps=3)(cases.classifier(cases.saturated()), x, lost)
    assert (already.steps == 0).any()
    assert already.converged[already.steps == 0].all()
    pixel = AGI(steps=3)(Classifier(cases.mlp(4, 1)), cases.images(2, channels=4, size=1))
    assert torch.isfinite(pixel.values).all()


@pytest.mark.parametrize("chunk_size", [1, 3, 64])
@pytest.mark.parametrize("kind", [AGI, AuthorsAGI])
def test_passes_and_batches(chunk_size, kind):
    counter = cases.PassCounter(cases.mlp().double())
    clf, x = cases.classifier(counter, chunk_size=chunk_size), cases.images(4, dtype=torch.float64)
    method, target = kind(0.01, 5), cases.labels()
    result = method(clf, x, target, seed=cases.seeds())
    assert counter.forwards == result.forwards.sum()
    assert counter.backwards == result.backwards.sum()
    assert len(result.steps.unique()) > 1
    for i in range(4):
        one = method(clf64(), x[i : i + 1], target[i : i + 1], seed=cases.seeds()[i : i + 1])
        torch.testing.assert_close(one.values[0], result.values[i], rtol=1e-9, atol=1e-12)
        assert torch.equal(one.steps[0], result.steps[i])
        assert torch.equal(one.forwards[0], result.forwards[i])


def test_objects_and_bad_settings():
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--m", type=Attributor)
    for method, given in ((AGI(classes=(0, 2)), "[0, 2]"), (AGI(classes=4), "4")):
        config = parser.parse_object({"m": f"{{class_path: AGI, init_args: {{classes: {given}}}}}"})
        assert parser.instantiate(parser.parse_string(parser.dump(config))).m == method
    for name, arguments in {
        "step_size": {"step_size": 0},
        "steps": {"steps": 0},
        "classes": {"classes": 0},
        r"classes\[1\]": {"classes": (0, -1)},
        "average": {"average": "median"},
        "score": {"score": "loss"},
    }.items():
        with pytest.raises(ValueError, match=f"^{name}: expected .*, got "):
            AGI(**arguments)
    for bad in ((), (1, 1)):
        with pytest.raises(ValueError, match=r"^classes: expected"):
            AGI(classes=bad)
    with pytest.raises(ValueError, match=r"^classes: expected class indices in \[0, 2\], got"):
        AGI(classes=(0, 3))(cases.classifier(), cases.images())


def near(got, expected):
    """Compare row by row in float32."""
    error = (got - expected).abs().flatten(1).amax(1)
    assert (error <= 1e-5 * expected.abs().flatten(1).amax(1)).all(), error


RUNS = {
    "all_e.05_m20": AuthorsAGI(0.05, 20, tuple(range(10))),
    "ids0369_e.05_m15": AuthorsAGI(0.05, 15, (0, 3, 6, 9)),
    "id0_e.05_m20": AuthorsAGI(0.05, 20, (0,)),
    "all_e.01_m20": AuthorsAGI(0.01, 20, tuple(range(10))),
}


@pytest.mark.reference
@pytest.mark.parametrize("name", RUNS)
def test_authors_runs(vectors, name):
    stored, (clf, images, targets, _) = np.load(vectors / "agi.npz"), problem(vectors, "f32")
    method = RUNS[name]
    result = method(clf, images[:4], targets[:4])
    near(result.values, stacked(stored, f"agi_{name}_{{}}", 4))
    for place, label in enumerate(method.classes):
        for i in range(4):
            if f"agi_{name}_{i}_adv{label}" in stored:
                end, part = (torch.tensor(stored[f"agi_{name}_{i}_{kind}{label}"]) for kind in ("adv", "delta"))
                near(result.endpoints[i : i + 1, place], end[None])
                alone = replace(method, classes=(label,))(clf, images[i : i + 1], targets[i : i + 1])
                near(alone.values, part[None])
