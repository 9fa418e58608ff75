import pickle
from dataclasses import replace
from typing import get_args

import cases
import jsonargparse
import numpy as np
import pytest
import torch
from recorded import DTYPES, problem
from torch import nn

from robustsigma import Attributor, Classifier, Sigma
from robustsigma.cli.method_names import DEFAULT
from robustsigma.engine.attributors.published.sigma import AuthorsRange, AuthorsSigma
from robustsigma.engine.attributors.spsa_walk import ImageRange, RangeMode
from robustsigma.engine.noise import NOISES
from robustsigma.engine.scores import SCORES

WALK = Sigma(alpha=0.5, beta=0.3, epsilon=0.1, paths=3, max_steps=12, objective="log_prob")


def clf64(net=None, **kwargs):
    return cases.classifier((cases.mlp() if net is None else net).double(), **kwargs)


def images64(count=4, **kwargs):
    return cases.images(count, dtype=torch.float64, **kwargs)


def signs(steps, paths, shape, seed=7):
    """Return +-0.5, (steps, paths, C, H, W)."""
    drawn = torch.randint(0, 2, (steps, paths, *shape), generator=cases.generator(seed))
    return drawn.double() - 0.5


def written_out(clf, x, target, rule, pattern):
    """Algorithm 1 of the paper for one image and path, with the gradient of p itself."""

    def mapped(s):
        return (s - s.min()) / (s.max() - s.min()) * (x.max() - x.min()) + x.min()

    def p(s):
        return clf(mapped(s)[None]).softmax(1)[0, target]

    s, phi = x, torch.zeros_like(x)
    now, curve = p(s), [p(s)]
    for d in pattern:
        if now <= rule.epsilon:
            break
        f = torch.log if rule.objective == "log_prob" else (lambda v: v)
        s = s - rule.alpha * (f(p(s + rule.beta * d)) - f(p(s - rule.beta * d))) / (2 * rule.beta) * d
        point = mapped(s).requires_grad_(True)
        score = clf(point[None]).softmax(1)[0, target]
        (g,) = torch.autograd.grad(score, point)
        phi = phi + g * (now - score.detach()) / (g.abs() if rule.weighting == "abs" else g).sum()
        now = score.detach()
        curve.append(now)
    return phi, mapped(s), torch.stack(curve)


@pytest.mark.parametrize("weighting", ["signed", "abs"])
@pytest.mark.parametrize("objective", ["prob", "log_prob"])
def test_equals_the_algorithm_written_out(objective, weighting):
    """So the gradient of log p that is taken equals that of p once scaled."""
    clf, x = clf64(), images64(2)
    given = signs(12, 2, x.shape[1:])
    rule = replace(WALK, paths=2, objective=objective, patterns=given, min_sum_ratio=0.0, weighting=weighting)
    result = rule(clf, x, 1)
    with clf.frozen():
        for i in range(2):
            paths = [written_out(clf, x[i], 1, rule, given[:, p]) for p in range(2)]
            phi = torch.stack([path[0] for path in paths]).mean(0)
            torch.testing.assert_close(result.values[i], phi, rtol=1e-8, atol=1e-12)
            for p, (_, end, curve) in enumerate(paths):
                torch.testing.assert_close(result.endpoints[i, p], end, rtol=1e-9, atol=1e-12)
                assert result.steps[i, p] == len(curve) - 1
                torch.testing.assert_close(result.confidence[i, p, : len(curve)], curve, rtol=1e-9, atol=1e-12)
                assert result.confidence[i, p, len(curve) :].isnan().all()


@pytest.mark.parametrize("adaptive", [None, (0.2, 1.0)])
@pytest.mark.parametrize("range_mode", get_args(RangeMode))
@pytest.mark.parametrize("noise", NOISES)
def test_completeness(noise, range_mode, adaptive):
    clf, x = clf64(cases.cnn_bn_dropout()), images64()
    rule = replace(WALK, noise=noise, noise_scale=3, range_mode=range_mode, adaptive=adaptive)
    result = rule(clf, x, seed=cases.seeds())
    assert result.gap().max() < 1e-9
    assert result.drop.abs().max() > 0.01
    with clf.frozen():
        ends = result.endpoints.flatten(0, 1)
        score = clf.score(ends, result.target.repeat_interleave(3)).reshape(4, 3)
        start = clf.score(x, result.target)
    torch.testing.assert_close(result.drop, start - score.mean(1), rtol=0, atol=1e-9)


