"""Statistics of what the training perturbation did, logged in each epoch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from robustsigma.engine.perturbations import Perturbed
from robustsigma.lightning.batch import Batch, CacheStats


@dataclass(frozen=True)
class AugmentationTotals:
    """What was made for training. The integers but `steps` and `ages` are numbers of images.

    Attributes:
        samples: images that were changed.
        attempted: images for which a search with a goal was run (SIGMA's walk).
        converged: images whose search reached its goal.
        steps: sum of the steps of all searches.
        requested: SIGMA samples that were requested from a sample cache.
        hits: samples that it provided.
        expired: samples that it had, but that were too old.
        stale: samples that it had, but that no longer fool the network.
        ages: sum of the ages of the provided samples, in epochs.
        seconds: time spent in perturbations, on the host's clock, over all processes.
    """

    samples: int = 0
    attempted: int = 0
    converged: int = 0
    steps: int = 0
    requested: int = 0
    hits: int = 0
    expired: int = 0
    stale: int = 0
    ages: int = 0
    seconds: float = 0.0

    def __add__(self, other: AugmentationTotals) -> AugmentationTotals:
        pairs = zip(asdict(self).values(), asdict(other).values(), strict=True)
        return AugmentationTotals(*(a + b for a, b in pairs))


def augmentation_counts(made: Perturbed, clean: Tensor) -> Tensor:
    """Return the first four of `AugmentationTotals` for each image, int64 (B, 4), without waiting for the device."""
    changed = (made.images != clean).flatten(1).any(1)
    return torch.stack([changed, made.attempted, made.attempted & made.converged, made.steps], dim=1)


class AugmentationStatistics(pl.Callback):
    """Logs in each epoch what the training perturbation did.

    It logs `augment_samples_per_second` and `augment_seconds`; if searches were run, `augment_converged` (the fraction
    that reached their goal) and `augment_steps` (mean). If SIGMA samples were requested from a sample cache, it logs
    `cache_hit_rate` (the fraction that it provided), `cache_mean_age` (their mean age in epochs), and the fractions
    that it had but that could not be used: `cache_expired` (too old) and `cache_stale` (now classified correctly).
    `totals` holds the sums over all epochs.

    Example:
        >>> trainer = Trainer(callbacks=[AugmentationStatistics()], logger=False)
    """

    def __init__(self) -> None:
        self.totals = AugmentationTotals()
        self._sums: Tensor | None = None
        self._seconds = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the sums of a new epoch."""
        self._sums, self._seconds = None, 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Add a batch, without waiting for the device."""
        info = batch.info
        if info.perturbed is None or info.clean is None:
            return
        stats = info.cache_stats or CacheStats.empty(batch.images)
        counts = augmentation_counts(info.perturbed, info.clean)[: len(batch) - batch.padding]
        sums = torch.cat([counts.sum(0), stats.totals])
        self._sums = sums if self._sums is None else self._sums + sums
        self._seconds += info.seconds

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the epoch."""
        if self._sums is None:
            return
        # Apple's GPUs have no double precision.
        device = torch.device("cpu") if self._sums.device.type == "mps" else self._sums.device
        seconds = torch.tensor([self._seconds], dtype=torch.float64, device=device)
        sums = torch.cat([self._sums.to(device).double(), seconds])
        *counts, total = torch.as_tensor(trainer.strategy.reduce(sums, reduce_op="sum")).tolist()
        now = replace(AugmentationTotals(*map(int, counts)), seconds=total)
        self.totals += now
        logged = {"augment_seconds": total, "augment_samples_per_second": now.samples / total if total else 0.0}
        if now.attempted:
            logged["augment_converged"] = now.converged / now.attempted
            logged["augment_steps"] = now.steps / now.attempted
        if now.requested:
            logged["cache_hit_rate"] = now.hits / now.requested
            logged["cache_expired"] = now.expired / now.requested
            logged["cache_stale"] = now.stale / now.requested
        if now.hits:
            logged["cache_mean_age"] = now.ages / now.hits
        # All processes have the same numbers; without sync_dist Lightning would warn.
        pl_module.log_dict(logged, sync_dist=True)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs."""
        return asdict(self.totals)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore state."""
        self.totals = AugmentationTotals(**state_dict)
