"""Compare methods of other packages with SIGMA in one benchmark: captum's, and those of PAIR's package saliency.

    python experiments/third_party_methods.py

captum's methods are given by name, PAIR's as plain functions. The report is in the folder of unfinished work.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import saliency.core as pair
import torch
from numpy.typing import NDArray
from shared.options import models, parser, source
from shared.output import command, interval, table, write
from torch import Tensor, nn

import robustsigma
from robustsigma import CaptumMethod, FunctionMethod, IntegratedGradients, Sigma
from robustsigma.models import model
from robustsigma.runs.provenance import Provenance

METRICS = ("difference", "sic", "iou", "pointing_game", "forwards", "backwards", "seconds")
Array = NDArray[np.float32]


def of_pair(mask: Callable[..., Array], **arguments: Any) -> Callable[[nn.Module, Tensor, Tensor], Array]:
    """Return a method of the package saliency as a function of the model, images and classes."""

    def explain(net: nn.Module, images: Tensor, target: Tensor) -> Array:
        def gradients(batch: Any, call_model_args: int, expected_keys: Any = None) -> dict[str, Array]:
            x = torch.as_tensor(np.asarray(batch), dtype=images.dtype).permute(0, 3, 1, 2).requires_grad_(True)
            (gradient,) = torch.autograd.grad(net(x)[:, call_model_args].sum(), x)
            return {pair.INPUT_OUTPUT_GRADIENTS: gradient.permute(0, 2, 3, 1).numpy()}

        pixels = images.permute(0, 2, 3, 1).numpy()
        found = [mask(x, gradients, y, **arguments) for x, y in zip(pixels, target.tolist(), strict=True)]
        return np.stack([each if each.ndim == 2 else each.transpose(2, 0, 1) for each in found])

    explain.__name__ = mask.__qualname__  # as the report shows it
    return explain


def methods(size: int, *, fast: bool) -> dict[str, Any]:
    """Return all methods by name; straight paths start from white, an empty scan."""
    steps, window = (4, 8) if fast else (50, 12)
    white = np.ones((size, size, 3), np.float32)
    walk = {"max_steps": 5, "paths": 1} if fast else {"max_steps": 200, "paths": 3}
    smooth = of_pair(pair.GradientSaliency().GetSmoothedMask, nsamples=steps)
    return {
        "SIGMA": Sigma(alpha=0.01, beta=0.1, objective="logit", **walk),
        "IG": IntegratedGradients(steps=steps, baseline="white"),
        "captum IG": CaptumMethod("IntegratedGradients", n_steps=steps, baselines="white"),
        "captum Grad-CAM": CaptumMethod("LayerGradCam", layer="features.3"),
        "captum Occlusion": CaptumMethod(
            "Occlusion", sliding_window_shapes=(3, window, window), strides=(3, 4, 4), baselines="white"
        ),
        "captum GradientShap": CaptumMethod("GradientShap", n_samples=steps),
        "PAIR IG": of_pair(pair.IntegratedGradients().GetMask, x_baseline=white, x_steps=steps, batch_size=steps),
        "PAIR Guided IG": of_pair(pair.GuidedIG().GetMask, x_baseline=white, x_steps=steps),
        "PAIR SmoothGrad": FunctionMethod(smooth, stochastic=True),
        "PAIR XRAI": of_pair(pair.XRAI().GetMask, baselines=[white], batch_size=steps),
    }


def _quantile(*given: Any, interpolation: str = "linear", **keywords: Any) -> Any:
    """Return what NumPy did before 2.4, when the package saliency was written."""
    return _NUMPYS(*given, **{"method": interpolation, **keywords})


_NUMPYS = np.quantile


def main(arguments: list[str] | None = None) -> None:
    """Compare, print, write."""
    options = parser(__doc__, images=40).parse_args(arguments)
    if options.fast:
        options.images = min(options.images, 4)
    provenance = Provenance(command("third_party_methods", arguments))
    data = source(options)
    np.quantile = _quantile
    try:
        report = robustsigma.benchmark(
            {name: model(description) for name, description in models(options).items()},
            data,
            methods(data.shape[1], fast=options.fast),
            max_images=options.images,
            batch_size=options.batch_size,
            checked=0 if options.fast else 10,
            seed=options.seed,
            out=options.work / "third_party_methods",
        )
    finally:
        np.quantile = _NUMPYS
    cells = {(cell["method"], cell["metric"]): cell if cell["n"] else None for cell in report.results.cells}
    names = [entry["id"] for entry in report.results.methods]
    print(table(["method", *METRICS], [[row, *(interval(cells[row, each]) for each in METRICS)] for row in names]))
    print(f"The report: {report.path}")
    print(write(options, "third_party_methods", report.to_dict(), provenance))


if __name__ == "__main__":
    main()
