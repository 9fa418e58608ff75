"""Measure what an evaluation costs beside its network passes: python experiments/scale.py.

`robustsigma.evaluate` shows 1,000, 10,000 and 50,000 synthetic images of 8x8 and 64x64 pixels to three tiny networks
under 10 conditions: clean images, three strengths each of Gaussian noise, brightness and FGSM. FGSM has two columns,
made against each network and transferred, so that an image is in 39 cells. Every evaluation is a process of its own
with one thread. Times are CPU times. Measured are

- the time for each image and cell: that of the evaluation without network passes, reading of images and the report. A
  pass is timed on its own in the same process, and counted by the networks;
- the largest memory above that of a process which has evaluated eight images, and whether it was reached in the first
  quarter of the images;
- how often each image was read. Two images show the networks' input, eight are shown in the report, and the folder's
  fingerprint reads up to 256 again, whatever the number of images;
- the report: the time of the same call on the finished folder: intervals, JSON, HTML and figures;
- the utilization of eight ranks that share the blocks of one network: the times of all blocks, over eight times the
  longest that `Ranks.deal` gives to a rank. Conditions that stop early are among those of these evaluations, where the
  labels are the network's predictions, and the images come in random order or by their margin, the hardest first. The
  blocks are measured one after another in one process, so that what ranks take from each other is not in it.

Finished evaluations are kept in --work. What does not fit into --minutes is reported as not run. Writes
results/scale.json.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from shared.output import command, output_options, table, write
from torch import Tensor, nn
from torch.utils.data import Dataset

import robustsigma
from robustsigma import FGSM, PGD, AutoAttack, Classifier, GaussianNoise, Identity, Perturbation, SigmaSample
from robustsigma.engine.perturbations import Perturbed
from robustsigma.evaluation.block_evaluation import BlockEvaluation
from robustsigma.runs.files import read_json, write_json
from robustsigma.runs.provenance import Provenance
from robustsigma.runs.ranks import Ranks

SIZES, COUNTS, MODELS, CLASSES = (8, 64), (1_000, 10_000, 50_000), 3, 10
LIMITS = {8: 30.0, 64: 400.0}  # microseconds for each image and cell
RANKS = 8
DEALT = {8: 10_000, 64: 2_000}  # images whose blocks are dealt to ranks
ORDERS = ("random", "hardest first")
_MEGABYTE = 2**20 if sys.platform == "darwin" else 2**10  # of the unit in which the system reports memory


@dataclass(frozen=True)
class Brightness(Perturbation):
    """Add a constant to every pixel."""

    by: float = 0.1
    depends_on_model = False

    def perturb(self, classifier: Classifier, images: Tensor, labels: Tensor, seeds: Tensor) -> Perturbed:
        """Return brighter images."""
        return Perturbed.plain((images + self.by).clamp(*classifier.bounds))


CONDITIONS: dict[str, Perturbation] = {
    "clean": Identity(),
    **{f"Gaussian noise {std}": GaussianNoise(std) for std in (0.05, 0.1, 0.2)},
    **{f"brightness {by}": Brightness(by) for by in (0.05, 0.1, 0.2)},
    **{f"FGSM {eps}/255": FGSM(eps / 255) for eps in (2, 4, 8)},
}

ATTACKS: dict[str, Perturbation] = {
    "clean": Identity(),
    "Gaussian noise": GaussianNoise(0.1),
    "FGSM": FGSM(8 / 255),
    "PGD": PGD(8 / 255),
    "SIGMA": SigmaSample(),
    "AutoAttack, short": AutoAttack(8 / 255, steps=10, queries=100),
}


class Images(Dataset[tuple[Tensor, int]]):
    """Synthetic images, which count how often each was read and how long that took."""

    def __init__(self, size: int, count: int) -> None:
        self.size, self.reads, self.seconds = size, np.zeros(count, np.int64), 0.0
        self.early = 0.0  # largest memory when a quarter of the images was read
        source = torch.Generator().manual_seed(0)
        self.pixels = torch.randint(0, 256, (3 * size * size + count,), dtype=torch.uint8, generator=source)

    def __len__(self) -> int:
        return len(self.reads)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        start = time.process_time()
        self.reads[index] += 1
        if index == len(self) // 4:
            self.early = peak()
        pixels = self.pixels[index : index + 3 * self.size**2].reshape(3, self.size, self.size).clone()
        self.seconds += time.process_time() - start
        return pixels, index % CLASSES


class Net(nn.Module):
    """A tiny network that counts its passes by (images, whether a gradient follows)."""

    def __init__(self, size: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            first = nn.Conv2d(3, 4, 3, stride=max(1, size // 8), padding=1)
            self.net = nn.Sequential(first, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, CLASSES))
        self.passes: Counter[tuple[int, bool]] = Counter()

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        self.passes[len(images), images.requires_grad] += 1
        return self.net(images)


def peak() -> float:
    """Return the largest memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _MEGABYTE


