"""Argument checks: the error names the argument, what was expected and what came."""

from __future__ import annotations

import cases
import pytest
import torch

from robustsigma.engine import noise, validation
from robustsigma.engine.classifier import Classifier

X = cases.images()


def _with(value: float) -> torch.Tensor:
    x = X.clone()
    x[1, 0, 2, 3] = value
    return x


BAD_IMAGES = {
    "list": (X.tolist(), r"images: expected a tensor \(B, C, H, W\), got list"),
    "one image": (X[0], r"images: expected a non-empty batch \(B, C, H, W\), got shape \(3, 8, 8\)"),
    "empty": (X[:0], r"non-empty batch"),
    "no pixels": (X[:, :, :0], r"non-empty batch"),
    "uint8": ((X * 255).to(torch.uint8), r"images: expected a floating dtype .*, got torch.uint8"),
    "complex": (X.to(torch.complex64), r"floating dtype"),
    "nan": (_with(torch.nan), "images: expected finite values, got NaN or infinity"),
    "inf": (_with(torch.inf), "finite values"),
    "high": (_with(1.5), r"images: expected values in \[0, 1\], got \[.*1.5\]; normalization belongs in Classifier"),
    "low": (_with(-0.1), r"values in \[0, 1\], got \[-0.1,"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bad_images(name):
    x, message = BAD_IMAGES[name]
    with pytest.raises(ValueError, match=message):
        validation.images(x, Classifier.bounds)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 4, 3, 5)])
def test_good_images(dtype, shape):
    validation.images(torch.linspace(0, 1, torch.Size(shape).numel()).reshape(shape).to(dtype), Classifier.bounds)
    validation.images(torch.full(shape, 1 + 5e-7, dtype=dtype), Classifier.bounds)


BAD_TARGETS = {
    "float": (torch.zeros(4), "labels: expected integer class indices, got torch.float32"),
    "bool": (torch.zeros(4, dtype=torch.bool), "integer class indices, got torch.bool"),
    "python bool": (True, "integer class indices"),
    "python float": (1.0, "integer class indices"),
    "one-hot": (
        torch.zeros(4, 3, dtype=torch.long),
        r"labels: expected an int or shape \(4,\), .*, got shape \(4, 3\)",
    ),
    "short": ([0, 1], r"shape \(4,\), one class per image, got shape \(2,\)"),
    "none": (None, "labels: expected integer class indices, got None"),
    "text": ("cat", "labels: expected integer class indices, got 'cat'"),
    "texts": (["cat"] * 4, "integer class indices"),
    "ragged": ([[0], [0, 1]], "integer class indices"),
    "huge": (2**70, "integer class indices"),
}


@pytest.mark.parametrize("name", BAD_TARGETS)
def test_bad_targets(name):
    value, message = BAD_TARGETS[name]
    with pytest.raises(ValueError, match=message):
        validation.target(value, X, "labels")


@pytest.mark.parametrize("value", [2, torch.tensor(2), [2] * 4, torch.full((4,), 2, dtype=torch.uint8)])
def test_good_targets(value):
    got = validation.target(value, X)
    assert got.dtype == torch.int64
    assert got.tolist() == [2] * 4


BAD_SEEDS = {
    "none": (None, "seed: expected an int or an int64 tensor .*, got None"),
    "float": (1.0, "got 1.0"),
    "bool": (True, "got True"),
    "wide": (2**63, "seed: expected an int of 64 bits"),
    "int32": (torch.zeros(4, dtype=torch.int32), r"got torch.int32 \(4,\)"),
    "short": (torch.zeros(3, dtype=torch.int64), r"got torch.int64 \(3,\)"),
    "generator": (cases.generator(0), "got <torch._C.Generator"),
}


@pytest.mark.parametrize("name", BAD_SEEDS)
def test_bad_seeds(name):
    value, message = BAD_SEEDS[name]
    with pytest.raises(ValueError, match=message):
        noise.seeds(value, X)


@pytest.mark.parametrize("value", [True, "1", None, float("nan"), float("inf"), -0.5, 1.5])
def test_bad_numbers(value):
    with pytest.raises(ValueError, match=r"share: expected a finite number in \[0, 1\], got"):
        validation.number("share", value, 0, 1)


def test_open_interval():
    validation.number("alpha", 1e-300, 0, open_low=True)
    with pytest.raises(ValueError, match=r"alpha: expected a finite number in \(0, inf\], got 0"):
        validation.number("alpha", 0, 0, open_low=True)
