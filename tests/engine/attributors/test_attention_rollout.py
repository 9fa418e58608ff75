"""Attention rollout against matrices multiplied by hand from weights computed by hand."""

from contextlib import contextmanager

import cases
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from vit import TinyViT, torchvision_vit

from robustsigma import AttentionRollout, Classifier
from robustsigma.engine.attributors.attention_hooks import watched


def softmax_of(tokens, weight, bias, heads):
    """Return softmax(Q K^T / sqrt(d)) with explicit loops over images and heads."""
    dim = tokens.shape[2]
    width = dim // heads
    q = tokens @ weight[:dim].T + bias[:dim]
    k = tokens @ weight[dim : 2 * dim].T + bias[dim : 2 * dim]
    found = tokens.new_empty(len(tokens), heads, tokens.shape[1], tokens.shape[1])
    for image in range(len(tokens)):
        for head in range(heads):
            at = slice(head * width, (head + 1) * width)
            scores = (q[image, :, at] @ k[image, :, at].T / width**0.5).exp()
            found[image, head] = scores / scores.sum(1, keepdim=True)
    return found


@contextmanager
def inputs_of(modules):
    """Collect the first argument of each module as it runs."""
    seen, handles = [], []
    for module in modules:
        handles.append(module.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach())))
    yield seen
    for handle in handles:
        handle.remove()


def by_hand(net, x, blocks):
    """Return the attention weights of each layer from the blocks' inputs; `blocks` are (module, weight, bias)."""
    with torch.no_grad(), inputs_of(block for block, _, _ in blocks) as seen:
        net(x)
        return [
            softmax_of(tokens, weight, bias, block.num_heads)
            for tokens, (block, weight, bias) in zip(seen, blocks, strict=True)
        ]


def _torchvision(heads=2):
    net = torchvision_vit(heads).double().eval()
    blocks = [block.self_attention for block in net.encoder.layers]
    return net, [(b, b.in_proj_weight, b.in_proj_bias) for b in blocks]


def _timm():
    net = TinyViT().double().eval()
    return net, [(block.attn, block.attn.qkv.weight, block.attn.qkv.bias) for block in net.blocks]


def rolled(layers, fuse=lambda a: a.mean(1), residual=0.5):
    """Return the class token's row over patches (B, n)."""
    product = torch.eye(layers[0].shape[-1], dtype=torch.float64).expand(len(layers[0]), -1, -1)
    for layer in layers:
        fused = fuse(layer)
        mixed = (1 - residual) * fused + residual * torch.eye(fused.shape[1], dtype=fused.dtype)
        product = (mixed / mixed.sum(2, keepdim=True)) @ product
    return product[:, 0, 1:]


@pytest.mark.parametrize("make", [_torchvision, lambda: _torchvision(3), _timm], ids=["even", "odd", "timm"])
def test_weights_are_softmax_of_queries_and_keys(make):
    net, blocks = make()
    x = cases.images(3, dtype=torch.float64)
    expected, found = by_hand(net, x, blocks), []
    for context in (torch.no_grad, torch.inference_mode, torch.enable_grad):  # fused kernels and plain ones
        found.clear()
        with context(), watched(net, lambda seen: found.append(seen.weights())):
            net(x)
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_weights_equal_those_that_torch_returns():
    net, blocks = _torchvision()
    found = []
    with torch.no_grad(), watched(net, lambda seen: found.append(seen.weights())), inputs_of([blocks[1][0]]) as seen:
        net(cases.images(2, dtype=torch.float64))
    _, theirs = blocks[1][0](seen[0], seen[0], seen[0], need_weights=True, average_attn_weights=False)
    torch.testing.assert_close(found[1], theirs.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("batch_first", [True, False])
def test_both_layouts_and_torchs_own_encoder(batch_first):
    """nn.TransformerEncoderLayer passes its block by in a fused kernel unless a hook is there."""
    with torch.random.fork_rng(devices=[]):
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first, dtype=torch.float64).eval()
    cases._fill(layer, 8)
    tokens = cases.images(2, channels=1, size=8, dtype=torch.float64)[:, 0]  # (2, 8, 8): not (N, N), so 2 != 8 tells
    found = []
    with torch.no_grad(), watched(layer, lambda seen: found.append(seen.weights())):
        layer(tokens if batch_first else tokens.transpose(0, 1))
    block = layer.self_attn
    expected = softmax_of(tokens, block.in_proj_weight, block.in_proj_bias, 2).detach()
    torch.testing.assert_close(found[0], expected, rtol=1e-12, atol=1e-14)


