"""`explain`: heatmaps of image files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from robustsigma.cli import images
from robustsigma.device import best_device
from robustsigma.engine.attributors import Attribution, Attributor
from robustsigma.files import write_atomically
from robustsigma.parser import new_parser, parse_trusting
from robustsigma.report.text import printable

_DESCRIPTION = "Write a heatmap over each image, and explanations.json with the numbers behind them."
_BATCH = 16
# The paper's settings stand still on confident networks: see results/sigma_settings.json.
_METHOD = {
    "class_path": "robustsigma.Sigma",
    "init_args": {"alpha": 0.01, "beta": 0.1, "objective": "logit", "max_steps": 200},
}


def run(verb: str, arguments: list[str]) -> None:
    """Parse the arguments and explain."""
    parser = new_parser("robustsigma explain", _DESCRIPTION)
    parser.add_argument("images", type=str, nargs="+", help="image files, or folders of them")
    images.add_model(parser)
    parser.add_argument("--method", type=Attributor, default=_METHOD, help="class of a method, such as Sigma")
    parser.add_argument(
        "--target", type=str, default=None, help="class name or index; the predicted class if not given"
    )
    parser.add_argument("--seed", type=int, default=0, help="of methods that draw")
    parser.add_argument("--out", type=str, default="explanations", help="folder of the heatmaps")
    parser.add_argument("--config", action="config", help="YAML file of these options")
    _explain(*parse_trusting(parser, arguments))


def _explain(found: Any, made: Any) -> None:
    from robustsigma.report.gallery import draw_overlay  # needs matplotlib, which only the extra `report` brings

    method: Attributor = made.method
    classifier, card = images.model(found, made)
    target = images.class_index(found.target, card.classes, "target")
    paths, out, console = images.files(found.images), Path(found.out), Console()
    names = _unique(paths)
    entries: list[dict[str, Any]] = []
    for start in range(0, len(paths), _BATCH):
        part = paths[start : start + _BATCH]
        x = images.read(part, card).to(best_device())
        result = method(classifier, x, target, seed=found.seed)
        with classifier.frozen():
            probabilities = classifier.logits(x).softmax(1).cpu()
        for row, path in enumerate(part):
            entry = _entry(path, result, row, probabilities[row], card.classes)
            title = f"{entry['class']}: {100 * entry['confidence']:.0f} %"
            heat = result.heatmap("sum")[row].cpu().numpy()
            picture = draw_overlay(x[row].cpu().numpy(), heat, title, type(method).__name__)
            entry["heatmap"] = f"{names[path]}.png"
            write_atomically(out / entry["heatmap"], picture)
            entries.append(entry)
            warning = "" if entry["converged"] else ", not converged"
            console.print(printable(f"{entry['heatmap']}  {title}{warning}"), markup=False, highlight=False)
    summary = {"method": repr(method), "model": str(found.model), "seed": found.seed, "images": entries}
    write_atomically(out / "explanations.json", json.dumps(summary, indent=1).encode())


def _entry(
    path: Path, result: Attribution, row: int, probabilities: torch.Tensor, classes: tuple[str, ...]
) -> dict[str, Any]:
    target, predicted = int(result.target[row]), int(probabilities.argmax())
    return {
        "file": str(path),
        "class": classes[target],
        "confidence": float(probabilities[target]),
        "predicted": classes[predicted],
        "steps": result.steps[row].tolist(),
        "converged": bool(result.all_converged()[row]),
        "completeness_gap": float(result.gap()[row]),
        "drop": float(result.drop[row]),
        "stderr": None if result.stderr is None else float(np.mean(result.stderr[row].cpu().numpy())),
    }


def _unique(paths: list[Path]) -> dict[Path, str]:
    """Return a file name for each path: its own, with a number where two are alike."""
    taken: set[str] = set()
    names = {}
    for path in paths:
        name, count = path.stem, 1
        while name in taken:
            count += 1
            name = f"{path.stem}-{count}"
        taken.add(name)
        names[path] = name
    return names
