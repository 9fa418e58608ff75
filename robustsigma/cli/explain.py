"""`explain`: write heatmaps of image files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from robustsigma.cli import images
from robustsigma.cli.parsing import new_parser, parse
from robustsigma.engine.attributors import Attribution, Attributor
from robustsigma.engine.device import best_device
from robustsigma.report.text import printable
from robustsigma.runs.directory import output_folder
from robustsigma.runs.files import read_json, write_atomically
from robustsigma.runs.fingerprint import code_of, describe, files

_DESCRIPTION = (
    "Write a heatmap over each image, and explanations.json with the numbers. Run the same command again to resume."
)
_BATCH = {"cpu": 4}  # an interrupt loses at most one batch
_GPU_BATCH = 16
# The paper's settings make no progress on confident networks: see results/sigma_settings.json.
_METHOD = {
    "class_path": "robustsigma.Sigma",
    "init_args": {"alpha": 0.01, "beta": 0.1, "objective": "logit", "max_steps": 200},
}


def run(verb: str, arguments: list[str]) -> None:
    """Parse the arguments and explain."""
    parser = new_parser("robustsigma explain", _DESCRIPTION)
    parser.add_argument("images", type=str, nargs="+", help="image files, or folders of them")
    images.add_model(parser)
    parser.add_argument("--method", type=Attributor, default=_METHOD, help="class of an attribution method")
    parser.add_argument(
        "--target", type=str, default=None, help="class name or index; the predicted class if not given"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of methods that use randomness")
    parser.add_argument("--out", type=str, default="explanations", help="folder of the heatmaps")
    parser.add_argument("--config", action="config", help="YAML file of these options")
    _explain(*parse(parser, arguments))


def _explain(found: Any, made: Any) -> None:
    method: Attributor = made.method
    classifier, card = images.model(found, made)
    from robustsigma.report.gallery import draw_overlay  # needs matplotlib, which only the extra `report` brings

    target = images.class_index(found.target, card.classes, "target")
    paths, out, console = images.files(found.images), output_folder(found.out), Console()
    names, device = _unique(paths), best_device()
    settings = {**images.model_settings(found, classifier, card), "target": target, "seed": found.seed}
    settings |= {"method": describe(method), **code_of(found.allow)}
    parts = {
        path: _Part(out, names[path], {**settings, "file": str(path), "content": files([path])["content"]})
        for path in paths
    }
    entries = {path: entry for path, part in parts.items() if (entry := part.read()) is not None}
    if entries:
        console.print(f"{len(entries)} of {len(paths)} images were explained before with the same settings")
    left = [path for path in paths if path not in entries]
    size = _BATCH.get(device.type, _GPU_BATCH)
    for start in range(0, len(left), size):
        batch = left[start : start + size]
        x = images.read(batch, card).to(device)
        result = method(classifier, x, target, seed=found.seed)
        with classifier.frozen():
            probabilities = classifier.logits(x).softmax(1).cpu()
        for row, path in enumerate(batch):
            entry = _entry(path, result, row, probabilities[row], card.classes)
            title = f"{entry['class']}: {100 * entry['confidence']:.0f}%"
            heat = result.heatmap("sum")[row].cpu().numpy()
            picture = draw_overlay(x[row].cpu().numpy(), heat, title, type(method).__name__)
            entries[path] = parts[path].write(picture, entry)
            warning = "" if entry["converged"] else ", not converged"
            console.print(printable(f"{names[path]}.png  {title}{warning}"), markup=False, highlight=False)
    listed = [entries[path] for path in paths]
    summary = {"method": repr(method), "model": str(found.model), "seed": found.seed, "images": listed}
    write_atomically(out / "explanations.json", json.dumps(summary, indent=1).encode())


class _Part:
    """The heatmap of one image and its entry, which are reused from an earlier run with the same settings."""

    def __init__(self, out: Path, name: str, settings: dict[str, Any]) -> None:
        self._picture, self._file = out / f"{name}.png", out / ".parts" / f"{name}.json"
        self._settings = json.loads(json.dumps(settings))

    def read(self) -> dict[str, Any] | None:
        if not (self._file.is_file() and self._picture.is_file()):
            return None
        found = read_json(self._file)
        return found["entry"] if found["settings"] == self._settings else None

    def write(self, picture: bytes, entry: dict[str, Any]) -> dict[str, Any]:
        self._file.unlink(missing_ok=True)  # an interrupt in between must not leave the entry of another run
        entry = {**entry, "heatmap": write_atomically(self._picture, picture).name}
        write_atomically(self._file, json.dumps({"settings": self._settings, "entry": entry}).encode())
        return entry


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
    """Return a file name for each path: its own, with a number where another differs at most in case."""
    taken: set[str] = set()
    names = {}
    for path in paths:
        name, count = path.stem, 1
        while name.casefold() in taken:
            count += 1
            name = f"{path.stem}-{count}"
        taken.add(name.casefold())
        names[path] = name
    return names
