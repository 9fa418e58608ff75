"""Sanity checks that run a method again: with other seeds, and on a network with shuffled parameters."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from robustsigma.engine import noise, validation
from robustsigma.engine.attributors import Attribution, Attributor
from robustsigma.engine.attributors.base import Reduction
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.metrics.base import MetricContext, MetricResult, Skip
from robustsigma.engine.metrics.ranking import spearman


def stability(
    context: MetricContext,
    attributor: Attributor,
    attribution: Attribution,
    *,
    seeds: int = 2,
    reduction: Reduction = "abs_sum",
) -> MetricResult:
    """Return "stability": the rank correlation of a heatmap with those of other seeds, mean over seeds.

    Args:
        context: what was explained.
        attributor: the method; skipped if it is not stochastic.
        attribution: its result.
        seeds: number of further runs.
        reduction: how channels become one.
    """
    validation.integer("seeds", seeds, 1)
    if not attributor.stochastic:
        codes = torch.full_like(context.target, int(Skip.NOT_STOCHASTIC))
        return MetricResult({"stability": torch.full_like(codes, torch.nan, dtype=torch.float64)}, {"stability": codes})
    first = attribution.heatmap(reduction)
    total = torch.zeros(len(context), dtype=torch.float64, device=first.device)
    for place in range(seeds):
        other = noise.fold(context.seeds, "stability", place)
        again = attributor(context.classifier, context.images, context.target, seed=other)
        total += spearman(first, again.heatmap(reduction))
    return _named("stability", total / seeds)


def randomization(
    context: MetricContext,
    shuffled: Classifier,
    attributor: Attributor,
    attribution: Attribution,
    *,
    seed: int | Tensor,
    reduction: Reduction = "abs_sum",
) -> MetricResult:
    """Return "randomization": the rank correlation with the heatmap of a network whose parameters were shuffled.

    The model-parameter randomization test of Adebayo et al. (2018): a map that stays the same does not depend on what
    the network has learned. The shuffled network is explained for the class that it predicts itself, since a method
    that walks until a class is lost has nothing to do where the class is not predicted.

    Args:
        context: what was explained.
        shuffled: the network after `shuffle_parameters`.
        attributor: the method.
        attribution: its result on the context.
        seed: seed of the method, the same as in `attribution`: only the network may differ.
        reduction: how channels become one.
    """
    other = attributor(shuffled, context.images, seed=seed)
    return _named("randomization", spearman(attribution.heatmap(reduction), other.heatmap(reduction)))


def max_sensitivity(
    context: MetricContext,
    attributor: Attributor,
    attribution: Attribution,
    *,
    seed: int | Tensor,
    samples: int = 10,
    radius: float = 0.02,
) -> MetricResult:
    """Return "max_sensitivity": the largest relative change of an attribution under noise on the image.

    The maximum over noisy images x' of |a(x) - a(x')| / |a(x)|, norms over all values (Yeh et al., 2019, definition
    2.2); a map of zeros counts as one of norm 1. It is captum's `sensitivity_max`, but noisy images are clipped to the
    range of images, and a method that draws random numbers draws the same for both. Random maps, and any that do not
    look at the image, have 0: a low value alone is no merit.

    Args:
        context: what was explained.
        attributor: the method.
        attribution: its result on the context.
        seed: seed of the method, the same as in `attribution`: only the images may differ.
        samples: noisy copies of each image.
        radius: radius of the uniform noise on each value, in units of the images.
    """
    validation.integer("samples", samples, 1)
    validation.number("radius", radius, 0, 1, open_low=True)
    first, bounds = attribution.values.double(), context.classifier.bounds
    seeds = noise.seeds(seed, context.images)  # an int would draw other numbers for other pixels
    norm = first.flatten(1).norm(dim=1)
    worst = torch.zeros(len(context), dtype=torch.float64, device=first.device)
    for place in range(samples):
        drawn = noise.uniform(noise.fold(context.seeds, "max_sensitivity", place), (first[0].numel(),), torch.float64)
        shift = radius * (2 * drawn.reshape(first.shape) - 1)
        shifted = (context.images + shift.to(context.images)).clamp(*bounds)
        again = attributor(context.classifier, shifted, context.target, seed=seeds).values.double()
        worst = torch.maximum(worst, (again - first).flatten(1).norm(dim=1) / norm.where(norm > 0, 1))
    return MetricResult({"max_sensitivity": worst})


def shuffle_parameters(classifier: Classifier, seed: int) -> Classifier:
    """Return a copy whose parameters have their entries in a random order, each tensor within itself.

    Every layer keeps the distribution of its weights, so that activations stay in range, and loses what it learned.
    Buffers, such as BatchNorm's running statistics, stay.

    Args:
        classifier: left as it was.
        seed: seed of the orders, one for each parameter's name.
    """
    shuffled = copy.deepcopy(classifier)
    with torch.no_grad():
        for name, parameter in shuffled.named_parameters():
            key = noise.fold(torch.tensor([seed], device="cpu"), "shuffle", name)
            order = noise.uniform(key, (parameter.numel(),), torch.float64)[0].argsort(stable=True)
            parameter.copy_(parameter.flatten()[order.to(parameter.device)].reshape(parameter.shape))
    return shuffled


def _named(name: str, similarity: Tensor) -> MetricResult:
    return MetricResult({name: similarity}, {name: similarity.isnan().long() * Skip.NO_VARIANCE})