def seconds_of_a_pass(net: Net, size: int, images: int, gradient: bool) -> float:
    """Return the median CPU time of a pass of normalized images, with its gradient if asked for."""
    found = []
    batch, labels = torch.rand(images, 3, size, size), torch.zeros(images, dtype=torch.int64)
    for _ in range(22):
        start = time.process_time()
        with torch.set_grad_enabled(gradient):
            pixels = batch.detach().requires_grad_(gradient)
            logits = net((pixels - 0.5) / 0.25)
            if gradient:
                torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), pixels)
        found.append(time.process_time() - start)
    return median(found[2:])


def evaluate(nets: dict[str, nn.Module], images: Images, folder: Path) -> tuple[float, int]:
    """Return the CPU time of an evaluation, and its number of cells for each image."""
    start = time.process_time()
    report = robustsigma.evaluate(
        nets,
        images,
        CONDITIONS,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        checks=None,
        out=folder,
        progress=False,
        num_workers=0,
    )
    cells = [cell for cell in report.results.cells if not cell["condition"].startswith("worst")]
    return time.process_time() - start, len(cells)


def measure(size: int, count: int, folder: Path) -> dict[str, Any]:
    """Return the numbers of one evaluation; to be called in a process of its own."""
    torch.set_num_threads(1)
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was stopped
    evaluate({f"{k}": Net(8, k) for k in range(MODELS)}, Images(8, 8), folder / "small")  # imports everything
    nets, images = {f"network {k}": Net(size, k) for k in range(MODELS)}, Images(size, count)
    base = peak()
    whole, cells = evaluate(nets, images, folder / "whole")
    highest, reads, reading = peak(), images.reads.copy(), images.seconds
    counted = sum((net.passes for net in nets.values()), Counter())
    start = time.perf_counter()
    report, _ = evaluate(nets, images, folder / "whole")
    wall = time.perf_counter() - start
    passes = sum(n * seconds_of_a_pass(nets["network 0"], size, *kind) for kind, n in counted.items())
    shutil.rmtree(folder)
    beside = whole - report - reading - passes
    return {
        "size": size,
        "images": count,
        "cells": cells,
        "microseconds": 1e6 * beside / count / cells,
        "seconds": {"whole": whole, "passes": passes, "reading": reading, "report": report},
        "report_wall_seconds": wall,
        "memory_mb": {"base": base, "above_base": highest - base, "above_base_at_a_quarter": images.early - base},
        "reads": {"mean": float(reads.mean()), "once": float((reads == 1).mean()), "more": int((reads > 1).sum())},
    }


def deal(size: int, count: int, order: str, folder: Path) -> dict[str, Any]:
    """Return how well ranks would be used that share the blocks of one network; in a process of its own."""
    torch.set_num_threads(1)
    shutil.rmtree(folder, ignore_errors=True)
    images = torch.randint(
        0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    net = Net(size, 0).eval()
    with torch.no_grad():
        two = torch.cat([net((part / 255 - 0.5) / 0.25) for part in images.split(128)]).topk(2)
    labels, places = two.indices[:, 0], torch.arange(count)
    if order == ORDERS[1]:
        places = (two.values[:, 0] - two.values[:, 1]).argsort()
    blocks: list[float] = []
    checks: list[float] = []
    settings: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "progress": False}
    robustsigma.evaluate(net, (images[:8], labels[:8]), ATTACKS, **settings, out=folder / "small")  # imports everything
    start = time.process_time()
    with (
        mock.patch.object(BlockEvaluation, "_measure", timed(BlockEvaluation._measure, blocks)),
        mock.patch.object(BlockEvaluation, "check_attacks", timed(BlockEvaluation.check_attacks, checks)),
    ):
        robustsigma.evaluate(net, (images[places], labels[places]), ATTACKS, **settings, out=folder / "whole")
    whole, of_ranks = time.process_time() - start, [sum(Ranks(k, RANKS).deal(blocks)) for k in range(RANKS)]
    shutil.rmtree(folder)
    return {
        "size": size,
        "images": count,
        "order": order,
        "blocks": len(blocks),
        "utilization": sum(blocks) / RANKS / max(of_ranks),
        "seconds": {
            "blocks": sum(blocks),
            "shortest_block": min(blocks),
            "longest_block": max(blocks),
            "ranks": of_ranks,
            "checks": sum(checks),
            "start_and_report": whole - sum(blocks) - sum(checks),
        },
    }


