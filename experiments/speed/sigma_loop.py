"""SIGMA as it is published: one image, one path, one step after the other, with calls of at most two images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robustsigma import Sigma


def _into(points: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return points (n, C, H, W), each mapped affinely from its own range to the image's."""
    flat = points.flatten(1)
    least, most = (end[:, None, None, None] for end in (flat.amin(1), flat.amax(1)))
    return (low + (points - least) * (high - low) / (most - least)).clamp(0, 1)


def attribute(
    rule: Sigma,
    network: Callable[[Tensor], Tensor],
    image: Tensor,
    target: int,
    draw: Callable[[int, int], Tensor],
) -> tuple[Tensor, list[list[float]]]:
    """Return the values (C, H, W), mean over paths, and each path's confidences.

    Algorithm 1 of the paper with the choices that `Sigma` makes by default (points mapped to the image's own range,
    the logit's slope, gradients of log p), so that the results can be compared. A step makes the passes of the
    published code: the two probes in one call, the new point, and the new point again for its gradient.

    Args:
        rule: alpha, beta, epsilon, paths and max_steps; its objective is the logit.
        network: from images (n, C, H, W) in [0, 1] to logits.
        image: (C, H, W).
        target: the class.
        draw: gives the pattern (C, H, W) of a path and a step.
    """
    x = image[None]
    low, high = x.min(), x.max()
    total = torch.zeros_like(image)
    curves = []
    for path in range(rule.paths):
        with torch.no_grad():
            confidences = [float(network(x).softmax(1)[0, target])]
        latent, step = x.clone(), 0
        while confidences[-1] > rule.epsilon and step < rule.max_steps:
            pattern = draw(path, step)[None]
            with torch.no_grad():
                probes = torch.cat([latent + rule.beta * pattern, latent - rule.beta * pattern])
                plus, minus = network(_into(probes, low, high))[:, target]
                latent = latent - rule.alpha * (plus - minus) / (2 * rule.beta) * pattern
                point = _into(latent, low, high)
                confidences.append(float(network(point).softmax(1)[0, target]))
            point.requires_grad_(True)
            (gradient,) = torch.autograd.grad(network(point).log_softmax(1)[0, target], point)
            total += gradient[0] * ((confidences[-2] - confidences[-1]) / float(gradient.sum()))
            step += 1
        curves.append(confidences)
    return total / rule.paths, curves
