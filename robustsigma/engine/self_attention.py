"""Self-attention as torch.nn.MultiheadAttention computes it, for less on a CPU.

PyTorch projects the tokens of a batch through a transposed view, by a product of matrices for each image, and copies
queries, keys and values apart. Here the tokens are projected as they lie in memory, by one product, and queries, keys
and values are views of its result: a small ViT's passes take a tenth less.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def attends_for_less(device: torch.device) -> bool:
    """Return whether `self_attention` is cheaper there. What it takes on a GPU was not measured."""
    return device.type == "cpu"


def self_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, None] | None:
    """Return what F.multi_head_attention_forward does of the same arguments, up to rounding, or None where it has to.

    It has to unless tokens (N, B, E) attend to themselves, all to all, without dropout, and weights are not asked for.
    """
    extras: tuple[Any, ...] = (bias_k, bias_v, key_padding_mask, attn_mask, static_k, static_v)
    flags = add_zero_attn or need_weights or use_separate_proj_weight or is_causal or (training and dropout_p > 0)
    if flags or in_proj_weight is None or any(extra is not None for extra in extras):
        return None
    if query is not key or key is not value or type(query) is not Tensor or not attends_for_less(query.device):
        return None
    if query.ndim != 3 or query.shape[2] != embed_dim_to_check or embed_dim_to_check % num_heads:
        return None
    first = not query.is_contiguous()  # the batch, as it lies in memory
    tokens = query.transpose(0, 1) if first else query
    if not tokens.is_contiguous():
        return None
    parts = F.linear(tokens, in_proj_weight, in_proj_bias).unflatten(2, (3, num_heads, -1)).unbind(2)
    apart = (0, 2, 1, 3) if first else (1, 2, 0, 3)  # to (B, heads, N, D); and back
    together = (0, 2, 1, 3) if first else (2, 0, 1, 3)
    attended = F.scaled_dot_product_attention(*(part.permute(apart) for part in parts))
    result = F.linear(attended.permute(together).flatten(2), out_proj_weight, out_proj_bias)
    return result.transpose(0, 1) if first else result, None
