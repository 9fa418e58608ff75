"""The control is normal noise of the seed and of nothing else."""

import cases
import torch

from robustsigma import Classifier, RandomAttribution
from robustsigma.engine import noise


def test_values_are_standard_normal():
    values = RandomAttribution()(
        Classifier(cases.linear(size=32)), cases.images(8, size=32), seed=cases.seeds(8)
    ).values
    n = values.numel()
    assert values.mean().abs() < 4 / n**0.5
    assert (values.var() - 1).abs() < 4 * (2 / n) ** 0.5
    assert (values[:4] - values[4:]).var() > 1.9  # independent images, not shifted copies


def test_neither_image_nor_target_nor_network_matters():
    seeds = torch.full((4,), 3)
    first = RandomAttribution()(Classifier(cases.linear()), cases.images(), 0, seed=seeds)
    second = RandomAttribution()(Classifier(cases.mlp()), cases.images(seed=9), 2, seed=seeds)
    assert torch.equal(first.values, second.values)


def test_equal_seeds_share_noise_and_others_do_not():
    values = RandomAttribution()(Classifier(cases.linear()), cases.images(), seed=torch.tensor([5, 5, 6, 7])).values
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[1], values[2])


def test_it_is_not_the_noise_of_another_method():
    seeds = cases.seeds()
    values = RandomAttribution()(Classifier(cases.linear()), cases.images(), seed=seeds).values
    others = [noise.gaussian(noise.fold(seeds, name), (3, 8, 8), torch.float32) for name in ("baseline", "sigma")]
    assert all(not torch.equal(values, other) for other in others)


def test_the_only_pass_is_the_prediction():
    counter = cases.PassCounter(cases.mlp())
    result = RandomAttribution()(Classifier(counter), cases.images())
    assert (counter.forwards, counter.backwards) == (4, 0)
    assert result.forwards.tolist() == [1] * 4
