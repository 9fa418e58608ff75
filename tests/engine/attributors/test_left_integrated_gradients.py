import cases
import numpy as np
import pytest
import recorded
import torch

from robustsigma import Classifier, IntegratedGradients, LeftIntegratedGradients
from robustsigma.engine.attributors.published import (
    AuthorsLeftIntegratedGradients,
    IDGRepositoryLeftIntegratedGradients,
)


class Kink(torch.nn.Module):
    """z_0 = min(rate * mean of the image, level) + 0.1 times the mean, z_1 = -z_0: a rise that saturates."""

    def __init__(self, rate, level):
        super().__init__()
        self.rate, self.level = rate, level

    def forward(self, x):
        mean = x.flatten(1).mean(1)
        z = (self.rate * mean).clamp(max=self.level) + 0.1 * mean
        return torch.stack([z, -z], 1)


WHITE = torch.ones(2, 1, 4, 4, dtype=torch.float64)


@pytest.mark.parametrize(("fraction", "kept"), [(0.05, 1), (0.15, 1), (0.55, 5), (0.95, 9), (1.0, 10)])
def test_linear(fraction, kept):
    """On a linear network F rises evenly: what is kept is that part of IG."""
    net = cases.linear(gain=1.0).double()
    x = cases.images(dtype=torch.float64)
    target = (net(x) - net(torch.zeros_like(x))).argmax(1)
    whole = IntegratedGradients(10)(Classifier(net), x, target)
    assert (whole.drop > 0.1).all()
    # F at the image is above the threshold by rounding only.
    result = LeftIntegratedGradients(10, min(fraction, 1.0))(Classifier(net), x, target)
    if fraction < 1:
        assert (result.steps == kept).all()
        assert result.converged.all()
    else:
        assert (result.steps >= 9).all()
    share = result.steps / 10
    torch.testing.assert_close(result.values, share[..., None, None] * whole.values)
    torch.testing.assert_close(result.drop, share[:, 0] * whole.drop)
    assert (result.gap() < 1e-10).all()


@pytest.mark.parametrize("chunk", [1, 3, 7, 64])
def test_the_saturated_part_is_left_out(chunk):
    """F = min(4m, 1) + 0.1m passes 0.9 F(x) = 0.99 between a = 0.2 and a = 0.25: four of 20 points are kept."""
    clf = Classifier(Kink(4, 1), chunk_size=chunk)
    result = LeftIntegratedGradients(20)(clf, WHITE, 0)
    assert (result.steps == 4).all()
    torch.testing.assert_close(result.values.flatten(1).sum(1), torch.full((2,), 4.1 * 0.2, dtype=torch.float64))
    torch.testing.assert_close(result.drop, result.values.flatten(1).sum(1))
    assert result.confidence.shape == (2, 1, 22)  # the whole line


class Bump(torch.nn.Module):
    """z_0 rises to 1 at mean 0.3, falls to 0 at 0.6 and rises to 1 again at 0.9, and stays."""

    def forward(self, x):
        mean = x.flatten(1).mean(1)
        z = torch.minimum((mean / 0.3), ((mean - 0.6).abs() / 0.3)).clamp(max=1)
        return torch.stack([z, -z], 1)


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_what_falls_below_the_threshold_again_stays_left_out(chunk):
    """F > 0.5 first at a = 0.2, the second of 10 points: one is kept, also where a chunk begins in the dip."""
    result = LeftIntegratedGradients(10, 0.5)(Classifier(Bump(), chunk_size=chunk), WHITE, 0)
    assert (result.steps == 1).all()
    torch.testing.assert_close(result.values.flatten(1).sum(1), torch.full((2,), 1 / 3, dtype=torch.float64))


def test_a_jump_at_the_first_point():
    """The first point is above the threshold already: it is kept; the authors' code keeps none."""
    clf = Classifier(Kink(1000, 1))
    sound = LeftIntegratedGradients(10)(clf, WHITE, 0)
    assert (sound.steps == 1).all()
    assert sound.converged.all()
    torch.testing.assert_close(sound.values.flatten(1).sum(1), torch.full((2,), 0.01, dtype=torch.float64))
    authors = AuthorsLeftIntegratedGradients(10)(clf, WHITE, 0)
    assert not authors.values.any()
    assert not authors.steps.any()
    assert not authors.drop.any()


