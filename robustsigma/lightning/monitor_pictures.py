"""Pictures of an AttributionMonitor: how they are drawn, and how each logger takes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor

from robustsigma.report.heatmaps import color_bar, draw_outline, overlay, picture_of, side_of
from robustsigma.report.panels import CORRECT, QUIET, WRONG, Panel, draw_panels

if TYPE_CHECKING:
    from robustsigma.lightning.attribution_monitor import Explained

_SIDE = 130  # the least, in pixels, of each image
_MASK = (0, 163, 150)


def draw(method: str, found: Mapping[str, Explained], labels: Tensor, masks: Tensor | None) -> Image.Image:
    """Draw images, heatmaps and standard errors under each condition, a row for each and a column for each image.

    Args:
        method: name of the attribution method.
        found: what was found under each condition.
        labels: int64 (B,), the classes that are explained.
        masks: (B, H, W) in [0, 1], whose outlines are drawn, or None.
    """
    rows: dict[str, list[Panel]] = {}
    for name, (images, logits, attribution, values) in found.items():
        pixels, side = images.cpu().double().numpy(), side_of(images.shape[2:], _SIDE)
        probabilities = logits.softmax(1)
        confidences, predictions = (each.tolist() for each in probabilities.max(1))
        own = probabilities.gather(1, labels[:, None])[:, 0].tolist()
        areas, errors = values["insertion_minus_deletion"].tolist(), values["relative_stderr"].tolist()
        converged, heat = attribution.all_converged().tolist(), attribution.heatmap().cpu().double().numpy()
        seen, maps, spread = [], [], []
        for row, label in enumerate(labels.tolist()):
            right, lost = predictions[row] == label, not converged[row]
            told = f"{own[row]:.0%}" if right else f"class {predictions[row]}: {confidences[row]:.0%}"
            color, title = CORRECT if right else WRONG, "" if rows else f"class {label}"
            seen.append(Panel(picture_of(pixels[row], side), title, (told,), color, color))
            drawn = overlay(images[row], heat[row], side=side)
            if masks is not None and 0 < float(masks[row].mean()) < 1:
                drawn = _outlined(drawn, masks[row].cpu().numpy() >= 0.5)
            area = f"ins-del {areas[row]:.2f}"
            maps.append(
                Panel(drawn, "", (area, *["not converged"] * lost), WRONG if lost else QUIET, WRONG if lost else None)
            )
            if attribution.stderr is not None:
                error = attribution.stderr[row].cpu().double().numpy() / max(np.quantile(heat[row], 0.99), 1e-30)
                share = f"{errors[row]:.0%} of the map" if errors[row] == errors[row] else "no map"
                spread.append(Panel(picture_of(error[None], side), "", (share,)))
        rows |= {name: seen, f"{name}\n{method}": maps}
        if spread:
            rows[f"{name}\nstd. error"] = spread
    bar = (color_bar(10, side, colors="inferno"), "strong", "weak")
    return draw_panels(list(rows.values()), list(rows), bar, size=12)


def _outlined(picture: Image.Image, mask: np.ndarray) -> Image.Image:
    pixels = np.array(picture, np.float64)
    draw_outline(pixels, np.asarray(Image.fromarray(mask).resize(picture.size)), _MASK)
    return Image.fromarray(pixels.astype(np.uint8))


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
