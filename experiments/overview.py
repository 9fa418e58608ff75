"""Draw the README's picture: an image, its heatmap, its zero-confidence sample, and what retraining changed.

    robustsigma quickstart --full --out runs/quickstart_baggage
    python experiments/overview.py runs/quickstart_baggage     # writes docs/overview.png

The walk is the one in the report of the quickstart. The bars are its accuracies on clean images, under noise and under
the attacks against each model (adaptive): of the base model, and of the regimes that are trained on the fly.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from robustsigma.report import text
from robustsigma.report.canvas import bare, image_of, line_styles, overlay, percent_axis, png, styled
from robustsigma.runs.files import write_atomically

_NAMES = {"gaussian": "noise"}
_REGIMES = {
    "base": "nothing",
    "sigma/on_the_fly": "SIGMA",
    "fgsm/on_the_fly": "FGSM",
    "mixture/on_the_fly": "mixture",
}


def draw(results: dict[str, Any], arrays: dict[str, np.ndarray]) -> Figure:
    """Return the four panels."""
    figure = Figure(figsize=(12, 2.9), layout="constrained")
    first, second, third, bars = figure.subplots(1, 4, width_ratios=(1, 1, 1, 2.2))
    path, images = results["path"], arrays["path"]
    target, confidence = results["dataset"]["classes"][path["target"]], path["confidence"]
    first.imshow(image_of(images[0]))
    first.set(title="image", xlabel=f"{target}: {confidence[0]:.0%}")
    overlay(second, images[0], arrays["path_attribution"])
    second.set(title="heatmap", xlabel="bright: matters most")
    third.imshow(image_of(images[-1]))
    third.set(title="zero-confidence sample", xlabel=f"{target}: {confidence[-1]:.0%}")
    for axis in (first, second, third):
        bare(axis)
    _accuracies(bars, results)
    return figure


def _accuracies(axis: Any, results: dict[str, Any]) -> None:
    cells = {(cell["regime"], cell["condition"]): cell["accuracy"]["mean"] for cell in results["cells"]}
    shown = [each for each in results["conditions"] if each["attack_setting"] in ("none", "adaptive")]
    regimes = [key for key in _REGIMES if (key, shown[0]["id"]) in cells]
    width = 0.8 / len(regimes)
    for place, regime in enumerate(regimes):
        at = np.arange(len(shown)) + (place - (len(regimes) - 1) / 2) * width
        color = line_styles(regimes)[regime]["color"]
        axis.bar(at, [cells[regime, each["id"]] for each in shown], 0.92 * width, color=color, label=_REGIMES[regime])
    axis.set_xticks(np.arange(len(shown)), [_NAMES.get(each["name"], text.name(each["name"])) for each in shown])
    axis.set_title("accuracy, by what the training augments with")
    percent_axis(axis)
    axis.legend(fontsize=7.5, frameon=False, ncols=2)


def main(arguments: list[str] | None = None) -> None:
    """Read, draw, write."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("run", type=Path, help="folder of a finished quickstart")
    made.add_argument("--out", type=Path, default=Path("docs/overview.png"), help="PNG file to write")
    options = made.parse_args(arguments)
    results = json.loads((options.run / "results.json").read_text(encoding="utf-8"))
    with styled(), np.load(options.run / "arrays.npz") as arrays:
        print(write_atomically(options.out, png(draw(results, dict(arrays)))))


if __name__ == "__main__":
    main()
