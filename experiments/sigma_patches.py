"""SIGMA's figure 8: maps of a vision transformer below its patches, beside attention rollout (Henry et al., 2025).

    python experiments/sigma_patches.py               # results/sigma_patches.json and .png
    python experiments/sigma_patches.py --model torchvision:vit_b_16 --root photographs --images 20

The paper shows one dragonfly and a ViT-B/16, without numbers: SIGMA's map agrees with the rollout of attention, and has
structure inside a patch, which the rollout cannot have. This script measures the rank correlation of the means of
patches with those of the rollout and, after subtracting these means, the correlation of neighboring pixels inside
patches, which is about 0 for random values. Without options, it trains a small transformer on scans.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from rich.console import Console
from scipy.stats import spearmanr
from shared.options import baseline, parser, scans, uses_builtin_data
from shared.output import command, interval, table, write
from shared.scores import about
from shared.subjects import Scene
from torch import Tensor

from robustsigma import (
    AttentionRollout,
    Attributor,
    Classifier,
    GuidedIntegratedGradients,
    IntegratedGradients,
    RandomAttribution,
    Sigma,
)
from robustsigma.cli.evaluate import PRESETS
from robustsigma.engine.metrics.interval import as_dict, mean_interval
from robustsigma.evaluation import Evaluation, Training
from robustsigma.evaluation.plan import BASE
from robustsigma.evaluation.run import RobustnessRun
from robustsigma.models import Architecture
from robustsigma.report.canvas import WRONG, bare, image_of, overlay, png, styled
from robustsigma.runs.files import write_atomically
from robustsigma.runs.provenance import Provenance

KINDS = ("rollout", "inside patches")
SHOWN = ("IG", "Guided IG", "SIGMA", "Attention rollout")


def methods(options: argparse.Namespace) -> dict[str, Attributor]:
    """Return the methods of the figure and random values; the paper leaves out IG2, which gave it no map of a ViT."""
    start, steps = baseline(options), options.steps
    walk = {"paths": options.paths, "max_steps": options.max_steps}
    return {
        "IG": IntegratedGradients(steps=steps, baseline=start),
        "Guided IG": GuidedIntegratedGradients(steps=steps, baseline=start),
        "SIGMA": Sigma(alpha=options.alpha, beta=options.beta, objective="logit", **walk),
        "Attention rollout": AttentionRollout(),
        "random": RandomAttribution(),
    }


def trained(options: argparse.Namespace) -> str:
    """Return the file of a small transformer that is trained on the scans."""
    size, patch = (16, 4) if options.fast else (64, 8)
    width = {"num_layers": 4, "num_heads": 4, "hidden_dim": 64, "mlp_dim": 128}
    net = Architecture("torchvision.models.VisionTransformer", {"image_size": size, "patch_size": patch, **width})
    training = Training(epochs=2, batch_size=32) if options.fast else Training(epochs=20, batch_size=64, lr=0.001)
    plan: Evaluation = dataclasses.replace(
        PRESETS.load("baggage"), dataset=scans(options.fast), architecture=net, training=training, seeds=(options.seed,)
    )
    run = RobustnessRun(plan, options.work / "transformer", Console(quiet=True))
    run.train(options.seed, run.regimes[0])
    return str(run.store.model(options.seed, BASE))


def patch_side(classifier: Classifier, side: int) -> int:
    """Return the side of a patch in pixels: that of the first convolution's stride."""
    first = next(module for module in classifier.net.modules() if isinstance(module, torch.nn.Conv2d))
    stride = int(first.stride[0])
    if side % stride:
        raise SystemExit(f"the images' side, {side}, is no multiple of the patches', {stride}")
    return stride


def patches(heat: Tensor, side: int) -> Tensor:
    """Return the patches of a map (H, W) as (rows, columns, side, side)."""
    return heat.unfold(0, side, side).unfold(1, side, side)


