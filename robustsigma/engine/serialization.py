"""Let settings be read from checkpoints without running code."""

from __future__ import annotations

from typing import TypeVar

import torch

Kind = TypeVar("Kind", bound=type)


def safe_in_checkpoints(kind: Kind) -> Kind:
    """Let `torch.load` read objects of a class with `weights_only`, as Lightning reads checkpoints; a decorator.

    It is for classes whose constructors only check settings: `save_hyperparameters()` puts such objects in checkpoints.
    """
    torch.serialization.add_safe_globals([kind])
    return kind
