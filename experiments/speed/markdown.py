"""Print the table of docs/results.md: python -m experiments.speed.markdown results/speed_cpu.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from robustsigma.report.text import DASH

_NETS = {"resnet18": "ResNet-18, 224²", "vit": "ViT, 224²", "small": "small CNN, 64²"}
_ROWS = {
    "SIGMA": "SIGMA, 7 paths",
    "SigmaSample": "SIGMA, sample only",
    "IG": "IG",
    "IDG": "IDG",
    "EG": "Expected Gradients",
    "Guided-IG": "Guided IG",
    "IG2": "IG2",
    "AGI": "AGI",
    "CrediblePath": "Credible path",
    "FGSM": "FGSM",
    "PGD": "PGD",
    "IG-tf32": "IG, gradients in TF32",
    "IG-bfloat16": "IG, gradients in bfloat16",
    "SIGMA-tf32": "SIGMA, gradients in TF32",
    "SIGMA-bfloat16": "SIGMA, gradients in bfloat16",
    "Guided-IG-bfloat16": "Guided IG, gradients in bfloat16",
}
_SKIPPED_PEERS = ("full precision",)  # the row of that method shows it


def markdown(results: dict[str, Any]) -> str:
    """Return the efficiencies of the main rows, and the times of their peers, as a Markdown table."""
    nets = [results["nets"][net]["rows"] for net in _NETS if net in results["nets"]]
    head = [title for net, title in _NETS.items() if net in results["nets"]]
    lines = [f"| | {' | '.join(head)} | a peer's time, in ours ({', '.join(h.split(',')[0] for h in head)}) |"]
    lines.append("|---" * (len(head) + 2) + "|")
    for name, title in _ROWS.items():
        if any(name in rows for rows in nets):
            cells = [f"{rows[name]['efficiency']['median']:.2f}" if name in rows else DASH for rows in nets]
            lines.append(f"| {title} | {' | '.join(cells)} | {_peers([rows.get(name) for rows in nets])} |")
    return "\n".join(lines)


def _peers(rows: list[dict[str, Any] | None]) -> str:
    named: dict[str, None] = {}
    of: list[dict[str, str]] = []
    for row in rows:
        peers = [] if row is None else [peer for peer in row["peers"] if peer["name"] not in _SKIPPED_PEERS]
        of.append({_name(peer): f"{peer['times_ours']['median']:.2f}" for peer in peers})
        named |= dict.fromkeys(of[-1])
    return "; ".join(f"{name}: {', '.join(times.get(name, DASH) for times in of)}" for name in named)


def _name(peer: dict[str, Any]) -> str:
    return peer["name"] + (", by the pass" if peer["per"] == "pass" else "")


def _range(found: dict[str, Any]) -> str:
    return "{median:,.2f} ({low:,.2f}\u2013{high:,.2f})".format(**found)


def line(name: str, row: dict[str, Any]) -> str:
    """Return a row in one line, which is printed when the row is finished."""
    parts = []
    if row.get("efficiency"):
        parts.append(f"efficiency {_range(row['efficiency'])}")
    elif "cost_in_forwards" in row:
        parts.append(f"{_range(row['cost_in_forwards'])} forward passes")
    for peer in row.get("peers", []):
        apart = "" if peer["deviation"] is None else f", deviation {peer['deviation']:.1e}"
        parts.append(f"{_name(peer)}: {_range(peer['times_ours'])} of our time{apart}")
    parts += [f"{each} {found['times_plain']['median']:.2f}\u00d7" for each, found in row.get("regimes", {}).items()]
    parts += [f"{part} {found['of_a_step']['median']:.2f} of a step" for part, found in row.get("parts", {}).items()]
    for curve, found in row.get("curves", {}).items():
        if found.get("exponent") is not None:
            parts.append(f"{curve}: exponent {found['exponent']:.2f}")
        if "mib" in found:
            parts.append(f"{curve}: {found['passes'][0]:.2f} to {found['passes'][-1]:.2f} passes")
    return f"{name}: " + "; ".join(parts)


if __name__ == "__main__":
    for given in sys.argv[1:]:
        print(markdown(json.loads(Path(given).read_text(encoding="utf-8"))))