@pytest.mark.parametrize("chunk_size", [1, 2, 5, 64])
def test_a_batch_is_its_singles(chunk_size):
    x, labels, seeds = images64(5), cases.labels(5), cases.seeds(5)
    whole = WALK(clf64(chunk_size=chunk_size), x, labels, seed=seeds)
    for i in range(5):
        one = WALK(clf64(), x[i : i + 1], labels[i : i + 1], seed=seeds[i : i + 1])
        torch.testing.assert_close(one.values[0], whole.values[i], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(one.stderr[0], whole.stderr[i], rtol=1e-9, atol=1e-12)
        assert torch.equal(one.steps[0], whole.steps[i])
    single = WALK(cases.classifier(chunk_size=chunk_size), x.float(), labels, seed=seeds)
    torch.testing.assert_close(single.values.double(), whole.values, rtol=1e-2, atol=1e-3 * whole.values.abs().max())


def test_range_modes_keep_what_they_promise():
    x, rows = images64(3), torch.arange(3)
    wild = 3 * (x - 0.4)
    torch.testing.assert_close(ImageRange("original", x, (0, 1)).point(x, rows), x, rtol=0, atol=1e-15)
    mapped = ImageRange("original", x, (0, 1)).point(wild[:2], rows[1:])
    torch.testing.assert_close(mapped.flatten(1).aminmax(dim=1)[0], x[1:].flatten(1).amin(1), rtol=1e-12, atol=0)
    torch.testing.assert_close(mapped.flatten(1).aminmax(dim=1)[1], x[1:].flatten(1).amax(1), rtol=1e-12, atol=0)
    full = ImageRange("full", x, (0, 1)).point(wild, rows).flatten(1)
    assert torch.equal(full.amin(1), torch.zeros(3, dtype=x.dtype))
    torch.testing.assert_close(full.amax(1), torch.ones(3, dtype=x.dtype))
    for mode in ("clip", "none"):
        assert torch.equal(ImageRange(mode, x, (0, 1)).point(wild, rows), wild.clamp(0, 1))
    assert torch.equal(ImageRange("none", x, (0, 1)).probe(wild, rows), wild)
    gray = torch.full_like(x, 0.3)
    assert torch.equal(ImageRange("original", gray, (0, 1)).point(gray, rows), gray)
    assert not AuthorsRange().probe(gray * 255, rows).any()


@pytest.mark.parametrize("range_mode", get_args(RangeMode))
def test_a_path_starts_at_the_image(range_mode):
    clf, x = clf64(), images64()
    result = replace(WALK, range_mode=range_mode)(clf, x)
    with clf.frozen():
        start = clf.score(x, result.target)
    torch.testing.assert_close(result.confidence[:, :, 0], start[:, None].expand(4, 3))
    assert result.endpoints.min() >= 0
    assert result.endpoints.max() <= 1


class Recorder(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net, self.low, self.high = net, 0.0, 0.0

    def forward(self, x):
        self.low, self.high = min(self.low, x.min().item()), max(self.high, x.max().item())
        return self.net(x)


def test_only_mode_none_leaves_the_range():
    for mode in get_args(RangeMode):
        net = Recorder(cases.mlp())
        replace(WALK, range_mode=mode, beta=1.5)(Classifier(net), cases.images())
        assert (net.low < 0 and net.high > 1) == (mode == "none")


def test_symmetric_features_get_the_same():
    """Supplement A2: where two features play the same part and get the same patterns, their values are equal."""
    x, given = images64(1), signs(12, 2, (3, 8, 8))
    for tensor in (x, given):
        tensor[..., 4:] = tensor[..., :4].flip(-1)

    class Symmetric(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = cases.mlp()

        def forward(self, images):
            return self.net(images) + self.net(images.flip(-1))

    result = replace(WALK, paths=2, patterns=given)(clf64(Symmetric()), x)
    assert result.values.abs().max() > 0
    torch.testing.assert_close(result.values, result.values.flip(-1), rtol=1e-9, atol=1e-12)


def test_convergence_is_reported_for_each_path():
    clf, x = clf64(), images64(6)
    result = replace(WALK, epsilon=0.25, max_steps=4, paths=4)(clf, x, seed=cases.seeds(6))
    last = result.confidence.gather(2, result.steps[..., None])[..., 0]
    assert torch.equal(result.converged, last <= 0.25)
    assert 0 < result.converged.sum() < result.converged.numel()
    assert (result.steps[~result.converged] == 4).all()
    before = result.confidence.gather(2, (result.steps - 1).clamp(min=0)[..., None])[..., 0]
    assert (before[result.steps > 0] > 0.25).all()
    per_image = replace(WALK, epsilon=1e-6, max_steps=2)(clf, x)
    assert not per_image.converged.any()
    assert (per_image.gap() < 1e-9).all()


def test_an_image_already_below_epsilon_stays():
    clf, x = clf64(), images64()
    with clf.frozen():
        least = clf.logits(x).argmin(1)
    for kind in (Sigma, AuthorsSigma):
        rule = kind(epsilon=0.5, paths=2)
        result = rule(clf, x, least)
        assert not result.values.any()
        assert not result.steps.any()
        assert not result.stderr.any()
        assert not result.backwards.any()
        assert result.converged.all()
        assert torch.equal(result.endpoint, x)


def test_a_stuck_path_is_stopped():
    x = cases.images(2)
    counter = cases.PassCounter(cases.constant())
    result = Sigma(paths=2, patience=5)(Classifier(counter), x, 0)
    assert (result.steps == 5).all()
    assert not result.converged.any()
    assert not result.values.any()
    assert not result.gap().any()
    assert counter.forwards == result.forwards.sum() == 2 * (1 + 2 * 3 * 5)
    authors = AuthorsSigma(paths=1, max_steps=109)(Classifier(counter), x, 0)
    assert (authors.steps == 109).all()


def test_objectives_where_p_rounds_to_1():
    """p tells no difference between probes, log p a tiny one; the logit, which has no ceiling, leads down."""
    x, clf = cases.images(3), cases.classifier(cases.linear(gain=60.0))
    still, tiny, moved = (
        Sigma(0.5, 0.1, paths=1, max_steps=120, objective=o)(clf, x, seed=torch.zeros(3).long()) for o in SCORES[::-1]
    )
    assert (still.confidence[:, 0, 0] == 1).all()
    assert (still.endpoint - x).abs().max() < 1e-6
    assert (still.steps == 100).all()  # given up
    assert (tiny.steps == 120).all()
    assert moved.converged.all()


def _opposed(weight):
    """Return a two-class linear net whose gradient has the given weights for class 0 and none for class 1."""
    net = nn.Sequential(nn.Flatten(), nn.utils.skip_init(nn.Linear, weight.numel(), 2, dtype=torch.float64))
    net[1].weight.data = torch.stack([weight.flatten(), torch.zeros(weight.numel(), dtype=torch.float64)])
    net[1].bias.data = torch.zeros(2, dtype=torch.float64)
    return Classifier(net)


def test_a_gradient_that_sums_to_nothing_is_not_scaled():
    weight = torch.ones(1, 4, 4, dtype=torch.float64)
    weight[:, 2:] = -1
    x = images64(2, channels=1, size=4)
    result = replace(WALK, paths=1, epsilon=0.01)(_opposed(weight), x, 0)
    assert result.steps.min() > 0
    assert not result.values.any()
    torch.testing.assert_close(result.gap(), result.drop.abs())
    assert not result.valid.any()  # no step was scaled
    weight[0, 0, 0] = 1.01  # |sum| is 6e-4 of the sum of magnitudes: above min_sum_ratio
    result = replace(WALK, paths=1, epsilon=0.01)(_opposed(weight), x, 0)
    assert result.gap().max() < 1e-9
    assert result.values.any()
    assert (result.valid == 1).all()


def test_weights_by_magnitude_need_no_sum():
    """Of a gradient that sums to nothing, each step moves as much as the confidence dropped."""
    weight = torch.ones(1, 4, 4, dtype=torch.float64)
    weight[:, 2:] = -1
    x = images64(3, channels=1, size=4)
    rule = replace(WALK, paths=1, weighting="abs")
    result = rule(_opposed(weight), x, 0)
    assert (result.valid == 1).all()
    assert result.drop.abs().min() > 0
    torch.testing.assert_close(result.values, (result.drop / 16).reshape(-1, 1, 1, 1) * weight)
    dead = rule(_opposed(torch.zeros_like(weight)), x, 0)
    assert not dead.values.any()


class Turning(nn.Module):
    """The gradient's sum vanishes below a brightness and does not above it."""

    def forward(self, x):
        flat = x.flatten(1)
        half = flat.shape[1] // 2
        balanced = flat[:, :half].sum(1) - flat[:, half:].sum(1)
        return torch.stack([3 * balanced + 2 * torch.relu(x[:, 0, 0, 0] - 0.6), torch.zeros_like(balanced)], 1)


def test_a_carried_drop_keeps_completeness():
    x = images64(4, channels=1, size=4)
    x[:, :, 0, 0] = torch.tensor([0.55, 0.62, 0.66, 0.7])[:, None]
    rule = Sigma(alpha=0.3, beta=0.2, epsilon=0.05, paths=4, max_steps=40, range_mode="clip", min_sum_ratio=1e-3)
    result = rule(Classifier(Turning()), x, 0, seed=3)
    scaled = result.values.flatten(1).any(1)
    assert scaled.any()
    assert result.values.abs().max() < 1e4
    loose = replace(rule, paths=1)(Classifier(Turning()), x, 0, seed=3)
    some = loose.values.flatten(1).any(1)
    assert some.any()
    assert loose.gap()[some].max() < 1e-9
    assert ((loose.valid > 0) & (loose.valid < 1)).any()  # some of the steps were not scaled
    passed = loose.valid * loose.steps[:, 0]
    torch.testing.assert_close(passed, passed.round())


@pytest.mark.parametrize("range_mode", ["clip", "none"])
def test_adaptive_step_sizes(range_mode):
    """On a linear score h is known, which gives away the size of every step; the paper has none for curvature <= 0."""
    clf = clf64(cases.linear(gain=0.05), mean=(0.0,), std=(1.0,))
    x, low, high = 0.4 + 0.2 * images64(2), 0.05, 0.4
    given = signs(8, 1, x.shape[1:]) * 0.5
    rule = Sigma(beta=0.2, epsilon=1e-9, paths=1, objective="logit", range_mode=range_mode, adaptive=(low, high))
    weight = clf.net[1].weight.detach()[0].reshape(x.shape[1:])
    latents, sizes = [x], []
    for steps in range(1, 9):
        walker = replace(rule, patterns=given[:steps])
        with clf.frozen():
            walk = walker.sample(clf, x, torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64))
        move = (weight * given[steps - 1, 0]).sum() * given[steps - 1, 0]
        step = latents[-1] - walk.latents
        sizes.append((step * move).flatten(1).sum(1) / move.square().sum())
        latents.append(walk.latents)
        if steps > 1:
            before = (weight * given[steps - 2, 0]).sum() * given[steps - 2, 0]
            way = latents[-2] - latents[-3]
            curvature = (way * (move - before)).flatten(1).sum(1)
            expected = torch.where(curvature > 0, way.square().flatten(1).sum(1) / curvature, 0).clamp(low, high)
            torch.testing.assert_close(sizes[-1], expected, rtol=1e-6, atol=1e-9)
    sizes = torch.stack(sizes)
    torch.testing.assert_close(sizes[0], torch.full((2,), low, dtype=torch.float64))
    assert sizes.min() > low - 1e-6
    assert sizes.max() < high + 1e-6
    assert len(sizes.round(decimals=4).unique()) > 2


@pytest.mark.parametrize("gain", [0.01, 1.0])
def test_normalized_steps_have_one_size_for_every_gain(gain):
    clf = clf64(cases.linear(gain=gain), mean=(0.0,), std=(1.0,))
    x, given = 0.4 + 0.2 * images64(2), signs(5, 1, (3, 8, 8))
    rule = Sigma(alpha=0.02, beta=0.1, epsilon=1e-9, paths=1, objective="logit", range_mode="none", normalized=True,
                 patterns=given)  # fmt: skip
    with clf.frozen():
        walk = rule.sample(clf, x, torch.zeros(2, dtype=torch.int64), cases.seeds(2))
    weight = clf.net[1].weight.detach()[0].reshape(x.shape[1:])
    steps = [0.02 * (weight * pattern).sum().sign() * pattern for pattern in given[:, 0]]
    torch.testing.assert_close(walk.latents, x - sum(steps))


def test_paths_until_the_relative_standard_error_is_small():
    clf, x, seeds = clf64(), images64(5), cases.seeds(5)
    rule = replace(WALK, paths=40, relative_stderr=0.25)
    counter = cases.PassCounter(clf.net)
    result = rule(cases.classifier(counter), x, 0, seed=seeds)
    made = (~result.confidence[:, :, 0].isnan()).sum(1)
    assert counter.forwards == result.forwards.sum()
    assert counter.backwards == result.backwards.sum()
    assert result.steps.shape[1] == made.max() <= 40
    assert (made >= 4).all()
    assert made.min() < made.max()
    assert result.gap().max() < 1e-9
    for i in range(5):  # each image stops where it would alone, with the mean and error of its own paths
        fixed = replace(rule, paths=int(made[i]), relative_stderr=None)(clf, x[i : i + 1], 0, seed=seeds[i : i + 1])
        torch.testing.assert_close(result.values[i], fixed.values[0], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(result.stderr[i], fixed.stderr[0], rtol=1e-9, atol=1e-12)
        unused = result.confidence[i, made[i] :]
        assert unused.isnan().all()
        assert not result.steps[i, made[i] :].any()
        assert not result.converged[i, made[i] :].any()
        assert result.all_converged()[i] == result.converged[i, : made[i]].all()
    never = replace(rule, paths=7, relative_stderr=1e-9)(clf, x, 0, seed=seeds)
    assert never.steps.shape == (5, 7)
    assert not never.confidence[:, :, 0].isnan().any()
    still = replace(rule, epsilon=1.0)(clf, x, 0)
    assert still.steps.shape == (5, 4)


def test_standard_error_over_paths():
    clf, x = clf64(), images64(3)
    given = signs(12, 4, x.shape[1:])
    singles = [replace(WALK, paths=1, patterns=given[:, p : p + 1])(clf, x, 1) for p in range(4)]
    maps = torch.stack([s.heatmap() for s in singles])
    sound = replace(WALK, paths=4, patterns=given)(clf, x, 1)
    torch.testing.assert_close(sound.stderr, maps.std(0) / 2)
    torch.testing.assert_close(sound.values, torch.stack([s.values for s in singles]).mean(0))
    assert all(s.stderr is None for s in singles)
    rule = AuthorsSigma(alpha=0.5, beta=0.3, epsilon=0.1, max_steps=12)
    singles = [replace(rule, paths=1, patterns=given[:, p : p + 1] + 0.5)(clf, x, 1) for p in range(4)]
    maps = torch.stack([s.heatmap() for s in singles])
    authors = replace(rule, paths=4, patterns=given + 0.5)(clf, x, 1)
    torch.testing.assert_close(authors.heatmap(), maps.mean(0))
    torch.testing.assert_close(authors.stderr, maps.std(0, correction=0))


def test_authors_patterns_walk_like_symmetric_ones_on_the_full_range():
    """The stretch takes out the constant by which {0, R} differs from +-R/2."""
    clf, x = clf64(), images64(3)
    x.flatten(1)[:, 0], x.flatten(1)[:, 1] = 0, 1  # the stretch leaves the image as it is
    settings = {"alpha": 0.5, "beta": 0.3, "epsilon": 0.1, "paths": 2, "max_steps": 12}
    theirs, ours = AuthorsSigma(**settings), Sigma(**settings, range_mode="full", min_sum_ratio=0.0)
    first, second = theirs(clf, x, 1, seed=4), ours(clf, x, 1, seed=4)
    torch.testing.assert_close(first.confidence, second.confidence, rtol=1e-6, atol=1e-9, equal_nan=True)
    torch.testing.assert_close(first.endpoints, second.endpoints, rtol=1e-6, atol=1e-9)


def test_passes():
    counter = cases.PassCounter(cases.mlp())
    clf = cases.classifier(counter)
    result = WALK(clf, cases.images(), seed=cases.seeds())
    steps = result.steps.sum().item()
    assert (counter.forwards, counter.backwards) == (4 + 3 * steps, steps)
    assert result.forwards.sum() == counter.forwards
    assert result.backwards.sum() == counter.backwards
    counter.reset()
    with clf.frozen():
        walk = WALK.sample(clf, cases.images(), result.target, cases.seeds())
    assert (counter.forwards, counter.backwards) == (4 + 3 * walk.steps.sum(), 0)
    torch.testing.assert_close(walk.ends, result.endpoint)
    assert torch.equal(walk.ends, replace(WALK, paths=1)(clf, cases.images(), seed=cases.seeds()).endpoint)
    assert torch.equal(walk.steps, result.steps[:, 0])
    assert walk.values is None
    counter.reset()
    authors = AuthorsSigma(paths=2, max_steps=5)(clf, cases.images())
    assert counter.forwards == authors.forwards.sum() == 8 + 3 * authors.steps.sum()


def test_a_confident_answer_to_noise():
    x = torch.rand(4, 3, 8, 8, generator=cases.generator(9))
    for channels in (1, 4):
        clf = cases.classifier(cases.mlp(channels), mean=(0.5,), std=(0.5,))
        result = WALK(clf, cases.images(2, channels=channels))
        assert result.gap().max() < 1e-5
    result = WALK(cases.classifier(), x)
    assert result.gap().max() < 1e-5
    pixel = WALK(cases.classifier(cases.mlp(1, 1), mean=(0.5,), std=(0.5,)), cases.images(2, channels=1, size=1))
    assert torch.isfinite(pixel.values).all()


def test_explain_has_the_settings_for_photographs():
    assert Sigma(**DEFAULT["init_args"]) == replace(Sigma.photographs(), max_steps=24, paths=1)


BAD = {
    "alpha": {"alpha": 0},
    "adaptive": {"adaptive": 0.5},
    r"adaptive\[0\]": {"adaptive": (0, 1)},
    r"adaptive\[1\]": {"adaptive": (0.5, 0.2)},
    "normalized": {"normalized": True, "adaptive": (0.1, 0.2)},
    "relative_stderr": {"relative_stderr": 0},
    "paths": {"relative_stderr": 0.1, "paths": 1},
    "patience": {"patience": 0},
    "patterns": {"patterns": torch.zeros(4, 2, 3, 8, 8)},
}


@pytest.mark.parametrize(("name", "arguments"), BAD.items())
def test_bad_settings(name, arguments):
    with pytest.raises(ValueError, match=f"^{name}: expected .*, got "):
        Sigma(**arguments)


@pytest.mark.parametrize(
    "name", ["objective", "noise", "range_mode", "min_sum_ratio", "weighting", "normalized", "relative_stderr"]
)
def test_the_authors_code_fixes_settings(name):
    with pytest.raises(TypeError, match=name):
        AuthorsSigma(**{name: getattr(Sigma(), name)})


def test_bad_patterns():
    for bad in ([1.0], torch.zeros(2, 7, 3, 8, 8, dtype=torch.int64), torch.full((2, 7, 3, 8, 8), torch.nan)):
        with pytest.raises(ValueError, match=r"^patterns: expected"):
            Sigma(patterns=bad)
    with pytest.raises(ValueError, match=r"^patterns: expected shape \(steps, paths, 3, 8, 8\), got"):
        Sigma(patterns=torch.zeros(2, 7, 3, 4, 4))(cases.classifier(), cases.images())


def test_objects():
    given = signs(2, 7, (3, 8, 8))
    rule = Sigma(patterns=given)
    assert rule == Sigma(patterns=given.clone())
    assert rule != Sigma(patterns=-given)
    assert hash(rule) == hash(Sigma(patterns=given.clone()))
    assert pickle.loads(pickle.dumps(rule)) == rule
    assert len(repr(rule)) < 500
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--m", type=Attributor)
    settings = "{class_path: Sigma, init_args: {adaptive: [0.1, 1.0], relative_stderr: 0.1}}"
    config = parser.parse_string(parser.dump(parser.parse_object({"m": settings})))
    assert parser.instantiate(config).m == Sigma(adaptive=(0.1, 1.0), relative_stderr=0.1)


TAGS = {
    "fixed_a0.1_b0.5": (0, 1, 2, 3),
    "fixed_a0.5_b0.1": (0, 3),
    "adapt_a0.5-1_b0.5": (0, 3),
    "adapt_a0.01-1_b0.1": (1, 3),
    "edge_below_eps": (3,),
}
# Paths amplify rounding, the adaptive step most of all: `adapt` is compared in float64 alone.
RUNS = [
    (f"{tag}_img{i}", precision)
    for tag, found in TAGS.items()
    for i in found
    for precision in DTYPES
    if precision == "f64" or not tag.startswith("adapt")
]


def _recorded(stored, tag, dtype):
    """Return the image, the target and the method of a recorded run."""
    alpha, alpha_high, beta, eps, _, steps = stored[f"{tag}_params"]
    image = torch.tensor(stored[f"{tag}_image_hwc_0_255"]).permute(2, 0, 1)[None].to(dtype) / 255
    bits = stored[f"{tag}_patterns_packed"]
    drawn = np.unpackbits(bits, axis=1).reshape(-1, 1, 32, 32, 3).transpose(0, 1, 4, 2, 3)
    rule = AuthorsSigma(
        alpha=float(alpha),
        beta=float(beta),
        epsilon=float(eps),
        paths=1,
        max_steps=int(steps),
        adaptive=None if np.isnan(alpha_high) else (float(alpha), float(alpha_high)),
        patterns=torch.tensor(drawn).to(dtype) if len(bits) else None,
    )
    return image, int(stored[f"{tag}_target"]), rule


def near(got, expected, tolerance):
    """Compare at the scale of the largest magnitude; p itself, and so a sum of drops, ends at 1e-15 in float64."""
    expected = torch.tensor(expected)
    floor = 1e-15 if expected.dtype == torch.float64 else 1e-7
    error = (got.double() - expected.double()).abs().max()
    assert error <= max(tolerance * expected.abs().max(), floor), error


@pytest.mark.reference
@pytest.mark.parametrize(("tag", "precision"), RUNS)
def test_authors_runs(vectors, tag, precision):
    stored, clf = np.load(vectors / "sigma.npz"), problem(vectors, precision).classifier
    image, target, rule = _recorded(stored, tag, DTYPES[precision])
    suffix, tolerance = ("_f64", 1e-9) if precision == "f64" else ("", 1e-4)
    result = rule(clf, image, target)
    near(result.heatmap()[0], stored[f"{tag}_map{suffix}"], tolerance)
    # The curve is a probability: its last points may be far below 1, but its rounding is not.
    near(result.confidence[0, 0], stored[f"{tag}_curve{suffix}"], 2 * tolerance)
    if precision == "f32":
        near(result.values[0].permute(1, 2, 0), stored[f"{tag}_signed"], tolerance)
    with clf.frozen():
        walk = rule.sample(clf, image, torch.tensor([target]), torch.tensor([0]))
    near(255 * walk.latents[0].permute(1, 2, 0), stored[f"{tag}_final{suffix}"], tolerance)
    stretched = AuthorsRange().probe(torch.tensor(stored[f"{tag}_final_f64"]).permute(2, 0, 1)[None], torch.tensor([0]))
    if result.steps > 0:
        near(walk.ends[0].double(), stretched[0].numpy(), 10 * tolerance)


@pytest.mark.reference
def test_authors_mean_over_paths(vectors):
    """Three paths whose patterns come one after the other from torch's generator."""
    stored, (clf, images, targets, _) = np.load(vectors / "sigma.npz"), problem(vectors, "f32")
    source = cases.generator(int(stored["multi3_img3_seed"]))
    rule = AuthorsSigma(alpha=0.5, beta=0.5, epsilon=0.05)
    drawn = torch.stack([torch.randint(0, 2, (32, 32, 3), generator=source, dtype=torch.int32) for _ in range(120)])
    drawn = drawn.permute(0, 3, 1, 2).float()
    used, patterns = 0, []
    for p in range(3):
        one = replace(rule, paths=1, patterns=drawn[used:, None])(clf, images[3:4], targets[3:4])
        assert one.converged.all()
        near(one.endpoint[0].permute(1, 2, 0), _stretched(stored["multi3_img3_final"][p]), 1e-4)
        patterns.append(drawn[used:])
        used += int(one.steps)
    longest = min(map(len, patterns))
    together = replace(rule, paths=3, patterns=torch.stack([p[:longest] for p in patterns], 1))
    result = together(clf, images[3:4], targets[3:4])
    near(result.heatmap()[0], stored["multi3_img3_map"], 1e-4)
    near(result.stderr[0], stored["multi3_img3_std"], 1e-4)


def _stretched(final):
    return (final - final.min()) / (final.max() - final.min())
