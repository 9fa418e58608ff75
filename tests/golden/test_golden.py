"""Numbers hold: every method and a small run of each kind give what they gave when golden.npz was made.

Tolerances are of the distance to the stored array over its length, or over `FLOOR` where that is shorter:

- double precision on the same machine: the same bits;
- double precision on any CPU: 1e-9, as sums are taken in other orders (torch 2.13.0 and 2.14.1 agree bit for bit here);
- single precision: 5e-4;
- gradients in bfloat16: 0.1, and 0.75 for methods that take signs of gradients or choose pixels by them, which jump;
- a CUDA device: 1e-6 in double precision, 5e-3 in single (sums in other orders, which walks and signs amplify).
"""

from __future__ import annotations

import functools

import golden_case as golden
import numpy as np
import pytest
import torch

FLOOR = 0.1
ANY_CPU, SINGLE, BFLOAT16, JUMPING, CUDA, CUDA_SINGLE = 1e-9, 5e-4, 0.1, 0.75, 1e-6, 5e-3
JUMPS = (
    "APGD",
    "AutoAttack",
    "CrediblePath",
    "FAB",
    "FGSM",
    "GuidedIntegratedGradients",
    "NFGSM",
    "PGD",
    "TorchAttack",
)
STORED = dict(np.load(golden.FILE, allow_pickle=False))
every = pytest.mark.parametrize("name", golden.NAMES)


@functools.cache
def engine(dtype=torch.float64, device="cpu", gradient_dtype=None):
    return golden.Engine(dtype, device, gradient_dtype=gradient_dtype)


def compare(name, found, tolerance):
    """Check that arrays are those stored under a name."""
    expected = {key.removeprefix(f"{name}: "): value for key, value in STORED.items() if key.startswith(f"{name}: ")}
    if not expected:
        pytest.skip(f"nothing is stored of it yet: {golden.COMMAND}")
    assert set(found) == set(expected)
    for key, value in expected.items():
        assert found[key].shape == value.shape, key
        assert (np.isnan(found[key]) == np.isnan(value)).all(), key
        far = np.linalg.norm(np.nan_to_num(found[key] - value)) / max(np.linalg.norm(np.nan_to_num(value)), FLOOR)
        assert far <= tolerance, f"{name}: {key} is off by {far:.1e}, more than {tolerance:.0e}"


def same(first, second):
    assert set(first) == set(second)
    for key, value in first.items():
        assert np.array_equal(value, second[key], equal_nan=True), key


@every
def test_double_precision(name):
    found = golden.stored(engine().result(name))
    same(found, golden.stored(engine().result(name)))
    compare(name, found, ANY_CPU)


@every
def test_single_precision(name):
    compare(name, golden.stored(engine(torch.float32).result(name)), SINGLE)


@pytest.mark.parametrize("name", [name for name in golden.NAMES if not name.startswith("metric")])
def test_gradients_in_bfloat16(name):
    found = golden.stored(engine(torch.float32, gradient_dtype=torch.bfloat16).result(name))
    compare(name, found, JUMPING if name.split("/")[1] in JUMPS else BFLOAT16)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, CUDA), (torch.float32, CUDA_SINGLE)])
@every
def test_cuda(name, dtype, tolerance):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    part, kind, place = name.split("/")
    if getattr(golden.METHODS[part][kind][int(place)], "batch_dependent", False):
        pytest.skip("the code of others draws on the device, whose generator gives other numbers")
    compare(name, golden.stored(engine(dtype, "cuda").result(name)), tolerance)


@pytest.mark.third_party_rng  # initial weights
@pytest.mark.parametrize("name", golden.RUNS)
def test_runs(name, tmp_path):
    compare(name, run(name, tmp_path), ANY_CPU)


@pytest.mark.slow
@pytest.mark.third_party_rng
@pytest.mark.parametrize("name", golden.RUNS)
def test_runs_again(name, tmp_path):
    same(run(name, tmp_path / "first"), run(name, tmp_path / "second"))


def run(name, folder):
    if torch.cuda.is_available():
        pytest.skip("runs take the CUDA device where there is one; the numbers are of the CPU")
    return golden.RUNS[name](folder)


def test_nothing_is_stored_that_is_gone():
    names = {key.split(": ")[0] for key in STORED}
    extras = {f"perturbation/{kind.__name__}/" for kind in golden.cases.EXTRAS}  # tested where they are installed
    assert {name for name in names - {*golden.NAMES, *golden.RUNS} if not name.startswith(tuple(extras))} == set()
    assert golden.FILE.stat().st_size < 200_000
