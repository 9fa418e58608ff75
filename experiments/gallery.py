"""Show every attributor on the same images in one picture, results/gallery.png, with numbers in results/gallery.json.

    python experiments/gallery.py
    python experiments/gallery.py --weights net.safetensors
    python experiments/gallery.py --network torchvision:squeezenet1_0 --weights net.pt --images a.jpg b.jpg \
        --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225

Without options, it trains a small network on the built-in baggage scans and explains one scan of each class.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from robustsigma import (
    AGI,
    IDG,
    IDGI,
    IG2,
    SIG,
    AttentionAttribution,
    AttentionRollout,
    Attribution,
    Attributor,
    BlurIG,
    Classifier,
    CrediblePath,
    ExpectedGradients,
    Gradient,
    GuidedIntegratedGradients,
    InputXGradient,
    IntegratedGradients,
    LeftIntegratedGradients,
    LeGrad,
    RandomAttribution,
    Sigma,
    SmoothGrad,
)
from robustsigma.data.baggage import Baggage
from robustsigma.engine import noise
from robustsigma.engine.attributors.baselines import BaselineName
from robustsigma.models import Architecture, SmallCNN, load_model
from robustsigma.report.canvas import QUIET, WRONG, bare, image_of, label, overlay
from robustsigma.runs.files import write_atomically

_NO_ATTENTION = "net: expected self-attention"
_EDGE = "#00a396"


@dataclass
class Scene:
    """What is explained. N images.

    Attributes:
        classifier: of the images.
        images: (N, C, H, W).
        masks: (N, H, W) of the item, or None.
        references: (R, C, H, W) other images, for methods that compare.
        baseline: of straight lines: black, or white where that is the absence of everything (X-rays).
        names: of the classes, or None.
        about: of network and images, for the JSON file.
    """

    classifier: Classifier
    images: Tensor
    masks: Tensor | None
    references: Tensor
    baseline: BaselineName
    names: tuple[str, ...] | None
    about: dict[str, object]


def methods(references: Tensor, baseline: BaselineName, *, fast: bool) -> dict[str, Attributor]:
    """Return every method by its short name."""
    large = references.shape[-1] > 128  # a pass costs 12 times one of 64x64
    if fast:
        steps, walk, agi, credible = 4, {"paths": 2, "max_steps": 5}, {"steps": 4}, {"steps": 6, "max_search": 4}
    elif large:
        steps, walk, agi, credible = 30, {"paths": 3, "max_steps": 60}, {"classes": 4}, {"steps": 60, "max_search": 40}
    else:
        steps, walk, agi, credible = 50, {"paths": 7, "max_steps": 200}, {}, {}
    return {
        "SIGMA": Sigma(objective="log_prob", epsilon=0.05, **walk),
        "IG": IntegratedGradients(steps=steps, baseline=baseline),
        "left IG": LeftIntegratedGradients(steps=steps, baseline=baseline),
        "guided IG": GuidedIntegratedGradients(steps=steps, baseline=baseline),
        "IDG": IDG(steps=steps, baseline=baseline),
        "expected gradients": ExpectedGradients(draws=2 * steps, references=references),
        "IG2": IG2(steps=steps, references=references[:4]),
        "AGI": AGI(**agi),
        "credible path": CrediblePath(**credible),
        "IDGI": IDGI(IntegratedGradients(steps=steps, baseline=baseline)),
        "blur IG": BlurIG(steps=steps, max_sigma=references.shape[-1] / 6),
        "SIG": SIG(steps=steps, baseline=baseline),
        "attention rollout": AttentionRollout(),
        "attention attribution": AttentionAttribution(),
        "LeGrad": LeGrad(),
        "gradient": Gradient(),
        "gradient \u00d7 image": InputXGradient(),
        "SmoothGrad": SmoothGrad(samples=steps),
        "random": RandomAttribution(),
    }


def train(net: nn.Module, images: Tensor, labels: Tensor, *, epochs: int, seed: int) -> None:
    """Train with AdamW on one cycle of the learning rate; batches are flipped and turned at random."""
    source = torch.Generator().manual_seed(seed)
    batches = -(-len(images) // 64)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=epochs * batches)
    net.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(images), generator=source).split(64):
            batch = images[rows].float() / 255
            for flip, axes in zip(torch.rand(2, generator=source) < 0.5, ((2,), (3,)), strict=True):
                batch = batch.flip(axes) if flip else batch
            batch = batch.rot90(int(torch.randint(4, (1,), generator=source)), (2, 3))
            optimizer.zero_grad()
            F.cross_entropy(net(batch), labels[rows]).backward()
            optimizer.step()
            schedule.step()
    net.eval()


def baggage(weights: Path | None, *, fast: bool, seed: int) -> Scene:
    """Return a correctly classified test scan of each class, and the network: a given or a new one."""
    source = Baggage(size=32, train=200, test=40) if fast else Baggage(train=2000, test=200)
    trained, tested = source.split("train"), source.split("test")
    epochs = 2 if fast else 12
    if weights is None:
        with torch.random.fork_rng(devices=[]):  # initial weights and dropout draw from the global generator
            torch.default_generator.manual_seed(seed)
            net = SmallCNN(3, len(source.classes))
            train(net, trained.images, trained.labels, epochs=epochs, seed=seed)
        classifier, made = Classifier(net), f"SmallCNN, {epochs} epochs on {len(trained)} scans"
    else:
        classifier, made = load_model(weights)[0], weights.name
    images, labels = tested.batch(range(len(tested)))
    with classifier.frozen():
        logits = classifier.logits(images)
    confidence = logits.softmax(1).gather(1, labels[:, None])[:, 0]
    correct = logits.argmax(1) == labels
    chosen = [_typical(confidence, correct, labels == k) for k in range(2 if fast else len(source.classes))]
    assert tested.masks is not None
    about = {
        "network": made,
        "accuracy": correct.float().mean().item(),
        "tested": len(tested),
        "source": repr(source),
        "indices": chosen,
    }
    references = trained.batch(range(20))[0]
    return Scene(classifier.eval(), images[chosen], tested.masks[chosen], references, "white", source.classes, about)


def _typical(confidence: Tensor, correct: Tensor, member: Tensor) -> int:
    """Return the first image of a class that is classified correctly with p >= 0.9, or else with the highest p."""
    sure = (member & correct & (confidence >= 0.9)).nonzero()[:, 0]
    return int(sure[0]) if len(sure) else int(torch.where(member, confidence, -1).argmax())


def photographs(options: argparse.Namespace) -> Scene:
    """Return given photographs, resized to 256 and cropped to the middle 224, with a named network."""
    images = torch.stack([_photograph(path) for path in options.images])
    safe = options.weights.suffix == ".safetensors"
    state = load_file(options.weights) if safe else torch.load(options.weights, weights_only=True, map_location="cpu")
    state = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    with torch.random.fork_rng(devices=[]):  # the initial weights are drawn from the global generator and overwritten
        net = Architecture(options.network).build(3, options.classes)
    net.load_state_dict(state)
    # The other photographs, mirrored, are what methods with references compare with.
    about = {"network": options.network, "images": [path.name for path in options.images]}
    return Scene(
        Classifier(net, mean=options.mean, std=options.std).eval(), images, None, images.flip(3), "black", None, about
    )


def _photograph(path: Path) -> Tensor:
    with Image.open(path) as file:
        image = file.convert("RGB")
    scale = 256 / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    pixels = np.asarray(image.crop((left, top, left + 224, top + 224)))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255


def explain(scene: Scene, *, fast: bool, seed: int) -> tuple[dict[str, Attribution], list[dict[str, object]]]:
    """Return each method's attribution of the predicted classes, and a record of each."""
    found: dict[str, Attribution] = {}
    records: list[dict[str, object]] = []
    count = len(scene.images)
    seeds = noise.fold(torch.full((count,), seed), "gallery", torch.arange(count))  # each image has noise of its own
    for name, method in methods(scene.references, scene.baseline, fast=fast).items():
        began = time.perf_counter()
        try:
            result = method(scene.classifier, scene.images, seed=seeds)
        except ValueError as error:
            if not str(error).startswith(_NO_ATTENTION):
                raise
            records.append({"name": name, "settings": repr(method), "skipped": "the network has no attention blocks"})
            continue
        seconds = time.perf_counter() - began
        found[name] = result
        records.append({"name": name, "settings": repr(method), "seconds": round(seconds, 3), **_numbers(result)})
        print(f"{name:>18} {seconds:7.1f} s")
    return found, records


