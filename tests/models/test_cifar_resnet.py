import pytest
import torch

from robustsigma.models import Architecture, CifarResNet, CifarResNet18


@pytest.mark.parametrize(("depth", "thousands"), [(20, 270), (32, 464), (44, 659), (56, 853), (110, 1728)])
def test_as_many_weights_as_in_the_paper(depth, thousands):
    with torch.random.fork_rng(devices=[]):
        net = CifarResNet(3, 10, depth=depth)
    assert round(sum(p.numel() for p in net.parameters()) / 1e3) == thousands  # .27, .46, .66, .85 and 1.7 million
    layers = [m for m in net.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    assert len(layers) == depth


def test_by_name_with_one_channel():
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        net = Architecture("robustsigma.models.CifarResNet", {"depth": 14}).build(1, 3).eval()
    net.architecture.check_origin()
    images = torch.rand(2, 1, 20, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert net(images).shape == (2, 3)


def test_a_shortcut_halves_the_image_and_pads_channels():
    with torch.random.fork_rng(devices=[]):
        net = CifarResNet(3, 10, depth=8).eval()
    block = net.layer2[0]
    torch.nn.init.zeros_(block.conv2.weight)  # only the shortcut is left
    x = torch.rand(1, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = block(x)
    torch.testing.assert_close(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any()
    assert not y[:, 24:].any()


@pytest.mark.parametrize(
    ("change", "named"),
    [({"depth": 21}, "depth"), ({"depth": 2}, "depth"), ({"classes": 1}, "classes"), ({"channels": 0}, "channels")],
)
def test_bad_arguments(change, named):
    with pytest.raises(ValueError, match=f"^{named}: expected"):
        CifarResNet(**{"channels": 3, "classes": 10, **change})


def test_resnet18_is_that_of_the_papers():
    with torch.random.fork_rng(devices=[]):
        net = Architecture("robustsigma.models.CifarResNet18").build(3, 10).eval()
    net.architecture.check_origin()
    assert sum(p.numel() for p in net.parameters()) == 11_173_962
    sizes = []
    for layer in (net.net.layer1, net.net.layer4):
        layer.register_forward_hook(lambda _, __, made: sizes.append(tuple(made.shape[1:])))
    with torch.no_grad():
        assert net(torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))).shape == (1, 10)
    assert sizes == [(64, 32, 32), (512, 4, 4)]
    with pytest.raises(ValueError, match=r"^classes: expected"):
        CifarResNet18(classes=1)
