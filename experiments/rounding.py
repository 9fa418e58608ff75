"""Measure how rounding changes attributions: the reason for full precision, whatever PyTorch is set to.

    python experiments/rounding.py                                              # baggage scans
    python experiments/rounding.py --config YOURS.yaml --name rounding_NETWORK  # a config of `robustsigma benchmark`

By default, PyTorch rounds the inputs of convolutions on GPUs to TF32 (10 bits). The script compares each method with
the same method in double precision: Spearman's correlation of pixel ranks, and for SIGMA also the share of walks with
the same number of steps and the distance between endpoints, relative to the length of the walk. It measures single
precision, all passes in TF32, and only gradient passes in TF32 or bfloat16, as `Classifier(gradient_dtype=...)` allows.
TF32 is emulated: inputs and weights of convolutions and linear layers are rounded, backward gradients are not. Networks
with attention are not supported. Writes results/rounding.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from shared.options import parser
from shared.output import command, interval, table, write
from shared.scores import about
from shared.subjects import Scene
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from robustsigma import Attribution, Attributor, IntegratedGradients, Sigma
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.metrics import mean_interval
from robustsigma.engine.metrics.interval import as_dict
from robustsigma.engine.metrics.ranking import spearman
from robustsigma.runs.provenance import Provenance

_MULTIPLY = (F.conv2d, F.linear)
_DROPPED = 13  # of the 23 bits that single precision has behind the point


def to_tf32(x: Tensor) -> Tensor:
    """Return values rounded to TF32, with the gradient of values that are not."""
    bits = x.detach().contiguous().view(torch.int32)
    rounded = ((bits + (1 << (_DROPPED - 1))) >> _DROPPED << _DROPPED).view(torch.float32)
    return torch.where(x.isfinite(), x + (rounded - x.detach()), x)


class Tf32(TorchFunctionMode):
    """Rounds what is multiplied in the body, as a GPU's matrix units do."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _MULTIPLY:
            args = tuple(to_tf32(x) if place < 2 and x.dtype == torch.float32 else x for place, x in enumerate(args))
        return func(*args, **(kwargs or {}))


class GradientsInTf32(Classifier):
    """Emulates `gradient_dtype="tf32"`."""

    def gradients_of(self, *args: Any) -> tuple[Tensor, ...]:
        """Compute the forward and backward passes of gradients with rounded factors."""
        with Tf32():
            return super().gradients_of(*args)


def alike(classifier: Classifier, kind: type[Classifier], dtype: torch.dtype, **options: Any) -> Classifier:
    """Return a classifier of the same network in a precision."""
    mean, std = classifier.mean.flatten().tolist(), classifier.std.flatten().tolist()
    return kind(classifier.net.to(dtype), mean=mean, std=std, **options)


Kind = tuple[type[Classifier], dict[str, Any], Callable[[], AbstractContextManager[Any]]]
ROUNDINGS: dict[str, Kind] = {
    "single": (Classifier, {}, nullcontext),
    "TF32": (Classifier, {}, Tf32),
    "gradients in TF32": (GradientsInTf32, {}, nullcontext),
    "gradients in bfloat16": (Classifier, {"gradient_dtype": torch.bfloat16}, nullcontext),
}


def compare(result: Attribution, exact: Attribution, images: Tensor, *, walks: bool) -> dict[str, Any]:
    """Return means with intervals over images."""
    found = {"ranks": spearman(result.heatmap().double(), exact.heatmap())}
    if walks:
        off, way = (d.flatten(1).norm(dim=1) for d in (result.endpoint - exact.endpoint, exact.endpoint - images))
        found["same steps"] = (result.steps == exact.steps).double().mean(1)
        found["end off"] = torch.where(way > 0, off / way, 0)
    # A flat map has no rank correlation.
    defined = {name: values.double()[values.isfinite()].numpy() for name, values in found.items()}
    return {name: as_dict(mean_interval(values)) if len(values) else {} for name, values in defined.items()}


def look(classifier: Classifier, method: Attributor, scene: Scene, targets: Tensor) -> dict[str, Any]:
    """Return what each rounding changes of a method."""
    images, walks = scene.images.double(), isinstance(method, Sigma)
    exact = method(alike(classifier, Classifier, torch.float64), images, targets, seed=scene.seeds)
    found = {}
    for name, (kind, options, rounding) in ROUNDINGS.items():
        rounded = alike(classifier, kind, torch.float32, **options)
        with rounding():
            result = method(rounded, scene.images, targets, seed=scene.seeds)
        found[name] = compare(result, exact, images, walks=walks)
    return found


def methods(options: argparse.Namespace) -> dict[str, Attributor]:
    """Return what is compared."""
    walk: dict[str, Any] = {"alpha": 0.005, "beta": 0.1, "objective": "logit", "paths": 1}
    return {
        "SIGMA": Sigma(**walk, max_steps=options.max_steps),
        "IG": IntegratedGradients(steps=options.steps),
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    made = parser(__doc__, images=40)
    made.add_argument("--max-steps", type=int, default=100, help="largest number of steps of SIGMA's walk")
    made.add_argument("--steps", type=int, default=32, help="number of steps of Integrated Gradients")
    options = made.parse_args(arguments)
    if options.fast:
        options.images, options.max_steps, options.steps = min(options.images, 3), 4, 3
    provenance = Provenance(command("rounding", arguments))
    scene, found = Scene(options, "rounding"), {}
    every = methods(options)
    for model, classifier, targets in scene.networks():
        if any(isinstance(module, nn.MultiheadAttention) for module in classifier.modules()):
            raise SystemExit(f"{model}: expected a network without attention, whose products are not emulated")
        found[model] = {name: look(classifier, method, scene, targets) for name, method in every.items()}
        for name, of in found[model].items():
            columns = list(of["single"])
            print(f"{model}, {name}, against double precision")
            print(table(["", *columns], [[title, *(interval(row[c]) for c in columns)] for title, row in of.items()]))
    settings = {name: repr(method) for name, method in every.items()}
    print(write(options, "rounding", {**found, "settings": settings, "about": about(scene.run)}, provenance))


if __name__ == "__main__":
    main()
