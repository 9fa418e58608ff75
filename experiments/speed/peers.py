"""The same computations by other libraries, called as their documentation says, on the network as it is.

The network includes the normalization, in eval mode without parameter gradients, and nothing of robustsigma. Results
are compared in double precision on a few images: in single precision, rounding decides the sign of gradients close to
zero, and the side of a ReLU's kink on which a point of a path lies.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.speed.networks import Case
from robustsigma import Attributor, GuidedIntegratedGradients, IntegratedGradients, Perturbation, Sigma
from robustsigma.engine import noise

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Peer:
    """Another library's call of the same computation.

    Args:
        name: name in the table.
        call: the call.
        images: number of images of the call.
        deviation: function of our result and theirs that returns their distance.
        tolerance: largest distance at which the results count as the same.
    """

    name: str
    call: Callable[[], Any]
    images: int
    deviation: Callable[[Any, Any], float]
    tolerance: float


def library(name: str) -> Any:
    """Import a peer without its own warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def apart(ours: Tensor, theirs: Tensor) -> float:
    """Return ||ours - theirs|| / ||theirs|| over the images that the peer was given."""
    ours, theirs = ours[: len(theirs)].double(), theirs.double()
    return float((ours - theirs).norm() / theirs.norm().clamp(min=1e-12))


def captum_ig(case: Case, steps: int) -> Peer:
    """Captum's Integrated Gradients: the same rule and points, with the classifier's own batches."""
    made, batch = library("captum.attr").IntegratedGradients, case.classifier.chunk_size_for(case.images)

    def call(of: Case = case) -> Tensor:
        settings = {"n_steps": steps, "method": "gausslegendre", "internal_batch_size": batch}
        return made(of.plain).attribute(of.images, target=of.target, **settings)

    return Peer("captum", call, len(case.images), _maps_apart(case, IntegratedGradients(steps), call), 1e-6)


def _maps_apart(case: Case, rule: Attributor, call: Callable[[Case], Tensor]) -> Callable[[Any, Any], float]:
    def deviation(*_: Any) -> float:
        few = case.exact()
        return apart(rule(few.classifier, few.images, few.target, seed=few.seeds).values, call(few))

    return deviation


def _gradients(case: Case) -> Callable[..., dict[str, Array]]:
    """Return the function that PAIR's package needs: gradients of the softmax, as arrays."""
    key = library("saliency.core").base.INPUT_OUTPUT_GRADIENTS

    def call(points: Array, call_model_args: int, expected_keys: Any = None) -> dict[str, Array]:
        x = torch.as_tensor(points, dtype=case.images.dtype, device=case.images.device).requires_grad_(True)
        scores = case.plain(x).softmax(1)[:, call_model_args].sum()
        return {key: torch.autograd.grad(scores, x)[0].cpu().numpy()}

    return call


@contextmanager
def _older_numpy() -> Iterator[None]:
    """Take the argument that NumPy 2.4 removed and the package saliency still passes."""
    quantile = np.quantile

    def renamed(*args: Any, interpolation: str | None = None, **kwargs: Any) -> Any:
        return quantile(*args, **kwargs, **({} if interpolation is None else {"method": interpolation}))

    np.quantile = renamed
    try:
        yield
    finally:
        np.quantile = quantile


def _each(case: Case, mask: Callable[[Array, int], Array]) -> Callable[[], Tensor]:
    """Return a call that makes the maps one by one."""
    rows = range(case.scale.single)

    def call() -> Tensor:
        arrays = case.images[: len(rows)].cpu().numpy()
        with _older_numpy():
            found = [torch.as_tensor(mask(arrays[row], int(case.target[row]))) for row in rows]
        return torch.stack(found).to(case.images)

    return call


def pair_guided_ig(case: Case, rule: GuidedIntegratedGradients, start: Tensor) -> Peer:
    """PAIR's Guided IG from the same baseline, (C, H, W)."""
    method, settings = library("saliency.core").GuidedIG(), {"fraction": rule.fraction, "max_dist": rule.max_dist}

    def call(of: Case = case) -> Tensor:
        base, gradients = start.to(of.images).cpu().numpy(), _gradients(of)
        return _each(of, lambda x, c: method.GetMask(x, gradients, c, base, x_steps=rule.steps, **settings))()

    return Peer("PAIR", call, case.scale.single, _maps_apart(case, rule, call), 1e-6)