def test_a_falling_score():
    """Class 1 falls from the baseline to the image: the whole line and a flag; the authors' code gives zeros."""
    clf = Classifier(Kink(4, 1))
    sound = LeftIntegratedGradients(10)(clf, WHITE, 1)
    assert not sound.converged.any()
    assert (sound.steps == 10).all()
    torch.testing.assert_close(sound.values, IntegratedGradients(10, "right")(clf, WHITE, 1).values)
    assert not AuthorsLeftIntegratedGradients(10)(clf, WHITE, 1).values.any()


def test_one_batch_holds_both_cases():
    clf = Classifier(Kink(4, 1), chunk_size=3)
    both = LeftIntegratedGradients(20)(clf, WHITE, torch.tensor([1, 0]))
    assert both.steps[:, 0].tolist() == [20, 4]
    assert both.converged[:, 0].tolist() == [False, True]


def test_idg_repository():
    """The mean over the points below 0.9 max F: F = min(4m, 1) + 0.1m at m = k / 20 passes 0.99 at k = 5."""
    clf = Classifier(Kink(4, 1))
    result = IDGRepositoryLeftIntegratedGradients(21)(clf, WHITE, 0)
    assert (result.steps == 5).all()
    torch.testing.assert_close(result.values.flatten(1).sum(1), torch.full((2,), 4.1, dtype=torch.float64))
    # Of a negative score 0.9 max F is above every F: the gradient at the baseline alone.
    low = Classifier(torch.nn.Sequential(Kink(4, 1), Lower()))
    result = IDGRepositoryLeftIntegratedGradients(21)(low, WHITE, 0)
    assert (result.steps == 1).all()
    torch.testing.assert_close(result.values.flatten(1).sum(1), torch.full((2,), 4.1, dtype=torch.float64))


class Lower(torch.nn.Module):
    def forward(self, z):
        return z - 10


@pytest.mark.parametrize(
    "kind", [LeftIntegratedGradients, AuthorsLeftIntegratedGradients, IDGRepositoryLeftIntegratedGradients]
)
def test_passes(kind):
    counter = cases.PassCounter(cases.mlp())
    result = kind(6)(cases.classifier(counter), cases.images())
    assert counter.forwards == result.forwards.sum() == 4 * (14 if kind is IDGRepositoryLeftIntegratedGradients else 8)
    assert counter.backwards == result.backwards.sum() == 4 * 6


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"steps": 0}, "steps"),
        ({"fraction": 0.0}, "fraction"),
        ({"fraction": 1.1}, "fraction"),
        ({"baseline": "gray"}, "baseline"),
        ({"score": "loss"}, "score"),
    ],
)
def test_bad_settings(arguments, name):
    with pytest.raises(ValueError, match=f"^{name}: expected .*, got "):
        LeftIntegratedGradients(**arguments)


def test_the_idg_repository_needs_two_steps():
    with pytest.raises(ValueError, match=r"^steps: expected .*, got "):
        IDGRepositoryLeftIntegratedGradients(1)


@pytest.mark.reference
@pytest.mark.parametrize("steps", [50, 200])
@pytest.mark.parametrize("fraction", [0.9, 0.5])
def test_recorded_authors(vectors, fraction, steps):
    clf, x, targets, _ = recorded.problem(vectors, "f64")
    stored = np.load(vectors / "left_ig_orig.npz")
    name = f"lig_orig_r{fraction}_n{steps}_{{}}"
    result = AuthorsLeftIntegratedGradients(steps, fraction)(clf, x[:4], targets[:4])
    recorded.check(result.values, recorded.stacked(stored, name, 4), recorded.TOLERANCE["f64"])
    index = recorded.stacked(stored, name + "_index", 4)
    assert torch.equal(result.steps[:, 0], torch.where(index < 0, steps, index))


@pytest.mark.reference
@pytest.mark.parametrize("precision", ["f32", "f64"])
@pytest.mark.parametrize("steps", [50, 20])
def test_recorded_idg_repository(vectors, steps, precision):
    clf, x, targets, _ = recorded.problem(vectors, precision)
    expected = recorded.stacked(np.load(vectors / "ig_lig_idg.npz"), f"lig{steps}_{precision}_{{}}", 4)
    result = IDGRepositoryLeftIntegratedGradients(steps)(clf, x[:4], targets[:4])
    recorded.check(result.values, expected, recorded.TOLERANCE[precision])
