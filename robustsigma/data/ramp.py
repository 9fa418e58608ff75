"""Schedules of a training perturbation: it starts weak or rare, and has its full strength after some epochs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from robustsigma.engine.perturbations import FGSM, NFGSM, PGD, Mixture, Perturbation
from robustsigma.engine.serialization import safe_in_checkpoints
from robustsigma.engine.validation import Settings, fail, integer


@safe_in_checkpoints
@dataclass(frozen=True)
class Ramp(Settings):
    """Linear growth over the first epochs: in epoch e, counted from 0, of n, (e + 1) / n of the value, at most 1.

    Args:
        eps: epochs until FGSM, NFGSM and PGD, also inside mixtures, have their full radius (PGD's step size, where it
            is given, grows with it); None keeps it.
        share: epochs until each part of the `Mixture` has its full share; None keeps them.

    Raises:
        ValueError: by `check`, where the perturbation has nothing that could grow.
    """

    eps: int | None = None
    share: int | None = None

    def __post_init__(self) -> None:
        for name in ("eps", "share"):
            if getattr(self, name) is not None:
                integer(name, getattr(self, name), 1)

    def check(self, perturbation: Perturbation | None) -> None:
        """Raise unless the perturbation has what is to grow."""
        if self.share is not None and not isinstance(perturbation, Mixture):
            raise fail("train_perturbation", "a Mixture, whose shares can grow", repr(perturbation))
        if self.eps is not None and (perturbation is None or _weaker(perturbation, 0.5) == perturbation):
            raise fail("train_perturbation", "FGSM, NFGSM or PGD in it, whose eps can grow", repr(perturbation))

    def at(self, perturbation: Perturbation, epoch: int) -> Perturbation:
        """Return the perturbation as it is in an epoch."""
        if self.share is not None and epoch + 1 < self.share:
            assert isinstance(perturbation, Mixture)
            factor = (epoch + 1) / self.share
            perturbation = Mixture([replace(part, share=factor * part.share) for part in perturbation.parts])
        if self.eps is not None and epoch + 1 < self.eps:
            perturbation = _weaker(perturbation, (epoch + 1) / self.eps)
        return perturbation


def _weaker(perturbation: Perturbation, factor: float) -> Perturbation:
    if isinstance(perturbation, Mixture):
        parts = [replace(part, perturbation=_weaker(part.perturbation, factor)) for part in perturbation.parts]
        return Mixture(parts)
    if isinstance(perturbation, PGD):
        size = None if perturbation.step_size is None else factor * perturbation.step_size
        return replace(perturbation, eps=factor * perturbation.eps, step_size=size)
    if isinstance(perturbation, (FGSM, NFGSM)):
        return replace(perturbation, eps=factor * perturbation.eps)
    return perturbation
