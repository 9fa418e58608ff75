"""Which rankings of methods from the papers hold on the networks of finished benchmarks?

    python experiments/orders.py runs/mobilenetv2 runs/squeezenet      # folders of `robustsigma benchmark --out`
    python experiments/orders.py results/orders.json                   # earlier differences, tested again

The papers claim that SIGMA is ahead of IG, Guided IG and IG2 in SIC (Henry et al., 2025, table 1), and with masks in
mIoU and the pointing game (table 2); that IDG is ahead of IG, Left-IG, Guided IG and AGI in AIC, SIC, insertion and
deletion (Walker et al., 2024, table 1); and that the credible path is ahead of IG, AGI and Expected Gradients in
insertion minus deletion (Akhtar and Jalwana, 2023, tables 1 and 2). This script computes paired differences on the same
images from each folder's values.csv, positive where the paper's method is better, with 95% intervals over images. A
ranking holds, or is reversed, where the difference is significant after Holm's correction; the rankings of one paper on
all networks are a family. It adds the plain gradient, which is in no paper's table. Writes results/orders.json.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from shared.output import command, table, write

from robustsigma.engine.metrics import holm, paired_difference, significance
from robustsigma.engine.metrics.interval import as_dict, from_dict
from robustsigma.runs.provenance import Provenance


class Claim(NamedTuple):
    """A paper says that `method` is ahead of each of `over` in each of `metrics`."""

    paper: str
    method: str
    over: tuple[str, ...]
    metrics: tuple[str, ...]


CLAIMS = (
    Claim("SIGMA, tables 1 and 2", "SIGMA", ("IG", "Guided IG", "IG2"), ("sic", "iou", "pointing_game")),
    Claim("IDG, table 1", "IDG", ("IG", "Left-IG", "Guided IG", "AGI"), ("aic", "sic", "insertion", "deletion")),
    Claim("credible paths", "Credible path", ("IG", "AGI", "Expected Gradients"), ("difference",)),
)
CONTROL = "gradient"
HOLDS, REVERSED, OPEN = "holds", "reversed", "undecided"
_VERDICTS = {1: HOLDS, -1: REVERSED, 0: OPEN}

Values = dict[tuple[str, str, str], dict[str, float]]  # model, method and metric; then image


def read(folder: Path) -> tuple[dict[str, Any], Values]:
    """Return a benchmark's results, and its values of each image."""
    found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    values: Values = {}
    with (folder / "values.csv").open(encoding="utf-8", newline="") as lines:
        for line in csv.DictReader(lines):
            key = line["model"], line["method"], line["metric"]
            values.setdefault(key, {})[line["image"]] = float(line["value"] or "nan")
    return found, values


def orders(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield each order of each claim that a benchmark can tell of."""
    found, values = read(folder)
    better = {metric["id"]: metric["better"] for metric in found["metrics"]}
    for model in (model["id"] for model in found["models"]):
        for claim in CLAIMS:
            for metric in claim.metrics:
                for over in (*claim.over, CONTROL):
                    ours, theirs = (values.get((model, method, metric), {}) for method in (claim.method, over))
                    images = sorted(ours.keys() & theirs.keys(), key=int)
                    pairs = np.array([(ours[image], theirs[image]) for image in images]).reshape(-1, 2)
                    pairs = pairs[np.isfinite(pairs).all(1)]
                    if len(pairs) > 1:
                        first, second = pairs.T if better[metric] == "higher" else pairs[:, ::-1].T
                        gain = as_dict(paired_difference(first, second))
                        yield {
                            "network": model,
                            "dataset": found["dataset"]["name"],
                            "paper": claim.paper,
                            "claimed": over != CONTROL,
                            "method": claim.method,
                            "over": over,
                            "metric": metric,
                            **gain,
                        }


def with_verdicts(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the orders with their verdict and corrected p-value; a paper's claims are a family, its extras another."""
    families: dict[tuple[str, bool], list[dict[str, Any]]] = {}
    for order in found:
        families.setdefault((order["paper"], order["claimed"]), []).append(order)
    for family in families.values():
        gains = [from_dict(order) for order in family]
        for order, p, sign in zip(family, holm(gains), significance(gains), strict=True):
            order.update(p_holm=p, verdict=_VERDICTS[sign])
    return found


def shown(found: list[dict[str, Any]], titles: Mapping[str, str]) -> str:
    """Return a table of orders by networks: bold where an order holds, in brackets where it is reversed."""
    networks = list(dict.fromkeys(order["network"] for order in found))
    cells: dict[tuple[str, str, str], dict[str, str]] = {}
    for order in found:
        sign = f"{order['mean']:+.3f}".replace("-", "\u2212")
        cell = {HOLDS: f"**{sign}**", REVERSED: f"({sign})", OPEN: sign}[order["verdict"]]
        cells.setdefault((order["method"], order["metric"], order["over"]), {})[order["network"]] = cell
    rows = [
        [f"{method} over {over}", titles.get(metric, metric), *(of.get(network, "") for network in networks)]
        for (method, metric, over), of in cells.items()
    ]
    return table(["order", "in", *networks], rows)


def summary(found: list[dict[str, Any]]) -> Iterator[str]:
    """Yield what became of each paper's claims, over all networks."""
    for claim in CLAIMS:
        of = [order for order in found if order["paper"] == claim.paper and order["claimed"]]
        if of:
            count = {kind: sum(order["verdict"] == kind for order in of) for kind in (HOLDS, OPEN, REVERSED)}
            counts = ", ".join(f"{kind} {number}" for kind, number in count.items())
            yield f"{claim.paper}: of {len(of)}, {counts}"


def main(arguments: list[str] | None = None) -> None:
    """Read, print, write."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("folders", type=Path, nargs="+", help="folders of finished benchmarks, or an earlier orders.json")
    made.add_argument("--out", type=Path, default=Path("results"), help="folder of the results")
    made.add_argument("--name", help="name of the results file; the name of the script by default")
    options = made.parse_args(arguments)
    provenance = Provenance(command("orders", arguments))
    files, titles = [path for path in options.folders if path.is_file()], {}
    earlier = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    found = [order for each in earlier for order in each["orders"]]
    for folder in (path for path in options.folders if path not in files):
        found += orders(folder)
        titles |= {metric["id"]: metric["title"] for metric in read(folder)[0]["metrics"]}
    print(shown(with_verdicts(found), titles))
    print("\n".join(summary(found)))
    measured = {"measured": [each.get("measured", each["run"]) for each in earlier]} if earlier else {}
    print(write(options, "orders", {"summary": list(summary(found)), "orders": found, **measured}, provenance))


if __name__ == "__main__":
    main()