def test_norms_of_queries_and_keys_are_applied():
    net = TinyViT(qk_norm=True).double().eval()
    found, block = [], net.blocks[0].attn
    with torch.no_grad(), watched(net, lambda seen: found.append(seen.weights())), inputs_of([block]) as seen:
        net(cases.images(2, dtype=torch.float64))
    q, k, _ = block.qkv(seen[0]).reshape(2, 17, 3, 2, 4).permute(2, 0, 3, 1, 4)
    expected = (block.q_norm(q) @ block.k_norm(k).transpose(2, 3) / 2).softmax(3)
    torch.testing.assert_close(found[0], expected.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("make", [_torchvision, _timm], ids=["torchvision", "timm"])
@pytest.mark.parametrize(
    ("fusion", "fuse"),
    [("mean", lambda a: a.mean(1)), ("max", lambda a: a.max(1).values), ("min", lambda a: a.min(1).values)],
)
@pytest.mark.parametrize("residual", [0.0, 0.5, 0.9])
def test_rollout_by_hand(make, fusion, fuse, residual):
    net, blocks = make()
    x = cases.images(3, dtype=torch.float64)
    result = AttentionRollout(head_fusion=fusion, residual=residual)(Classifier(net), x)
    grid = rolled(by_hand(net, x, blocks), fuse, residual).reshape(3, 1, 4, 4)
    expected = F.interpolate(grid, (8, 8), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(result.heatmap("sum"), expected, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(result.heatmap(), expected, rtol=1e-10, atol=1e-14)
    assert torch.equal(result.values[:, 0], result.values[:, 2])


def test_residual_one_ignores_the_image():
    assert not AttentionRollout(residual=1.0)(Classifier(TinyViT()), cases.images()).values.any()


def test_discard_is_per_image_and_spares_the_class_token():
    attention = torch.rand(2, 2, 5, 5, generator=cases.generator(0)).softmax(3)
    mixed = AttentionRollout(discard=0.4, residual=0.0).mix(attention)
    fused = attention.mean(1)
    for image in range(2):
        limit = fused[image].flatten().sort().values[10]  # 0.4 of 25 weights lie below the eleventh
        kept = fused[image] >= limit
        kept[:, 0] = True
        expected = fused[image] * kept
        torch.testing.assert_close(mixed[image], expected / expected.sum(1, keepdim=True))
        assert not kept.all()


def test_registers_are_left_out_and_the_grid_follows_the_image():
    net = TinyViT(registers=2)
    x = cases.images(2, size=16)[:, :, :8]
    result = AttentionRollout()(Classifier(net), x)
    found = []
    with torch.no_grad(), watched(net, lambda seen: found.append(seen.weights().double())):
        net.eval()(x)
    grid = rolled(found)[:, 2:].reshape(2, 1, 4, 8)
    expected = F.interpolate(grid, (8, 16), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(result.heatmap("sum").double(), expected, rtol=1e-5, atol=1e-7)


def test_patches_that_see_only_themselves_give_the_class_token_alone_its_weight():
    """Equal keys attend evenly: every layer's matrix is known, so is the rollout of two layers."""
    net = TinyViT().double().eval()
    for block in net.blocks:
        block.attn.qkv.weight.data[8:16] = 0
        block.attn.qkv.bias.data[8:16] = 0
    heat = AttentionRollout()(Classifier(net), cases.images(2, dtype=torch.float64)).heatmap("sum")
    # Row 0 of (I/2 + J/34)^2 with J of ones, 17 tokens: off the diagonal 1/34 + 17/34^2.
    torch.testing.assert_close(heat, torch.full_like(heat, 1 / 34 + 17 / 34**2), rtol=1e-12, atol=0)


def test_target_does_not_matter():
    clf, x = Classifier(TinyViT()), cases.images()
    first, second = (AttentionRollout()(clf, x, target).values for target in (0, 2))
    assert torch.equal(first, second)
    assert first.min() >= 0


def test_chunks_bound_the_images_in_one_pass():
    counter = cases.PassCounter(TinyViT())
    x = cases.images(5)
    whole = AttentionRollout()(Classifier(counter), x)
    counter.reset()
    parts = AttentionRollout()(Classifier(counter, chunk_size=2), x)
    assert counter.largest == 2
    torch.testing.assert_close(parts.values, whole.values)


def test_a_device_out_of_memory_gets_half_the_images():
    x = cases.images(5)
    whole = AttentionRollout()(Classifier(TinyViT()), x)
    short = cases.OutOfMemory(TinyViT(), largest=2)
    torch.testing.assert_close(AttentionRollout()(Classifier(short, chunk_size=4), x).values, whole.values)
    assert short.failures > 0


def test_many_weights_are_split(monkeypatch):
    clf, x = Classifier(TinyViT()), cases.images(5)
    whole = AttentionRollout()(clf, x).values
    monkeypatch.setattr("robustsigma.engine.attributors.attention._MOST_WEIGHTS", 2 * 17 * 17)
    torch.testing.assert_close(AttentionRollout()(clf, x).values, whole)


def test_hooks_leave_outputs_alone_and_go_away_on_errors():
    net = torchvision_vit().eval()
    x, before = cases.images(), cases.state_of(net)
    with torch.no_grad():
        plain = net(x)
        with watched(net, lambda seen: None):
            assert torch.equal(net(x), plain)
    with pytest.raises(RuntimeError, match="midway"):
        AttentionRollout()(Classifier(cases.Raising(net, after=1)), x)

    def explode(*_):
        raise KeyError("visit")

    with pytest.raises(KeyError), watched(net, explode):
        net(x)
    assert cases.state_of(net) == before


class Wrong(nn.Module):
    """A block called in a way that its weights alone do not describe."""

    def __init__(self, call, block=None):
        super().__init__()
        self.call = call
        self.attention = block or cases._fill(cases._made(nn.MultiheadAttention, 8, 2, batch_first=True), 9)
        self.head = cases._fill(cases._made(nn.Linear, 8, 3), 10)

    def forward(self, x):
        tokens = x[:, 0]
        return self.head(self.call(self.attention, tokens)[:, 0])


def _mask(module, t):
    return module(t, t, t, attn_mask=torch.zeros(8, 8, dtype=torch.bool))[0]


def _padding(module, t):
    return module(t, t, t, torch.zeros(len(t), 8, dtype=torch.bool))[0]


def _timm_block():
    class Rotary(type(TinyViT().blocks[0].attn)):
        def forward(self, x, rope=None):
            return super().forward(x)

    return cases._fill(Rotary(8, 2), 11)


def _with_zero_token():
    block = cases._made(nn.MultiheadAttention, 8, 2, batch_first=True, add_zero_attn=True)
    return cases._fill(block, 12)


def _windows(module, t):
    return module(t.reshape(-1, 4, 8)).reshape(t.shape)


@pytest.mark.parametrize(
    ("net", "match"),
    [
        (cases.mlp(), "net: expected self-attention blocks: .*MultiheadAttention.*qkv.*got a network without any"),
        (Wrong(lambda m, t: t), "take part in the forward pass, got none that ran"),
        (Wrong(lambda m, t: m(t, t + 1, t)[0]), "self-attention without masks"),
        (Wrong(_mask), "self-attention without masks"),
        (Wrong(_padding), "self-attention without masks"),
        (Wrong(lambda m, t: m(t, t, t)[0]), "a class token and a grid of patches over 8x8, got 7 patches"),
        (Wrong(lambda m, t: m(t, rope=t), _timm_block()), "rotary"),
        (Wrong(_windows, _timm_block()), "attention over the 4 tokens of each of 4 images"),
        (
            Wrong(lambda m, t: m(t, t, t)[0], _with_zero_token()),
            "its own tokens only",
        ),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else type(value).__name__,
)
def test_networks_that_do_not_qualify(net, match):
    with pytest.raises(ValueError, match=match):
        AttentionRollout()(Classifier(net), cases.images())


def test_a_network_without_a_class_token_is_refused():
    net = TinyViT()
    net.num_prefix_tokens = 0
    with pytest.raises(ValueError, match=r"net.num_prefix_tokens: expected an integer of at least 1, got 0"):
        AttentionRollout()(Classifier(net), cases.images())


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"head_fusion": "sum"}, "head_fusion"),
        ({"residual": -0.1}, "residual"),
        ({"residual": 1.1}, "residual"),
        ({"discard": 1}, "discard"),
        ({"discard": float("nan")}, "discard"),
    ],
)
def test_bad_settings(arguments, name):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        AttentionRollout(**arguments)


class Biased(type(TinyViT().blocks[0].attn)):
    """Adds a bias for each pair of positions, as relative position biases do."""

    def forward(self, x):
        count, tokens, width = x.shape
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        bias = torch.eye(tokens, dtype=x.dtype)
        attended = (q @ k.transpose(2, 3) * self.scale + bias).softmax(3) @ v
        return self.proj(attended.transpose(1, 2).reshape(count, tokens, width))


class Pooled(TinyViT):
    """Its head reads all tokens."""

    def forward(self, x):
        tokens = []
        with self.blocks[-1].register_forward_hook(lambda module, args, output: tokens.append(output)):
            super().forward(x)
        return self.head(tokens[0].mean(1))


def test_attention_with_a_bias_of_its_own_is_refused():
    net = TinyViT()
    net.blocks[1].attn.__class__ = Biased
    with pytest.raises(ValueError, match=r"net: expected .*compute softmax\(Q K\^T\) V, got .*bias"):
        AttentionRollout()(Classifier(net), cases.images())


def test_a_head_that_pools_the_patches_is_refused():
    with pytest.raises(ValueError, match="net: expected a class token that reads the image through attention"):
        AttentionRollout()(Classifier(Pooled()), cases.images())
