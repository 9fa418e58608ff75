"""`hf:` networks: image classifiers of transformers from folders of `save_pretrained`, and what is refused."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import robustsigma
from robustsigma import FGSM, AttentionRollout, Classifier, Identity, IntegratedGradients
from robustsigma.cli import main
from robustsigma.data.resize_crop import ResizeCrop
from robustsigma.engine.metrics.sanity_checks import shuffle_parameters
from robustsigma.models import Architecture, ModelCard, Pretrained, load_model, model, save_model

transformers = pytest.importorskip("transformers")

TOKENS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "patch_size": 8}
NAMES = {"id2label": {0: "ant", 1: "bee", 2: "cat"}, "label2id": {"ant": 0, "bee": 1, "cat": 2}}
SQUARE, CROPPED = {"height": 32, "width": 32}, {"size": {"height": 36, "width": 36}, "do_center_crop": True}
# The network's kind, values of its config, its image processor's kind, and settings of that.
KINDS = {
    "vit": ("ViT", {**TOKENS, "image_size": 32}, "ViT", {"size": SQUARE}),
    "resnet": ("ResNet", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}, "ConvNext",
               {"size": {"shortest_edge": 32}, "crop_pct": 0.875}),
    "convnext": ("ConvNext", {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}, "ConvNext",
                 {"size": {"shortest_edge": 384}}),
    "swin": ("Swin", {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2],
                      "window_size": 4}, "ViT", {"size": SQUARE, "resample": 3, "image_mean": [0.5, 0.4, 0.3]}),
    "mobilenet": ("MobileNetV2", {"image_size": 32, "depth_multiplier": 0.25}, "MobileNetV2",
                  {"size": {"shortest_edge": 36}, "crop_size": SQUARE}),
    "deit": ("DeiT", {**TOKENS, "image_size": 32}, "DeiT", {**CROPPED, "crop_size": SQUARE}),
    "beit": ("Beit", {**TOKENS, "image_size": 32}, "Beit", {**CROPPED, "crop_size": SQUARE}),
}  # fmt: skip


def uniform(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def own_random_numbers():
    with torch.random.fork_rng(devices=[]):  # transformers draws initial weights
        yield


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Write every kind of network with its image processor, and return its folder by kind."""
    root = tmp_path_factory.mktemp("hub")
    transformers.utils.logging.disable_progress_bar()
    for name, (kind, settings, processor, preprocessing) in KINDS.items():
        head = "ForImageClassificationWithTeacher" if kind == "DeiT" else "ForImageClassification"
        config = getattr(transformers, f"{kind}Config")(**settings, **NAMES)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            net = getattr(transformers, f"{kind}{head}")(config)
            for parameter in net.parameters():  # the small initial ones give almost the same logits for all images
                torch.nn.init.normal_(parameter, std=0.2)
        net.save_pretrained(root / name)
        getattr(transformers, f"{processor}ImageProcessor")(**preprocessing).save_pretrained(root / name)
    return {name: str(root / name) for name in KINDS}


