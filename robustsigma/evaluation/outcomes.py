"""What one model made of the test images under one condition, image by image."""

from __future__ import annotations

import io
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustsigma.data.source import Batch
from robustsigma.engine.classifier import pick
from robustsigma.engine.metrics import PerSample, linf, rmse, ssim
from robustsigma.files import write_atomically


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
        """Read what `write` wrote."""
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
        found.setdefault("top", np.full(len(found["indices"]), np.nan, np.float32))
        return Outcomes(**found)


_COLUMNS = tuple(f.name for f in fields(Outcomes) if f.name != "indices")


class OutcomeRecorder(pl.Callback):
    """Records the outcomes of every test condition, and the perturbed images of those named.

    Args:
        keep: conditions whose images are kept as well.
    """

    def __init__(self, keep: tuple[str, ...] = ()) -> None:
        self.keep = keep
        self.outcomes: dict[str, Outcomes] = {}
        self.images: dict[str, Tensor] = {}
        self._metrics: dict[str, PerSample] = {}
        self._kept: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in keep}

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
        assert batch.made is not None
        assert batch.clean is not None
        values = {
            "labels": batch.labels,
            "predictions": outputs.argmax(1),
            "confidences": pick(outputs.float(), batch.labels, "prob"),
            "top": outputs.float().softmax(1).amax(1),
            "searched": batch.made.searched,
            "converged": batch.made.converged,
            "steps": batch.made.steps,
            "rmse": rmse(batch.images, batch.clean),
            "linf": linf(batch.images, batch.clean),
            "ssim": ssim(batch.images, batch.clean),
        }
        if batch.condition not in self._metrics:
            self._metrics[batch.condition] = PerSample(_COLUMNS).to(batch.images.device)
        self._metrics[batch.condition].update(batch.indices, values)
        if batch.condition in self.keep:
            self._kept[batch.condition].append((batch.indices.cpu(), batch.images.cpu()))

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gather."""
        for name, metric in self._metrics.items():
            columns = {key: value.cpu().numpy() for key, value in metric.compute().items()}
            self.outcomes[name] = Outcomes(**columns)
        for name, parts in self._kept.items():
            order = torch.cat([indices for indices, _ in parts]).argsort(stable=True)
            self.images[name] = torch.cat([images for _, images in parts])[order].clone()
