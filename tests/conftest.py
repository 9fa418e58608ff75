"""Fixtures of all tests: global state is watched, recorded reference runs are found."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rich.console  # noqa: F401  its first import draws from Python's generator
import torch

from robustsigma.engine import attributors, perturbations

_MARKER = "third_party_rng: a third party (an initializer, a loader, a trainer) draws from the global RNG in this test"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", _MARKER)
    config.addinivalue_line("markers", "unsound_networks: the test is about warnings of unsound networks")
    if "PYTEST_XDIST_WORKER" in os.environ:  # workers fill the cores; threads of theirs would only wait for each other
        torch.set_num_threads(1)


def _rng() -> dict[str, object]:
    """Return the state of each global generator."""
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002 the global one is watched
    states: dict[str, object] = {
        "torch": torch.get_rng_state().numpy().tobytes(),
        # The text of 624 numbers would take most of the time of a small test.
        "numpy": (numpy["state"]["key"].tobytes(), numpy["state"]["pos"], numpy["has_gauss"]),
        "python": random.getstate(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = b"".join(state.numpy().tobytes() for state in torch.cuda.get_rng_state_all())
    return states


def _flags() -> dict[str, object]:
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast cpu": torch.is_autocast_enabled("cpu"),
        "autocast cuda": torch.is_autocast_enabled("cuda"),
        "autocast dtype": (torch.get_autocast_dtype("cpu"), torch.get_autocast_dtype("cuda")),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "deterministic warn only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "anomaly": torch.is_anomaly_enabled(),
        "cudnn": (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark),
        "matmul precision": torch.get_float32_matmul_precision(),
        "convolution precision": (torch.backends.cudnn.conv.fp32_precision, torch.backends.cudnn.allow_tf32),
    }


def _changed(before: dict, after: dict) -> list[str]:
    return [name for name, value in before.items() if after.get(name, value) != value]


@pytest.fixture(autouse=True)
def unchanged_global_state(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that changes a global generator or a global switch of torch."""
    generators, flags = _rng(), _flags()
    yield
    leaks = _changed(flags, _flags())
    if request.node.get_closest_marker("third_party_rng") is None:
        leaks += [f"{name} RNG" for name in _changed(generators, _rng())]
    if leaks:
        pytest.fail(f"the test changed global state: {', '.join(leaks)} (marker for third parties: third_party_rng)")


@pytest.fixture(autouse=True)
def no_warnings_of_unsound_networks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the passes that look whether a network is sound: tests count passes and use unsound networks."""
    if request.node.get_closest_marker("unsound_networks") is None:
        for base in (attributors.base, perturbations.base):
            monkeypatch.setattr(base, "warn_once", lambda *_: None)


@pytest.fixture(scope="session")
def vectors() -> Path:
    """Return the folder of recorded runs of the authors' code, beside the project; skip where there is none."""
    folder = Path(__file__).resolve().parents[1].parent / "shared" / "vectors"
    if not folder.is_dir():
        pytest.skip("no recorded reference runs (the folder shared/vectors beside the project)")
    return folder
