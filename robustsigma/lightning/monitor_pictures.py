"""Pictures of an AttributionMonitor: how they are drawn, and how each logger takes them."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from robustsigma.lightning.attribution_monitor import Explained


def draw(method: str, found: Mapping[str, Explained], labels: Tensor, masks: Tensor | None) -> Image.Image:
    """Draw images, heatmaps and standard errors under each condition, a row for each and a column for each image.

    Args:
        method: name of the attribution method.
        found: what was found under each condition.
        labels: int64 (B,), the classes that are explained.
        masks: (B, H, W) in [0, 1], whose outlines are drawn, or None.
    """
    from matplotlib.figure import Figure

    from robustsigma.report.canvas import CORRECT, QUIET, WRONG, bare, image_of, label, overlay, png, styled

    rows = sum(3 if each.attribution.stderr is not None else 2 for each in found.values())
    with styled():
        figure = Figure(figsize=(1.5 + 1.3 * len(labels), 0.3 + 1.55 * rows))
        axes = figure.subplots(rows, len(labels), squeeze=False, gridspec_kw={"wspace": 0.08, "hspace": 0.3})
        lines = iter(axes)
        for axis, target in zip(axes[0], labels.tolist(), strict=True):
            axis.set_title(f"class {target}", fontsize=9, fontweight="bold", pad=5)
        for name, (images, logits, attribution, values) in found.items():
            confidences, predictions = logits.softmax(1).max(1)
            own = logits.softmax(1).gather(1, labels[:, None])[:, 0].tolist()
            heats, converged = attribution.heatmap().cpu().numpy(), attribution.all_converged().tolist()
            areas, errors = values["insertion_minus_deletion"].tolist(), values["relative_stderr"].tolist()
            line = next(lines)
            for column, (axis, image) in enumerate(zip(line, images.cpu().numpy(), strict=True)):
                axis.imshow(image_of(image), vmin=0, vmax=1)
                guess, right = int(predictions[column]), bool(predictions[column] == labels[column])
                told = f"{own[column]:.0%}" if right else f"class {guess}: {float(confidences[column]):.0%}"
                _finish(axis, told, CORRECT if right else WRONG, frame=True)
            _row_title(line[0], label(name, 14))
            line = next(lines)
            for column, (axis, image) in enumerate(zip(line, images.cpu().numpy(), strict=True)):
                overlay(axis, image, heats[column])
                if masks is not None and 0 < float(masks[column].mean()) < 1:
                    axis.contour(masks[column].cpu().numpy(), levels=[0.5], colors=["#00a396"], linewidths=1.2)
                lost = not converged[column]
                told = f"ins\N{MINUS SIGN}del {areas[column]:.2f}".replace(" -", " \N{MINUS SIGN}")
                _finish(axis, told + "\nnot converged" * lost, WRONG if lost else QUIET, frame=lost)
            _row_title(line[0], label(method, 14))
            if attribution.stderr is None:
                continue
            line = next(lines)
            for axis, heat, error, relative in zip(line, heats, attribution.stderr.cpu().numpy(), errors, strict=True):
                axis.imshow(error, cmap="magma", vmin=0, vmax=max(float(np.quantile(heat, 0.99)), 1e-30))
                _finish(axis, f"{relative:.0%} of the map" if relative == relative else "no map", QUIET)
            _row_title(line[0], "std. error")
        for axis in axes.flat:
            bare(axis, axis.get_gid())
        return Image.open(BytesIO(png(figure))).convert("RGB")


def _finish(axis: Any, caption: str, color: str, *, frame: bool = False) -> None:
    axis.set_xlabel(caption, color=color, fontsize=7.5, labelpad=3, linespacing=1.1)
    axis.set_gid(color if frame else None)


def _row_title(axis: Any, title: str) -> None:
    axis.set_ylabel(title, rotation=0, ha="right", va="center", labelpad=8)


def log_picture(trainer: Any, folder: str, name: str, picture: Image.Image) -> None:
    """Give a picture to each logger that takes pictures, and write it to a file for the others, or if there are none.

    Args:
        trainer: Trainer whose loggers they are.
        folder: folder of the files, to which `attributions/NAME/` is added.
        name: name of the picture, without the epoch.
        picture: in RGB.
    """
    step, key = trainer.global_step, f"attribution/{name}"
    file = f"attributions/{name}/epoch={trainer.current_epoch}-step={step}.png"
    taken = [_log(logger, key, file, np.asarray(picture), step) for logger in trainer.loggers]
    if not all(taken) or not taken:
        path = Path(folder) / file
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)


def _log(logger: Any, key: str, file: str, pixels: np.ndarray, step: int) -> bool:
    """Return whether a logger took a picture; loggers are known by their methods, so that none has to be installed."""
    if hasattr(logger, "log_image"):  # Weights & Biases
        logger.log_image(key=key, images=[pixels], step=step)
    elif hasattr(logger.experiment, "add_image"):  # TensorBoard
        logger.experiment.add_image(key, pixels, step, dataformats="HWC")
    elif hasattr(logger.experiment, "log_image") and hasattr(logger, "run_id"):  # MLflow
        logger.experiment.log_image(logger.run_id, pixels, file)
    else:
        return False
    return True
