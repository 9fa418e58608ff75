"""The target's score: what methods explain and attacks lower."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from robustsigma.engine.validation import choice

Score = Literal["logit", "log_prob", "prob"]
SCORES: tuple[Score, ...] = get_args(Score)


def target_score(logits: Tensor, target: Tensor, of: Score) -> Tensor:
    """Return the target's score (B,) from logits (B, K): the logit, the log-softmax or the softmax.

    The log-softmax is taken from the margin z_c - logsumexp of the other logits, whose logistic function the softmax
    is: it keeps its digits when p rounds to 1, where SIGMA's search would otherwise stand still. The softmax is
    PyTorch's own, as in the code of others, whose gradients in single precision it then has: next to 1 they are of
    few digits, and those of the log-softmax are the ones to take.
    """
    choice("score", of, SCORES)
    chosen = logits.gather(1, target[:, None])[:, 0]
    if of == "logit":
        return chosen
    if of == "prob":
        return logits.softmax(1).gather(1, target[:, None])[:, 0]
    others = logits.scatter(1, target[:, None], -torch.inf).logsumexp(1)
    return F.logsigmoid(chosen - others)
