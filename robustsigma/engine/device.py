"""The default device, and waiting for one."""

from __future__ import annotations

import torch


def best_device() -> torch.device:
    """Return the CUDA device if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def wait(device: torch.device) -> None:
    """Wait until a device has finished its work, as timings need."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