@pytest.mark.parametrize("name", KINDS)
def test_logits_are_those_of_transformers(name, saved):
    classifier, card = model(f"hf:{saved[name]}")
    assert card.classes == ("ant", "bee", "cat")
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype(np.uint8)
    photo = Image.fromarray(pixels).resize((700, 500))
    processor = transformers.AutoImageProcessor.from_pretrained(saved[name])
    auto = transformers.AutoModelForImageClassification.from_pretrained(saved[name]).eval()
    with torch.no_grad():
        expected = auto(**processor(photo, return_tensors="pt")).logits
    x = torch.from_numpy(np.array(card.geometry.apply(photo))).permute(2, 0, 1)[None] / 255
    with classifier.frozen():
        torch.testing.assert_close(classifier.logits(x), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("name", KINDS)
def test_it_is_a_network_as_any_other(name, saved, tmp_path):
    classifier, card = Pretrained(f"hf:{saved[name]}").load()
    images, labels = uniform(2, 3, 64 if name == "convnext" else 32, 32), torch.tensor([0, 2])
    images = F.interpolate(images, (card.shape[1], card.shape[1])) if name == "beit" else images
    with classifier.frozen():
        logits = classifier.logits(images)
        assert classifier.score_and_gradient(images, labels)[1].flatten(1).norm(dim=1).min() > 0
    assert all(parameter.requires_grad for parameter in classifier.net.parameters())
    assert (FGSM(2 / 255)(classifier, images, labels, seed=0) - images).abs().max() <= 2 / 255 + 1e-6
    assert IntegratedGradients(steps=2)(classifier, images, labels, seed=0).values.isfinite().all()
    path = save_model(tmp_path / "m.safetensors", classifier.net, card)
    again, same = load_model(path)
    assert (same.classes, same.geometry) == (card.classes, card.geometry)
    with again.frozen():
        torch.testing.assert_close(again.logits(images), logits, rtol=1e-5, atol=1e-5)
    with shuffle_parameters(classifier, seed=0).frozen() as _:
        pass
    shuffled = shuffle_parameters(classifier, seed=0)
    with shuffled.frozen():
        assert not torch.allclose(shuffled.logits(images), logits)


def test_a_saved_file_needs_neither_folder_nor_hub(saved, tmp_path):
    folder = tmp_path / "moved"
    folder.symlink_to(saved["vit"])
    classifier, card = model(folder)
    path = save_model(tmp_path / "m.safetensors", classifier.net, card)
    folder.unlink()
    assert len(load_model(path)[1].classes) == 3
    card = ModelCard(Architecture(f"hf:{folder}"), card.classes, card.shape)
    with pytest.raises(ValueError, match=r"^architecture\.arguments: expected a config, so that .* needs no download"):
        load_model(save_model(path, classifier.net, card))


def test_training_starts_from_it_with_other_classes(saved):
    architecture = Architecture(f"hf:{saved['resnet']}", weights="published")
    net, same = architecture.build(3, 5), architecture.build(3, 3)
    assert net.config.num_labels == 5
    state, theirs = same.state_dict(), model(f"hf:{saved['resnet']}")[0].net.state_dict()
    assert all(torch.equal(state[key], theirs[key]) for key in theirs)
    assert [key for key, value in net.state_dict().items() if value.shape != theirs[key].shape] == [
        "classifier.1.weight",
        "classifier.1.bias",
    ]
    gray = Architecture(f"hf:{saved['resnet']}", {"hidden_act": "gelu"}).build(1, 2)
    assert gray(uniform(2, 1, 32, 32)).logits.shape == (2, 2)
    with pytest.raises(ValueError, match=r"^architecture\.arguments: .* of the config of hf:.*, got widht"):
        Architecture(f"hf:{saved['resnet']}", {"widht": 8}).build(3, 2)
    with pytest.raises(ValueError, match=r"^weights: expected those of an image classifier of 5 classes"):
        model(f"hf:{saved['resnet']}", classes=5)
    shape = (3, 32, 32)
    first, second = (architecture.fingerprint(shape, 3, trained=True) for _ in range(2))
    other = Architecture(f"hf:{saved['vit']}", weights="published").fingerprint(shape, 3, trained=True)
    assert first == second != other


@pytest.mark.parametrize(("name", "prefix"), [("vit", 1), ("deit", 2)])
def test_attention_rollout_of_any_attention_function(name, prefix, saved):
    classifier, _ = model(f"hf:{saved[name]}")
    images = uniform(2, 3, 32, 32)
    fast = AttentionRollout()(classifier, images, 0, seed=0).heatmap("sum")
    classifier.net.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = classifier.net((images - 0.5) / 0.5, output_attentions=True).attentions
    product = torch.eye(16 + prefix)
    for attention in attentions:
        product = (attention.mean(1) + torch.eye(16 + prefix)) / 2 @ product
    grid = product[:, 0, prefix:].reshape(2, 1, 4, 4)
    torch.testing.assert_close(fast, F.interpolate(grid, (32, 32), mode="bilinear")[:, 0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(AttentionRollout()(classifier, images, 0, seed=0).heatmap("sum"), fast)


@pytest.mark.parametrize("name", ["beit", "swin", "resnet"])
def test_attention_rollout_refuses_what_its_weights_do_not_describe(name, saved):
    classifier, card = model(f"hf:{saved[name]}")
    with pytest.raises(ValueError, match=r"^net: expected"):
        AttentionRollout()(classifier, uniform(1, *card.shape), 0, seed=0)


def test_preprocessing_is_taken_from_the_folder_or_asked_for(tmp_path, monkeypatch):
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=1000)
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"^mean and std: .* no preprocessor_config\.json lies beside the weights"):
        model(f"hf:{tmp_path}")
    given = {"mean": [0.5], "std": [0.5], "geometry": ResizeCrop(32)}
    assert model(f"hf:{tmp_path}", **given)[1].classes[:2] == ("0", "1")
    processor = transformers.ViTImageProcessor(size=SQUARE, do_normalize=False, do_rescale=False)
    processor.save_pretrained(tmp_path)
    _, card = model(tmp_path)
    np.testing.assert_allclose((card.mean, card.std), ((0.0,) * 3, (1 / 255,) * 3), rtol=1e-5)
    transformers.EfficientNetImageProcessor(  # normalizes twice
        size=SQUARE, rescale_offset=True, rescale_factor=1 / 127.5, image_mean=[0.0] * 3, image_std=[0.5] * 3
    ).save_pretrained(tmp_path)
    _, card = model(tmp_path)
    np.testing.assert_allclose((card.mean, card.std), ((0.5,) * 3, (0.125,) * 3), rtol=1e-5)
    with monkeypatch.context() as patch:
        patch.setattr("robustsigma.models.hugging_face._geometry", lambda *_: ResizeCrop(32, 40))
        with pytest.warns(UserWarning, match=r"EfficientNetImageProcessor of hf:.* does more than to resize"):
            model(tmp_path)
        assert model(tmp_path, **given)[1].geometry == ResizeCrop(32)
    transformers.ViTImageProcessor(size={"height": 32, "width": 40}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"^geometry: expected a ResizeCrop, as hf:.* does not make squares"):
        model(tmp_path)


def test_classes_of_imagenet_have_one_name_everywhere(tmp_path, monkeypatch):
    from robustsigma.models.published_weights import published

    names = {label: f"class {label}" for label in range(1000)} | {0: "tench, Tinca tinca", 999: "toilet tissue, paper"}
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], id2label=names)
    config.save_pretrained(tmp_path)
    assert published(f"hf:{tmp_path}").classes == published("torchvision:resnet18").classes


