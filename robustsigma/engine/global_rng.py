"""Seed and restore the global random number generators for libraries that draw from nothing else."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from robustsigma.engine import noise

T = TypeVar("T")


def key_of(seeds: Tensor, name: str) -> int:
    """Return one seed in [0, 2^31) for a whole batch, from the images' seeds (B,) and their order."""
    places = torch.arange(len(seeds), device=seeds.device)
    return int(noise.fold(noise.fold(seeds, name, places).sum()[None])[0]) & (2**31 - 1)


def states() -> dict[str, Any]:
    """Return the states of the generators of torch (CPU and CUDA), NumPy and Python, for a checkpoint."""
    kind, keys, *rest = cast("tuple[Any, ...]", np.random.get_state())  # noqa: NPY002
    number, internal, gauss = random.getstate()
    found: dict[str, Any] = {"torch": torch.get_rng_state(), "python": [number, torch.tensor(internal), gauss]}
    if kind == "MT19937":  # else the user replaced the generator
        found["numpy"] = [torch.tensor(keys.astype(np.int64)), *rest]
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        found["cuda"] = torch.cuda.get_rng_state_all()
    return found


def set_states(found: dict[str, Any]) -> None:
    """Restore the states that `states` returned, except for CUDA devices that are missing."""
    torch.set_rng_state(found["torch"].cpu())
    number, internal, gauss = found["python"]
    random.setstate((number, tuple(internal.tolist()), gauss))
    if "numpy" in found:
        keys, *rest = found["numpy"]
        np.random.set_state(("MT19937", keys.cpu().numpy().astype(np.uint32), *rest))  # noqa: NPY002
    for device, state in enumerate(found.get("cuda", [])[: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(state.cpu(), device)


def with_own_draws(items: Iterable[T], seed: int) -> Iterator[T]:
    """Yield items whose making draws from the global generators, as if nothing else drew from them.

    Args:
        items: what is made while it is iterated over, such as batches in the order of a random sampler.
        seed: seed of the draws.
    """
    iterator: Iterator[T] | None = None
    found: dict[str, Any] = {}
    while True:
        with temporary_seed(seed % 2**32):
            if iterator is None:
                iterator = iter(items)
            else:
                set_states(found)
            try:
                item = next(iterator)
            except StopIteration:
                return
            found = states()
        yield item


@contextmanager
def temporary_seed(seed: int) -> Iterator[None]:
    """Run the body with the generators of torch, NumPy and Python seeded; restore them, also when it raises.

    They are torch's on the CPU and on every CUDA device, NumPy's legacy one and Python's. Nothing else in the engine
    touches them.
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
            # Seeds are queued until CUDA starts: the caller's seed must be the last one again.
            torch.manual_seed(of_torch)
