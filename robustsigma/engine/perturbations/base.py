"""The interface of every perturbation, and what it returns."""

from __future__ import annotations

import copy
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, final, overload

import torch
from torch import Tensor, nn

from robustsigma.engine import noise, validation
from robustsigma.engine.checks import warn_once
from robustsigma.engine.classifier import Classifier, as_classifier
from robustsigma.engine.network_state import at_least_single
from robustsigma.engine.perturbations.attack_state import AttackState
from robustsigma.engine.perturbations.projections import Norm, lengths
from robustsigma.engine.short_repr import ShortRepr

Labels = int | Sequence[int] | Tensor
MANY_UNCONVERGED = 0.05  # share of searches above which an accuracy under them is doubted


@dataclass(frozen=True, eq=False, repr=False)
class Perturbed(ShortRepr):
    """Perturbed images and how they were made. B images.

    Attributes:
        images: (B, C, H, W), within the classifier's bounds, detached.
        attempted: (B,) bool, True where a search with a goal was run (SIGMA's walk).
        converged: (B,) bool, True where the search reached its goal; False where none was run.
        steps: (B,) int64, steps of the search.
        forwards: (B,) float, passes that each image took, those of gradients included. Where a method does not
            count them for each image, the mean of its batch.
        backwards: (B,) float, backward passes.
        seconds: (B,) float, the time of the call, divided among the images by their passes.
        found_by: (B,) int64, which attack of an `AutoAttack` misled the network, counted from 1; 0 where the clean
            image did, -1 where none did. Other attacks in parts are one attack. None for perturbations without parts.
        zero_gradient: (B,) bool, True where the difference of logits had no gradient; None as for `found_by`.
        success: (B,) bool, True where the network misclassifies the returned image.
        distance: (B,) float, between the returned image and the clean one, in `norm`.
        norm: the perturbation's own, else "l2".

    Example:
        >>> info = FGSM(0.03)(classifier, images, labels, seed=0, return_info=True)
        >>> info.images.shape, info.success, info.distance
    """

    images: Tensor
    attempted: Tensor
    converged: Tensor
    steps: Tensor
    forwards: Tensor | None = None
    backwards: Tensor | None = None
    seconds: Tensor | None = None
    found_by: Tensor | None = None
    zero_gradient: Tensor | None = None
    success: Tensor | None = None
    distance: Tensor | None = None
    norm: Norm = "l2"

    @staticmethod
    def plain(images: Tensor) -> Perturbed:
        """Return images that were made without a search."""
        no = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        return Perturbed(images, no, no, no.long())

    def put(self, rows: Tensor, part: Perturbed) -> Perturbed:
        """Return a copy in which `part` replaces the given rows; passes that one of the two lacks are 0."""
        found = {}
        for name in ("images", "attempted", "converged", "steps", "forwards", "backwards"):
            a, b = getattr(self, name), getattr(part, name)
            if b is not None:
                a = b.new_zeros(len(self.images)) if a is None else a
                found[name] = a.index_copy(0, rows, b.to(a.dtype))
        return replace(self, **found)

    def smallest_distance(self) -> Tensor:
        """Return the radius at which each image is misled, (B,): its distance, infinite without success."""
        if self.distance is None or self.success is None:
            raise validation.fail("return_info", "True, for results with distances", "another")
        return torch.where(self.success, self.distance, torch.inf)

    def accuracy(self, radii: float | Sequence[float] | Tensor) -> Tensor:
        """Return the fraction of images that withstand each radius, (R,).

        After a minimum-norm attack (`FMN`, `FAB` without a radius) or `attack_at_radii` this is the accuracy over the
        radius; after an attack of one radius it is too high at the smaller ones.
        """
        at = torch.as_tensor(radii, dtype=torch.float64).flatten()
        # To rounding: an image in single precision may lie a little outside the ball that it was projected to.
        return (self.smallest_distance().double().cpu() > at[:, None] * (1 + 1e-5) + 1e-7).double().mean(1)

    def median_distance(self) -> float:
        """Return the median of the distances, infinite where fewer than half of the images were misled."""
        ordered = self.smallest_distance().sort().values
        return float((ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2)

    def area(self, largest: float) -> float:
        """Return the mean accuracy over the radii from 0 to `largest`, in [0, 1]: the area under the curve / largest.

        The area under the accuracy up to a radius is the mean of the distances that are cut off at that radius.
        """
        validation.number("largest", largest, 0, open_low=True)
        return float(self.smallest_distance().clamp(max=largest).double().mean() / largest)


class Perturbation(validation.Settings, ABC):
    """A perturbation and its hyperparameters; subclasses are frozen dataclasses.

    Example:
        >>> adversarial = FGSM(8 / 255)(classifier, images, labels, seed=0)
        >>> info = SigmaSample()(classifier, images, labels, seed=0, return_info=True)
        >>> info.converged.float().mean()
    """

    @overload
    def __call__(
        self,
        classifier: Classifier | nn.Module,
        images: Tensor,
        labels: Labels,
        *,
        seed: int | Tensor,
        return_info: Literal[False] = False,
        eps: float | Tensor | None = None,
        target: Labels | None = None,
        state: AttackState | None = None,
    ) -> Tensor: ...

    @overload
    def __call__(
        self,
        classifier: Classifier | nn.Module,
        images: Tensor,
        labels: Labels,
        *,
        seed: int | Tensor,
        return_info: Literal[True, "search"],
        eps: float | Tensor | None = None,
        target: Labels | None = None,
        state: AttackState | None = None,
    ) -> Perturbed: ...

    @final
    def __call__(
        self,
        classifier: Classifier | nn.Module,
        images: Tensor,
        labels: Labels,
        *,
        seed: int | Tensor,
        return_info: bool | Literal["search"] = False,
        eps: float | Tensor | None = None,
        target: Labels | None = None,
        state: AttackState | None = None,
    ) -> Tensor | Perturbed:
        """Perturb images against a classifier in eval mode; its own mode is restored afterwards.

        Args:
            classifier: network to perturb against. A bare `nn.Module` is used as a classifier of images in [0, 1],
                with a warning.
            images: float (B, C, H, W) in [0, 1]. Half precision is computed in float32 and rounded at the end.
            labels: class indices, one int for all images or B of them.
            seed: an int, which is combined with a hash of each image's pixels, or int64 (B,), one seed for each
                image; see `robustsigma.engine.noise.seeds`.
            return_info: whether to return a `Perturbed`, with one more forward pass for its `success`; "search"
                leaves out `success` and `distance`, and this pass.
            eps: radius in place of the setting `eps`, one for all images or (B,).
            target: class in place of the setting `targeted` of `PGD`, one for all images or B of them.
            state: records how far an attack in parts is (APGD, FAB, Square, AutoAttack), and resumes it when it is
                handed in again.

        Returns:
            The perturbed images (B, C, H, W), within the classifier's bounds and detached; or a `Perturbed`.

        Raises:
            ValueError: an argument is invalid, or the network returns values that are not finite.

        Warns:
            UserWarning: once for a network whose attacks should not be believed; see `inspect_classifier`.
        """
        classifier = as_classifier(classifier)
        validation.images(images, classifier.bounds)
        labels = validation.target(labels, images, "labels")
        attack = self._for_call(images, eps, target, state)
        with classifier.frozen():
            clean, labels = classifier.prepare_input(images), labels.clone()
            seeds = noise.seeds(seed, clean).clone()
            classifier.check_target(labels, clean, "labels")
            if target is not None:
                classifier.check_target(attack.targeted, clean, "target")
            if self.depends_on_model and not classifier.checked:
                warn_once(classifier, clean, labels)
            info = attack.count_passes(classifier, clean, labels, seeds)
            result = info.images.detach().to(images.dtype).clamp(*classifier.bounds)
            if result.aminmax().min.isnan():  # all other values were clamped
                raise validation.not_finite("gradients or scores", self)
            if not return_info:
                return result
            info = replace(info, images=result)
            return info if return_info == "search" else attack._judge(classifier, info, clean, labels)

    def _for_call(
        self, images: Tensor, eps: float | Tensor | None, target: Labels | None, state: AttackState | None
    ) -> Any:
        """Return a copy of the settings in which arguments of one call replace settings; a (B, 1, 1, 1) radius."""
        given: dict[str, Any] = {}
        if eps is not None:
            if not isinstance(getattr(self, "eps", None), (int, float)):
                raise validation.fail(
                    "eps", f"None for {type(self).__name__}, which has no setting `eps`", repr(eps)[:80]
                )
            radii = torch.as_tensor(eps, dtype=at_least_single(images[:1]).dtype, device=images.device).detach()
            if radii.shape not in ((), (len(images),)) or not bool((radii.isfinite() & (radii >= 0)).all()):
                got = f"shape {tuple(radii.shape)} in [{radii.min():g}, {radii.max():g}]" if radii.numel() else "none"
                raise validation.fail("eps", f"finite radii of at least 0, one or ({len(images)},)", got)
            if getattr(self, "norm", "linf") == "linf" and bool((radii > 1).any()):
                raise validation.fail("eps", "radii in [0, 1], as pixels are", f"{radii.max():g}; divide by 255")
            given["eps"] = radii.expand(len(images)).reshape(-1, 1, 1, 1)
        if target is not None:
            if not hasattr(self, "targeted") or isinstance(self.targeted, bool):
                raise validation.fail("target", f"None for {type(self).__name__}, which takes no target", repr(target))
            given["targeted"] = validation.target(target, images, "target")
        if state is not None:
            if not self.in_parts:
                raise validation.fail("state", f"None for {type(self).__name__}, which is of one part", "one")
            given["_state"] = state
        if not given:
            return self
        attack = copy.copy(self)
        for name, value in given.items():
            object.__setattr__(attack, name, value)
        return attack

    def count_passes(self, classifier: Classifier, images: Tensor, labels: Tensor, seeds: Tensor) -> Perturbed:
        """Return what `perturb` does, with passes and seconds; the classifier is frozen."""
        start, forward, gradient = time.perf_counter(), classifier.forwards, classifier.backwards
        info = self.perturb(classifier, images, labels, seeds)
        passes = classifier.forwards - forward, classifier.backwards - gradient
        even = [images.new_full((len(images),), count / len(images)) for count in passes]
        forwards, backwards = info.forwards, info.backwards
        forwards, backwards = even[0] if forwards is None else forwards, even[1] if backwards is None else backwards
        share = forwards + backwards
        share = share / share.sum() if passes[0] else torch.full_like(share, 1 / len(images))
        seconds = share * (time.perf_counter() - start)
        return replace(info, forwards=forwards, backwards=backwards, seconds=seconds)

    def _judge(self, classifier: Classifier, info: Perturbed, clean: Tensor, labels: Tensor) -> Perturbed:
        """Return the results with success and distance."""
        success = classifier.logits(at_least_single(info.images)).argmax(1) != labels
        norm: Norm = getattr(self, "norm", None) or (self.bound or ("l2",))[0]
        return replace(info, success=success, distance=lengths(info.images.to(clean.dtype) - clean, norm), norm=norm)

    @property
    def in_parts(self) -> bool:
        """Whether the attack runs in parts, after which an `AttackState` can resume it."""
        return False

    @property
    def depends_on_model(self) -> bool:
        """Whether another network would give other images: True for attacks, False for noise."""
        return True

    @property
    def bound(self) -> tuple[Norm, float] | None:
        """Norm and radius of the ball that images stay in, from the settings `norm` and `eps`; None without both."""
        eps, norm = getattr(self, "eps", None), getattr(self, "norm", None)
        return None if eps is None or norm is None else (norm, float(eps))

    @property
    def batch_dependent(self) -> bool:
        """Whether an image's result depends on the rest of its batch: only where another library draws the numbers."""
        return False

    @abstractmethod
    def perturb(self, classifier: Classifier, images: Tensor, labels: Tensor, seeds: Tensor) -> Perturbed:
        """Compute the perturbation; the arguments were checked and the classifier is frozen."""


def uniform_draw(seeds: Tensor, name: str) -> Tensor:
    """Return one uniform draw in (0, 1) for each image, (B,)."""
    return noise.uniform(noise.fold(seeds, name), (1,), torch.float32)[:, 0]


def drawn_rows(draw: Tensor, start: float, end: float, offset: float | None = None) -> Tensor:
    """Return the rows, int64 (n,), whose uniform draw (B,) lies between two cumulative shares.

    Args:
        draw: float (B,) in (0, 1).
        start: share of the images that come before, in [0, 1].
        end: the same with these images.
        offset: None compares each draw by itself, so that n is random. A number in [0, 1) compares the draws' ranks, so
            that n is fixed: floor(B end + offset) - floor(B start + offset).
    """
    if offset is None:
        return ((draw >= start) & (draw < end)).nonzero()[:, 0]
    first, last = (int(len(draw) * share + offset + 1e-9) for share in (start, end))
    rank = draw.argsort(stable=True).argsort()
    return ((rank >= first) & (rank < last)).nonzero()[:, 0]