def measure(heat: Tensor, rollout: Tensor, side: int) -> dict[str, float | None]:
    """Return the correlation of the patches' means with the rollout's, and of neighbors inside patches."""
    ours, theirs = (patches(each.double(), side) for each in (heat, rollout))
    means = ours.mean((2, 3))
    inner = ours - means[..., None, None]
    spread = inner.square().mean()
    sideways = (inner[..., :, 1:] * inner[..., :, :-1]).mean()
    down = (inner[..., 1:, :] * inner[..., :-1, :]).mean()
    flat = means.flatten().numpy(), theirs.mean((2, 3)).flatten().numpy()
    constant = np.ptp(flat[0]) == 0 or np.ptp(flat[1]) == 0
    return {
        "rollout": None if constant else float(spearmanr(*flat).statistic),
        "inside patches": float((sideways + down) / 2 / spread) if spread > 0 else None,
    }


def draw(image: Tensor, maps: Mapping[str, Tensor], side: int) -> bytes:
    """Return the maps of one image, and below the patch where SIGMA's is highest, as a PNG file."""
    top = int(patches(maps["SIGMA"], side).mean((2, 3)).argmax())
    columns = image.shape[2] // side
    row, column = top // columns * side, top % columns * side
    part = (slice(row, row + side), slice(column, column + side))
    with styled():
        figure = Figure(figsize=(1.5 * (len(SHOWN) + 1), 3.1))
        axes = figure.subplots(2, len(SHOWN) + 1, gridspec_kw={"wspace": 0.05, "hspace": 0.05})
        axes[0, 0].imshow(image_of(image.numpy()), vmin=0, vmax=1)
        axes[1, 0].imshow(image_of(image.numpy())[part], vmin=0, vmax=1)
        for (above, below), name in zip(axes.T[1:], SHOWN, strict=True):
            heat = maps[name].numpy()
            overlay(above, image.numpy(), heat)
            below.imshow(heat[part], cmap="magma", vmin=0, vmax=float(np.quantile(heat, 0.995)))
        for (above, below), title in zip(axes.T, ("image", *SHOWN), strict=True):
            above.add_patch(Rectangle((column - 0.5, row - 0.5), side, side, fill=False, color=WRONG))
            above.set_title(title, fontsize=8)
            bare(above)
            bare(below)
        return png(figure)


def main(arguments: list[str] | None = None) -> None:
    """Explain, measure, print, draw, write."""
    made = parser(__doc__, images=30)
    made.add_argument("--steps", type=int, default=50, help="number of steps of the other methods")
    made.add_argument("--paths", type=int, default=7, help="number of SIGMA's paths")
    made.add_argument("--alpha", type=float, default=0.03, help="step size of SIGMA's walk down the logit")
    made.add_argument("--beta", type=float, default=0.1, help="size of SIGMA's probes")
    made.add_argument("--max-steps", type=int, default=100, help="largest number of steps of SIGMA's walk")
    options = made.parse_args(arguments)
    if options.fast:
        options.images, options.steps, options.paths, options.max_steps = min(options.images, 2), 2, 2, 2
    provenance, name = Provenance(command("sigma_patches", arguments)), options.name or "sigma_patches"
    if uses_builtin_data(options) and options.model is None:
        options.model = trained(options)
    scene = Scene(options, "sigma_patches")
    found: dict[str, Any] = {}
    for model, classifier, targets in scene.networks():
        side, x = patch_side(classifier, scene.images.shape[2]), scene.images
        results = {key: of(classifier, x, targets, seed=scene.seeds) for key, of in methods(options).items()}
        maps = {key: result.heatmap() for key, result in results.items()}
        found[model] = {"converged": float(results["SIGMA"].converged.float().mean())}
        for key, heats in maps.items():
            each = [measure(*pair, side) for pair in zip(heats, maps["Attention rollout"], strict=True)]
            values = {kind: [row[kind] for row in each if row[kind] is not None] for kind in KINDS}
            found[model][key] = {kind: as_dict(mean_interval(of)) if of else {} for kind, of in values.items()}
        converged = f"{found[model]['converged']:.0%} of SIGMA's paths converged"
        print(f"{Path(model).name}, patches of {side} pixels; {converged}")
        rows = [[key, *(interval(found[model][key][kind]) for kind in KINDS)] for key in maps]
        print(table(["map", "patches as the rollout's", "neighbors inside patches"], rows))
        write_atomically(options.out / f"{name}.png", draw(x[0], {key: maps[key][0] for key in SHOWN}, side))
    settings = {key: repr(of) for key, of in methods(options).items()}
    print(write(options, "sigma_patches", {**found, "settings": settings, "about": about(scene.run)}, provenance))


if __name__ == "__main__":
    main()
