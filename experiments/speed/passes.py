"""Network passes, counted where they are made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Passes:
    """Images that went forward, those of gradients included, and images whose gradient came back."""

    forwards: float = 0
    backwards: float = 0

    @property
    def total(self) -> float:
        """Forward and backward passes."""
        return self.forwards + self.backwards

    def per(self, images: int) -> dict[str, float]:
        """Return both for each image."""
        return {"forwards": self.forwards / images, "backwards": self.backwards / images}


@contextmanager
def counted(network: nn.Module) -> Iterator[Passes]:
    """Count the passes that a network or a `Classifier` makes in the body."""
    passes = Passes()

    def back(gradient: Tensor) -> None:
        passes.backwards += len(gradient)

    def forward(module: nn.Module, given: tuple[Any, ...]) -> None:
        images = given[0]
        passes.forwards += len(images)
        if images.requires_grad and torch.is_grad_enabled():
            images.register_hook(back)

    hook = network.register_forward_pre_hook(forward)
    try:
        yield passes
    finally:
        hook.remove()