def _numbers(result: Attribution) -> dict[str, object]:
    return {
        "gap": result.gap().tolist(),
        "drop": result.drop.tolist(),
        "forwards": result.forwards.tolist(),
        "backwards": result.backwards.tolist(),
        "steps": result.steps.tolist(),
        "converged": result.converged[result.walked].float().mean().item(),
    }


def draw(scene: Scene, found: dict[str, Attribution], titles: list[str]) -> Figure:
    """Return the picture: a row for the images and for each method, a column for each image."""
    count, rows = len(scene.images), len(found) + 1
    figure = Figure(figsize=(1.9 + 1.35 * count, 1.52 * rows + 0.3))
    axes = figure.subplots(rows, count, squeeze=False, gridspec_kw={"wspace": 0.06, "hspace": 0.2})
    figure.subplots_adjust(
        left=1.8 / figure.get_figwidth(), right=0.99, top=1 - 0.45 / figure.get_figheight(), bottom=0.03
    )
    for column in range(count):
        axes[0, column].imshow(image_of(scene.images[column].numpy()), vmin=0, vmax=1)
        axes[0, column].set_title(titles[column], fontsize=8, pad=4)
        bare(axes[0, column])
    for row, (name, result) in enumerate(found.items(), 1):
        heat = result.values.sum(1).numpy()
        for column in range(count):
            axis = axes[row, column]
            overlay(axis, scene.images[column].numpy(), heat[column])
            if scene.masks is not None:
                axis.contour(scene.masks[column].float().numpy(), levels=[0.5], colors=[_EDGE], linewidths=0.8)
            share = float(result.converged[column][result.walked[column]].float().mean())
            bare(axis, WRONG if share == 0 else None)
            note = f"{share:.0%} converged" if share < 1 else ""
            axis.set_xlabel(note, color=WRONG if share == 0 else QUIET, fontsize=6, labelpad=1)
        axes[row, 0].set_ylabel(_row(name, result), rotation=0, ha="right", va="center", labelpad=6, fontsize=8)
    return figure


