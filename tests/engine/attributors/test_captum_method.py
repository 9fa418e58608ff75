"""Captum's methods: the values of direct calls, for every class of its public list, and what is refused."""

from __future__ import annotations

import pickle
import sys

import cases
import jsonargparse
import pytest
import torch
from settings import references
from torch import nn
from torch.nn import functional as F
from vit import TinyViT, torchvision_vit

from robustsigma import Attributor, CaptumMethod, Classifier
from robustsigma.engine.attributors.captum_adapter import methods, refusal
from robustsigma.engine.global_rng import key_of, temporary_seed

captum = pytest.importorskip("captum.attr")

X, TARGET, SEEDS = cases.images(), torch.tensor([0, 1, 2, 0]), cases.seeds()
QUARTERS = (torch.arange(8) // 4)[:, None] * 2 + (torch.arange(8) // 4)[None]
REFERENCES = references((3, 8, 8))
# What each class needs beyond its defaults; one that is missing here runs with them.
ARGUMENTS = {
    "KernelShap": {"feature_mask": QUARTERS, "n_samples": 9},
    "Lime": {"feature_mask": QUARTERS, "n_samples": 30, "interpretable_model": "ridge"},
    "NoiseTunnel": {"attribution_method": "Saliency", "nt_samples": 3, "stdevs": 0.1},
    "Occlusion": {"sliding_window_shapes": (3, 3, 3), "strides": (3, 2, 2), "baselines": 0.5},
    "ShapleyValueSampling": {"feature_mask": QUARTERS, "n_samples": 2},
    "ShapleyValues": {"feature_mask": QUARTERS},
    **{f"{layer}{kind}Shap": {"baselines": REFERENCES} for layer in ("", "Layer") for kind in ("DeepLift", "Gradient")},
}  # fmt: skip


class Net(nn.Module):
    """Convolutions and rectifiers, each used once; captum's LRP knows no layer that flattens."""

    def __init__(self, *, inplace: bool = False, twice: bool = False) -> None:
        super().__init__()
        self.first, self.second = (cases._made(nn.Conv2d, *shape, padding=1) for shape in ((3, 4, 3), (4, 6, 3)))
        self.relu, self.pool = nn.ReLU(inplace), nn.MaxPool2d(2)
        self.other = self.relu if twice else nn.ReLU(inplace)
        self.head = cases._made(nn.Linear, 96, 3)
        cases._fill(self, 9, 2.0)

    def forward(self, x):
        x = self.pool(self.relu(self.first(x)))
        return self.head(self.other(self.second(x)).flatten(1))


def classifier(**kwargs) -> Classifier:
    return Classifier(Net(**kwargs).double(), mean=(0.4,), std=(0.6,))


def layer_for(name: str) -> str | None:
    return "second" if "Layer" in name or name in ("InternalInfluence", "GuidedGradCam") else None


def ridge() -> object:
    from captum._utils.models.linear_model import SkLearnLinearModel

    return SkLearnLinearModel("linear_model.Ridge", alpha=0.1)


def direct(name, clf, layer, x, target, **arguments):
    """Return what captum itself gives, as values of the image."""
    kind = getattr(captum, name)
    if name == "NoiseTunnel":
        arguments = {key: value for key, value in arguments.items() if key != "attribution_method"}
        method = kind(captum.Saliency(clf))
    elif "interpretable_model" in arguments:
        method = kind(clf, interpretable_model=arguments.pop("interpretable_model"))
    else:
        method = kind(clf) if layer is None else kind(clf, getattr(clf.net, layer))
    if "feature_mask" in arguments:
        arguments["feature_mask"] = arguments["feature_mask"][None, None]
    if name == "LayerGradCam":
        arguments["relu_attributions"] = True
    target = {} if name == "LayerActivation" else {"target": target}
    values = method.attribute(x.clone().requires_grad_(True), **target, **arguments).detach()
    if layer is not None and name != "GuidedGradCam":
        maps = F.interpolate(values.sum(1, keepdim=True), (8, 8), mode="bilinear", align_corners=False)
        return maps.expand(-1, 3, -1, -1) / 3
    return values.expand(-1, 3, -1, -1)


@pytest.mark.filterwarnings("ignore:::captum")
@pytest.mark.parametrize("name", methods())
def test_the_values_of_every_method_are_captums(name):
    x, clf, layer = X.double(), classifier(), layer_for(name)
    given = {key: ridge() if value == "ridge" else value for key, value in ARGUMENTS.get(name, {}).items()}
    given = {
        key: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for key, v in given.items()
    }
    method = CaptumMethod(name, layer, given)
    result = method(clf, x, TARGET, seed=SEEDS)
    with clf.frozen():
        if method._call.draws:
            expected = []
            for i in range(4):
                with temporary_seed(key_of(SEEDS[i : i + 1], "captum")):
                    expected.append(direct(name, clf, layer, x[i : i + 1], TARGET[i : i + 1], **given))
            expected = torch.cat(expected)
        else:
            expected = direct(name, clf, layer, x, TARGET, **given)
    assert expected.abs().max() > 1e-6
    # Captum keeps sums over perturbed images in single precision.
    close = {"rtol": 1e-7, "atol": 1e-9} if expected.dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(result.values, expected.double(), **close)
    # A map does not depend on the batch.
    alone = method(clf, x[2:3], TARGET[2:3], seed=SEEDS[2:3])
    torch.testing.assert_close(alone.values[0], result.values[2], **close)
    assert result.forwards[2] == alone.forwards[0] > 1
    assert result.backwards[2] == alone.backwards[0]


@pytest.mark.parametrize("name", methods())
def test_networks_come_back_as_they_were(name):
    clf = classifier(inplace=True)
    arguments = {key: value for key, value in ARGUMENTS.get(name, {}).items() if key != "interpretable_model"}
    held = cases.state_of(clf), [sorted(vars(module)) for module in clf.modules()]
    CaptumMethod(name, layer_for(name), arguments)(clf, X, TARGET)
    assert (cases.state_of(clf), [sorted(vars(module)) for module in clf.modules()]) == held
    assert clf.net.relu.inplace


def test_every_public_name_is_a_method_or_refused_with_a_reason():
    taken = set(methods())
    assert {"IntegratedGradients", "Occlusion", "LayerGradCam", "GradientShap", "Lime", "LRP", "NoiseTunnel"} < taken
    for name in set(captum.__all__) - taken:
        assert refusal(name)
        with pytest.raises(ValueError, match=r"^name: expected one of captum's .*, got '\w+': it "):
            CaptumMethod(name)
    kinds = [getattr(captum, name) for name in captum.__all__]
    concrete = {kind.__name__ for kind in kinds if isinstance(kind, type) and hasattr(kind, "attribute")}
    others = [name for name in concrete - taken if not name.startswith(("Neuron", "LLM", "RemoteLLM"))]
    assert sorted(others) == ["DataLoaderAttribution", "FeaturePermutation", "LayerFeaturePermutation", "LimeBase"]


def test_methods_in_a_noise_tunnel():
    clf = classifier()
    for inner, layer in (("IntegratedGradients", None), ("LayerGradCam", "second"), ("InputXGradient", None)):
        more = {"n_steps": 4} if inner == "IntegratedGradients" else {}
        found = CaptumMethod("NoiseTunnel", layer, attribution_method=inner, nt_samples=3, stdevs=1e-9, **more)
        single = CaptumMethod(inner, layer, **more)(clf, X.double(), TARGET).values
        torch.testing.assert_close(found(clf, X.double(), TARGET).values, single, rtol=1e-4, atol=1e-7)
        assert found.stochastic
    with pytest.raises(ValueError, match="attribution_method: expected a method that wraps no other"):
        CaptumMethod("NoiseTunnel", attribution_method="NoiseTunnel")
    with pytest.raises(
        ValueError, match="attribution_method: expected the name of the method that NoiseTunnel repeats"
    ):
        CaptumMethod("NoiseTunnel")


def _tokens_of(net, block, x, target):
    """Return Grad-CAM of a block's patch tokens by its formula: gradients averaged over places, times activations."""
    kept = []
    handle = block.register_forward_hook(lambda module, args, output: kept.append(output))
    try:
        score = net(x.clone().requires_grad_(True)).gather(1, target[:, None]).sum()
    finally:
        handle.remove()
    (gradient,) = torch.autograd.grad(score, kept[0])
    tokens, gradient = (each[:, -16:].transpose(1, 2) for each in (kept[0], gradient))
    maps = (gradient.mean(2, keepdim=True) * tokens).sum(1).relu().unflatten(1, (4, 4))
    return F.interpolate(maps[:, None], (8, 8), mode="bilinear", align_corners=False)[:, 0]


@pytest.mark.parametrize(
    ("net", "layer"),
    [
        (TinyViT(registers=2), "blocks.0"),
        (torchvision_vit(), "encoder.layers.encoder_layer_1"),
    ],
)
def test_tokens_of_a_vision_transformer_are_a_grid(net, layer):
    clf = Classifier(net.double().eval())
    found = CaptumMethod("LayerGradCam", layer)(clf, X.double(), TARGET).heatmap()
    with clf.frozen():
        expected = _tokens_of(clf.net, clf.net.get_submodule(layer), X.double(), TARGET)
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected.detach(), rtol=1e-6, atol=1e-9)
    for name in ("LayerConductance", "LayerIntegratedGradients", "LayerFeatureAblation", "InternalInfluence"):
        more = {} if "Ablation" in name else {"n_steps": 20}
        assert CaptumMethod(name, layer, **more)(clf, X.double(), TARGET).values.any(), name


