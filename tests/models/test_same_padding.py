import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from robustsigma.models import Architecture, ModelCard, load_model, save_model, with_same_padding
from robustsigma.models.same_padding import same_amounts


@pytest.mark.parametrize(
    ("side", "kernel", "stride", "dilation", "expected"),
    [
        (224, 3, 2, 1, (0, 1)),
        (225, 3, 2, 1, (1, 1)),
        (224, 7, 2, 1, (2, 3)),
        (5, 2, 1, 1, (0, 1)),
        (7, 3, 1, 1, (1, 1)),
        (6, 3, 3, 1, (0, 0)),
        (8, 3, 2, 2, (1, 2)),
        (4, 1, 2, 1, (0, 0)),
    ],
)
def test_amounts(side, kernel, stride, dilation, expected):
    assert same_amounts(side, kernel, stride, dilation) == expected
    padded, reach = side + sum(expected), (kernel - 1) * dilation + 1
    assert (padded - reach) // stride + 1 == -(-side // stride)


def test_layers_pad_as_tensorflow_does():
    generator = torch.Generator().manual_seed(0)
    conv = with_same_padding(nn.Sequential(nn.utils.skip_init(nn.Conv2d, 2, 3, 3, stride=2, padding=1)))[0]
    weight = torch.randn(3, 2, 3, 3, generator=generator)
    conv.load_state_dict({"weight": weight, "bias": torch.zeros(3)})
    for height, width in ((8, 9), (5, 6)):
        x = torch.randn(1, 2, height, width, generator=generator)
        padded = F.pad(x, (*same_amounts(width, 3, 2, 1), *same_amounts(height, 3, 2, 1)))
        torch.testing.assert_close(conv(x), F.conv2d(padded, weight, stride=2), rtol=1e-5, atol=1e-5)
    pool = with_same_padding(nn.Sequential(nn.MaxPool2d(3, 2, 1)))[0]
    x = -torch.arange(1.0, 17).reshape(1, 1, 4, 4)
    assert pool(x).flatten().tolist() == [-1, -3, -9, -11]  # windows start at 0 and 2, and nothing outside is largest


def test_only_layers_that_differ_are_changed():
    net = nn.ModuleDict(
        {
            "stride": nn.utils.skip_init(nn.Conv2d, 2, 2, 3, stride=2, padding=1, bias=False),
            "depthwise": nn.utils.skip_init(nn.Conv2d, 2, 2, 5, stride=2, padding=2, groups=2),
            "even": nn.utils.skip_init(nn.Conv2d, 2, 2, 4, padding=2),
            "odd": nn.utils.skip_init(nn.Conv2d, 2, 2, 3, padding=1),
            "valid": nn.utils.skip_init(nn.Conv2d, 2, 2, 3, stride=2),
            "point": nn.utils.skip_init(nn.Conv2d, 2, 2, 1, stride=2),
            "text": nn.utils.skip_init(nn.Conv2d, 2, 2, 3, padding="same"),
        }
    )
    state = net.state_dict()
    changed = {name for name, layer in with_same_padding(with_same_padding(net)).items() if layer._forward_pre_hooks}
    assert all(len(layer._forward_pre_hooks) <= 1 for layer in net.values())
    assert changed == {"stride", "depthwise", "even"}
    assert net.state_dict().keys() == state.keys()
    assert all(value.data_ptr() == state[key].data_ptr() for key, value in net.state_dict().items())


def test_a_padded_network_is_saved_copied_and_differs(tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        net = Architecture("torchvision:mobilenet_v2", {"width_mult": 0.25}, padding="same").build(3, 4)
    plain = torchvision.models.mobilenet_v2
    with torch.random.fork_rng(devices=[]):
        other = plain(num_classes=4, width_mult=0.25)
    other.load_state_dict(net.state_dict())
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    path = save_model(tmp_path / "m.safetensors", net, ModelCard(net.architecture, tuple("abcd"), (3, 32, 32)))
    again, card = load_model(path)
    assert card.architecture.padding == "same"
    with torch.no_grad():
        expected = net.eval()(x)
        for same in (again.net, copy.deepcopy(net)):
            torch.testing.assert_close(same(x), expected, rtol=0, atol=0)
        features, same = other.eval().features(x), net.features(x)
        assert (features - same).abs().max() > 0.1 * same.abs().max()


def test_no_other_padding():
    with pytest.raises(ValueError, match=r"architecture\.padding: expected one of 'same', got 'valid'"):
        Architecture(padding="valid")
