"""Do the metrics rank a perfect map above a random one, and a constant one no higher? results/metric_sanity.json.

    python experiments/metric_sanity.py                       # network of `robustsigma benchmark`; trained if missing
    python experiments/metric_sanity.py --model FILE          # a saved network

The perfect map is the mask of the item, the random map is normal noise, and the constant map is 1 everywhere. They are
evaluated on 200 scans that the network classifies correctly. Differences are paired over images, and positive where the
first map is better.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from robustsigma.benchmarking.evaluated_images import find_images
from robustsigma.benchmarking.run import BenchmarkRun
from robustsigma.benchmarking.settings import Benchmark
from robustsigma.cli.benchmark import PRESETS
from robustsigma.data.loading import load_batch, load_masks
from robustsigma.engine import noise
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.metrics import HeatmapMetric, InsertionDeletion, MetricContext, MetricSpec, paired_difference
from robustsigma.models import load_model
from robustsigma.runs.files import write_atomically
from robustsigma.runs.provenance import Provenance

_BATCH = 25


def measure(classifier: Classifier, settings: Benchmark, count: int) -> list[dict[str, Any]]:
    """Return, for each quantity of each metric of maps, how perfect and constant maps compare with random ones."""
    dataset = settings.dataset.split("test")
    found = find_images(dataset, {"base": classifier}, count, settings.seed)
    metrics = [metric for metric in settings.metrics if isinstance(metric, HeatmapMetric)]
    # Deletion to black is not a default; it is here because it is the common choice elsewhere.
    listed = [*((metric, "") for metric in metrics), (InsertionDeletion(deletion="black"), ", to black")]
    values: dict[tuple[int, str, str], list[Tensor]] = {}
    for start in range(0, len(found.indices), _BATCH):
        rows = found.indices[start : start + _BATCH]
        x, y = load_batch(dataset, rows)
        masks = load_masks(dataset, rows)
        assert masks is not None
        seeds = noise.image_seeds(settings.seed, "benchmark", "metrics", 0, torch.tensor(rows))
        subject = MetricContext(classifier, x, y, masks=masks, seed=seeds)
        drawn = noise.gaussian(noise.fold(seeds, "random map"), tuple(masks.shape[1:]), torch.float64)
        maps = {"perfect": masks, "random": drawn, "constant": torch.ones_like(masks)}
        for place, (metric, _) in enumerate(listed):
            for name, heat in maps.items():
                for quantity, value in metric(subject, heat).values.items():
                    values.setdefault((place, quantity, name), []).append(value)
        print(f"{start + len(rows)} of {len(found.indices)} images")
    return [
        _entry(quantity, suffix, {name: torch.cat(values[place, quantity.name, name]).numpy() for name in maps})
        for place, (metric, suffix) in enumerate(listed)
        for quantity in metric.quantities
        if not suffix or quantity.name == "deletion"
    ]


def _entry(quantity: MetricSpec, suffix: str, of: dict[str, np.ndarray]) -> dict[str, Any]:
    sign = 1 if quantity.better == "higher" else -1
    entry: dict[str, Any] = {"metric": quantity.title + suffix, "better": quantity.better}
    for name, values in of.items():
        finite = values[np.isfinite(values)]
        entry[name] = {"mean": float(finite.mean()) if len(finite) else None, "n": len(finite)}
    for name in ("perfect", "constant"):
        both = np.isfinite(of[name]) & np.isfinite(of["random"])
        gain = paired_difference(sign * of[name][both], sign * of["random"][both]) if both.any() else None
        entry[f"{name} over random"] = None if gain is None else [gain.mean, gain.low, gain.high]
    return entry


def lines(entries: list[dict[str, Any]]) -> Iterator[str]:
    """Yield a Markdown table."""
    yield "| metric | perfect | random | constant | perfect over random |"
    yield "|---|---|---|---|---|"
    for entry in entries:
        shown = [_number(entry[name]["mean"]) for name in ("perfect", "random", "constant")]
        gain = entry["perfect over random"]
        difference = "no value" if gain is None else "{:+.3f} ({:+.3f} to {:+.3f})".format(*gain)
        yield f"| {entry['metric']} | {' | '.join(shown)} | {difference} |"


def _number(value: float | None) -> str:
    return "no value" if value is None else f"{value:.3f}"


def main(arguments: list[str] | None = None) -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help=".safetensors file of a network of baggage scans")
    parser.add_argument("--images", type=int, default=200, help="number of evaluated scans")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the results")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/benchmark"), help="folder of the benchmark with the network"
    )
    options = parser.parse_args(arguments)
    settings, provenance = PRESETS.load("baggage"), Provenance("python experiments/metric_sanity.py")
    if options.model:
        classifier = load_model(options.model)[0]
    else:
        classifier = BenchmarkRun(settings, options.work, Console()).models["base"].cpu()
    entries = measure(classifier, settings, options.images)
    found = {"source": repr(settings.dataset), "images": options.images, "entries": entries, "run": provenance.record()}
    write_atomically(options.out / "metric_sanity.json", (json.dumps(found, indent=1) + "\n").encode())
    print("\n".join(lines(entries)))


if __name__ == "__main__":
    main()
