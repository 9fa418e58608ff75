"""Print the scores in results.json files of benchmarks as Markdown tables.

python experiments/attribution_table.py FILE          # every metric
python experiments/attribution_table.py FILE FILE ... # two metrics, with a column per network
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robustsigma.report import text

_SHOWN = ("insertion", "deletion", "difference", "sic", "aic", "sensitivity_n", "infidelity", "iou", "pointing_game")
_COMPARED = ("sic", "difference")
_ARROW = {"higher": "\u2191", "lower": "\u2193"}


def table(results: dict[str, Any], model: str | None = None) -> str:
    """Return means: bold where the best is clearly ahead, marked where random maps are not beaten."""
    model = model or results["models"][0]["id"]
    titles = {metric["id"]: f"{metric['title']} {_ARROW[metric['better']]}" for metric in results["metrics"]}
    shown = [name for name in _SHOWN if name in titles]
    cells = {(cell["method"], cell["metric"]): cell for cell in results["cells"] if cell["model"] == model}
    lines = ["| method | " + " | ".join([*(titles[name] for name in shown), "passes"]) + " |"]
    lines.append("|---" * (len(shown) + 2) + "|")
    for method in sorted(results["methods"], key=lambda method: method["control"]):
        name = method["id"]
        if (name, shown[0]) in cells:
            passes = sum(cells[name, cost]["mean"] for cost in ("forwards", "backwards"))
            row = [*(_cell(cells[name, metric]) for metric in shown), f"{passes:,.0f}"]
            lines.append(f"| {name} | " + " | ".join(row) + " |")
    return "\n".join(lines)


def compared(files: Sequence[dict[str, Any]], metric: str) -> str:
    """Return a metric's means with a column for each network, marked as in `table`."""
    networks = [(results, model["id"]) for results in files for model in results["models"]]
    title = next(m["title"] + " " + _ARROW[m["better"]] for m in files[0]["metrics"] if m["id"] == metric)
    lines = [f"| {title} | " + " | ".join(model for _, model in networks) + " |", "|---" * (len(networks) + 1) + "|"]
    of = [
        {cell["method"]: cell for cell in results["cells"] if (cell["model"], cell["metric"]) == (model, metric)}
        for results, model in networks
    ]
    for name in dict.fromkeys(method["id"] for results in files for method in results["methods"]):
        if any(name in cells for cells in of):
            row = [_cell(cells[name]) if name in cells else "" for cells in of]
            lines.append(f"| {name} | " + " | ".join(row) + " |")
    return "\n".join(lines)


def caption(results: dict[str, Any]) -> str:
    """Return what stands behind the numbers."""
    run, dataset, model = results["run"], results["dataset"], results["models"][0]
    counts = [cell["n"] for cell in results["cells"] if cell["metric"] in ("sic", "aic")]
    few = f" (SIC and AIC: {min(counts)} to {max(counts)})" if counts else ""
    accuracy = model["accuracy"]
    threads, processes = text.count(run["hardware"]["threads"], "thread"), run["hardware"].get("processes", 1)
    shared = f"{processes} processes of {threads}" if processes > 1 else threads
    # Results of earlier versions have no p-values.
    done = any("p" in (cell["against_random"] or {}) for cell in results["cells"])
    corrected = "Holm's correction for the methods in a column." if done else "Not corrected for the number of methods."
    return (
        f"{dataset['name']}, {dataset['images']} test images that the network classifies correctly{few}, accuracy "
        f"{text.percent(accuracy['mean'])}% of {accuracy['n']}, one network, {text.duration(run['seconds'])} on "
        f"{run['hardware']['device']} with {shared}, torch {run['versions']['torch']}. "
        f"Bold: significantly ahead of the second. \u2248: not significantly better than random maps. {corrected}"
    )


def _cell(cell: dict[str, Any]) -> str:
    against = cell["against_random"]
    mark = " \u2248" if against is not None and against["verdict"] != "better" else ""
    shown = text.DASH if cell["mean"] is None else f"{cell['mean']:.2f}".replace("-", text.MINUS)
    return (f"**{shown}**" if cell["best"] and cell["clear"] else shown) + mark


if __name__ == "__main__":
    found = [json.loads(Path(path).read_text(encoding="utf-8")) for path in sys.argv[1:]]
    for part in [table(found[0])] if len(found) == 1 else [compared(found, metric) for metric in _COMPARED]:
        print(f"{part}\n")
    print("\n\n".join(caption(results) for results in found))
