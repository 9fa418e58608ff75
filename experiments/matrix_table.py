"""Print the matrix of a results.json as a Markdown table: python experiments/matrix_table.py FILE."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from robustsigma.report import matrix, text


def table(results: dict[str, Any]) -> str:
    """Return accuracies in % with their 95 % intervals; models are rows."""
    found = matrix.build(results)
    heads = [head.label + ("" if head.group == "none" else f", {head.group}") for head in found.conditions]
    lines = ["| model | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for group in found.rows:
        for head in group.heads:
            name = head.label if head.group == "none" else f"{head.label}, {group.title.lower()}"
            cells = [_cell(found.cells[head.id, column.id].accuracy) for column in found.conditions]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def caption(results: dict[str, Any]) -> str:
    """Return what stands behind the numbers."""
    run, dataset = results["run"], results["dataset"]
    seeds = f"{len(results['seeds'])} seed" + "s" * (len(results["seeds"]) > 1)
    threads = text.count(run["hardware"]["threads"], "thread")
    return (
        f"{dataset['name']}, {dataset['test']} test images, {seeds}, accuracy in % with 95 % bootstrap intervals, "
        f"{text.duration(run['seconds'])} on {run['hardware']['device']} with {threads}, "
        f"torch {run['versions']['torch']}."
    )


def _cell(interval: dict[str, float]) -> str:
    mean, low, high = (text.percent(interval[key]) for key in ("mean", "low", "high"))
    return f"{mean} ({low}{text.DASH}{high})"


if __name__ == "__main__":
    content = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print(f"{table(content)}\n\n{caption(content)}")
