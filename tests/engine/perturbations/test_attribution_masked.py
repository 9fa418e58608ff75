"""Which pixels a masked perturbation changes."""

import cases
import pytest
import torch

from robustsigma import FGSM, PGD, AttributionMasked, Gradient, IntegratedGradients

X, Y = cases.images(), cases.labels()


def changed(where, fraction, **kwargs):
    """Return which pixels differ, (B, H, W), and the map that ranks them."""
    clf, method = cases.classifier(), IntegratedGradients(steps=4)
    masked = AttributionMasked(FGSM(0.05), method, where, fraction)
    made = masked(clf, X, Y, **{"seed": 3, **kwargs})
    whole = FGSM(0.05)(clf, X, Y, seed=3)
    different = (made != X).any(1)
    torch.testing.assert_close(made, torch.where(different[:, None], whole, X), rtol=0, atol=0)
    return different, method(clf, X, Y).heatmap()


@pytest.mark.parametrize(("fraction", "pixels"), [(0.25, 16), (1.0, 64), (1e-6, 1)])
def test_high_and_low_are_the_ends_of_the_map(fraction, pixels):
    for where, sign in (("high", 1), ("low", -1)):
        chosen, heat = changed(where, fraction)
        assert (chosen.sum((1, 2)) == pixels).all()
        for row in range(len(X)):
            inside, outside = heat[row][chosen[row]], heat[row][~chosen[row]]
            assert len(outside) == 0 or (sign * inside).min() >= (sign * outside).max()


def test_random_moves_the_high_region():
    high, _ = changed("high", 0.2)
    moved, _ = changed("random", 0.2)
    assert not torch.equal(moved, high)
    for row in range(len(X)):
        shifts = [high[row].roll((down, right), (0, 1)) for down in range(8) for right in range(8)]
        assert any(torch.equal(moved[row], each) for each in shifts)
    again, _ = changed("random", 0.2, seed=4)
    assert not torch.equal(again, moved)


def test_random_offsets_are_uniform():
    found = torch.zeros(8, 8)
    method = AttributionMasked(where="random", fraction=1e-6)
    heat = torch.zeros(4000, 8, 8)
    heat[:, 2, 5] = 1
    found = method._chosen(heat, cases.seeds(4000)).float().mean(0)
    assert (found - 1 / 64).abs().max() < 5 * (1 / 64 / 4000) ** 0.5


def test_the_ball_is_that_of_the_perturbation():
    assert AttributionMasked(PGD(0.5, norm="l2")).bound == ("l2", 0.5)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"perturbation": FGSM}, "perturbation"),
        ({"attributor": Gradient}, "attributor"),
        ({"where": "top"}, "where"),
        ({"fraction": 0}, "fraction"),
        ({"fraction": 1.1}, "fraction"),
    ],
)
def test_bad_settings(arguments, name):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        AttributionMasked(**arguments)
