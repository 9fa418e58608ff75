"""Print the matrix of a results.json as a Markdown table: python experiments/matrix_table.py FILE."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from robustsigma.report import text
from robustsigma.report.robustness import accuracy_table


def table(results: dict[str, Any]) -> str:
    """Return accuracies in % with their 95% intervals; models are rows."""
    found = accuracy_table(results)
    columns = [
        (head, "" if group.key == "none" else f", {group.key}") for group in found.columns for head in group.heads
    ]
    lines = ["| model | " + " | ".join(head.label + suffix for head, suffix in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for group in found.rows:
        for row in group.heads:
            cells = (found.cells[row.id, head.id] for head, _ in columns)
            shown = [f"{cell.text} ({cell.details[0].replace(text.THIN_SPACE, '')})" for cell in cells]
            lines.append(f"| {row.label}{group.suffix} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def caption(results: dict[str, Any]) -> str:
    """Return what stands behind the numbers."""
    run, dataset = results["run"], results["dataset"]
    seeds = f"{len(results['seeds'])} seed" + "s" * (len(results["seeds"]) > 1)
    threads = text.count(run["hardware"]["threads"], "thread")
    return (
        f"{dataset['name']}, {dataset['test']} test images, {seeds}, accuracy in % with 95% bootstrap intervals, "
        f"{run['hardware']['device']} with {threads}, "
        f"torch {run['versions']['torch']}."
    )


if __name__ == "__main__":
    content = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print(f"{table(content)}\n\n{caption(content)}")
