"""What an attention block of a vision transformer computes: its weights, and the gradient of a score by them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from robustsigma.engine.validation import fail

# Attention weights (images x heads x tokens x tokens) held at once: 256 MiB in float32.
_MOST_WEIGHTS = 2**26


@dataclass(frozen=True, eq=False)
class SelfAttention:
    """What one block did with the N tokens of B images: softmax(Q K^T) V.

    Attributes:
        queries: (B, heads, N, D), scaled.
        keys: (B, heads, N, D).
        values: (B, heads, N, D).
        output: (B, N, E), the heads side by side, behind `projection` if there is one; in the autograd graph.
        projection: weight (E, heads * D) and bias of a layer that `output` has passed.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    output: Tensor
    projection: tuple[Tensor, Tensor | None] | None = None

    @torch.no_grad()
    def weights(self) -> Tensor:
        """Return softmax(Q K^T), (B, heads, N, N), rows summing to 1; at least in float32."""
        products = self.queries @ self.keys.transpose(2, 3)
        return products.to(torch.promote_types(products.dtype, torch.float32)).softmax(3)

    @torch.no_grad()
    def weight_gradient(self, gradient: Tensor) -> Tensor:
        """Return dF/d weights, (B, heads, N, N), from dF/d output (B, N, E)."""
        inner = gradient if self.projection is None else gradient @ self.projection[0]
        wide = torch.promote_types(inner.dtype, torch.float32)
        return inner.unflatten(2, (self.queries.shape[1], -1)).transpose(1, 2).to(wide) @ self.values.mT.to(wide)

    def split(self, *others: Tensor) -> Iterator[Any]:
        """Yield the block for as many images as memory holds weights of, with their rows of other tensors."""
        _, heads, tokens, _ = self.queries.shape
        tensors = (self.queries, self.keys, self.values, self.output, *others)
        size = max(1, _MOST_WEIGHTS // (heads * tokens * tokens))
        for queries, keys, values, output, *rest in zip(*(tensor.split(size) for tensor in tensors), strict=True):
            yield SelfAttention(queries, keys, values, output, self.projection), *rest

    @torch.no_grad()
    def check(self) -> None:
        """Raise unless the output for the first image is what the weights say: else they do not describe it."""
        first = SelfAttention(self.queries[:1], self.keys[:1], self.values[:1], self.output[:1])
        attention = first.weights()
        expected = (attention @ first.values.to(attention.dtype)).transpose(1, 2).flatten(2)
        if self.projection is not None:
            expected = F.linear(expected.to(self.projection[0].dtype), *self.projection)
        tolerance = 0.05 if self.output.element_size() == 2 else 1e-3
        same = first.output.shape == expected.shape
        if not same or (first.output - expected).abs().max() > tolerance * (expected.abs().max() + 1e-6):
            got = "attention that computes something else, such as a relative position bias, a mask or windows"
            raise fail("net", "attention blocks that compute softmax(Q K^T) V", got)
