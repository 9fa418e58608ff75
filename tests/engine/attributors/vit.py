"""Two small vision transformers: one laid out as timm's, one from torchvision."""

import torch
from cases import CHANNELS, CLASSES, _fill, _made
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer


class Attention(nn.Module):
    """Self-attention with timm's names: one `qkv` layer, `num_heads`, `scale`, optional norms of q and k."""

    def __init__(self, dim: int, heads: int, *, qk_norm: bool = False) -> None:
        super().__init__()
        self.num_heads, self.scale = heads, (dim // heads) ** -0.5
        self.qkv, self.proj = _made(nn.Linear, dim, 3 * dim), _made(nn.Linear, dim, dim)
        self.q_norm = nn.LayerNorm(dim // heads) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(dim // heads) if qk_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v, scale=self.scale)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, dim))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, *, qk_norm: bool) -> None:
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(dim), Attention(dim, heads, qk_norm=qk_norm)
        self.mlp = nn.Sequential(_made(nn.Linear, dim, 2 * dim), nn.GELU(), _made(nn.Linear, 2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm(x))
        return x + self.mlp(x)


class TinyViT(nn.Module):
    """A transformer for images of any size: patches of `patch` pixels, a position code added to each."""

    def __init__(
        self,
        channels: int = CHANNELS,
        classes: int = CLASSES,
        *,
        patch: int = 2,
        registers: int = 0,
        depth: int = 2,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        dim = 8
        self.num_prefix_tokens = 1 + registers
        self.patch_embed = _made(nn.Conv2d, channels, dim, patch, stride=patch)
        self.prefix = nn.Parameter(torch.empty(self.num_prefix_tokens, dim))
        self.blocks = nn.Sequential(*(Block(dim, 2, qk_norm=qk_norm) for _ in range(depth)))
        self.dropout = nn.Dropout(0.5)
        self.head = _made(nn.Linear, dim, classes)
        _fill(self, 6, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch_embed(x).flatten(2).transpose(1, 2)
        place = torch.arange(patches.shape[1], dtype=x.dtype, device=x.device)[:, None]
        patches = patches + torch.sin(place * torch.arange(1, patches.shape[2] + 1, dtype=x.dtype, device=x.device))
        tokens = self.blocks(torch.cat([self.prefix.expand(len(x), -1, -1), patches], 1))
        return self.head(self.dropout(tokens[:, 0]))


def torchvision_vit(heads: int = 2) -> VisionTransformer:
    """Return torchvision's class at 8x8, with weights from a generator of its own (the global RNG comes back)."""
    with torch.random.fork_rng(devices=[]):
        net = VisionTransformer(
            image_size=8, patch_size=2, num_layers=3, num_heads=heads, hidden_dim=12, mlp_dim=16, num_classes=CLASSES
        )
    return _fill(net, 7, 2.0)
