"""A torchmetrics module that keeps every image's values, so that intervals and paired differences come for free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class PerSample(Metric):
    """Named values of each image, gathered over processes and put in the order of the images' indices.

    Args:
        names: of the values.
        kwargs: of torchmetrics.Metric.
    """

    full_state_update = False
    indices: list[Tensor]

    def __init__(self, names: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.names = tuple(names)
        for name in ("indices", *self.names):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, indices: Tensor, values: Mapping[str, Tensor]) -> None:
        """Add some images.

        Args:
            indices: int64 (B,), each image's own.
            values: (B,) for each name.

        Raises:
            ValueError: other names, or a shape that does not fit.
        """
        if set(values) != set(self.names):
            raise ValueError(f"values: expected {', '.join(self.names)}, got {', '.join(values)}")
        for name, value in values.items():
            if value.shape != indices.shape:
                raise ValueError(f"values[{name!r}]: expected shape {tuple(indices.shape)}, got {tuple(value.shape)}")
            getattr(self, name).append(value.detach())
        self.indices.append(indices.detach())

    def compute(self) -> dict[str, Tensor]:
        """Return "indices" (N,), increasing and each once, and the values (N,) by name."""
        columns = {name: getattr(self, name) for name in ("indices", *self.names)}
        joined = {name: torch.cat(v) if isinstance(v, list) else v for name, v in columns.items()}
        order = joined["indices"].argsort(stable=True)
        ranked = joined["indices"][order]
        first = torch.ones_like(ranked, dtype=torch.bool)
        first[1:] = ranked[1:] != ranked[:-1]  # padding repeats images
        return {name: value[order][first] for name, value in joined.items()}
