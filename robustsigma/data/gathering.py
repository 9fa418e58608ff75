"""What the processes of a training make of their shares of a batch, put together as one process would have it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Share(NamedTuple):
    """Which rows of a batch of several processes one of them has: every `world`-th, from `rank` on.

    Attributes:
        rank: of the process.
        world: how many there are.
    """

    rank: int = 0
    world: int = 1

    def gather(self, rows: Tensor, indices: Tensor, *columns: Tensor) -> list[Tensor]:
        """Return the indices and columns of all processes, in the order of the whole batch, each image once.

        Every process calls it, also one that has no row.

        Args:
            rows: int64 (n,), places in this process's share.
            indices: int64 (n,), of the images; one that fills up a share is there twice.
            columns: (n, ...), of the same types and shapes but for n on all processes.
        """
        if self.world == 1:
            return [indices, *columns]
        from torchmetrics.utilities.distributed import gather_all_tensors  # here, as it takes three seconds

        places, *found = (
            torch.cat(gather_all_tensors(each)) for each in (rows * self.world + self.rank, indices, *columns)
        )
        order = places.argsort()
        whose = found[0][order]
        seen = (whose[:, None] == whose[None, :]).tril(-1).any(1)
        return [each[order][~seen] for each in found]
