"""Losses of logits that gradient attacks maximize."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Literal["ce", "dlr", "dlr-targeted", "margin"]
_TINY = 1e-12


def attack_loss(logits: Tensor, goal: Tensor, loss: Loss) -> Tensor:
    """Return the loss that an attack raises, (B,).

    - "ce": cross-entropy of the label.
    - "dlr": difference of logits ratio, (max of the others - z_y) / (z_1 - z_3), with z_1 >= z_2 >= ... the sorted
      logits (Croce and Hein, 2020); it does not vanish where a network is confident.
    - "dlr-targeted": (z_t - z_y) / (z_1 - (z_3 + z_4) / 2) of a target class t.
    - "margin": probability margin, the largest other probability minus that of the label (arXiv 2411.15210).

    With fewer classes than a ratio needs, "dlr" is not divided of two classes, and "dlr-targeted" not of two or three:
    divided by the range of three logits it would not change where the label and the target are the first and last.

    Args:
        logits: (B, K).
        goal: (B, 2) labels and target classes.
        loss: its name.
    """
    label = goal[:, :1]
    if loss == "ce":
        return F.cross_entropy(logits, label[:, 0], reduction="none")
    if loss == "margin":
        return -margin(logits.softmax(1), label[:, 0])
    if loss == "dlr":
        difference = -margin(logits, label[:, 0])
        top = logits.topk(min(3, logits.shape[1]), dim=1).values
    else:
        difference = (logits.gather(1, goal[:, 1:]) - logits.gather(1, label))[:, 0]
        top = logits.topk(min(4, logits.shape[1]), dim=1).values
    if top.shape[1] == 2 or (loss == "dlr-targeted" and top.shape[1] == 3):
        return difference
    return difference / (top[:, 0] - top[:, 2:].mean(1) + _TINY)


def margin(values: Tensor, labels: Tensor) -> Tensor:
    """Return the value of the label minus the highest other value, (B,)."""
    own = values.gather(1, labels[:, None])[:, 0]
    return own - values.scatter(1, labels[:, None], -torch.inf).amax(1)