def test_tokens_that_come_in_a_tuple_or_with_their_channels_last():
    class Swapped(nn.Module):
        """A convolution whose output is (B, h, w, D), in a tuple."""

        def __init__(self):
            super().__init__()
            self.conv = cases._fill(cases._made(nn.Conv2d, 3, 6, 3, padding=1, stride=2), 4)

        def forward(self, x):
            return self.conv(x).permute(0, 2, 3, 1), "extra"

    class Whole(nn.Module):
        def __init__(self, conv):
            super().__init__()
            self.part = conv
            self.head = cases._fill(cases._made(nn.Linear, 6, 3), 5)

        def forward(self, x):
            found = self.part(x)
            grid = found[0].permute(0, 3, 1, 2) if isinstance(found, tuple) else found
            return self.head(grid.relu().mean((2, 3)))

    swapped = Swapped()
    for name in ("LayerGradCam", "LayerActivation", "LayerFeatureAblation"):
        last = CaptumMethod(name, "part")(Classifier(Whole(swapped)), X, TARGET).values
        first = CaptumMethod(name, "part")(Classifier(Whole(swapped.conv)), X, TARGET).values
        torch.testing.assert_close(last, first)


def test_compiled_networks_and_layers_of_wrapped_ones_are_seen():
    plain = classifier()
    expected = CaptumMethod("GuidedGradCam", "second")(plain, X, TARGET).values
    wrapped = Classifier(torch.compile(plain.net), mean=(0.4,), std=(0.6,))
    held = wrapped.net
    with torch.compiler.set_stance("force_eager"):
        found = CaptumMethod("GuidedGradCam", "second")(wrapped, X, TARGET).values
    torch.testing.assert_close(found, expected)
    assert wrapped.net is held


