"""The problem of the recorded runs of the authors' code: its network, images and references."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from cases import _made
from numpy.lib.npyio import NpzFile
from torch import Tensor, nn

from robustsigma import Classifier

DTYPES = {"f32": torch.float32, "f64": torch.float64}
# Largest error, as a share of the largest magnitude.
TOLERANCE = {"f32": 1e-5, "f64": 1e-9}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = _made(nn.Conv2d, 3, 8, 3, padding=1), _made(nn.Conv2d, 8, 16, 3, stride=2, padding=1)
        self.pool, self.fc = nn.AdaptiveAvgPool2d(2), _made(nn.Linear, 64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(F.relu(self.conv2(F.softplus(self.conv1(x))))).flatten(1))


class Problem(NamedTuple):
    classifier: Classifier
    images: Tensor
    targets: Tensor
    refs: Tensor


def problem(folder: Path, precision: str) -> Problem:
    stored = np.load(folder / "problem.npz")
    net = Net()
    net.load_state_dict({key[4:]: torch.tensor(stored[key]) for key in stored if key.startswith("sd__")})
    dtype = DTYPES[precision]
    images, refs = torch.tensor(stored["images"]).to(dtype), torch.tensor(stored["refs"]).to(dtype)
    return Problem(Classifier(net.to(dtype)), images, torch.tensor(stored["targets"]), refs)


def stacked(stored: NpzFile, pattern: str, count: int) -> Tensor:
    """Return the arrays of the first images that are recorded, stacked; `pattern` has {} for the image."""
    return torch.stack([torch.tensor(stored[pattern.format(i)]) for i in range(count)])


def check(got: Tensor, expected: Tensor, tolerance: float) -> None:
    """Compare row by row, each at the scale of its own largest magnitude; a recorded zero row is exactly zero."""
    assert got.shape == expected.shape
    error = (got.double() - expected.double()).abs().flatten(1).amax(1)
    assert (error <= tolerance * expected.double().abs().flatten(1).amax(1)).all(), error


class SingleGradients(nn.Module):
    """Rounds gradients to float32 on their way back, as path_explain's buffer does."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        if x.requires_grad:
            x.register_hook(lambda gradient: gradient.float().to(gradient.dtype))
        return self.net(x)
