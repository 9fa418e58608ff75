"""SIGMA's tables 1 and 2: SIC over networks; mIoU, pointing game and SIC with masks (Henry et al., 2025).

    python experiments/sigma_tables.py                                            # results/benchmark_baggage.json
    python experiments/sigma_tables.py --from results/benchmark_*.json
    python experiments/sigma_tables.py --from runs/photographs/results.json       # results of `robustsigma benchmark`

The script only reads results of `robustsigma benchmark`, which contain their settings. Table 1 of the paper uses 1,000
ImageNet images; table 2 uses 1,000 images each of Disease-XAI and Security-XAI, 7 paths, 200 steps of the other methods
and an unstated threshold of mIoU. `orders.py` tests the rankings. Writes results/sigma_tables.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.output import command, interval, table, write

from robustsigma.runs.provenance import Provenance

# SIC of ResNet50, InceptionV3, MobileNetV2, ViT.
TABLE_1 = {
    "IG": (0.53, 0.56, 0.55, 0.76),
    "Guided IG": (0.58, 0.53, 0.53, 0.73),
    "IG2": (0.59, 0.54, 0.48, None),
    "SIGMA": (0.60, 0.60, 0.56, 0.75),
}
# mIoU, pointing game, SIC of Nodule-XAI with MobileNetV2 and of Security-XAI with InceptionV3.
TABLE_2 = {
    "IG": ((0.23, 0.94, 0.72), (0.07, 0.23, 0.60)),
    "Guided IG": ((0.17, 0.80, 0.74), (0.12, 0.53, 0.60)),
    "IG2": ((0.02, 0.34, 0.50), (0.05, 0.14, 0.52)),
    "SIGMA": ((0.20, 0.58, 0.76), (0.15, 0.58, 0.62)),
}
KINDS = {"sic": "SIC", "iou": "mIoU", "pointing_game": "pointing game", "difference": "insertion \u2212 deletion"}
DEFAULT = Path(__file__).resolve().parents[1] / "results" / "benchmark_baggage.json"


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Yield a row for each network of a benchmark: its cells by method and metric, and what was evaluated."""
    found = json.loads(path.read_text(encoding="utf-8"))
    data, methods = found["dataset"], {method["id"]: method["settings"] for method in found["methods"]}
    for model in found["models"]:
        cells = [cell for cell in found["cells"] if cell["model"] == model["id"]]
        yield {
            "network": model["id"],
            "about": Path(model["about"]).name,
            "file": path.name if path.parent.name == "results" else f"{path.parent.name}/{path.name}",
            "images": data["images"],
            "masks": data["masks"],
            "methods": methods,
            "cells": {
                method: {
                    metric: {key: cell[key] for key in ("mean", "low", "high", "n") if key in cell}
                    for cell in cells
                    if cell["method"] == method and (metric := cell["metric"]) in KINDS
                }
                for method in methods
            },
        }


def _paper(values: Sequence[float | None]) -> str:
    return " [" + ", ".join("-" if value is None else f"{value:.2f}" for value in values) + "]"


def _lines(row: Mapping[str, Any]) -> Iterator[str]:
    yield f"{row['network']}, {row['images']} images of {row['file']}; in brackets the paper's"
    head = {"sic": "SIC [ResNet50, InceptionV3, MobileNetV2, ViT]", "difference": "insertion \u2212 deletion"}
    if row["masks"]:
        head |= {key: f"{KINDS[key]} [Nodule-XAI, Security-XAI]" for key in ("iou", "pointing_game")}
    rows = []
    for method, of in row["cells"].items():
        if not of:
            continue
        published = {"sic": TABLE_1.get(method)}
        if method in TABLE_2:
            published |= {"iou": [v[0] for v in TABLE_2[method]], "pointing_game": [v[1] for v in TABLE_2[method]]}
        cells = (interval(_of(of, key)) + (_paper(published[key]) if published.get(key) else "") for key in head)
        rows.append([method, *cells])
    yield table(["method", *head.values()], rows)


def _of(cells: Mapping[str, Mapping[str, Any]], metric: str) -> Mapping[str, Any] | None:
    cell = cells.get(metric)
    return cell if cell and cell.get("n") else None


def main(arguments: list[str] | None = None) -> None:
    """Read, print, write."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(
        "--from", dest="given", type=Path, nargs="+", default=[DEFAULT], help="results of `robustsigma benchmark`"
    )
    made.add_argument("--out", type=Path, default=Path("results"), help="folder of the results")
    made.add_argument("--name", help="name of the results file; the name of the script by default")
    options = made.parse_args(arguments)
    provenance = Provenance(command("sigma_tables", arguments))
    rows = [row for path in options.given for row in read(path)]
    for row in rows:
        print("\n".join(_lines(row)))
    print(
        write(
            options, "sigma_tables", {"paper": {"table 1": TABLE_1, "table 2": TABLE_2}, "networks": rows}, provenance
        )
    )


if __name__ == "__main__":
    main()
