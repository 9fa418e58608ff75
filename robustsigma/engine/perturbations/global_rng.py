"""The global generators lent to code of others that can draw from nothing else, and given back as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from robustsigma.engine import noise


def key_of(seeds: Tensor, name: str) -> int:
    """Return one seed in [0, 2^31) for a whole batch, from the images' seeds (B,) and their order."""
    places = torch.arange(len(seeds), device=seeds.device)
    return int(noise.fold(noise.fold(seeds, name, places).sum()[None])[0]) & (2**31 - 1)


@contextmanager
def lent(seed: int) -> Iterator[None]:
    """Run the body with the generators of torch, NumPy and Python seeded; restore them, also when it raises.

    The restored states are torch's on the CPU and on every CUDA device, NumPy's legacy one and Python's. The one
    place of the engine that touches them.
    """
    started = torch.cuda.is_available() and torch.cuda.is_initialized()
    of_torch, of_numpy, of_python = torch.initial_seed(), np.random.get_state(), random.getstate()  # noqa: NPY002
    with torch.random.fork_rng(range(torch.cuda.device_count()) if started else ()):
        try:
            for seed_generator in (torch.manual_seed, np.random.seed, random.seed):
                seed_generator(seed)
            yield
        finally:
            np.random.set_state(of_numpy)  # noqa: NPY002
            random.setstate(of_python)
            # Seeds for a CUDA that has not started wait in line: the caller's must come last again.
            torch.manual_seed(of_torch)
