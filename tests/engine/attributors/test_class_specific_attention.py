"""AttentionAttribution and LeGrad against attention written out, for torchvision's, timm's and Hugging Face's ViTs."""

import math

import cases
import pytest
import torch
from test_attention_rollout import Pooled, Wrong
from torch import nn
from torch.nn import functional as F
from vit import TinyViT, torchvision_vit

from robustsigma import AttentionAttribution, AttentionRollout, Classifier, LeGrad

X = cases.images(3, dtype=torch.float64)
LABELS = cases.labels(3)


def attend(tokens, q, k, v, heads):
    """Return softmax(Q K^T / sqrt(d)) V with heads side by side, and the weights."""
    q, k, v = (each.unflatten(2, (heads, -1)).transpose(1, 2) for each in (q, k, v))
    attention = (q @ k.transpose(2, 3) / math.sqrt(q.shape[3])).softmax(3)
    return (attention @ v).transpose(1, 2).flatten(2), attention


def torchvision_parts():
    """Return the network, the tokens before its layers, its layers and its head, as functions written out."""
    net = torchvision_vit().double().eval()

    def embed(x):
        patches = net.conv_proj(x).flatten(2).transpose(1, 2)
        return torch.cat([net.class_token.expand(len(x), -1, -1), patches], 1) + net.encoder.pos_embedding

    def layer(block):
        def run(tokens):
            normed, own = block.ln_1(tokens), block.self_attention
            q, k, v = F.linear(normed, own.in_proj_weight, own.in_proj_bias).chunk(3, 2)
            mixed, attention = attend(normed, q, k, v, own.num_heads)
            tokens = tokens + own.out_proj(mixed)
            return tokens + block.mlp(block.ln_2(tokens)), attention

        return run

    return net, embed, list(map(layer, net.encoder.layers)), lambda t: net.heads(net.encoder.ln(t)[:, 0]), 1


def timm_parts(**kwargs):
    timm = pytest.importorskip("timm")
    sizes = {"img_size": 8, "patch_size": 2, "embed_dim": 12, "depth": 3, "num_heads": 2, "num_classes": cases.CLASSES}
    with torch.random.fork_rng(devices=[]):
        net = timm.create_model("vit_tiny_patch16_224", **sizes, **kwargs)
    net = cases._fill(net, 7, 2.0).double().eval()

    def embed(x):
        patches = net.patch_embed(x)
        if net.cls_token is None:
            return patches + net.pos_embed
        return torch.cat([net.cls_token.expand(len(x), -1, -1), patches], 1) + net.pos_embed

    def layer(block):
        def run(tokens):
            normed, own = block.norm1(tokens), block.attn
            mixed, attention = attend(normed, *own.qkv(normed).chunk(3, 2), own.num_heads)
            tokens = tokens + own.proj(mixed)
            return tokens + block.mlp(block.norm2(tokens)), attention

        return run

    def head(tokens):
        return net.forward_head(net.norm(tokens))

    return net, embed, list(map(layer, net.blocks)), head, net.num_prefix_tokens


def hugging_face_parts():
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=12, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=2,
        num_labels=cases.CLASSES,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        net = transformers.ViTForImageClassification(config)
    net = cases._fill(net, 7, 2.0).double().eval()

    def layer(block):
        def run(tokens):
            normed, own = block.layernorm_before(tokens), block.attention
            mixed, attention = attend(normed, own.q_proj(normed), own.k_proj(normed), own.v_proj(normed), 2)
            tokens = tokens + own.o_proj(mixed)
            return tokens + block.mlp(block.layernorm_after(tokens)), attention

        return run

    layers = list(map(layer, net.vit.layers))
    return net, net.vit.embeddings, layers, lambda t: net.classifier(net.vit.layernorm(t)[:, 0]), 1


PARTS = {
    "torchvision": torchvision_parts,
    "timm": timm_parts,
    "timm pooled": lambda: timm_parts(class_token=False, global_pool="avg"),
    "Hugging Face": hugging_face_parts,
}
WITH_CLASS_TOKEN = [name for name in PARTS if name != "timm pooled"]


def on_image(row, prefix):
    grid = row[:, prefix:].reshape(len(row), 1, 4, 4)
    return F.interpolate(grid, (8, 8), mode="bilinear", align_corners=False)[:, 0]


def chosen(logits):
    return logits.gather(1, LABELS[:, None]).sum()


@pytest.mark.parametrize("name", WITH_CLASS_TOKEN)
def test_relevance_by_hand(name):
    net, embed, layers, head, prefix = PARTS[name]()
    tokens, weights = embed(X.clone().requires_grad_(True)), []
    for layer in layers:
        tokens, attention = layer(tokens)
        weights.append(attention)
    logits = head(tokens)
    output = net(X)
    torch.testing.assert_close(logits, getattr(output, "logits", output))
    total = torch.eye(tokens.shape[1], dtype=torch.float64).expand(3, -1, -1)
    for attention, gradient in zip(weights, torch.autograd.grad(chosen(logits), weights), strict=True):
        total = total + (gradient * attention).clamp(min=0).mean(1) @ total
    result = AttentionAttribution()(Classifier(net), X, LABELS)
    expected = on_image(total[:, 0], prefix).detach()
    torch.testing.assert_close(result.heatmap("sum"), expected, rtol=1e-8, atol=1e-12)
    assert result.heatmap().std() > 0