def timed(method: Callable[..., Any], found: list[float]) -> Callable[..., Any]:
    """Return a method that also notes its CPU time."""

    def call(*arguments: Any) -> Any:
        start = time.process_time()
        result = method(*arguments)
        found.append(time.process_time() - start)
        return result

    return call


def shown(row: dict[str, Any]) -> list[str]:
    """Return a line of the table."""
    head = [f"{row['size']}x{row['size']}", f"{row['images']:,}"]
    if "not_run" in row:
        return [*head, "not run: " + row["not_run"], "", "", "", "", ""]
    memory = row["memory_mb"]
    return [
        *head,
        f"{row['microseconds']:.1f} (limit {LIMITS[row['size']]:.0f})",
        f"{row['seconds']['passes'] / (row['seconds']['whole'] - row['seconds']['report']):.2f}",
        f"{memory['above_base']:.0f}",
        f"{memory['above_base_at_a_quarter']:.0f}",
        f"{row['reads']['mean']:.4f}",
        f"{row['seconds']['report']:.1f}",
    ]


def shown_dealt(row: dict[str, Any]) -> list[str]:
    """Return a line of the table of utilization."""
    seconds = (f"{row['seconds'][name]:.1f}" for name in ("blocks", "checks", "start_and_report"))
    size = f"{row['size']}x{row['size']}"
    return [size, f"{row['images']:,}", row["order"], str(row["blocks"]), f"{row['utilization']:.1%}", *seconds]


def described(conditions: dict[str, Perturbation]) -> dict[str, str]:
    """Return conditions for the file."""
    return {name: repr(each) for name, each in conditions.items()}


def file_of(work: Path, *which: int) -> Path:
    """Return the file of what a process of its own measures."""
    return work / f"{'_'.join(map(str, which))}.json"


def finished(work: Path, *which: int) -> dict[str, Any]:
    """Return what a process of its own measures, unless it has."""
    path = file_of(work, *which)
    if not path.is_file():
        subprocess.run([sys.executable, __file__, "--work", str(work), "--one", *map(str, which)], check=True)
    return read_json(path)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, choices=SIZES, help="sizes of images in pixels")
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS, help="numbers of images")
    parser.add_argument("--minutes", type=float, default=120, help="time for all evaluations that are not finished yet")
    output_options(parser, work="runs/experiments/scale")
    parser.add_argument("--one", type=int, nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        size, count, *order = options.one
        path = options.work / "_".join(map(str, options.one))
        found = deal(size, count, ORDERS[order[0]], path) if order else measure(size, count, path)
        write_json(path.with_suffix(".json"), found)
        return
    provenance = Provenance(command("scale", arguments))
    counts = [40, 160] if options.fast else sorted(options.counts)
    end, rows = time.monotonic() + 60 * options.minutes, []
    for size in options.sizes:
        pace = 0.0
        for count in counts:
            if not file_of(options.work, size, count).is_file() and pace * count > end - time.monotonic():
                missing = f"about {pace * count / 60:.1f} CPU minutes" if pace else "no time left"
                rows.append({"size": size, "images": count, "not_run": missing})
                continue
            rows.append(finished(options.work, size, count))
            pace = rows[-1]["seconds"]["whole"] / count  # at least; other work on the machine makes it longer
    which = [(size, 300 if options.fast else DEALT[size], k) for size in options.sizes for k in range(len(ORDERS))]
    known = [each for each in which if time.monotonic() < end or file_of(options.work, *each).is_file()]
    dealt = [finished(options.work, *each) for each in known]
    head = ["size", "images", "µs per cell", "passes' share", "MB above base", "at a quarter", "reads", "report, s"]
    print(table(head, map(shown, rows)))
    head = [
        "size",
        "images",
        "order",
        "blocks",
        f"utilization of {RANKS} ranks",
        "s in blocks",
        "checks",
        "start, report",
    ]
    print(table(head, map(shown_dealt, dealt)))
    settings = {"conditions": described(CONDITIONS), "models": MODELS, "threads": 1, "seed": 0}
    of_ranks = {"rows": dealt, "ranks": RANKS, "conditions": described(ATTACKS), "models": 1, "batch_size": 128}
    found = {"rows": rows, "limits_microseconds": LIMITS, "settings": settings, "utilization": of_ranks}
    print(write(options, "scale", found, provenance))


if __name__ == "__main__":
    main()