def sigma_loop(
    rule: Sigma,
    network: Callable[[Tensor], Tensor],
    image: Tensor,
    target: int,
    draw: Callable[[int, int], Tensor],
) -> tuple[Tensor, list[list[float]]]:
    """Return SIGMA's values (C, H, W), averaged over paths, and the confidences of each path, as published.

    Algorithm 1 of the paper, one image, one path and one step after the other, with `Sigma`'s default choices (points
    mapped to the image's own range, gradients of log p), so that results can be compared. A step makes the passes of
    the published code: the two probes in one call, the new point, and the new point again for its gradient.

    Args:
        rule: alpha, beta, epsilon, paths and max_steps; its objective is the logit.
        network: network that maps images (n, C, H, W) in [0, 1] to logits.
        image: image (C, H, W).
        target: class.
        draw: function of path and step that returns a pattern (C, H, W).
    """
    low, high = image.min(), image.max()

    def mapped(points: Tensor) -> Tensor:  # each affinely from its own range to the image's
        least, most = points.amin((1, 2, 3), keepdim=True), points.amax((1, 2, 3), keepdim=True)
        return (low + (points - least) * (high - low) / (most - least)).clamp(0, 1)

    total, curves = torch.zeros_like(image), []
    for path in range(rule.paths):
        with torch.no_grad():
            confidences = [float(network(image[None]).softmax(1)[0, target])]
        latent, step = image[None].clone(), 0
        while confidences[-1] > rule.epsilon and step < rule.max_steps:
            pattern = draw(path, step)[None]
            with torch.no_grad():
                probes = torch.cat([latent + rule.beta * pattern, latent - rule.beta * pattern])
                plus, minus = network(mapped(probes))[:, target]
                latent = latent - rule.alpha * (plus - minus) / (2 * rule.beta) * pattern
                point = mapped(latent)
                confidences.append(float(network(point).softmax(1)[0, target]))
            point.requires_grad_(True)
            (gradient,) = torch.autograd.grad(network(point).log_softmax(1)[0, target], point)
            total += gradient[0] * ((confidences[-2] - confidences[-1]) / float(gradient.sum()))
            step += 1
        curves.append(confidences)
    return total / rule.paths, curves


def sigma_one_by_one(case: Case, rule: Sigma) -> Peer:
    """The published order of passes, see `sigma_loop`. The results are compared with the same patterns in both."""
    few = case.first(case.scale.single)
    shape = tuple(case.images.shape[1:])
    source = torch.Generator(device=case.images.device).manual_seed(0)

    def draw(path: int, step: int) -> Tensor:
        return torch.randint(0, 2, shape, generator=source, device=case.images.device) - 0.5

    def call() -> list[Any]:
        pairs = zip(few.images, few.target.tolist(), strict=True)
        return [sigma_loop(rule, case.plain, image, target, draw) for image, target in pairs]

    def deviation(ours: Any, theirs: Any) -> float:
        steps = {len(curve) - 1 for _, curves in theirs for curve in curves}
        assert steps == set(ours.steps.unique().tolist()) == {rule.max_steps}, "walks of different lengths"
        return _same_walk(case.exact().first(1), replace(rule, paths=2))

    return Peer("one by one", call, len(few.images), deviation, 1e-6)


def _same_walk(case: Case, rule: Sigma) -> float:
    keys = noise.fold(torch.arange(rule.max_steps * rule.paths), "patterns")
    drawn = 0.5 * noise.bernoulli(keys, tuple(case.images.shape[1:]), torch.float64)
    patterns = drawn.unflatten(0, (rule.max_steps, rule.paths)).to(case.images.device)
    ours = replace(rule, patterns=patterns)(case.classifier, case.images, case.target)
    theirs, _ = sigma_loop(
        rule, case.plain, case.images[0], int(case.target[0]), lambda path, step: patterns[step, path]
    )
    return apart(ours.values, theirs[None])


def attack(case: Case, same: Perturbation, name: str, **arguments: Any) -> Peer:
    """The same attack by torchattacks; the deviation is the share of pixels that differ."""
    made = getattr(library("torchattacks"), name)

    def call(of: Case = case) -> Tensor:
        return made(of.plain, **arguments)(of.images, of.target)

    def differing(*_: Any) -> float:
        few = case.exact()
        ours = same(few.classifier, few.images, few.target, seed=few.seeds)
        return float(((ours - call(few)).abs() > 1e-5).double().mean())

    return Peer("torchattacks", call, len(case.images), differing, 1e-4)
