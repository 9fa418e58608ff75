"""Full precision inside `frozen()`, whatever the user set, which comes back."""

from __future__ import annotations

import threading

import cases
import pytest
import torch
from torch import backends, nn

from robustsigma.engine.network_state import _CPU, _GPU, deterministic, full_precision, tf32

_OPERATORS = (*_GPU, *_CPU)


def legible(read):
    """Return a setting, or that it can't be read, as where a user mixed PyTorch's two ways to say it."""
    try:
        return read()
    except RuntimeError:
        return "mixed"


def state():
    return (
        [operator.fp32_precision for operator in _OPERATORS],
        legible(lambda: backends.cudnn.allow_tf32),
        legible(lambda: backends.cuda.matmul.allow_tf32),
        legible(torch.get_float32_matmul_precision),
    )


def exact():
    return all(operator.fp32_precision == "ieee" for operator in _OPERATORS)


def convolutions_exact():
    backends.cudnn.allow_tf32 = False


def products_high():
    torch.set_float32_matmul_precision("high")


def products_medium():
    torch.set_float32_matmul_precision("medium")


def products_tf32():
    backends.cuda.matmul.allow_tf32 = True


def newer_convolutions():
    backends.cudnn.conv.fp32_precision = "ieee"


def newer_products():
    backends.cuda.matmul.fp32_precision = "tf32"


def everything_tf32():
    backends.fp32_precision = "tf32"


def cudnn_tf32():
    backends.cudnn.fp32_precision = "tf32"


def cpus_bfloat16():
    backends.mkldnn.fp32_precision = "bf16"


USERS = [
    lambda: None,
    convolutions_exact,
    products_high,
    products_medium,
    products_tf32,
    newer_convolutions,
    newer_products,
    everything_tf32,
    cudnn_tf32,
    cpus_bfloat16,
]


@pytest.fixture
def settings_come_back():
    before = [operator.fp32_precision for operator in _OPERATORS]
    convolutions, products = backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    parents = [backends.fp32_precision, backends.cudnn.fp32_precision, backends.mkldnn.fp32_precision]
    yield
    backends.fp32_precision, backends.cudnn.fp32_precision, backends.mkldnn.fp32_precision = parents
    backends.cudnn.allow_tf32 = convolutions
    torch.set_float32_matmul_precision(products)
    for operator, precision in zip(_OPERATORS, before, strict=True):
        operator.fp32_precision = precision


@pytest.fixture(params=USERS, ids=lambda setting: setting.__name__)
def users(request, settings_come_back):
    request.param()
    return state()


def test_the_users_settings_come_back(users):
    with full_precision():
        assert exact()
        with full_precision(), tf32():
            assert [operator.fp32_precision for operator in _GPU] == ["tf32"] * len(_GPU)
        assert exact()
    assert state() == users
    with tf32():
        assert [operator.fp32_precision for operator in _GPU] == ["tf32"] * len(_GPU)
    assert state() == users
    with pytest.raises(RuntimeError, match="midway"), full_precision():
        raise RuntimeError("midway")
    assert state() == users


@pytest.mark.usefixtures("settings_come_back")
@pytest.mark.parametrize(("first", "second"), [("tf32", "ieee"), ("ieee", "tf32")])
def test_what_was_inherited_is_inherited_again(first, second):
    backends.fp32_precision = first
    with full_precision():
        pass
    backends.fp32_precision = second
    inherited = (backends.cuda.matmul, backends.mkldnn.matmul, backends.mkldnn.conv)
    assert [operator.fp32_precision for operator in inherited] == [second] * 3


def test_each_holds_to_its_own_end():
    before = state()
    with pytest.raises(RuntimeError, match="midway"), full_precision(), tf32():  # noqa: PT012
        with full_precision():
            assert exact()
        assert not exact()
        with tf32():
            pass
        assert backends.cudnn.conv.fp32_precision == "tf32"
        raise RuntimeError("midway")
    assert state() == before


def test_the_same_bits_come_and_go():
    before = backends.cudnn.deterministic, backends.cudnn.benchmark
    with deterministic():
        assert (backends.cudnn.deterministic, backends.cudnn.benchmark) == (True, False)
    assert (backends.cudnn.deterministic, backends.cudnn.benchmark) == before


def test_the_same_bits_of_attention_on_a_gpu(monkeypatch):
    kernels = backends.cuda.flash_sdp_enabled, backends.cuda.mem_efficient_sdp_enabled
    before = [enabled() for enabled in kernels]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with deterministic():
        assert not any(enabled() for enabled in kernels)
        assert backends.cuda.math_sdp_enabled()
    assert [enabled() for enabled in kernels] == before


@pytest.mark.usefixtures("settings_come_back")
@pytest.mark.parametrize("setting", [convolutions_exact, products_high, products_tf32])
def test_code_inside_may_read_either_way(setting):
    setting()
    with full_precision():
        assert (backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32) == (False, False)
        with tf32():
            assert (backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32) == (True, True)
        with backends.cudnn.flags(enabled=True, allow_tf32=False):
            pass


def test_the_last_of_several_threads_puts_them_back():
    before, entered, leave = state(), threading.Event(), threading.Event()

    def other():
        with full_precision():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with full_precision():
        thread.start()
        assert entered.wait(10)
    assert exact()
    leave.set()
    thread.join()
    assert state() == before


class Watched(nn.Module):
    """Notes how its passes may round."""

    def __init__(self):
        super().__init__()
        self.net, self.seen = cases.mlp(), []

    def forward(self, images):
        self.seen.append((images.requires_grad, backends.cudnn.conv.fp32_precision))
        return self.net(images)


@pytest.mark.parametrize(("dtype", "gradients"), [(None, "ieee"), ("tf32", "tf32"), (torch.bfloat16, "ieee")])
def test_only_gradient_passes_round_and_only_if_asked_to(dtype, gradients):
    net, before = Watched(), state()
    classifier, images = cases.classifier(net, gradient_dtype=dtype), cases.images()
    with classifier.frozen():
        classifier.logits(images)
        classifier.score_and_gradient(images, cases.labels())
        classifier.logits(images)
    assert [seen for _, seen in net.seen] == ["ieee", gradients, "ieee"]
    assert state() == before


def test_tf32_is_full_precision_on_a_cpu():
    images, target = cases.images(), cases.labels()
    found = []
    for dtype in (None, "tf32"):
        classifier = cases.classifier(gradient_dtype=dtype)
        with classifier.frozen():
            found.append(classifier.score_and_gradient(images, target))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


@pytest.mark.gpu
def test_gpus_do_not_round_unless_asked_to():
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU is older than TF32")
    net = nn.Sequential(nn.Conv2d(3, 64, 5), nn.Conv2d(64, 64, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images, target = cases.images(4, size=32), torch.zeros(4, dtype=torch.int64)

    def made(device, dtype=torch.float32, **options):
        classifier = cases.classifier(net.to(device, dtype), **options)
        with classifier.frozen():
            at = images.to(device, dtype)
            return classifier.logits(at).cpu().double(), classifier.score_and_gradient(at, target.to(device))[1].cpu()

    logits, gradient = made("cpu", torch.float64)
    for options, coarse in (({}, False), ({"gradient_dtype": "tf32"}, True)):
        found = made("cuda", **options)
        torch.testing.assert_close(found[0], logits, rtol=1e-5, atol=1e-5)
        off = (found[1].double() - gradient).norm() / gradient.norm()
        assert (1e-5 < off < 1e-2) if coarse else (off < 1e-5)
