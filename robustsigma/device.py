"""Where to compute when nobody says."""

from __future__ import annotations

import torch


def best_device() -> torch.device:
    """Return the accelerator if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
