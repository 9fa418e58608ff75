"""One attack at several radii."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from robustsigma.engine import noise, validation
from robustsigma.engine.classifier import Classifier, as_classifier
from robustsigma.engine.perturbations.base import Labels, Perturbation, Perturbed
from robustsigma.engine.perturbations.projections import Norm


def attack_at_radii(
    attack: Perturbation,
    classifier: Classifier | nn.Module,
    images: Tensor,
    labels: Labels,
    radii: Sequence[float],
    *,
    seed: int | Tensor,
) -> Perturbed:
    """Run an attack at several radii, from the smallest: each one sees the images that withstood the ones before.

    What misleads the network within a radius does so within every larger one.

    Args:
        attack: an attack with the setting `eps`, whose value does not matter.
        classifier: network to attack.
        images: float (B, C, H, W) in [0, 1].
        labels: class indices, one int for all images or B of them.
        radii: in pixel units of [0, 1].
        seed: as of a call of the attack.

    Returns:
        For each image, the result at the smallest radius that misled the network, else at the largest; passes and
        seconds are those of all radii. Its `accuracy(radii)` is the accuracy at each radius.

    Example:
        >>> found = attack_at_radii(APGD(), classifier, images, labels, [2 / 255, 4 / 255, 8 / 255], seed=0)
        >>> found.accuracy([2 / 255, 4 / 255, 8 / 255])
    """
    validation.several("radii", radii)
    if not radii:
        raise validation.fail("radii", "at least one", radii)
    classifier = as_classifier(classifier)
    validation.images(images, classifier.bounds)
    labels = validation.target(labels, images, "labels")
    with classifier.frozen():
        classifier.check_target(labels, images, "labels")
        x = classifier.prepare_input(images)
        seeds, wrong = noise.seeds(seed, x), classifier.logits(x).argmax(1) != labels
    passes = torch.zeros(4, len(images), device=images.device)  # forwards, backwards, seconds, distances
    passes[0] += 1
    found = images.detach().clone()
    for radius in sorted(radii):
        rows = (~wrong).nonzero()[:, 0]
        if not len(rows):
            break
        made = attack(classifier, images[rows], labels[rows], seed=seeds[rows], eps=radius, return_info=True)
        told = [value for value in (made.forwards, made.backwards, made.seconds, made.distance) if value is not None]
        passes[3, rows] = 0
        passes[:, rows] += torch.stack([value.to(passes) for value in told])
        assert made.success is not None
        found[rows], wrong[rows] = made.images, made.success
    norm: Norm = getattr(attack, "norm", None) or "l2"
    forwards, backwards, seconds, distance = passes
    return replace(
        Perturbed.plain(found),
        forwards=forwards,
        backwards=backwards,
        seconds=seconds,
        success=wrong,
        distance=distance,
        norm=norm,
    )
