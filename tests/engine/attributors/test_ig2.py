import pickle
from dataclasses import replace

import cases
import jsonargparse
import numpy as np
import pytest
import torch
from recorded import check, problem
from settings import Centered
from torch import nn

from robustsigma import IG2, Attributor, Classifier
from robustsigma.engine.attributors.published import AuthorsIG2

REFS = cases.images(3, seed=50)


def clf64(net=None, **kwargs):
    return cases.classifier((cases.mlp() if net is None else net).double(), **kwargs)


def written_out(clf, features, x, reference, target, steps, length):
    """The path and sums for one image and reference, with the representation as a function."""
    goal, u, phi = features(reference[None]).detach(), x, torch.zeros_like(x)
    for _ in range(steps):
        point = u.clone().requires_grad_(True)
        (v,) = torch.autograd.grad(-(features(point[None]) - goal).square().mean(), point)
        (g,) = torch.autograd.grad(clf(point[None])[0, target], point)
        new = (u + length * v / v.norm()).clamp(0, 1)
        phi = phi + (u - new) * g
        u = new
    return phi, u


def test_equals_the_path_written_out():
    clf, x = clf64(), cases.images(2, dtype=torch.float64)
    method = AuthorsIG2(REFS, steps=6, step_size=0.01)
    result = method(clf, x, 1)
    with clf.frozen():

        def features(images):
            return clf.net[:3]((images - clf.mean.double()) / clf.std.double())

        for i in range(2):
            each = [written_out(clf, features, x[i], r.double(), 1, 6, 0.01 * 192**0.5) for r in REFS]
            torch.testing.assert_close(result.values[i], 255 * torch.stack([e[0] for e in each]).mean(0))
            torch.testing.assert_close(result.endpoints[i], torch.stack([e[1] for e in each]))
    sound = IG2(REFS, steps=6, step_size=0.01)(clf, x, 1)
    walked = ~sound.confidence[:, :, 0].isnan()
    full = (sound.steps == 6) & walked
    assert full.any()
    torch.testing.assert_close(sound.endpoints[full], result.endpoints[full])


@pytest.mark.parametrize("score", ["logit", "log_prob", "prob"])
def test_completeness_gap_shrinks_with_steps(score):
    clf, x = clf64(), cases.images(dtype=torch.float64)
    gaps = [IG2(REFS, 4 * k, 0.01 / k, score=score)(clf, x).gap().max() for k in (1, 4, 16)]
    assert gaps[1] < gaps[0] / 2
    assert gaps[2] < gaps[1] / 2
    with clf.frozen():
        result = IG2(REFS, 4, 0.01, score=score)(clf, x)
        torch.testing.assert_close(result.confidence[:, :, 0].nanmean(1), clf.score(x, result.target, score))


def test_steps_are_of_one_length_and_come_closer():
    clf, x = clf64(), 0.4 + 0.2 * cases.images(dtype=torch.float64)
    one = IG2(REFS, 1, 0.01)(clf, x)
    moved = (one.steps == 1)[..., None, None, None].expand_as(one.endpoints)
    way = (one.endpoints - x[:, None])[moved].reshape(-1, 192)
    torch.testing.assert_close(way.square().mean(1).sqrt(), torch.full((len(way),), 0.01, dtype=torch.float64))

    def distance(images):
        h = clf.net[:3]((images - clf.mean) / clf.std)
        goal = clf.net[:3]((REFS.double() - clf.mean) / clf.std)
        return (h.unflatten(0, (4, 3)) - goal).square().sum(2)

    many = IG2(REFS, 8, 0.01)(clf, x)
    with torch.no_grad():
        start, end = distance(x.repeat_interleave(3, 0)), distance(many.endpoints.flatten(0, 1))
    assert (end < start)[many.steps > 1].all()
    assert (many.steps > 1).any()


def test_a_path_stops_where_it_comes_no_closer():
    clf, x = clf64(), cases.images(dtype=torch.float64)
    result = IG2(REFS, 60, 0.05)(clf, x)
    stopped = (result.steps > 0) & (result.steps < 60)
    assert stopped.any()
    assert result.converged[stopped].all()
    assert result.gap().max() < 5
    assert (AuthorsIG2(REFS, 9, 0.05)(clf, x).steps == 9).all()


def test_references_of_the_explained_class_are_left_out():
    clf, x = clf64(Centered(cases.mlp(), REFS)), cases.images(dtype=torch.float64)
    with clf.frozen():
        of = clf.logits(REFS.double()).argmax(1)
    assert len(of.unique()) > 1
    for target in of.unique().tolist():
        result = IG2(REFS, 4, 0.01)(clf, x, target)
        other = of != target
        assert torch.equal(result.walked, other.expand(4, 3))
        assert torch.equal(result.all_converged(), result.converged[:, other].all(1))
        assert not result.steps[:, ~other].any()
        alone = IG2(REFS[other], 4, 0.01)(clf, x, target)
        torch.testing.assert_close(result.values, alone.values)
        torch.testing.assert_close(result.drop, alone.drop)
        if other.sum() > 1:
            torch.testing.assert_close(result.stderr, alone.stderr)
        same = IG2(REFS[~other], 4, 0.01)(clf, x, target)
        assert same.steps.all()  # better than nothing


