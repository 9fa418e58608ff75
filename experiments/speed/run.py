"""Measure the engine's speed relative to the network's own passes, beside other libraries.

    python -m experiments.speed                                     # every row on every network
    python -m experiments.speed --nets resnet18 --rows SIGMA IG PGD

Efficiency = (passes that the formula needs) x (cost of one at the network's best batch size) / (measured time). Both
times are taken in turns in one run. The cost is that of the cheapest of four forms of the network: plain, BatchNorm
folded, channels last, both. Other libraries run in the same turns on the network as it is; where they compute the same,
results are compared. Everything runs in full precision, except the rows that are named after a dtype. Finished rows are
stored in --work; run the same line again to resume.

Writes results/speed_cpu.json (speed_cuda.json on a GPU) and pictures with the same name.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # the profiler logs every start and stop

import torch

from experiments.speed import methods, plots, whole
from experiments.speed.cases import NETS, Case, case, scale
from experiments.speed.limit import Limit
from experiments.speed.markdown import line, markdown
from experiments.speed.rows import measure
from robustsigma.engine.device import best_device
from robustsigma.engine.precision import full_precision
from robustsigma.runs.directory import init_run_dir
from robustsigma.runs.files import write_atomically
from robustsigma.runs.provenance import Provenance

ROWS = (*methods.ROWS, *whole.ROWS)
# Rows that a network lacks, or that would show nothing new on one more network.
_ONLY = dict.fromkeys(("Training", "Data"), ("small", "resnet18")) | dict.fromkeys(
    ("AttentionAttribution", "AttentionRollout", "LeGrad"), ("vit",)
)


def names(net: str, wanted: list[str] | None, device: torch.device) -> list[str]:
    """Return the rows of a network on a device."""
    left_out = methods.GPU_ONLY if device.type == "cpu" else ()
    return [name for name in ROWS if net in _ONLY.get(name, NETS) and name not in left_out and name in (wanted or ROWS)]


class Store:
    """Finished rows in a folder, one file each."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        init_run_dir(folder, settings)
        self.folder = folder

    def get(self, net: str, name: str) -> dict[str, Any] | None:
        """Return a row, or None where it is not finished."""
        path = self.folder / net / f"{name}.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def put(self, net: str, name: str, row: dict[str, Any]) -> dict[str, Any]:
        """Store a row, and return it."""
        write_atomically(self.folder / net / f"{name}.json", (json.dumps(row, indent=1) + "\n").encode())
        return row


def run(store: Store, options: argparse.Namespace) -> dict[str, Any]:
    """Measure the missing rows, and return all that are finished."""
    device = best_device()
    nets: dict[str, Any] = {}
    for net in options.nets:
        subject = case(net, device, fast=options.fast)
        kept = store.get(net, "limit")
        best, least = None if kept is None else kept["best"], 0.0 if options.fast else 0.5
        limit = Limit(subject.plain.net, subject.images, subject.scale.batches, best, least)
        if kept is None:
            of = {"ratios": limit.ratios(), "scale": repr(subject.scale), "share_of_matmul": limit.share_of_matmul()}
            kept = store.put(net, "limit", {"best": limit.best, **of})
        print(f"{net}: cheapest passes: {kept['best']}", flush=True)
        wanted = names(net, options.rows, device)
        for number, name in enumerate(wanted, 1):
            row, start = store.get(net, name), time.perf_counter()
            if row is None:
                row = store.put(net, name, _row(name, subject, limit, options.repeats))
            took = time.perf_counter() - start
            print(f"[{number}/{len(wanted)}] {net} {line(name, row)} [{took:.0f} s]", flush=True)
        rows = {name: store.get(net, name) for name in names(net, None, device)}
        nets[net] = {"limit": kept, "rows": {name: row for name, row in rows.items() if row is not None}}
    return {"device": device.type, "nets": nets}


def _row(name: str, subject: Case, limit: Limit, repeats: int) -> dict[str, Any]:
    if name in methods.ROWS:
        return measure(methods.ROWS[name](subject), subject, limit, repeats)
    return whole.ROWS[name](subject, limit, repeats)


def wrong(results: dict[str, Any]) -> list[str]:
    """Return errors: peers that compute something else, and results that report other passes than were counted."""
    found = []
    for net, each in results["nets"].items():
        for name, row in each["rows"].items():
            if not row.get("reported_as_counted", True):
                found.append(f"{net} {name}: reported {row['reported']}, counted {row['counted']}")
            found += [
                f"{net} {name}: {peer['name']} deviates by {peer['deviation']:.2g}, most is {peer['tolerance']:g}"
                for peer in row.get("peers", [])
                if not peer["agrees"]
            ]
    return found


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write; return 1 if results differ that should not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS), help="networks to measure")
    parser.add_argument("--rows", nargs="+", choices=ROWS, help="rows to measure; all by default")
    parser.add_argument("--threads", type=int, default=2, help="number of CPU threads")
    parser.add_argument("--repeats", type=int, default=3, help="number of turns in which each row is timed")
    parser.add_argument("--work", type=Path, default=Path("runs/speed"), help="folder of finished rows")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the results and pictures")
    parser.add_argument("--fast", action="store_true", help="small version that only checks that the script runs")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    provenance, device = Provenance("python -m experiments.speed"), best_device()
    settings = {"threads": options.threads, "repeats": options.repeats, "fast": options.fast, "device": device.type}
    settings["scales"] = {net: repr(scale(net, device, fast=options.fast)) for net in NETS}
    with full_precision():
        results = {"settings": settings, **run(Store(options.work / device.type, settings), options)}
    results["provenance"] = provenance.record()
    stem = f"speed_{results['device']}"
    for name, picture in plots.draw(results).items():
        write_atomically(options.out / f"{stem}_{name}.png", picture)
    path = write_atomically(options.out / f"{stem}.json", (json.dumps(results, indent=1) + "\n").encode())
    print(markdown(results), *wrong(results), path, sep="\n")
    return 1 if wrong(results) else 0
