"""Explain a class against another one: why the network predicts a rather than b."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from robustsigma.engine.classifier import Classifier
from robustsigma.engine.network_state import logits_of


@contextmanager
def contrasted(classifier: Classifier, target: int, other: int) -> Iterator[None]:
    """Within this context, the network tells two classes apart: 0 is `target`, 1 is `other`.

    The logits are (z_target - z_other, 0), so the confidence of class 0 is that of `target` among the two. A method
    that explains class 0 then explains the difference of their logits.

    Example:
        >>> with contrasted(classifier, target=3, other=5):
        ...     result = IntegratedGradients()(classifier, images, 0)
    """

    def difference(_: torch.nn.Module, __: Any, output: Any) -> Tensor:
        logits = logits_of(output)
        gap = logits[:, target] - logits[:, other]
        return torch.stack([gap, torch.zeros_like(gap)], 1)

    handle = classifier.net.register_forward_hook(difference)
    try:
        yield
    finally:
        handle.remove()
