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
from robustsigma.engine.perturbations import torch_zoo
from robustsigma.engine.perturbations.ball import NORMS, Norm
from robustsigma.engine.perturbations.base import Perturbation, Perturbed
from robustsigma.engine.perturbations.global_rng import key_of, temporary_seed


@dataclass(frozen=True, init=False)
class TorchAttack(Perturbation):
    """An attack of the package torchattacks, by the name of its class and its arguments.

    Its draws come from the global generators, seeded by the images' seeds and given back afterwards: equal batches
    with equal seeds give equal results, but an image's result depends on the rest of its batch (`batch_dependent`).
    Computed in single precision. Needs the extra: pip install 'robustsigma[attacks]'.

    "AutoAttack" takes 100 steps of APGD and FAB and 9 target classes, as Croce and Hein (2020) do; torchattacks by
    itself takes 10 steps, and every other class as a target. `steps`, which only this adapter knows, and `n_classes`,
    one more than the targets, change that. It still differs from the reference code (fra31/auto-attack): Square's
    schedule of square sizes is compressed into its 5000 queries (the reference's is of 10,000, of which it runs the
    first half), the default `eps` is 8/255, and it needs at least 4 classes. "APGDT" and "FAB" take 9 targets as well.
    All else are torchattacks' own defaults, many of which are far weaker than the papers': 10 steps of "APGD" alone,
    1 step of "SPSA".

    Args:
        name: the class, such as "AutoAttack", "APGD", "Square", "SPSA", "CW".
        arguments: of the class, but for the model. `n_classes` is filled in, 10 or the classes of the network if those
            are fewer, and `seed` from the images' seeds, unless given.
        eps: radius in pixel units of [0, 1]. An attack that takes a radius is given this one. One that takes none
            (CW, DeepFool, …) is cut: an image that it moved farther stays as it was. None leaves both to `arguments`.
        norm: what `eps` is measured in, "linf" or "l2" (torchattacks' "Linf" and "L2" are the same), also by an attack
            that takes a norm; None takes the attack's own.
        keywords: more of `arguments`: `TorchAttack("PGD", steps=3)` is `TorchAttack("PGD", {"steps": 3})`.

    Raises:
        ImportError: torchattacks is not installed.
        ValueError: an unknown name, wrong arguments, or images that an attack with a radius moved beyond it.
    """

    name: str = "AutoAttack"
    arguments: dict[str, Any] = field(default_factory=dict, hash=False)
    eps: float | None = None
    norm: Norm | None = None

    def __init__(
        self,
        name: str = "AutoAttack",
        arguments: dict[str, Any] | None = None,
        eps: float | None = None,
        norm: Norm | Literal["Linf", "L2"] | None = None,
        **keywords: Any,
    ) -> None:
        name, given, eps, keywords = map(validation.plain, (name, arguments or {}, eps, keywords))
        if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
            raise validation.fail("arguments", "a mapping from argument names", repr(arguments))
        if twice := given.keys() & keywords.keys():
            raise validation.fail("arguments", "each to be given once", ", ".join(sorted(twice)))
        if norm is not None:
            validation.choice("norm", norm, (*NORMS, *torch_zoo.SPELLINGS))
            norm = torch_zoo.SPELLINGS.get(norm, norm)
        if eps is not None:
            validation.number("eps", eps, 0)
        fields = {"name": name, "arguments": copy.deepcopy({**given, **keywords}), "eps": eps, "norm": norm}
        for key, value in fields.items():
            object.__setattr__(self, key, value)
        torch_zoo.check_arguments(self.name, self.arguments, self.eps)
        self._build(torch_zoo.Victim(None, torch.device("cpu")), classes=10, seed=0)  # a wrong value shows at once

    @property
    def batch_dependent(self) -> bool:
        """True: all images of a batch share one stream of random numbers."""
        return True

    def perturb(self, classifier: Classifier, x: Tensor, y: Tensor, seeds: Tensor) -> Perturbed:
        """Return attacked images; what the attack costs is its own affair."""
        classes = classifier.logits(x[:1]).shape[1]
        torch_zoo.check_problem(self.name, self.arguments, x.shape[1], classes)
        clean = x.float().contiguous()  # many attacks mix in single-precision tensors, or call .view()
        seed = key_of(seeds, "torch_attack")
        with temporary_seed(seed), warnings.catch_warnings():
            # Its own calls of old interfaces; warnings of the network stay.
            warnings.filterwarnings("ignore", module=r"torchattacks(\.|$)")
            attack = self._build(torch_zoo.Victim(classifier, x.device), classes, seed)
            found = attack(clean.clone(), y).detach().to(x.device).clamp(*classifier.bounds)
        found = self._within(attack, clean, found)
        return Perturbed.plain(torch.where(found == clean, x, found.to(x.dtype)))

    def _build(self, victim: torch_zoo.Victim, classes: int, seed: int) -> Any:
        return torch_zoo.build(self.name, victim, self.arguments, self.eps, classes=classes, seed=seed, norm=self.norm)

    @cached_property
    def bound(self) -> tuple[Norm, float] | None:
        """Norm and radius that images stay in, also those of the attack itself; None if there is no radius."""
        attack = self._build(torch_zoo.Victim(None, torch.device("cpu")), classes=10, seed=0)
        own = torch_zoo.radius(attack)
        eps = self.eps if own is None else own
        return None if eps is None else (self.norm or torch_zoo.norm(attack), float(eps))

    def _within(self, attack: Any, clean: Tensor, found: Tensor) -> Tensor:
        """Return the images that are within the radius, the clean ones in place of the others."""
        if self.bound is None:
            return found
        norm, eps = self.bound
        moved = (found - clean).flatten(1)
        far = moved.abs().amax(1) if norm == "linf" else moved.norm(dim=1)
        outside = far > eps * (1 + 1e-5) + 1e-6  # rounding of images in single precision
        if torch_zoo.radius(attack) is not None and outside.any():
            expected = f"{self.name} to stay within {eps:g} ({norm})"
            raise validation.fail("eps", expected, f"{float(far.max()):g} away from the image")
        return torch.where(outside[:, None, None, None], clean, found)