def test_baselines_by_name_tensor_and_function():
    clf = classifier()
    black, named = (CaptumMethod("IntegratedGradients", n_steps=4, **more)(clf, X, TARGET).values
                    for more in ({}, {"baselines": "black"}))  # fmt: skip
    assert torch.equal(black, named)
    half = [torch.full((3, 8, 8), 0.5), torch.full((1, 3, 8, 8), 0.5), 0.5, lambda images: torch.full_like(images, 0.5)]
    values = [CaptumMethod("DeepLift", baselines=each)(clf, X, TARGET).values for each in half]
    assert all(torch.equal(each, values[0]) for each in values)
    assert not torch.allclose(values[0], CaptumMethod("DeepLift")(clf, X, TARGET).values)
    blurred = CaptumMethod("IntegratedGradients", baselines="blur", n_steps=4)(clf, X, TARGET).values
    assert not torch.allclose(blurred, black)
    own = CaptumMethod("DeepLiftShap")
    assert own.needs_references
    given = own.with_references(REFERENCES)
    assert not given.needs_references
    assert not torch.allclose(own(clf, X, TARGET).values, given(clf, X, TARGET).values)
    for bad, message in ((REFERENCES[:, :, :4], "references"), ("white", "references"), (2.0, "references")):
        with pytest.raises(ValueError, match=message):
            CaptumMethod("GradientShap", baselines=bad)(clf, X)
    with pytest.raises(ValueError, match="baselines: expected one baseline"):
        CaptumMethod("IntegratedGradients", baselines=["black", "white"])


def test_masks_of_features_by_function():
    clf = classifier()
    by_function = CaptumMethod("FeatureAblation", feature_mask=lambda images: QUARTERS)(clf, X, TARGET)
    given = CaptumMethod("FeatureAblation", feature_mask=QUARTERS)(clf, X, TARGET)
    assert torch.equal(by_function.values, given.values)
    assert given.forwards.tolist() == [6] * 4  # that of the logits, one of the image, and one for each quarter
    assert given.values[0].unique().numel() == 4


