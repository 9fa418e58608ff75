"""In training each batch has fixed numbers of images for the parts of a mixture, whichever images these are."""

from __future__ import annotations

import pytest
import torch

from robustsigma import FGSM, PGD, GaussianNoise, Mixture, SigmaSample
from robustsigma.engine.perturbations.base import drawn_rows
from robustsigma.lightning.training_perturbation import batch_parts

INNER = Mixture({GaussianNoise(0.1): 0.3, PGD(0.1): 0.55})
MIXTURE = Mixture({FGSM(0.1): 0.1, INNER: 0.4, SigmaSample(fraction=0.35): 0.5})
SHARES = {"0.0": 0.1, "0.1.0": 0.12, "0.1.1": 0.22, "0.2": 0.175}


def seeds(count, batch):
    return torch.arange(count) + 1000 * batch


def counts(step, batch=0, size=13):
    return {part.name: len(part.rows) for part in batch_parts(MIXTURE, seeds(size, batch), seeds(size, batch), step)}


@pytest.mark.parametrize("offset", [0.0, 0.37, 0.999])
@pytest.mark.parametrize("shares", [[0.1] * 10, [0.25, 0.75], [1 / 3, 1 / 3, 1 / 3], [0.0, 0.2, 0.45]])
def test_rows_are_disjoint_and_counts_are_shares_rounded_up_or_down(shares, offset):
    for size in (1, 7, 64):
        draw = torch.rand(size, generator=torch.Generator().manual_seed(size))
        found, start = [], 0.0
        for share in shares:
            found.append(drawn_rows(draw, start, start + share, offset))
            assert abs(len(found[-1]) - share * size) < 1 + 1e-6
            start += share
        joined = torch.cat(found)
        assert len(joined.unique()) == len(joined)
        assert abs(len(joined) - start * size) < 1 + 1e-6


def test_all_processes_have_equal_work_in_a_step():
    assert len({tuple(counts(5, batch).values()) for batch in range(8)}) == 1
    drawn = {tuple(counts(None, batch).values()) for batch in range(8)}
    assert len(drawn) > 4


@pytest.mark.parametrize("stride", [1, 2, 3])  # of two optimizers each batch is two steps
def test_shares_hold_over_the_steps(stride):
    steps = 100
    found = [counts(stride * step) for step in range(steps)]
    for name, share in SHARES.items():
        mean = sum(each[name] for each in found) / (13 * steps)
        assert mean == pytest.approx(share, abs=0.006), name


def test_each_image_is_as_likely_as_any_other():
    often = torch.zeros(13)
    for batch in range(200):
        for part in batch_parts(MIXTURE, seeds(13, batch), seeds(13, batch), batch):
            often[part.rows] += part.name == "0.0"
    assert often.sum() == pytest.approx(0.1 * 13 * 200, abs=2)
    assert (often / 200 - 0.1).abs().max() < 5 * (0.1 * 0.9 / 200) ** 0.5
