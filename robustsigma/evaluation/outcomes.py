"""What one model made of the test images under one condition, image by image."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustsigma.engine.classifier import target_score
from robustsigma.engine.metrics import PerSample, linf, rmse, ssim
from robustsigma.evaluation.parts import Parts
from robustsigma.files import read_arrays, write_atomically
from robustsigma.lightning import Batch, RobustDataModule


@dataclass(frozen=True)
class Outcomes:
    """One row an image, in the order of their indices. All arrays are (N,).

    Attributes:
        indices: place in the test split.
        labels: true class.
        predictions: class answered.
        confidences: softmax of the true class.
        top: softmax of the class answered; NaN where an older version, which did not keep it, wrote the file.
        searched: whether a search made the sample (SIGMA's walk).
        converged: whether it reached its goal.
        steps: of the search.
        rmse: distance to the untouched image.
        linf: largest change of a pixel.
        ssim: structural similarity to the untouched image.
    """

    indices: NDArray[np.int64]
    labels: NDArray[np.int64]
    predictions: NDArray[np.int64]
    confidences: NDArray[np.float32]
    top: NDArray[np.float32]
    searched: NDArray[np.bool_]
    converged: NDArray[np.bool_]
    steps: NDArray[np.int64]
    rmse: NDArray[np.float32]
    linf: NDArray[np.float32]
    ssim: NDArray[np.float32]

    @property
    def correct(self) -> NDArray[np.float64]:
        """1 where the answer is right, else 0."""
        return (self.predictions == self.labels).astype(np.float64)

    def write(self, path: Path) -> None:
        """Write an .npz file in one step."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **{f.name: getattr(self, f.name) for f in fields(self)})
        write_atomically(path, buffer.getvalue())

    @staticmethod
    def read(path: Path) -> Outcomes:
        """Read what `write` wrote; a damaged file is a ValueError."""
        found = read_arrays(path)
        found.setdefault("top", np.full(len(found["indices"]), np.nan, np.float32))
        return Outcomes(**found)


_COLUMNS = tuple(f.name for f in fields(Outcomes) if f.name != "indices")


class OutcomeRecorder(pl.Callback):
    """Records the outcomes of every test condition; several processes gather theirs at the end."""

    def __init__(self) -> None:
        self.outcomes: dict[str, Outcomes] = {}
        self._metrics: dict[str, PerSample] = {}

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Expect every condition: to gather one, all processes have to know of it."""
        data = getattr(trainer, "datamodule", None)
        names = data.conditions if isinstance(data, RobustDataModule) else ()
        self._metrics = {name: PerSample(_COLUMNS).to(pl_module.device) for name in names}

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add a batch."""
        self._metrics[batch.info.condition].update(batch.indices, measure(outputs, batch))

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gather."""
        for name, metric in self._metrics.items():
            columns = {key: value.cpu().numpy() for key, value in metric.compute().items()}
            self.outcomes[name] = Outcomes(**columns)


class CellRecorder(pl.Callback):
    """Hands over the outcomes of each test condition when its last image is done, in a test of one process.

    Args:
        parts: by condition: where images are kept until then, those of an earlier process among them.
        keep: conditions whose perturbed images are handed over as well.
        finish: takes a condition, its outcomes and images (N, C, H, W), or None for those.
    """

    def __init__(
        self, parts: dict[str, Parts], keep: Collection[str], finish: Callable[[str, Outcomes, Tensor | None], None]
    ) -> None:
        self.parts, self.keep, self.finish = parts, keep, finish

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add a batch."""
        rows = {name: value.cpu().numpy() for name, value in measure(outputs, batch).items()}
        rows["indices"] = batch.indices.cpu().numpy()
        if batch.info.condition in self.keep:
            rows["images"] = batch.images.cpu().numpy()
        self.parts[batch.info.condition].add(rows)
        if batch_idx + 1 == trainer.num_test_batches[dataloader_idx]:
            self.hand_over(batch.info.condition)

    def hand_over(self, name: str) -> None:
        """Hand over a condition whose images are all done."""
        rows = self.parts[name].all()
        images = rows.pop("images", None)
        self.finish(name, Outcomes(**rows), None if images is None else torch.from_numpy(images))
        self.parts[name].remove()


def measure(logits: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Return the columns of `Outcomes` for a batch, but its indices."""
    made, clean = batch.info.perturbed, batch.info.clean
    assert made is not None
    assert clean is not None
    return {
        "labels": batch.labels,
        "predictions": logits.argmax(1),
        "confidences": target_score(logits.float(), batch.labels, "prob"),
        "top": logits.float().softmax(1).amax(1),
        "searched": made.attempted,
        "converged": made.converged,
        "steps": made.steps,
        "rmse": rmse(batch.images, clean),
        "linf": linf(batch.images, clean),
        "ssim": ssim(batch.images, clean),
    }