def test_the_representation():
    """The last linear layer that runs, whatever the order of definition; by name; the logits without one."""

    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = cases.mlp()[3]
            self.first = cases.mlp()[1]
            self.unused = nn.Linear(3, 3, device="meta")

        def forward(self, x):
            return self.last(input=torch.tanh(self.first(x.flatten(1))))

    x = cases.images()
    expected = IG2(REFS, 3, 0.01)(cases.classifier(), x, 1)
    net = Backwards()
    del net.unused
    got = IG2(REFS, 3, 0.01)(cases.classifier(net), x, 1)
    torch.testing.assert_close(got.values, expected.values)
    named = IG2(REFS, 3, 0.01, layer="3")(cases.classifier(), x, 1)
    torch.testing.assert_close(named.values, expected.values)
    early = IG2(REFS, 3, 0.01, layer="1")(cases.classifier(), x, 1)
    assert not torch.allclose(early.values, expected.values)
    logits = IG2(REFS, 3, 0.01)(cases.classifier(cases.quadratic()), x, 1)
    assert logits.values.any()
    with pytest.raises(ValueError, match=r"^layer: expected the name of a module of \w+, got 'head'"):
        IG2(REFS, layer="head")(cases.classifier(), x)


def _hooks(net):
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in net.modules())


def test_hooks_are_removed():
    clf = cases.classifier()
    IG2(REFS, 2)(clf, cases.images())
    assert _hooks(clf) == 0
    for after in (1, 2, 4):
        clf = cases.classifier(cases.Raising(cases.mlp(), after))
        with pytest.raises(RuntimeError, match="midway"):
            IG2(REFS, 8)(clf, cases.images())
        assert _hooks(clf) == 0


def test_degenerate_cases():
    x = cases.images(3)
    dead = IG2(torch.cat([x[:1], REFS]), 3)(cases.classifier(), x, 1)  # the first image is a reference
    assert torch.isfinite(dead.values).all()
    for kind in (IG2, AuthorsIG2):
        itself = kind(x[:1], 3)(cases.classifier(), x[:1], 1)
        assert not itself.values.any()
        assert not itself.converged.any()
        flat = kind(REFS, 3)(cases.classifier(cases.constant()), x, 1)
        assert not flat.values.any()
        assert not flat.steps.any()
    stand_ins = IG2(steps=3)(cases.classifier(), x)
    assert stand_ins.steps.shape == (3, 4)
    pixel = IG2(steps=3)(Classifier(cases.mlp(1, 1)), cases.images(2, channels=1, size=1))
    assert torch.isfinite(pixel.values).all()


@pytest.mark.parametrize("chunk_size", [1, 3, 64])
@pytest.mark.parametrize("kind", [IG2, AuthorsIG2])
def test_passes_and_batches(chunk_size, kind):
    counter = cases.PassCounter(cases.mlp().double())
    clf, x, target = (
        cases.classifier(counter, chunk_size=chunk_size),
        cases.images(4, dtype=torch.float64),
        cases.labels(),
    )
    method = kind(REFS, 5, 0.03)
    result = method(clf, x, target)
    assert counter.forwards == result.forwards.sum()
    assert counter.backwards == result.backwards.sum()
    for i in range(4):
        one = method(clf64(), x[i : i + 1], target[i : i + 1])
        torch.testing.assert_close(one.values[0], result.values[i], rtol=1e-9, atol=1e-12)
        assert torch.equal(one.steps[0], result.steps[i])


def test_objects_and_bad_settings():
    method = IG2(REFS, 5)
    assert method == IG2(REFS.clone(), 5) != IG2(REFS + 0.01, 5)
    assert hash(method) == hash(IG2(REFS.clone(), 5))
    assert pickle.loads(pickle.dumps(method)) == method
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--m", type=Attributor)
    config = parser.parse_object({"m": "{class_path: IG2, init_args: {steps: 9, layer: fc}}"})
    assert parser.instantiate(parser.parse_string(parser.dump(config))).m == IG2(steps=9, layer="fc")
    for name, arguments in {
        "steps": {"steps": 0},
        "step_size": {"step_size": 0},
        "score": {"score": "loss"},
        "references": {"references": [1]},
    }.items():
        with pytest.raises(ValueError, match=f"^{name}: expected .*, got "):
            IG2(**arguments)
    for bad in (REFS[0], REFS[:, :1], REFS * 255):
        with pytest.raises(ValueError, match=r"^references: "):
            IG2(bad)(cases.classifier(), cases.images())


@pytest.mark.reference
@pytest.mark.parametrize("image", range(4))
@pytest.mark.parametrize(("key", "precision"), [("f32", "f32"), ("m64", "f64")])
def test_authors_runs(vectors, image, key, precision):
    """Their path is in float32, also where the network is in float64."""
    stored, (clf, images, targets, _) = np.load(vectors / "ig2.npz"), problem(vectors, precision)
    refs = torch.tensor(stored[f"ig2_{image}_refs"]) / 255
    size = float(stored["step_size"]) / 3072**0.5 / 255
    method = AuthorsIG2(refs, int(stored["steps"]), size)
    result = method(clf, images[image : image + 1], targets[image : image + 1])
    check(result.values, torch.tensor(stored[f"ig2_{key}_{image}"])[None], 1e-5)
    check(255 * result.endpoints[0], torch.tensor(stored[f"ig2_{key}_{image}_gradcf"]), 1e-5)
    if key == "f32":
        first = replace(method, steps=1)(clf, images[image : image + 1], targets[image : image + 1])
        check(255 * first.endpoints[0], torch.tensor(stored[f"ig2_{image}_path1"]), 1e-5)