def _row(name: str, result: Attribution) -> str:
    """Return the title of a row: the method and its cost, a mean over images."""
    forwards, backwards = (int(passes.float().mean().round()) for passes in (result.forwards, result.backwards))
    steps, paths = f"{result.steps.float().mean():.0f}", result.steps.shape[1]
    way = f"{paths} paths of {steps}" if paths > 1 else f"{steps} steps"
    return f"{label(name)}\n{way}\n{forwards} fwd, {backwards} bwd"


def _titles(scene: Scene) -> list[str]:
    with scene.classifier.frozen():
        confidence, predicted = scene.classifier.logits(scene.images).softmax(1).max(1)
    names = [label(scene.names[k]) if scene.names else f"class {k}" for k in predicted]
    return [f"{name}\n{p:.1%}" for name, p in zip(names, confidence, strict=True)]


def options_of(arguments: list[str] | None) -> argparse.Namespace:
    """Return the checked options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of gallery.png and gallery.json")
    parser.add_argument(
        "--weights", type=Path, help=".safetensors file of `robustsigma fit`; with --network, any state_dict"
    )
    parser.add_argument("--network", help="network for photographs, torchvision:NAME")
    parser.add_argument("--images", type=Path, nargs="+", help="files of photographs")
    parser.add_argument("--classes", type=int, default=1000, help="number of classes of the network for photographs")
    parser.add_argument(
        "--mean", type=float, nargs="+", default=(0.485, 0.456, 0.406), help="mean of the normalization per channel"
    )
    parser.add_argument(
        "--std",
        type=float,
        nargs="+",
        default=(0.229, 0.224, 0.225),
        help="standard deviation of the normalization per channel",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of all random choices")
    parser.add_argument("--fast", action="store_true", help="small version that only checks that the script runs")
    options = parser.parse_args(arguments)
    if (options.network is None) != (options.images is None):
        parser.error("--network and --images belong together")
    if options.network is not None and options.weights is None:
        parser.error("--network needs --weights")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Explain, draw, write."""
    options = options_of(arguments)
    scene = photographs(options) if options.network else baggage(options.weights, fast=options.fast, seed=options.seed)
    found, records = explain(scene, fast=options.fast, seed=options.seed)
    titles = _titles(scene)
    drawn, picture = io.BytesIO(), io.BytesIO()
    draw(scene, found, titles).savefig(drawn, format="png", dpi=100)
    Image.open(drawn).convert("RGB").quantize(256).save(picture, format="png", optimize=True)  # under half the size
    machine = {"torch": torch.__version__, "threads": torch.get_num_threads(), "cpu": platform.machine()}
    about = {**scene.about, "seed": options.seed, "predictions": [title.replace("\n", ", ") for title in titles]}
    results = {**about, "machine": machine, "methods": records}
    write_atomically(options.out / "gallery.json", (json.dumps(results, indent=2) + "\n").encode())
    print(write_atomically(options.out / "gallery.png", picture.getvalue()))


if __name__ == "__main__":
    main()
