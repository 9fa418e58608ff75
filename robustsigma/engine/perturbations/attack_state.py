"""How far an attack in parts is: shown as progress, saved, and handed in again to resume."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any, TypeVar

import torch
from torch import Tensor

from robustsigma.engine import noise, validation

_SAVED = ("found", "found_by", "forwards", "backwards", "zero_gradient", "losses")
Rows = TypeVar("Rows")


class AttackState:
    """What an attack in parts has found so far: restarts, target classes, the attacks of an `AutoAttack`.

    Hand one to a call to watch it, and hand it in again with the same arguments after an interrupt: finished parts are
    not repeated, and the result is that of an uninterrupted call. `state_dict` and `load_state_dict` save and restore.

    Args:
        on_progress: called with this object after each step of the attack.

    Attributes:
        name: name of the attack that runs, such as "apgd-ce".
        part: number of finished parts.
        parts: number of parts.
        within: finished fraction of the current part.

    Example:
        >>> state = AttackState(lambda s: print(f"{s.name}: {s.fraction:.0%}, {s.remaining} images left"))
        >>> AutoAttack(8 / 255)(classifier, images, labels, seed=0, state=state)
    """

    images: Tensor  # of the call: clean images, labels, seeds, radii (B, 1, 1, 1) and logits of the clean images
    labels: Tensor
    seeds: Tensor
    eps: Tensor
    logits: Tensor
    found: Tensor  # (B, C, H, W): what misled the network, else the strongest point of the first loss
    found_by: Tensor
    forwards: Tensor
    backwards: Tensor
    zero_gradient: Tensor
    losses: Tensor  # (B,) of `found`

    def __init__(self, on_progress: Callable[[AttackState], None] | None = None) -> None:
        self.on_progress = on_progress
        self.name, self.part, self.parts, self.within = "", 0, 0, 0.0
        self._key: str | None = None
        self._kind: str | None = None  # the loss that `losses` are of

    @property
    def fraction(self) -> float:
        """The finished fraction of all parts, in [0, 1]."""
        return (self.part + self.within) / max(1, self.parts)

    @property
    def remaining(self) -> int:
        """The number of images that nothing has misled so far."""
        return int((self.found_by < 0).sum())

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` takes: tensors, numbers and texts."""
        saved = {name: getattr(self, name) for name in _SAVED} if self._key is not None else {}
        return {"key": self._key, "kind": self._kind, "part": self.part, **saved}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self._key, self._kind, self.part = saved["key"], saved["kind"], saved["part"]
        for name in _SAVED if self._key is not None else ():
            setattr(self, name, saved[name])

    def begin(self, attack: object, images: Tensor, labels: Tensor, seeds: Tensor, eps: Tensor, logits: Tensor) -> None:
        """Start an attack on images, or resume it; logits are those of the clean images."""
        pixels = noise.fold(noise.pixel_hash(images), labels, seeds)
        key = f"{attack!r} {tuple(images.shape)} {int(pixels.sum())}"
        if self._key not in (None, key):
            raise validation.fail("state", "one of the same attack, images, labels and seeds", "that of another call")
        self.images, self.labels, self.seeds, self.eps, self.logits = images, labels, seeds, eps, logits
        if self._key is None:
            self._key, none = key, torch.zeros(len(images), device=images.device)
            self.found, self.found_by = images.clone(), (logits.argmax(1) != labels).long() - 1
            self.forwards, self.backwards, self.zero_gradient = none.clone(), none.clone(), none.bool()
            self.losses = none - torch.inf
        for name in _SAVED:
            setattr(self, name, getattr(self, name).to(images.device))
        self.forwards += 1

    def left(self) -> Tensor:
        """Return the rows of the images that nothing has misled so far, int64."""
        return (self.found_by < 0).nonzero()[:, 0]

    def mislead(self, rows: Tensor, images: Tensor) -> None:
        """Record images that the network misclassifies."""
        self.found[rows], self.found_by[rows] = images, 1

    def offer(self, rows: Tensor, images: Tensor, losses: Tensor, kind: str) -> None:
        """Record the strongest points of images that were not misled; those of the first kind of loss count."""
        self._kind = self._kind or kind
        if kind == self._kind:
            better = losses > self.losses[rows]
            self.found[rows[better]], self.losses[rows[better]] = images[better], losses[better].to(self.losses.dtype)

    def count(self, rows: Tensor, forward: int, gradient: int = 0) -> None:
        """Count passes of images."""
        self.forwards[rows] += forward
        if gradient:
            self.backwards[rows] += gradient

    def steps(self, count: int, every: int = 1) -> Iterator[int]:
        """Yield the numbers of a part's steps, and report progress after each of them or now and then."""
        for step in range(count):
            yield step
            if self.on_progress is not None and (step + 1) % every == 0:
                self.within = (step + 1) / count
                self.on_progress(self)

    def finish(self, part: int) -> None:
        """Record that a part, counted from 0, is finished."""
        self.part, self.within = part + 1, 0.0
        if self.on_progress is not None:
            self.on_progress(self)


def keep(rows: Rows, chosen: Tensor) -> Rows:
    """Return a dataclass of tensors, a row an image, with the chosen rows, int64."""
    return type(rows)(*(getattr(rows, field.name).index_select(0, chosen) for field in fields(rows)))  # type: ignore