def test_a_network_without_a_classifier_is_refused(tmp_path):
    transformers.ViTModel(transformers.ViTConfig(**TOKENS, image_size=32)).save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size=SQUARE).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"^weights: .* of an image classifier .* no weights for classifier"):
        model(tmp_path)


def test_what_cannot_be_had_is_told_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    Image.new("RGB", (32, 32)).save(tmp_path / "photo.png")
    for name in ("google/vit-base-patch16-224", f"{tmp_path}/nowhere"):
        assert main(["explain", f"{tmp_path}/photo.png", f"--model=hf:{name}", f"--out={tmp_path}/out"]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert f"model: expected an image classifier at https://huggingface.co/{name}, or a folder of" in lines[0]


def test_code_of_the_hub_is_never_run(saved, tmp_path):
    for file in ("config.json", "preprocessor_config.json", "model.safetensors"):
        shutil.copy(f"{saved['vit']}/{file}", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {
        "model_type": "mine",
        "auto_map": {"AutoConfig": "code.Config", "AutoModelForImageClassification": "c.N"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\n")
    with pytest.raises(ValueError, match=r"^model: expected an image classifier"):
        model(tmp_path)
    assert not (tmp_path / "ran").exists()
    del config["auto_map"]
    timm = {"model_type": "timm_wrapper", "architecture": "hf-hub:somebody/something", "num_classes": 3}
    for changed in (config | {"model_type": "vit", "attn_implementation": "somebody/kernel"}, timm):
        (tmp_path / "config.json").write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=r"^model: .* only parts of transformers and timm, got .*somebody/"):
            model(tmp_path)
        card = ModelCard(Architecture("hf:x", {"config": changed}), ("a", "b"), (3, 8, 8))
        path = save_model(tmp_path / "m.safetensors", torch.nn.Linear(1, 2), card)
        with pytest.raises(ValueError, match=r"^model: .* only parts of transformers and timm, got .*somebody/"):
            load_model(path)


def test_transformers_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"hf:NAME need transformers: pip install 'robustsigma\[hub\]'"):
        model("hf:somebody/something")


@pytest.mark.slow
def test_every_verb_takes_it(saved, tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("sys.argv", ["robustsigma"])
    for label, name in enumerate(("ant", "bee", "cat")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(2):
            pixels = np.random.default_rng(2 * label + index).integers(0, 256, (40, 50, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{index}.png")
    images, network = f"{tmp_path}/images", f"hf:{saved['vit']}"
    for verb, method in (("explain", ["--method=AttentionRollout"]), ("augment", ["--perturbation=FGSM", "--label=0"])):
        assert main([verb, images, "--model", network, *method, f"--out={tmp_path}/{verb}"]) == 0, capsys.readouterr()
    (entry, *_) = json.loads((tmp_path / "explain" / "manifest.json").read_text())["images"]
    assert entry["predicted"][0]["class"] in NAMES["label2id"]
    dataset = {"class_path": "ImageFolder", "init_args": {"root": images, "test_fraction": 1}}
    evaluation = {
        "dataset": dataset,
        "architecture": {"name": network, "weights": "published"},
        "training": {"epochs": 0},
        "retraining": {"retrain": {}, "on_the_fly": {}},
        "conditions": {"clean": {"class_path": "Identity"}, "fgsm": {"class_path": "FGSM", "init_args": {"eps": 0.01}}},
        "checks": {"images": 0},
    }
    benchmark = {
        "dataset": dataset,
        "models": {"vit": network, "described": {"name": network, "geometry": {"size": 32, "squeeze": True}}},
        "methods": {"rollout": {"class_path": "AttentionRollout"}},
        "images": 2,
        "checked": 1,
    }
    for verb, settings in (("evaluate", evaluation), ("benchmark", benchmark)):
        (tmp_path / f"{verb}.yaml").write_text(json.dumps(settings))
        code = main([verb, "--config", f"{tmp_path}/{verb}.yaml", f"--out={tmp_path}/{verb}"])
        assert code == 0, capsys.readouterr().err
        assert (tmp_path / verb / "report.html").is_file()


def test_python_takes_its_name(saved):
    pytest.importorskip("matplotlib")
    images, labels = uniform(8, 3, 32, 32), torch.arange(8) % 3
    models = {"by name": f"hf:{saved['vit']}", "described": {"name": f"hf:{saved['vit']}", "channels": 3}}
    report = robustsigma.evaluate(models, (images, labels), {"clean": Identity()}, progress=False)
    classifier, _ = model(models["by name"])
    with classifier.frozen():
        expected = (classifier.logits(images).argmax(1) == labels).float().mean()
    for name in models:
        assert report.accuracy(name, "clean").mean == pytest.approx(float(expected))
    assert robustsigma.robust_accuracy(models["by name"], (images, labels), Identity()) == pytest.approx(
        float(expected)
    )
    with pytest.raises(ValueError, match=r"^model: expected the name of a torchvision model"):
        robustsigma.evaluate("torchvision:nothing", (images, labels))


def test_networks_of_timm_on_the_hub(tmp_path):
    timm = pytest.importorskip("timm")
    net = timm.create_model("test_resnet", num_classes=3).eval()
    timm.models.save_for_hf(net, tmp_path, model_config={"label_names": ["ant", "bee", "cat"]})
    classifier, card = model(tmp_path)
    cfg = net.pretrained_cfg
    assert card.geometry == ResizeCrop(160, int(160 / cfg["crop_pct"]), cfg["interpolation"])
    assert (card.classes, card.mean) == (("ant", "bee", "cat"), tuple(cfg["mean"]))
    x = uniform(2, 3, 64, 64)
    with classifier.frozen(), torch.no_grad():
        torch.testing.assert_close(classifier.logits(x), net((x - classifier.mean) / classifier.std))


def test_a_bare_network_is_wrapped(saved):
    net = transformers.AutoModelForImageClassification.from_pretrained(saved["vit"])
    assert Classifier(net, mean=[0.5], std=[0.5]).eval()(uniform(2, 3, 32, 32)).shape == (2, 3)
