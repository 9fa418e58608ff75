"""Measure the engine's speed relative to the network's own passes, beside other libraries.

    python -m experiments.speed                                     # every row on every network
    python -m experiments.speed --nets resnet18 --rows SIGMA IG PGD
    python -m experiments.speed --table results/speed_cpu.json      # only print the table of docs/results/speed.md

Efficiency = (passes that the formula needs) x (cost of one at the network's best batch size) / (measured time). Both
times are taken in turns in one run. The cost is that of the cheaper of two orders of memory. Other libraries run in the
same turns on the network as it is, and their results are compared in double precision. Everything runs in full
precision.

Writes --out/speed_cpu.json (speed_cuda.json on a GPU) after each row; run the same line again to resume.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # the profiler logs every start and stop

import torch

from experiments.speed.networks import NETS, Limit, case, scale
from experiments.speed.rows import ROWS, measure
from robustsigma.engine.device import best_device
from robustsigma.engine.network_state import full_precision
from robustsigma.report.text import DASH
from robustsigma.runs.files import read_json, write_atomically
from robustsigma.runs.provenance import Provenance

_OF_TRANSFORMERS = ("AttentionRollout", "AttentionAttribution", "LeGrad")
_TITLES = {"resnet18": "ResNet-18, 224²", "vit": "ViT, 224²", "small": "small CNN, 64²"}
_ROWS = {
    "SIGMA": "SIGMA, 7 paths",
    "SigmaSample": "SIGMA, sample only",
    "EG": "Expected Gradients",
    "Guided-IG": "Guided IG",
    "CrediblePath": "Credible path",
    "SIC-AIC": "SIC and AIC",
    "InsertionDeletion": "Insertion and deletion",
    "SensitivityN": "Sensitivity-N",
}


def names(net: str, wanted: list[str] | None = None) -> list[str]:
    """Return the rows of a network."""
    return [name for name in wanted or ROWS if net == "vit" or name not in _OF_TRANSFORMERS]


def run(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure the rows that a file of results lacks, and write it after each.

    Raises:
        ValueError: the file is of other settings.
    """
    device, provenance = best_device(), Provenance("python -m experiments.speed")
    settings = {"threads": options.threads, "repeats": options.repeats, "device": device.type}
    settings["scales"] = {net: repr(scale(net, device, fast=options.fast)) for net in NETS}
    results = read_json(path) if path.is_file() else {"settings": settings, "nets": {}}
    if results["settings"] != settings:
        raise ValueError(f"{path} was measured with other settings: give another --out")
    for net in options.nets:
        subject, least = case(net, device, fast=options.fast), 0.0 if options.fast else 0.5
        rows = results["nets"].setdefault(net, {"rows": {}})["rows"]
        missing = [name for name in names(net, options.rows) if name not in rows]
        limit = Limit(subject.plain.net, subject.images, subject.scale.batches, least) if missing else None
        for name in missing:
            assert limit is not None
            rows[name] = measure(ROWS[name](subject), subject, limit, options.repeats)
            results["nets"][net]["limit"], results["provenance"] = limit.best, provenance.record()
            write_atomically(path, (json.dumps(results, indent=1) + "\n").encode())
            print(f"{net} {name}: {rows[name]['efficiency']['median']:.2f} {_peers([rows[name]])}", flush=True)
    return results


def table(results: dict[str, Any]) -> str:
    """Return the efficiencies and the times of peers as a Markdown table."""
    nets = [net for net in _TITLES if net in results["nets"]]
    rows = [results["nets"][net]["rows"] for net in nets]
    short = ", ".join(_TITLES[net].split(",")[0] for net in nets)
    lines = [f"| | {' | '.join(_TITLES[net] for net in nets)} | a peer's time, in ours ({short}) |"]
    lines.append("|---" * (len(nets) + 2) + "|")
    for name in (name for name in ROWS if any(name in each for each in rows)):
        cells = [f"{each[name]['efficiency']['median']:.2f}" if name in each else DASH for each in rows]
        lines.append(f"| {_ROWS.get(name, name)} | {' | '.join(cells)} | {_peers([r.get(name) for r in rows])} |")
    return "\n".join(lines)


def _peers(rows: list[dict[str, Any] | None]) -> str:
    times = [{p["name"]: f"{p['times_ours']['median']:.2f}" for p in (row["peers"] if row else ())} for row in rows]
    every = dict.fromkeys(name for each in times for name in each)
    return "; ".join(f"{name}: {', '.join(each.get(name, DASH) for each in times)}" for name in every)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write; return 1 if a peer's results differ from ours."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS), help="networks to measure")
    parser.add_argument("--rows", nargs="+", choices=ROWS, help="rows to measure; all by default")
    parser.add_argument("--threads", type=int, default=2, help="number of CPU threads")
    parser.add_argument("--repeats", type=int, default=3, help="number of turns in which each row is timed")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the results")
    parser.add_argument("--fast", action="store_true", help="small version that only checks that the script runs")
    parser.add_argument("--table", type=Path, help="file of results whose table is printed; nothing is measured")
    options = parser.parse_args(arguments)
    if options.table:
        print(table(read_json(options.table)))
        return 0
    torch.set_num_threads(options.threads)
    with full_precision():
        results = run(options.out / f"speed_{best_device().type}.json", options)
    print(table(results))
    wrong = [
        f"{net} {name}: {peer['name']} deviates by {peer['deviation']:.2g}, more than {peer['tolerance']:g}"
        for net, each in results["nets"].items()
        for name, row in each["rows"].items()
        for peer in row["peers"]
        if not peer["agrees"]
    ]
    print(*wrong, sep="\n")
    return 1 if wrong else 0