BAD = {
    "a name": (("IntegratedGradient",), {}, r"^name: .* got 'IntegratedGradient'; did you mean 'IntegratedGradients'"),
    "no text": ((3,), {}, "^name: expected one of captum's"),
    "no layer": (("LayerGradCam",), {}, r"^layer: expected the name of a module of the network for LayerGradCam"),
    "a module": (("LayerGradCam", nn.ReLU()), {}, "^layer: expected the name of a module"),
    "needless layer": (("Saliency", "first"), {}, "^layer: expected None, as Saliency has no layer, got 'first'"),
    "an argument": (("IntegratedGradients",), {"n_step": 3}, "^arguments of Integr.*; did you mean 'n_steps'"),
    "a lacking one": (("Occlusion",), {}, "^arguments of Occlusion: expected all of sliding_window_shapes"),
    "every order": (("ShapleyValues",), {}, "^arguments of ShapleyValues: expected all of feature_mask"),
    "twice": (("Saliency", None, {"abs": True}), {"abs": False}, "^arguments: expected each to be given once, got abs"),
    "no mapping": (("Saliency", None, [1]), {}, "^arguments: expected a mapping"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case):
    given, keywords, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        CaptumMethod(*given, **keywords)


@pytest.mark.third_party_rng  # torch's own layers are drawn
def test_layers_and_networks_that_do_not_fit():
    clf = classifier()
    with pytest.raises(
        ValueError, match=r"^layer: expected the name of a module of Net, got 'secnd'; did you mean 'second'"
    ):
        CaptumMethod("LayerGradCam", "secnd")(clf, X)
    with pytest.raises(ValueError, match=r"^layer: .*, got 'x'; its children are first, second"):
        CaptumMethod("LayerGradCam", "x")(clf, X)
    with pytest.raises(ValueError, match=r"^layer: expected a module whose output is .* got shape \(1, 3\)"):
        CaptumMethod("LayerGradCam", "head")(clf, X)
    with pytest.raises(ValueError, match=r"^arguments of Occlusion: expected values that captum takes, got Assert"):
        CaptumMethod("Occlusion", sliding_window_shapes=(3, 3))(clf, X)
    with pytest.raises(
        ValueError, match=r"^net: expected a network that captum's LRP can explain, got TypeError: .*Tanh|Flatten"
    ):
        CaptumMethod("LRP")(cases.classifier(), X)
    with pytest.raises(
        ValueError, match=r"^net: expected a network that captum's DeepLift can explain, got .* more than once"
    ):
        CaptumMethod("DeepLift")(Classifier(Net(twice=True)), X)
    unused = Net()
    unused.spare = nn.Conv2d(1, 1, 1)
    with pytest.raises(ValueError, match="layer: expected a module that takes part in the forward pass"):
        CaptumMethod("LayerGradCam", "spare")(Classifier(unused), X)


def test_without_captum_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ImportError, match=r"CaptumMethod needs captum, .*: pip install 'robustsigma\[captum\]'"):
        CaptumMethod("Saliency")


def test_errors_of_the_network_stay_its_own():
    clf = Classifier(cases.Raising(Net(), after=2))
    clf.checked = True
    with pytest.raises(RuntimeError, match="midway"):
        CaptumMethod("Occlusion", sliding_window_shapes=(3, 2, 2))(clf, X)


def test_passes_are_bounded_and_out_of_memory_is_met():
    counter = cases.PassCounter(Net())
    for name, more in (("IntegratedGradients", {}), ("FeatureAblation", {}), ("DeepLift", {}), ("KernelShap", {}),
                       ("NoiseTunnel", {"attribution_method": "Saliency", "nt_samples": 9})):  # fmt: skip
        counter.reset()
        CaptumMethod(name, **more)(Classifier(counter, chunk_size=3), X, TARGET)
        assert counter.largest <= 3, name
    small, expected = cases.OutOfMemory(Net(), largest=2), CaptumMethod(n_steps=6)(Classifier(Net()), X, TARGET).values
    assert torch.allclose(CaptumMethod(n_steps=6)(Classifier(small), X, TARGET).values, expected)
    assert small.failures

    class Backward(Net):
        """Runs out of memory in the backward pass."""

        def forward(self, x):
            logits = super().forward(x)
            if logits.requires_grad and len(x) > 2:
                logits.register_hook(self.fail)
            return logits

        def fail(self, gradient):
            failures.append(len(gradient))
            raise torch.OutOfMemoryError("simulated")

    failures = []
    assert torch.allclose(CaptumMethod(n_steps=6)(Classifier(Backward()), X, TARGET).values, expected)
    assert failures


def test_settings_compare_copy_and_come_from_yaml():
    one, other = (CaptumMethod("GradientShap", baselines=each) for each in (REFERENCES, REFERENCES.clone()))
    assert one == other
    assert one != CaptumMethod("GradientShap", baselines=REFERENCES + 0.01)
    assert pickle.loads(pickle.dumps(one)) == one
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--method", type=Attributor)
    given = {"name": "Occlusion", "arguments": {"sliding_window_shapes": [3, 4, 4]}}
    made = parser.instantiate(
        parser.parse_object({"method": {"class_path": "CaptumMethod", "init_args": given}})
    ).method
    values = made(classifier(), X, TARGET).values
    assert torch.equal(
        values, CaptumMethod("Occlusion", sliding_window_shapes=(3, 4, 4))(classifier(), X, TARGET).values
    )
    assert made(classifier().float(), X, [0] * 4, seed=3).values.dtype == torch.float32