@pytest.mark.parametrize("name", PARTS)
def test_legrad_by_hand(name):
    net, embed, layers, head, prefix = PARTS[name]()
    tokens, maps = embed(X.clone().requires_grad_(True)), []
    for layer in layers:
        tokens, attention = layer(tokens)
        (gradient,) = torch.autograd.grad(chosen(head(tokens)), attention, retain_graph=True)
        maps.append(gradient.clamp(min=0).mean((1, 2)))
    result = LeGrad()(Classifier(net), X, LABELS)
    expected = on_image(torch.stack(maps).mean(0), prefix).detach()
    low, high = expected.amin((1, 2), keepdim=True), expected.amax((1, 2), keepdim=True)
    torch.testing.assert_close(result.heatmap("sum"), (expected - low) / (high - low), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", WITH_CLASS_TOKEN)
def test_rollout_by_hand(name):
    net, embed, layers, _, prefix = PARTS[name]()
    tokens, total = embed(X), None
    for layer in layers:
        tokens, attention = layer(tokens)
        mixed = 0.5 * attention.mean(1) + 0.5 * torch.eye(tokens.shape[1], dtype=torch.float64)
        total = mixed if total is None else mixed @ total
    result = AttentionRollout()(Classifier(net), X, LABELS)
    torch.testing.assert_close(result.heatmap("sum"), on_image(total[:, 0], prefix).detach(), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("method", [AttentionAttribution(), LeGrad()])
def test_many_weights_are_split(method, monkeypatch):
    clf = Classifier(TinyViT().double())
    whole = method(clf, X, LABELS).values
    monkeypatch.setattr("robustsigma.engine.attributors.attention._MOST_WEIGHTS", 2 * 17 * 17)
    torch.testing.assert_close(method(clf, X, LABELS).values, whole)


@pytest.mark.parametrize("method", [AttentionAttribution(), LeGrad()])
def test_a_device_out_of_memory_gets_half_the_images(method):
    whole = method(Classifier(TinyViT().double()), X, LABELS)
    short = cases.OutOfMemory(TinyViT().double(), largest=2)
    torch.testing.assert_close(method(Classifier(short, chunk_size=3), X, LABELS).values, whole.values)


def test_maps_follow_the_target():
    clf = Classifier(TinyViT().double())
    for method in (AttentionAttribution(), LeGrad()):
        assert not torch.allclose(method(clf, X, 0).values, method(clf, X, 1).values)


def test_a_head_that_pools_the_patches():
    with pytest.raises(ValueError, match=r"^net: expected a head that reads the class token alone, got"):
        AttentionAttribution()(Classifier(Pooled().double()), X)
    assert LeGrad()(Classifier(Pooled(depth=1).double()), X).values.std() > 0


class OneAfterTheOther(nn.Module):
    """Attention and feed-forward layers in lists, as some write them: no module holds one layer of the transformer."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Conv2d(3, 8, 2, 2), nn.Linear(8, 3)
        parts = [nn.ModuleList([Block.attn, Block.mlp]) for Block in TinyViT().blocks]
        self.layers, self.token = nn.ModuleList(parts), nn.Parameter(torch.ones(1, 8))

    def forward(self, x):
        tokens = torch.cat([self.token.expand(len(x), 1, -1), self.embed(x).flatten(2).transpose(1, 2)], 1)
        for attention, feed in self.layers:
            tokens = tokens + attention(tokens)
            tokens = tokens + feed(tokens)
        return self.head(tokens[:, 0])


def test_legrad_needs_modules_that_hold_a_layer():
    with torch.random.fork_rng(devices=[]):
        net = cases._fill(OneAfterTheOther(), 4).double()
    assert AttentionAttribution()(Classifier(net), X).values.std() > 0
    with pytest.raises(ValueError, match=r"^net: expected transformer layers, one attention block in each"):
        LeGrad()(Classifier(net), X)


@pytest.mark.parametrize("method", [AttentionAttribution(), LeGrad()])
@pytest.mark.parametrize(
    ("net", "match"),
    [
        (cases.mlp(), "net: expected self-attention blocks: .*MultiheadAttention.*qkv.*got a network without any"),
        (Wrong(lambda m, t: t), "take part in the forward pass, got none that ran"),
        (Wrong(lambda m, t: m(t, t + 1, t)[0]), "self-attention without masks"),
    ],
)
def test_networks_that_do_not_qualify(method, net, match):
    with pytest.raises(ValueError, match=match):
        method(Classifier(net), cases.images())
