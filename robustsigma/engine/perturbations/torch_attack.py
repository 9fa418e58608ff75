"""Any attack of torchattacks (Kim, 2020), as a perturbation."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from robustsigma.engine import validation
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.global_rng import key_of, temporary_seed
from robustsigma.engine.perturbations import torchattacks_adapter
from robustsigma.engine.perturbations.base import Perturbation, Perturbed
from robustsigma.engine.perturbations.projections import Norm, lengths


@dataclass(frozen=True, init=False)
class TorchAttack(Perturbation):
    """Run an attack of the package torchattacks, given by the name of its class and its arguments.

    The attack draws from the global generators, which are seeded by the images' seeds and restored afterwards: equal
    batches with equal seeds give equal results, but an image's result depends on the rest of its batch
    (`batch_dependent`). Computed in single precision. Needs the extra: pip install 'robustsigma[attacks]'.

    The class `AutoAttack` of this package follows the reference code. Here, "AutoAttack"
    runs 100 steps of APGD and FAB and 9 target classes, as Croce and Hein (2020) do; torchattacks itself
    runs 10 steps and every other class. Change this with `steps`, which only this adapter knows, and `n_classes`, the
    number of targets plus one. It still differs from the reference code (fra31/auto-attack): Square's schedule of
    sizes is compressed into its 5000 queries (the reference runs the first half of a schedule of 10,000), the default
    `eps` is 8/255, and it needs at least 4 classes. "APGDT" and "FAB" also get 9 targets. All other defaults are
    torchattacks' own, many far weaker than the papers': 10 steps of "APGD" alone, 1 step of "SPSA".

    Args:
        name: name of the class, such as "AutoAttack", "APGD", "Square", "SPSA", "CW".
        arguments: arguments of the class, without the model. Unless given, `n_classes` is 10 or the network's number
            of classes if that is smaller, and `seed` comes from the images' seeds.
        eps: radius in pixel units of [0, 1], given to an attack that takes a radius. For one that takes none (CW,
            DeepFool, …), an image that it moved farther is replaced by the clean one. None leaves both to `arguments`.
        norm: norm of `eps`, "linf" or "l2" (or torchattacks' "Linf" and "L2"), given to an attack that takes a norm;
            None uses the attack's own.
        keywords: more of `arguments`: `TorchAttack("PGD", steps=3)` is `TorchAttack("PGD", {"steps": 3})`.

    Raises:
        ImportError: torchattacks is not installed.
        ValueError: an unknown name, wrong arguments, or images that an attack with a radius moved beyond it.

    Example:
        >>> TorchAttack("PGD", eps=8 / 255, steps=10)(classifier, images, labels, seed=0)
    """

    name: str = "AutoAttack"
    arguments: dict[str, Any] = field(default_factory=dict, hash=False)
    eps: float | None = None
    norm: Norm | None = None
    batch_dependent = True  # all images of a batch share one stream of random numbers

    def __init__(
        self,
        name: str = "AutoAttack",
        arguments: dict[str, Any] | None = None,
        eps: float | None = None,
        norm: Norm | Literal["Linf", "L2"] | None = None,
        **keywords: Any,
    ) -> None:
        name, eps, given = validation.plain(name), validation.plain(eps), validation.merged(arguments, keywords)
        if norm is not None:
            validation.choice("norm", norm, (*torchattacks_adapter.SPELLINGS.values(), *torchattacks_adapter.SPELLINGS))
            norm = torchattacks_adapter.SPELLINGS.get(norm, norm)
        if eps is not None:
            validation.number("eps", eps, 0)
        if "steps" in given:
            validation.integer("steps", given["steps"], 1)
        fields = {"name": name, "arguments": copy.deepcopy(given), "eps": eps, "norm": norm}
        for key, value in fields.items():
            object.__setattr__(self, key, value)
        torchattacks_adapter.check_arguments(self.name, self.arguments, self.eps)
        _ = self.bound  # raises on a wrong value

    def perturb(self, classifier: Classifier, images: Tensor, labels: Tensor, seeds: Tensor) -> Perturbed:
        """Return attacked images; the number of passes depends on the attack."""
        if isinstance(self.eps, Tensor):
            raise validation.fail("eps", "the setting of TorchAttack alone", "an argument of the call")
        if self.bound is not None and self.bound[0] == "linf" and self.bound[1] > 1:
            raise validation.fail("eps", "a radius in [0, 1], as pixels are", f"{self.bound[1]:g}; divide by 255")
        classes = classifier.logits(images[:1]).shape[1]
        torchattacks_adapter.check_problem(self.name, self.arguments, images.shape[1], classes)
        clean = images.float().contiguous()  # many attacks mix in single-precision tensors, or call .view()
        seed = key_of(seeds, "torch_attack")
        with temporary_seed(seed), warnings.catch_warnings():
            # torchattacks calls deprecated interfaces; the network's own warnings stay.
            warnings.filterwarnings("ignore", module=r"torchattacks(\.|$)")
            attack = self._build(torchattacks_adapter.Victim(classifier, images.device), classes, seed)
            found = attack(clean.clone(), labels).detach().to(images.device).clamp(*classifier.bounds)
        found = self._within(attack, clean, found)
        return Perturbed.plain(torch.where(found == clean, images, found.to(images.dtype)))

    def _build(self, victim: torchattacks_adapter.Victim, classes: int, seed: int) -> Any:
        return torchattacks_adapter.build(
            self.name, victim, self.arguments, self.eps, classes=classes, seed=seed, norm=self.norm
        )

    @cached_property
    def bound(self) -> tuple[Norm, float] | None:
        """Norm and radius that images stay in, given here or by the attack; None without a radius."""
        attack = self._build(torchattacks_adapter.Victim(None, torch.device("cpu")), classes=10, seed=0)
        own = torchattacks_adapter.radius(attack)
        eps = self.eps if own is None else own
        return None if eps is None else (self.norm or torchattacks_adapter.norm(attack), float(eps))

    def _within(self, attack: Any, clean: Tensor, found: Tensor) -> Tensor:
        """Return the images, with the clean one in place of each that lies outside the radius."""
        if self.bound is None:
            return found
        norm, eps = self.bound
        far = lengths(found - clean, norm)
        outside = far > eps * (1 + 1e-5) + 1e-6  # rounding of images in single precision
        if torchattacks_adapter.radius(attack) is not None and outside.any():
            expected = f"{self.name} to stay within {eps:g} ({norm})"
            raise validation.fail("eps", expected, f"{float(far.max()):g} away from the image")
        return torch.where(outside[:, None, None, None], clean, found)
