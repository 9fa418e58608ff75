"""Closed forms and costs of single perturbations."""

from __future__ import annotations

import dataclasses

import cases
import pytest
import torch
from jsonargparse import ArgumentParser
from torch import nn

from robustsigma import (
    FGSM,
    NFGSM,
    PGD,
    Classifier,
    GaussianNoise,
    Identity,
    IntegratedGradients,
    Mixture,
    MixtureComponent,
    PathEnd,
    Perturbation,
    Sigma,
    SigmaSample,
    Square,
)
from robustsigma.engine import noise
from robustsigma.engine.perturbations.base import Perturbed

WALK = Sigma(alpha=0.5, beta=0.3, epsilon=0.2, objective="log_prob", paths=1, max_steps=8)
UNIT_ULP = 2.0**-23


class Broken(nn.Module):
    """Gives NaN logits after some calls."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.net, self.after, self.calls = cases.mlp(), after, 0

    def forward(self, x):
        self.calls += 1
        return self.net(x) * (torch.nan if self.calls > self.after else 1.0)


def loss(clf: Classifier, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    with clf.frozen():
        return nn.functional.cross_entropy(clf.logits(x), y, reduction="none")


# Base


def test_put_replaces_rows_of_every_field():
    whole = Perturbed.plain(torch.zeros(4, 1, 1, 1, dtype=torch.float64))
    yes = torch.tensor([True, True])
    part = Perturbed(torch.ones(2, 1, 1, 1), yes, ~yes, torch.tensor([5, 6]))
    got = whole.put(torch.tensor([3, 1]), part)
    assert got.images.flatten().tolist() == [0, 1, 0, 1]
    assert got.images.dtype == torch.float64
    assert got.attempted.tolist() == [False, True, False, True]
    assert got.steps.tolist() == [0, 6, 0, 5]
    assert whole.steps.tolist() == [0] * 4


@pytest.mark.parametrize("perturbation", [FGSM(), PGD(steps=2), SigmaSample(WALK), PathEnd(WALK), Square()])
@pytest.mark.parametrize("after", [0, 1])
def test_nan_scores_are_an_error(perturbation, after):
    if after == 1 and isinstance(perturbation, FGSM):
        perturbation = PGD(steps=2)
    clf = cases.classifier(Broken(after))
    clf._classes = 3  # known, so that the passes counted are the method's
    with pytest.raises(ValueError, match=r"^net: expected finite .*, got NaN or infinity, in \w+$"):
        perturbation(clf, cases.images(), cases.labels(), seed=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianNoise(-0.1), r"std: expected a finite number in \[0, inf\], got -0.1"),
        (lambda: GaussianNoise(float("nan")), "std: "),
        (lambda: FGSM(-1), r"eps: expected a finite number in \[0, 1\], got -1"),
        (lambda: FGSM(8), "eps: "),
        (lambda: FGSM("big"), "eps: .*'big'"),
        (lambda: PGD(steps=0), "steps: expected an integer of at least 1, got 0"),
        (lambda: PGD(steps=2.0), "steps: "),
        (lambda: PGD(step_size=0), r"step_size: expected a finite number in \(0, inf\], got 0"),
        (lambda: PGD(2.0), r"eps: expected a finite number in \[0, 1\], got 2.0"),
        (lambda: PGD(-1, norm="l2"), r"eps: expected a finite number in \[0, inf\], got -1"),
        (lambda: PGD(norm="l1"), "norm: expected one of 'linf', 'l2', got 'l1'"),
        (lambda: PGD(restarts=0), "restarts: expected an integer of at least 1, got 0"),
        (lambda: PGD(restarts=2, random_start=False), "restarts: expected 1 without random_start, .* got 2"),
        (lambda: PGD(targeted="first"), "targeted: expected one of 'random', 'least_likely', 'second', got 'first'"),
        (lambda: FGSM(label="none"), "label: expected one of 'true', 'predicted', got 'none'"),
        (lambda: NFGSM(k=-1), "k: expected a finite number"),
        (lambda: NFGSM(label="none"), "label: expected one of 'true', 'predicted', got 'none'"),
        (lambda: SigmaSample(fraction=1.1), "fraction: "),
        (lambda: SigmaSample(unconverged="drop"), "unconverged: expected one of 'keep', 'original', got 'drop'"),
        (lambda: SigmaSample(IntegratedGradients()), "sigma: expected a Sigma, got IntegratedGradients"),
        (lambda: PathEnd(FGSM()), "attributor: expected an Attributor, got FGSM"),
        (lambda: Mixture(), r"parts: expected at least one MixtureComponent, .* got \(\)"),
        (lambda: Mixture(None), "parts: .*None"),
        (lambda: Mixture([FGSM()]), "parts: "),
        (lambda: Mixture({FGSM(): 0.7, PGD(): 0.7}), "sum of shares: "),
        (lambda: Mixture({FGSM(): -0.1}), "share: "),
        (lambda: Mixture({"FGSM": 0.1}), "perturbation: expected a Perturbation, got 'FGSM'"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_identity():
    x = cases.images()
    got = Identity()(cases.classifier(), x, 0, seed=0)
    assert torch.equal(got, x)
    assert got.data_ptr() != x.data_ptr()


def test_gaussian_noise_has_its_std_and_is_clipped():
    clf = cases.classifier(cases.linear(3, 32))
    gray = torch.full((16, 3, 32, 32), 0.5)
    moved = GaussianNoise(0.05)(clf, gray, 0, seed=torch.arange(16)) - 0.5
    assert moved.std().item() == pytest.approx(0.05, rel=0.02)
    assert moved.mean().abs() < 5 * 0.05 / moved.numel() ** 0.5
    assert GaussianNoise(0)(clf, gray, 0, seed=0).equal(gray)
    black = GaussianNoise(0.5)(clf, torch.zeros_like(gray), 0, seed=torch.arange(16))
    assert (black == 0).float().mean().item() == pytest.approx(0.5, abs=0.02)


# FGSM and PGD


def test_fgsm_on_a_linear_net_in_closed_form():
    """dloss/dx = W^T (softmax - one_hot) / std."""
    net = cases.linear().double()
    clf, x, y = cases.classifier(net), cases.images(dtype=torch.float64), cases.labels()
    with clf.frozen():
        residual = clf.logits(x).softmax(1) - nn.functional.one_hot(y, 3)
    sign = (residual @ net[1].weight).sign().reshape(x.shape).detach()
    assert torch.allclose(FGSM(0.03)(clf, x, y, seed=0), (x + 0.03 * sign).clamp(0, 1), rtol=0, atol=1e-15)


@pytest.mark.parametrize("attack", [FGSM(0.06), FGSM(0.06, random_start=True), PGD(0.06), PGD(0.06, step_size=0.5)])
def test_attacks_stay_in_the_ball_and_raise_the_loss(attack):
    clf, x, y = cases.classifier(), cases.images(64), cases.labels(64)
    moved = attack(clf, x, y, seed=cases.seeds(64))
    assert (moved - x).abs().max() <= 0.06 + UNIT_ULP
    assert loss(clf, moved, y).mean() > loss(clf, x, y).mean() + 0.1


def test_zero_radius_is_the_image():
    clf, x = cases.classifier(), cases.images()
    for attack in (FGSM(0), FGSM(0, random_start=True), PGD(0), PGD(0, random_start=False)):
        assert torch.equal(attack(clf, x, cases.labels(), seed=0), x)


def test_pgd_of_one_full_step_is_fgsm():
    clf, x, y = cases.classifier(), cases.images(), cases.labels()
    pgd = PGD(0.05, step_size=0.05, steps=1, random_start=False)
    assert torch.equal(pgd(clf, x, y, seed=0), FGSM(0.05)(clf, x, y, seed=0))


@pytest.mark.parametrize("net", [cases.mlp, cases.cnn_bn_dropout, cases.quadratic])
def test_pgd_is_as_strong_as_fgsm(net):
    clf, x, y = cases.classifier(net()), cases.images(64), cases.labels(64)
    fgsm = loss(clf, FGSM(0.1)(clf, x, y, seed=0), y).mean()
    pgd = loss(clf, PGD(0.1, steps=20, random_start=False)(clf, x, y, seed=0), y).mean()
    assert pgd >= fgsm - 1e-3 * fgsm.abs()


def test_random_start_is_uniform_in_the_ball():
    clf = cases.classifier(cases.constant())  # no gradient: the result is the start
    gray = torch.full((64, 3, 8, 8), 0.5)
    for attack in (PGD(0.1, steps=1), FGSM(0.1, random_start=True)):
        moved = (attack(clf, gray, 0, seed=cases.seeds(64)) - 0.5) / 0.1
        ranked = ((moved.flatten().double() + 1) / 2).sort().values
        steps = (torch.arange(len(ranked), dtype=torch.float64) + 0.5) / len(ranked)
        assert (ranked - steps).abs().max() < 2.2 / len(ranked) ** 0.5
        assert moved[0].ne(moved[1]).any()


def test_costs_of_gradient_attacks():
    counter = cases.PassCounter(cases.mlp())
    clf, x, y = cases.classifier(counter), cases.images(6), cases.labels(6)
    Identity()(clf, x, y, seed=0)
    for attack, passes in ((FGSM(), 1), (FGSM(random_start=True), 1), (PGD(steps=7), 7)):
        counter.reset()
        attack(clf, x, y, seed=0)
        assert (counter.forwards, counter.backwards) == (6 * passes, 6 * passes)


# SIGMA samples


def test_sample_costs_three_forwards_a_step_and_no_backward():
    counter = cases.PassCounter(cases.mlp())
    clf, x, y = cases.classifier(counter), cases.images(6), cases.labels(6)
    Identity()(clf, x, y, seed=0)
    counter.reset()
    result = SigmaSample(WALK)(clf, x, y, seed=cases.seeds(6), return_info="search")
    assert result.steps.sum() > 6
    assert counter.forwards == 3 * int(result.steps.sum()) + 6  # and one to know where the walk starts
    assert counter.backwards == 0
    assert float(result.forwards.sum()) == counter.forwards


def test_attribution_costs_one_backward_a_step_more():
    counter = cases.PassCounter(cases.mlp())
    clf, x, y = cases.classifier(counter), cases.images(6), cases.labels(6)
    result = dataclasses.replace(WALK, paths=3)(clf, x, y, seed=cases.seeds(6))
    steps = int(result.steps.sum())
    assert counter.forwards == 3 * steps + 6 == int(result.forwards.sum())
    assert counter.backwards == steps == int(result.backwards.sum())


@pytest.mark.parametrize("objective", ["prob", "log_prob", "logit"])
def test_path_end_of_sigma_is_the_sigma_sample(objective):
    walk = dataclasses.replace(WALK, objective=objective, paths=2)
    clf, x, y, seed = cases.classifier(), cases.images(32), cases.labels(32), cases.seeds(32)
    sample, end = (
        SigmaSample(walk)(clf, x, y, seed=seed, return_info=True),
        PathEnd(walk)(clf, x, y, seed=seed, return_info=True),
    )
    assert torch.allclose(sample.images, end.images, rtol=0, atol=1e-6)
    for name in ("attempted", "converged", "steps"):
        assert torch.equal(getattr(sample, name), getattr(end, name))


def test_path_end_of_ig_is_its_baseline():
    got = PathEnd(IntegratedGradients(steps=2, baseline="white"))(cases.classifier(), cases.images(), 0, seed=0)
    assert torch.equal(got, torch.ones_like(got))


def test_converged_samples_have_lost_their_confidence():
    clf, x, y = cases.classifier(), cases.images(32), cases.labels(32)
    result = SigmaSample(WALK)(clf, x, y, seed=cases.seeds(32), return_info=True)
    with clf.frozen():
        after = clf.score(result.images, y, "prob")
    assert torch.equal(after <= WALK.epsilon, result.converged)
    assert result.attempted.all()
    assert 0 < result.converged.sum() < 32
    assert (result.steps[~result.converged] == WALK.max_steps).all()


def test_unconverged_samples_can_be_left_out():
    clf, x, y, seed = cases.classifier(), cases.images(32), cases.labels(32), cases.seeds(32)
    keep = SigmaSample(WALK)(clf, x, y, seed=seed, return_info=True)
    original = SigmaSample(WALK, unconverged="original")(clf, x, y, seed=seed, return_info=True)
    for name in ("attempted", "converged", "steps"):
        assert torch.equal(getattr(keep, name), getattr(original, name))
    done = keep.converged
    assert torch.equal(original.images[done], keep.images[done])
    assert torch.equal(original.images[~done], x[~done])
    assert not torch.equal(keep.images[~done], x[~done])


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_fraction_of_images_is_walked(fraction):
    count = 400
    clf, x, y, seed = cases.classifier(), cases.images(count), cases.labels(count), cases.seeds(count)
    result = SigmaSample(WALK, fraction=fraction)(clf, x, y, seed=seed, return_info=True)
    walked = result.attempted
    assert abs(walked.float().mean().item() - fraction) <= 5 * (fraction * (1 - fraction) / count) ** 0.5
    assert torch.equal(result.images[~walked], x[~walked])
    whole = SigmaSample(WALK)(clf, x, y, seed=seed, return_info=True)
    assert torch.allclose(result.images[walked], whole.images[walked], atol=1e-5)
    assert not result.converged[~walked].any()
    # Drawn by the image's own seed.
    half = SigmaSample(WALK, fraction=fraction)(clf, x[1::2], y[1::2], seed=seed[1::2], return_info=True)
    assert torch.equal(half.attempted, walked[1::2])


def test_images_already_at_zero_confidence_take_no_step():
    clf, x = cases.classifier(cases.saturated()), cases.images()
    with clf.frozen():
        lowest = clf.logits(x).argmin(1)
    result = SigmaSample(WALK)(clf, x, lowest, seed=0, return_info=True)
    assert torch.equal(result.images, x)
    assert result.steps.tolist() == [0] * 4
    assert result.converged.all()


# Mixtures


def chosen(x: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
    """Return the distance an image was moved, (B,)."""
    return (mixed - x).abs().flatten(1).amax(1)


def test_mixture_has_its_shares():
    count, shares = 3000, {FGSM(0.01): 0.2, FGSM(0.02): 0.5}
    clf, x = cases.classifier(cases.linear()), cases.images(count)
    moved = chosen(x, Mixture(shares)(clf, x, 0, seed=cases.seeds(count)))
    for eps, share in ((0.0, 0.3), (0.01, 0.2), (0.02, 0.5)):
        got = ((moved - eps).abs() < 1e-4).float().mean().item()
        assert abs(got - share) < 5 * (share * (1 - share) / count) ** 0.5


def test_an_int_seed_draws_for_each_image():
    """The shares of a mixture hold within a batch, and no two images have the same noise."""
    clf, x = cases.classifier(cases.linear()), cases.images(32)
    mixture = Mixture({GaussianNoise(0.1): 0.25, FGSM(0.02): 0.25})
    sizes = []
    for seed in range(20):
        parts = [rows for rows, _ in mixture.assigned(noise.seeds(seed, x))]
        sizes.append([len(rows) for rows in parts])
        moved = chosen(x, mixture(clf, x, 0, seed=seed)) > 0
        assert torch.equal(moved.nonzero()[:, 0], torch.cat(parts).sort().values)
    counts = torch.tensor(sizes).double()
    assert counts.amin() >= 1  # fewer than once in a thousand seeds by chance
    assert (counts.mean(0) / 32 - 0.25).abs().max() < 0.05
    moved = (GaussianNoise(0.01)(clf, x, 0, seed=1) - x).flatten(1)
    assert moved.corrcoef().fill_diagonal_(0).abs().max() < 0.35


def test_mixture_draws_for_each_image_by_its_seed():
    clf, x, seed = cases.classifier(), cases.images(50), cases.seeds(50)
    mixture = Mixture({FGSM(0.01): 0.4, FGSM(0.05): 0.4})
    whole = chosen(x, mixture(clf, x, 0, seed=seed))
    odd = chosen(x[1::2], mixture(clf, x[1::2], 0, seed=seed[1::2]))
    assert torch.allclose(odd, whole[1::2], atol=1e-6)


def test_mixture_of_everything_leaves_nothing():
    clf, x = cases.classifier(cases.linear()), cases.images(500)
    ten = Mixture(
        [MixtureComponent(FGSM(0.01 * k), 0.1) for k in range(1, 11)]
    )  # 10 x 0.1 is below 1 in floating point
    assert (chosen(x, ten(clf, x, 0, seed=cases.seeds(500))) > 0.005).all()


def test_mixture_in_a_mixture_draws_anew():
    count = 1000
    clf, x = cases.classifier(cases.linear()), cases.images(count)
    inner = Mixture({FGSM(0.01): 0.5, FGSM(0.02): 0.5})
    moved = chosen(x, Mixture({inner: 0.5})(clf, x, 0, seed=cases.seeds(count)))
    for eps, share in ((0.0, 0.5), (0.01, 0.25), (0.02, 0.25)):
        assert abs(((moved - eps).abs() < 1e-4).float().mean().item() - share) < 0.07


def test_mixture_reports_its_parts():
    clf, x, y = cases.classifier(), cases.images(64), cases.labels(64)
    result = Mixture({SigmaSample(WALK): 0.5})(clf, x, y, seed=cases.seeds(64), return_info=True)
    assert 10 < result.attempted.sum() < 54
    assert (result.converged | (result.steps == WALK.max_steps) | ~result.attempted).all()
    assert torch.equal(result.images[~result.attempted], x[~result.attempted])


def test_parts_of_share_zero_cost_nothing():
    counter = cases.PassCounter(cases.mlp())
    clf, x = cases.classifier(counter), cases.images(16)
    Identity()(clf, x, 0, seed=0)
    counter.reset()
    assert torch.equal(Mixture({PGD(): 0.0})(clf, x, 0, seed=cases.seeds(16)), x)
    assert counter.forwards == 0


def test_mixture_from_yaml():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--p", type=Perturbation)
    text = """
p:
  class_path: robustsigma.Mixture
  init_args:
    parts:
      - perturbation:
          class_path: robustsigma.FGSM
          init_args: {eps: 0.03, random_start: true}
        share: 0.25
      - perturbation: {class_path: robustsigma.GaussianNoise, init_args: {std: 0.1}}
        share: 0.5
"""
    made = parser.instantiate(parser.parse_string(text)).p
    assert made == Mixture({FGSM(0.03, random_start=True): 0.25, GaussianNoise(0.1): 0.5})
    assert isinstance(made, Mixture)


def test_noise_of_a_start_is_not_that_of_another_perturbation():
    """The same seed in two perturbations gives unrelated draws."""
    of = cases.seeds(64)
    a = noise.gaussian(noise.fold(of, "gaussian_noise"), (192,), torch.float32).flatten()
    b = noise.uniform(noise.fold(of, "start"), (192,), torch.float32).flatten()
    assert torch.corrcoef(torch.stack([a, b]))[0, 1].abs() < 5 / len(a) ** 0.5
