"""Self-attention for less: what torch.nn.MultiheadAttention returns, or its own where it must."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision import models

from robustsigma import Classifier
from robustsigma.engine import fast_net, folding
from robustsigma.engine.folding import Folding

WIDTH, TOKENS, BATCH = 12, 7, 3
MASK = torch.zeros(TOKENS, TOKENS, dtype=torch.bool).triu(1)
PADDING = torch.arange(TOKENS).expand(BATCH, -1) == TOKENS - 1


@pytest.fixture
def cheap(monkeypatch):
    """Return a list that gets True for each attention that was had for less, and False where it was not."""
    seen: list[bool] = []
    original = folding.self_attention

    def counted(*args, **kwargs):
        found = original(*args, **kwargs)
        seen.append(found is not None)
        return found

    monkeypatch.setattr(folding, "self_attention", counted)
    with torch.random.fork_rng(devices=[]):  # making a layer draws
        torch.default_generator.manual_seed(0)
        yield seen


def attention(**settings) -> nn.MultiheadAttention:
    made = nn.MultiheadAttention(WIDTH, 3, **{"batch_first": True, "dropout": 0.5, **settings}).double().eval()
    for name, parameter in made.named_parameters():
        if "bias" in name:
            nn.init.normal_(parameter)
    return made.requires_grad_(False)


def tokens(*, batch_first: bool = True) -> torch.Tensor:
    shape = (BATCH, TOKENS, WIDTH) if batch_first else (TOKENS, BATCH, WIDTH)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def compare(call, given) -> None:
    """Check results and gradients of a call with and without the cheaper arithmetic."""
    found = []
    for mode in (None, Folding({}, {}, torch.contiguous_format)):
        at = given.clone().requires_grad_(True)
        with mode or torch.enable_grad():
            output, weights = call(at)
        found.append((output, weights, torch.autograd.grad(output.square().sum(), at)[0]))
    for plain, ours in zip(*found, strict=True):
        assert (plain is None) == (ours is None)
        if plain is not None:
            assert plain.shape == ours.shape
            torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_tokens_that_attend_to_themselves(batch_first, bias, cheap):
    block = attention(batch_first=batch_first, bias=bias)
    compare(lambda at: block(at, at, at, need_weights=False), tokens(batch_first=batch_first))
    assert cheap == [True]


def test_tokens_of_another_order_in_memory(cheap):
    block = attention()
    compare(lambda at: block(*[at.transpose(0, 1).contiguous().transpose(0, 1)] * 3, need_weights=False), tokens())
    compare(lambda at: block(*[torch.cat([at, at], 2)[..., ::2]] * 3, need_weights=False), tokens())
    assert cheap == [True, False]


OTHERS = {
    "weights": ({}, lambda block, at: block(at, at, at)),
    "mask": ({}, lambda block, at: block(at, at, at, attn_mask=MASK, need_weights=False)),
    "causal": ({}, lambda block, at: block(at, at, at, attn_mask=MASK, is_causal=True, need_weights=False)),
    "padding": ({}, lambda block, at: block(at, at, at, key_padding_mask=PADDING, need_weights=False)),
    "other keys": ({}, lambda block, at: block(at, at + 1, at + 1, need_weights=False)),
    "other values": ({}, lambda block, at: block(at, at, at + 1, need_weights=False)),
    "no batch": ({}, lambda block, at: block(at[0], at[0], at[0], need_weights=False)),
    "added keys": ({"add_bias_kv": True}, lambda block, at: block(at, at, at, need_weights=False)),
    "a zero key": ({"add_zero_attn": True}, lambda block, at: block(at, at, at, need_weights=False)),
    "apart": ({"kdim": WIDTH // 2, "vdim": WIDTH // 2}, lambda block, at: block(at, *[at[..., ::2]] * 2)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_asked_otherwise_is_left_to_torch(name, cheap):
    settings, call = OTHERS[name]
    block = attention(**settings)
    compare(lambda at: call(block, at), tokens())
    assert cheap == [False]


def test_dropout_is_left_to_torch(cheap):
    block, given = attention().train(), tokens()
    with Folding({}, {}, torch.contiguous_format):
        output, _ = block(given, given, given, need_weights=False)
    assert cheap == [False]
    assert not torch.equal(output, block.eval()(given, given, given, need_weights=False)[0])


class Tokens(nn.Module):
    """Rows of images as tokens, through an attention that a test's function calls."""

    def __init__(self, body):
        super().__init__()
        self.embed, self.attention, self.head = nn.Linear(3 * 8, WIDTH), attention(), nn.Linear(WIDTH, 4)
        self.body = body

    def forward(self, images):
        return self.head(self.body(self, self.embed(images.transpose(1, 2).flatten(2))).mean(1))


def usual(net, given):
    return given + net.attention(given, given, given, need_weights=False)[0]


def of_a_view(net, given):
    """Reads the result as one that lies in memory as PyTorch lays it."""
    turned = given.transpose(0, 1)
    net.attention.batch_first = False
    made = net.attention(turned, turned, turned, need_weights=False)[0]
    return made.view(-1, WIDTH).view(made.shape).transpose(0, 1)


def recomputed(net, given):
    return checkpoint(usual, net, given, use_reentrant=False)


@pytest.mark.parametrize(("body", "wanted"), [(usual, True), (of_a_view, False), (recomputed, False)])
def test_in_a_network(body, wanted, cheap, monkeypatch):
    monkeypatch.setattr(fast_net, "WORTH_IT", 0)
    net = Tokens(body).double().eval()
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    labels = torch.tensor([1, 3])
    at = images.clone().requires_grad_(True)
    logits = net(at)
    expected = logits.detach(), torch.autograd.grad(logits.gather(1, labels[:, None]).sum(), at)[0]
    classifier = Classifier(net)
    for _ in range(2):
        with classifier.frozen():
            for _ in range(2):
                cheap.clear()
                found = classifier.score_and_gradient(images, labels)
                torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
            assert cheap == ([True] if wanted else [])


def test_a_vision_transformer_has_the_same_bits_in_every_pass(cheap, monkeypatch):
    monkeypatch.setattr(fast_net, "WORTH_IT", 0)
    net = models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=4).eval()
    nn.init.normal_(net.heads.head.weight)
    images, labels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(3)), torch.tensor([1, 3])
    classifier = Classifier(net)
    with classifier.frozen():
        first, second = (classifier.score_and_gradient(images, labels) for _ in range(2))
    assert cheap == [True] * 4
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
