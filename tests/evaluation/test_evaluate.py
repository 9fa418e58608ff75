"""`evaluate` takes any model and any data, gives what a loop written by hand gives, and resumes."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from importlib.util import find_spec

import cases
import given_case
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from given_case import DATA, IMAGES, LABELS, MEAN, PLACES, STD, Items, N, one_hot
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, SubsetRandomSampler, TensorDataset, WeightedRandomSampler

import robustsigma
from robustsigma import FGSM, PGD, AttributionMasked, Classifier, GaussianNoise, Identity, evaluate, robust_accuracy
from robustsigma.data import Datasets
from robustsigma.data.image_files import is_gray
from robustsigma.evaluation import Checks, RobustnessReport
from robustsigma.evaluation.block_evaluation import BlockEvaluation
from robustsigma.evaluation.comparison import compare
from robustsigma.evaluation.given_images import given_images
from robustsigma.evaluation.given_models import given_models
from robustsigma.evaluation.illustrations import SHOWN
from robustsigma.evaluation.unwrapped_data import collate
from robustsigma.lightning import LitClassifier
from robustsigma.models import ModelCard

pytestmark = pytest.mark.filterwarnings("ignore:quantized..linear_dynamic")  # PyTorch's own
CONDITIONS = {"clean": Identity(), "noise": GaussianNoise(0.1), "FGSM": FGSM(0.03, random_start=True)}
FEW = Checks(images=8, queries=3)
NORMALIZATION = {"mean": MEAN, "std": STD}
QUIET = {"progress": False, "checks": None}


def by_hand(classifier, condition, seed=0, images=IMAGES, labels=LABELS, batch_size=16):
    """Return predictions and confidences."""
    found = []
    for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        made = condition(classifier, x, y, seed=seed)
        with torch.no_grad(), classifier.frozen():
            found.append(classifier.logits(made).softmax(1).float())
    probabilities = torch.cat(found)
    return probabilities.argmax(1).numpy(), probabilities.gather(1, labels[:, None])[:, 0].numpy()


class Plain(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = cases.cnn_bn_dropout()

    def forward(self, images):
        return self.net(images)


def _vit():
    timm = pytest.importorskip("timm")
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=4, embed_dim=24, depth=2, num_heads=2, num_classes=3
    )


# Each kind of network, in training mode where it has one.
MODELS = {
    "plain": cases.mlp,
    "BatchNorm and dropout": cases.cnn_bn_dropout,
    "ViT": _vit,
    "LightningModule": Plain,
    "compiled": lambda: torch.compile(cases.cnn_bn_dropout(), backend="eager"),
    "DataParallel": lambda: nn.DataParallel(cases.cnn_bn_dropout()),
    "double": lambda: cases.cnn_bn_dropout().double(),
    "quantized": lambda: torch.ao.quantization.quantize_dynamic(cases.mlp(), {nn.Linear}),
    "TorchScript": lambda: torch.jit.trace(cases.mlp(), IMAGES[:1]),
}


@pytest.mark.parametrize("mode", [mode for mode in Image.MODES if mode not in ("F", "La")])  # which have no pixels
def test_images_of_pillow_have_the_channels_that_datasets_give_them(mode):
    images, _ = collate([(Image.new(mode, (4, 5)), 0)])
    assert images.shape == (1, 1 if is_gray(mode) else 3, 5, 4)


@pytest.mark.third_party_rng  # timm draws weights
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    "ignore:The .grad attribute of a Tensor",
    "ignore:torch.quantize_per",  # PyTorch's own
)
@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model_is_tested_as_by_hand_and_not_changed(name):
    net = MODELS[name]()
    classifier = Classifier(net, **NORMALIZATION)
    labels = given_case.labels_of(net)
    expected = {key: by_hand(classifier, condition, labels=labels) for key, condition in CONDITIONS.items()}
    net.train()
    before = None if name == "quantized" else cases.state_of(net)
    hidden = torch.get_rng_state()
    report = evaluate(net, (IMAGES, labels), CONDITIONS, **NORMALIZATION, checks=FEW, progress=False, batch_size=16)
    assert torch.equal(torch.get_rng_state(), hidden)
    assert before is None or cases.state_of(net) == before
    for key, (predictions, confidences) in expected.items():
        found = report.outcomes("model", key)
        assert found.predictions.tolist() == predictions.tolist()
        np.testing.assert_allclose(found.confidences, confidences, rtol=1e-5, atol=1e-6)
        assert report.accuracy("model", key).mean == pytest.approx((predictions == labels.numpy()).mean())
    assert report.accuracy("model", "clean").mean == pytest.approx(29 / 37)
    assert ("zero_gradient" in {flag["code"] for flag in report.flags}) == (name == "quantized")


def test_models_that_know_their_statistics_need_no_others():
    plain = evaluate(cases.mlp(), (IMAGES, LABELS), CONDITIONS, **NORMALIZATION, **QUIET)
    classifier = Classifier(cases.mlp(), **NORMALIZATION)
    for model in (classifier, LitClassifier(cases.mlp(), **NORMALIZATION)):
        found = evaluate(model, (IMAGES, LABELS), CONDITIONS, **QUIET)
        assert found.results.cells == plain.results.cells
        with pytest.raises(ValueError, match="mean and std: expected None, since the Classifier has its own"):
            evaluate(model, (IMAGES, LABELS), mean=MEAN, **QUIET)
    card = ModelCard(None, ("a", "b", "c"), (3, 8, 8))
    data = Datasets(test=TensorDataset(IMAGES, LABELS), classes=("a", "b", "c"))
    assert evaluate((classifier, card), data, CONDITIONS, **QUIET).results.cells == plain.results.cells
    other = replace(card, classes=("a", "c", "b"))
    with pytest.raises(ValueError, match=r"model\['model'\]: expected a model of the dataset's classes, 'b' at"):
        evaluate((classifier, other), data, CONDITIONS, **QUIET)


@pytest.fixture(scope="module")
def expected():
    return evaluate(cases.mlp(), (IMAGES, LABELS), CONDITIONS, **NORMALIZATION, progress=False, checks=FEW)


@pytest.mark.parametrize("name", DATA)
def test_every_kind_of_data_gives_the_same(name, expected):
    data, places = DATA[name](), PLACES.get(name, {})
    found = evaluate(cases.mlp(), data, CONDITIONS, **NORMALIZATION, progress=False, checks=FEW, **places)
    assert found.results.dataset["test"] == N
    assert ("(val)" in found.results.dataset["name"]) == (name == "data module without a test")
    for condition in CONDITIONS:
        assert found.accuracy("model", condition).mean == expected.accuracy("model", condition).mean
    assert found.results.dataset["classes"] == (["a", "b", "c"] if "spec" in name or "robust" in name else [*"012"])
    generator = getattr(data, "generator", None)
    assert generator is None or torch.equal(generator.get_state(), torch.Generator().get_state())


@pytest.mark.parametrize("name", DATA)
def test_some_images_of_every_kind_of_data_are_tested(name):
    options = {**NORMALIZATION, **QUIET, **PLACES.get(name, {}), "max_images": 10}
    found = evaluate(cases.mlp(), DATA[name](), {"clean": Identity()}, **options).outcomes("model", "clean")
    first = "stream" in name or name in ("loader of a mapping", "list of batches", "loader with a sampler")
    assert found.indices.tolist() == (list(range(10)) if first else robustsigma.data.loading.subsample(N, 10, 0))
    if name != "loader with a sampler":
        assert found.labels.tolist() == LABELS[found.indices].tolist()


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_the_result_does_not_depend_on_batch_size_or_order(batch_size, expected):
    order = torch.randperm(N, generator=cases.generator(3))
    options = {**NORMALIZATION, **QUIET, "batch_size": batch_size}
    found = evaluate(cases.mlp(), (IMAGES[order], LABELS[order]), CONDITIONS, **options)
    for condition in CONDITIONS:
        mine, theirs = found.outcomes("model", condition), expected.outcomes("model", condition)
        assert mine.predictions.tolist() == theirs.predictions[order].tolist()
        np.testing.assert_allclose(mine.confidences, theirs.confidences[order], rtol=1e-4)


def test_normalized_images_are_attacked_as_pixels(expected):
    mean, std = (torch.tensor(each)[:, None, None] for each in (MEAN, STD))
    given = (IMAGES - mean) / std
    by_statistics = evaluate(cases.mlp(), (given, LABELS), CONDITIONS, **NORMALIZATION, **QUIET, normalized=True)
    pair = (lambda x: x * std + mean, lambda x: (x - mean) / std)
    by_functions = evaluate(cases.mlp(), (given, LABELS), CONDITIONS, **QUIET, normalized=pair)
    for found in (by_statistics, by_functions):
        for condition in ("clean", "FGSM"):
            mine, theirs = found.outcomes("model", condition), expected.outcomes("model", condition)
            np.testing.assert_allclose(mine.confidences, theirs.confidences, rtol=2e-3)
            assert (mine.linf <= 0.03 + 1e-6).all()
    with pytest.warns(UserWarning, match="in \\[0, 1\\] before un-normalization"):
        evaluate(cases.mlp(), (IMAGES, LABELS), CONDITIONS, mean=0.1, std=0.5, **QUIET, normalized=True)


def test_a_block_is_decoded_once_for_all_models_and_conditions():
    data = Items(lambda index: (IMAGES[index], int(LABELS[index])))
    models = {"a": cases.mlp(), "b": cases.cnn_bn_dropout()}
    evaluate(models, data, CONDITIONS, **NORMALIZATION, **QUIET)
    # The first two tell shape and classes, some are read twice to see whether they change, some more are shown, and the
    # networks are inspected on 32.
    assert data.reads == N + 2 + 2 * 16 + cases.CLASSES + 32


def test_samples_of_the_first_model_are_shown_to_the_others():
    models = {"first": cases.mlp(), "second": cases.linear()}
    found = evaluate(models, (IMAGES, LABELS), CONDITIONS, **NORMALIZATION, **QUIET)
    ids = [entry["id"] for entry in found.results.conditions]
    assert ids == ["clean", "noise", "FGSM/adaptive", "FGSM/transfer"]
    first, second = (Classifier(net, **NORMALIZATION) for net in models.values())
    made = CONDITIONS["FGSM"](first, IMAGES, LABELS, seed=0)
    with second.frozen():
        moved = second.logits(made).argmax(1)
    assert found.outcomes("second", "FGSM/transfer").predictions.tolist() == moved.tolist()
    assert found.outcomes("second", "FGSM").predictions.tolist() == by_hand(second, CONDITIONS["FGSM"])[0].tolist()
    assert {entry["regime"] for entry in found.results.differences} == {"second"}
    assert "first classifies" in found.findings[0]
    assert "second classifies" in found.findings[1]
    assert [e["id"] for e in evaluate(cases.mlp(), (IMAGES, LABELS), CONDITIONS, **QUIET).results.conditions] == ids[:3]


def test_defaults_are_clean_noise_and_attacks_that_are_checked():
    report = evaluate(cases.mlp(), (IMAGES, LABELS), **NORMALIZATION, progress=False)
    names = [entry["name"] for entry in report.results.conditions]
    assert names == ["clean", "Gaussian noise", "FGSM", "PGD", "L\u221e 8/255"]
    assert {entry["condition"] for entry in report.results.checks} == {"FGSM/adaptive", "PGD/adaptive"}
    assert report.results.curves
    assert report.path is None


def test_top5_counts_where_there_are_more_than_five_classes():
    net = cases.linear(classes=8)
    with torch.no_grad():
        ranks = Classifier(net, **NORMALIZATION)(IMAGES).argsort(1, descending=True)
    labels = ranks[torch.arange(N), torch.arange(N) % 8]  # the rank of the label is known
    report = evaluate(net, (IMAGES, labels), {"clean": Identity()}, **NORMALIZATION, **QUIET)
    assert report.outcomes("model", "clean").top5.tolist() == [place % 8 < 5 for place in range(N)]
    (cell,) = report.results.cells
    assert cell["top5"]["mean"] == pytest.approx(np.mean([place % 8 < 5 for place in range(N)]))
    few = evaluate(cases.mlp(), (IMAGES, LABELS), {"clean": Identity()}, **QUIET)
    assert "top5" not in few.results.cells[0]


@pytest.mark.parametrize("wrap", [cases.Probabilities, cases.PassCounter])
def test_flags_of_the_checks_are_those_of_the_model(wrap):
    report = evaluate(wrap(cases.mlp()), (IMAGES, LABELS), CONDITIONS, **NORMALIZATION, checks=FEW, progress=False)
    found = {(flag["code"], flag.get("condition")) for flag in report.flags}
    assert (("probabilities", "FGSM/adaptive") in found) == (wrap is cases.Probabilities)
    assert ("chance_level", None) not in found
    assert "single_step" in report.table()


def test_poor_accuracy_and_foreign_classes_are_flagged():
    data = Datasets(test=TensorDataset(IMAGES, (LABELS + 1) % 3), classes=("a", "b", "c", "d"))
    report = evaluate(cases.mlp(), data, {"noise": GaussianNoise(0.1)}, **NORMALIZATION, **QUIET)
    assert {"chance_level", "class_names"} <= {flag["code"] for flag in report.flags}
    assert [entry["name"] for entry in report.results.conditions] == ["clean", "noise"], "clean images are added"


def test_the_report_is_shown_and_saved(expected, tmp_path):
    table = expected.table(width=100)
    assert all(name in table for name in ("clean", "noise", "FGSM", "78.4"))
    low, high = (100 * getattr(expected.accuracy("model", "clean"), end) for end in ("low", "high"))
    assert f"{low:.1f}" in table
    assert f"{high:.1f}" in table
    assert "Accuracy in %" in str(expected)
    assert all(sentence in str(expected) for sentence in expected.verdict)
    html = expected._repr_html_()
    assert "\ufffd" not in html
    assert len(html) < 5000
    assert "78.4" in html
    assert expected.to_dict() == json.loads(expected.save(tmp_path / "a" / "r.json").read_text("utf-8"))
    pytest.importorskip("matplotlib")
    page = expected.save(tmp_path / "r.html").read_text("utf-8")
    assert "FGSM" in page
    assert "retraining" not in page.split("How to read this report")[0]
    assert {path.name for path in tmp_path.iterdir()} == {"a", "r.html"}
    with pytest.raises(ValueError, match=r"path: expected a file that ends in \.html or \.json"):
        expected.save("r.txt")
    with pytest.raises(ValueError, match="did you mean 'noise'"):
        expected.accuracy("model", "nois")


def test_names_in_a_notebook_are_text():
    report = evaluate({"<b>&": cases.mlp()}, (IMAGES, LABELS), {"<i>": GaussianNoise(0.1)}, **QUIET)
    assert "<b>&" not in report._repr_html_()
    assert "&lt;i&gt;" in report._repr_html_()


@pytest.mark.skipif(find_spec("pandas") is None, reason="pandas is optional")
def test_a_data_frame_has_a_row_for_each_cell(expected):
    frame = expected.to_pandas()
    assert list(frame["condition"]) == ["clean", "noise", "FGSM/adaptive"]
    assert frame.loc[0, "accuracy"] == expected.accuracy("model", "clean").mean


def test_pandas_is_asked_for_where_it_is_missing(expected, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        expected.to_pandas()


class AlwaysDropout(nn.Module):
    def forward(self, logits):
        return nn.functional.dropout(logits, training=True)


def test_robust_accuracy_is_a_number_with_its_interval(expected):
    found = robust_accuracy(cases.mlp(), (IMAGES, LABELS), CONDITIONS["FGSM"], **NORMALIZATION, progress=False)
    assert found == expected.accuracy("model", "FGSM").mean
    assert found.interval == expected.accuracy("model", "FGSM")
    assert f"{found:.3f}" == f"{float(found):.3f}"
    again = pickle.loads(pickle.dumps(found))
    assert (again, again.interval) == (found, found.interval)
    with pytest.raises(ValueError, match="model: expected one model"):
        robust_accuracy({"a": cases.mlp()}, (IMAGES, LABELS), FGSM(0.1))


def without_gradient():
    net = cases.mlp()
    net.register_forward_hook(lambda module, args, out: out.detach())
    return net


@pytest.mark.parametrize(("code", "net"), [
    ("zero_gradient", without_gradient()),
    ("not_evaluated", nn.Sequential(cases.mlp(), AlwaysDropout())),
])  # fmt: skip
def test_a_network_that_misleads_attacks_is_flagged_without_checks_of_the_attacks(code, net):
    report = evaluate(net, (IMAGES, LABELS), {"FGSM": FGSM(0.1)}, checks=None, progress=False, **NORMALIZATION)
    assert code in [flag["code"] for flag in report.flags if flag.get("condition") == "FGSM/adaptive"]
    assert not report.results.checks
    with pytest.warns(UserWarning, match="model: "):
        found = robust_accuracy(net, (IMAGES, LABELS), FGSM(0.1), progress=False, **NORMALIZATION)
    assert code in [flag["code"] for flag in found.flags]
    assert "Whether the attacks were strong enough was not checked." in str(
        evaluate(cases.mlp(), (IMAGES, LABELS), {"FGSM": FGSM(0.1)}, checks=None, progress=False, **NORMALIZATION)
    )


def test_each_image_is_read_once_for_all_models_and_conditions():
    class Counting(TensorDataset):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    read = []
    models = {name: cases.mlp() for name in "abc"}
    evaluate(models, Counting(IMAGES, LABELS), CONDITIONS, checks=None, progress=False, batch_size=8, **NORMALIZATION)
    assert sorted({*read}) == list(range(N))
    # Two for their shape, those that are read twice, those of the checks, and the examples of the report.
    assert len(read) <= N + 2 + 2 * 16 + 8 + SHOWN


# Folders


@pytest.fixture
def blocks(monkeypatch):
    """Record the blocks that are measured; the list `stop` has the number after which an interrupt comes."""
    pytest.importorskip("matplotlib")
    done, stop, measure = [], [], BlockEvaluation._measure

    def watched(self, group, block, advance):
        if stop and len(done) == stop[0]:
            raise KeyboardInterrupt
        if not all(self.blocks[name].has(block.start, block.start + len(block.labels)) for name in group):
            done.append(len(block.labels))
        measure(self, group, block, advance)

    monkeypatch.setattr(BlockEvaluation, "_measure", watched)
    return done, stop


def run(out, *, net=None, data=None, **changes):
    options = {"checks": FEW, "progress": False, "batch_size": 8, **NORMALIZATION, **changes}
    models = {"a": cases.mlp() if net is None else net, "b": cases.linear()}
    return evaluate(models, (IMAGES, LABELS) if data is None else data, CONDITIONS, out=out, **options)


@pytest.mark.parametrize("data", ["tensors", "loader of a stream", "loader of a stream with a length"])
def test_an_interrupted_evaluation_resumes_and_ends_as_a_whole_one(data, blocks, tmp_path):
    done, stop = blocks
    whole = run(tmp_path / "whole", data=DATA[data]())
    assert isinstance(whole, RobustnessReport)
    assert whole.path.read_text("utf-8").startswith("<!DOCTYPE html>")
    assert str(whole).endswith(f"Report: {whole.path}")
    assert done == [8, 8, 8, 8, 5]
    done.clear()
    stop.append(2)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", data=DATA[data]())
    stop.clear()
    parts = run(tmp_path / "parts", data=DATA[data](), batch_size=16 if data == "tensors" else None)
    assert done == ([8, 8, 16, 5] if data == "tensors" else [8, 8, 8, 8, 5])
    assert parts.results.findings == whole.results.findings
    assert [cell["accuracy"] for cell in parts.results.cells] == [cell["accuracy"] for cell in whole.results.cells]
    done.clear()
    again = run(tmp_path / "whole", data=DATA[data]())
    assert done == []
    assert {**again.to_dict(), "run": 0} == {**whole.to_dict(), "run": 0}
    assert not list(tmp_path.rglob("*.parts"))


def test_a_folder_is_bound_to_weights_data_and_conditions(tmp_path):
    pytest.importorskip("matplotlib")
    run(tmp_path / "out", checks=None)
    run(tmp_path / "out", checks=Checks(images=4, queries=0, curves=False))  # changes no cell
    other = cases.mlp()
    other[1].bias.data += 0.1
    changes = {
        "the network weights": {"net": other},
        r"the data \(images and labels\)": {"data": (IMAGES, (LABELS + 1) % 3)},
        "the settings": {"seed": 1},
    }
    for told, change in changes.items():
        with pytest.raises(ValueError, match=f"out: expected a new folder, or {told} of the run in"):
            run(tmp_path / "out", checks=None, **change)


# Mistakes


def _bad(images=IMAGES, labels=LABELS):
    return lambda: (cases.mlp(), (images, labels), {})


def truncated(index):
    if index == 20:
        raise OSError("truncated")
    return IMAGES[index], 0


class NoForward(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.backbone = cases.mlp()


MISTAKES = {
    r"images: .* normalized images need normalized=True .*; a bicubic resize of floats": _bad(IMAGES * 4 - 2),
    r"images: .* divide by 255, or pass uint8": _bad(IMAGES * 255),
    r"images: expected finite values": _bad(torch.full_like(IMAGES, torch.nan)),
    r"images: .* channels last; use permute": _bad(IMAGES.permute(0, 2, 3, 1)),
    r"images: expected a floating dtype or uint8, got torch.int64": _bad(IMAGES.long()),
    r"images: expected a tensor \(B, C, H, W\) at 0 of a batch, got shape \(2, 8, 8\)": _bad(IMAGES[:, 0]),
    r"labels: expected class indices in \[0, 2\], got \[0, 3\]": _bad(labels=torch.arange(N) % 4),
    r"labels: expected class indices in \[0, 2\], got \[-1, ": _bad(labels=LABELS - 1),
    r"labels: expected integers": _bad(labels=LABELS.float()),
    r"data: expected as many labels as images, got 36 and 37": _bad(labels=LABELS[1:]),
    r"images: expected pixels in \[0, 1\] after un-normalization, .* RandomErasing leave": lambda: (
        cases.mlp(), (IMAGES * 9, LABELS), {"normalized": True, **NORMALIZATION}
    ),
    r"mean: expected 1 or 3 numbers, one per channel of the images, got 2": lambda: (
        cases.mlp(), (IMAGES, LABELS), {"normalized": True, "mean": (0.5, 0.5), "std": 1.0}
    ),
    r"mean and std: expected those that the images were normalized with": lambda: (
        cases.mlp(), (IMAGES, LABELS), {"normalized": True}
    ),
    r"normalized: expected True, False or a pair": lambda: (cases.mlp(), (IMAGES, LABELS), {"normalized": "yes"}),
    r"mean and std: expected None beside the functions": lambda: (
        cases.mlp(), (IMAGES, LABELS), {"normalized": (torch.neg, torch.neg), **NORMALIZATION}
    ),
    r"model: expected a torch.nn.Module.* the class Plain, not an instance": lambda: (Plain, (IMAGES, LABELS), {}),
    r"model: expected a LightningModule whose `forward`.*\['backbone'\]": lambda: (NoForward(), (IMAGES, LABELS), {}),
    r"model: expected one model, or a mapping": lambda: ({}, (IMAGES, LABELS), {}),
    r"model: expected networks of the same classes, got a: 3, b: 4": lambda: (
        {"a": cases.mlp(), "b": cases.mlp(classes=4)}, (IMAGES, LABELS), {}
    ),
    r"data: expected a Dataset, a DataLoader.*; an iterator can be read only once": lambda: (
        cases.mlp(), iter([(IMAGES, LABELS)]), {}
    ),
    r"data: expected a Dataset, a DataLoader.*got int": lambda: (cases.mlp(), 7, {}),
    r"data: expected a Dataset, .*got a mapping of 'images', 'labels'; pass a pair": lambda: (
        cases.mlp(), {"images": IMAGES, "labels": LABELS}, {}
    ),
    r"data: expected a Dataset, .*got the text 'my_folder'; robustsigma.data.ImageFolder": lambda: (
        cases.mlp(), "my_folder", {}
    ),
    r"labels: expected class indices, got \['a'": _bad(labels=["a"] * N),
    r"data: expected items of tensors, .*got default_collate: batch must contain": lambda: (
        cases.mlp(), Items(lambda i: (IMAGES[i], None)), {}
    ),
    r"data: expected items that can be read, got OSError at 20: truncated": lambda: (
        cases.mlp(), Items(truncated), {}
    ),
    r"data: expected at least one image": lambda: (cases.mlp(), TensorDataset(IMAGES[:0], LABELS[:0]), {}),
    r"data: expected images of one shape": lambda: (
        cases.mlp(), Items(lambda i: (torch.zeros(3, 8 + i % 2, 8), 0)), {}
    ),
    r"images: expected the place of the images in a batch, .* \['x', 'y'\]: say which, as images=KEY": lambda: (
        cases.mlp(), DataLoader(Items(lambda i: {"x": IMAGES[i], "y": 0})), {}
    ),
    r"data: expected a LightningDataModule with test or validation images": lambda: (
        cases.mlp(), pl.LightningDataModule(), {}
    ),
    r"conditions\['a'\]: expected a Perturbation": lambda: (
        cases.mlp(), (IMAGES, LABELS), {"conditions": {"a": torch.neg}}
    ),
    r"conditions: expected names that differ": lambda: (
        cases.mlp(), (IMAGES, LABELS), {"conditions": {"a": FGSM(0.1), "A": PGD(0.1)}}
    ),
    r"max_images: expected an integer of at least 1": lambda: (cases.mlp(), (IMAGES, LABELS), {"max_images": 0}),
    r"checks: expected a Checks or None": lambda: (cases.mlp(), (IMAGES, LABELS), {"checks": True}),
    r"net: expected finite logits": lambda: (
        cases.constant((0.0, torch.nan, 1.0)), (IMAGES, LABELS), {}
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_is_told_with_what_to_do(message, tmp_path):
    model, data, options = MISTAKES[message]()
    with pytest.raises(ValueError, match=f"^{message}"):
        evaluate(model, data, **{"conditions": {"clean": Identity()}, **QUIET, **options})


@pytest.mark.parametrize("attack", [PGD(0.1, targeted=1), AttributionMasked(PGD(0.1)), PGD(8 // 255)])
def test_an_attack_that_leaves_out_a_part_of_its_ball_is_flagged(attack):
    code = "no_radius" if attack.bound[1] == 0 else "restricted"
    found = robust_accuracy(cases.mlp(), (IMAGES, LABELS), attack, progress=False, **NORMALIZATION)
    assert [flag["code"] for flag in found.flags if flag.get("condition")] == [code]
    both = {"PGD": PGD(attack.bound[1]), "mine": attack}
    report = evaluate(cases.mlp(), (IMAGES, LABELS), both, **QUIET, **NORMALIZATION)
    assert "restricted" not in [flag["code"] for flag in report.flags]  # a stronger one is in the same ball


def test_repeated_images_are_flagged():
    loader = DataLoader(TensorDataset(IMAGES, LABELS), 8, sampler=WeightedRandomSampler([1.0] * N, 100))
    twice = (IMAGES.repeat(2, 1, 1, 1), LABELS.repeat(2))
    for data, says in (
        (loader, "of 100 images equal"),
        (twice, f"{N} of {2 * N} images equal"),
        ((IMAGES, LABELS), None),
    ):
        report = evaluate(cases.mlp(), data, {"clean": Identity()}, **QUIET, **NORMALIZATION)
        found = [flag["message"] for flag in report.flags if flag["code"] == "repeated_images"]
        assert len(found) == (says is not None)
        assert not found or says in found[0]


class Infinite(nn.Module):
    def forward(self, images):
        logits = images.flatten(1)[:, : cases.CLASSES]
        return torch.where(torch.arange(len(logits))[:, None] == 0, torch.inf, logits)


def test_infinite_logits_are_an_error_of_the_network():
    with pytest.raises(ValueError, match="net: expected finite logits, got NaN or infinity, in Infinite"):
        evaluate(Infinite(), (IMAGES, LABELS), {"clean": Identity()}, mean=0.0, std=1.0, **QUIET)


SAMPLERS = {
    "random": lambda: SubsetRandomSampler(range(N)),
    "weighted": lambda: WeightedRandomSampler([1.0] * N, N),
    "replaced": lambda: RandomSampler(range(N), replacement=True),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_random_sampler_shows_the_same_images_in_every_pass(name):
    loader = DataLoader(TensorDataset(IMAGES, LABELS), 8, sampler=SAMPLERS[name]())
    images = given_images(loader, given_models(cases.mlp(), MEAN, STD, False), (0, 1), None, None, None, 3)
    hidden = torch.get_rng_state()
    passes = [list(images.blocks()) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), hidden)
    for one, two in zip(*passes, strict=True):
        assert torch.equal(one.images, two.images)
    with torch.random.fork_rng():
        torch.rand(1)  # whatever else draws
        shown, labels = images.load([1, 20])
    assert torch.equal(shown, torch.cat([block.images for block in passes[0]])[[1, 20]])
    assert labels.tolist() == torch.cat([block.labels for block in passes[0]])[[1, 20]].tolist()


def test_images_that_change_between_passes_of_a_loader_are_an_error():
    class Order(torch.utils.data.Sampler):
        rng = np.random.default_rng(0)

        def __iter__(self):
            return iter(self.rng.permutation(N).tolist())

        def __len__(self):
            return N

    loader = DataLoader(TensorDataset(IMAGES, LABELS), 8, sampler=Order())
    with pytest.raises(ValueError, match=r"^data: expected the same images in every pass, got other"):
        evaluate(cases.mlp(), loader, CONDITIONS, **NORMALIZATION, progress=False, checks=FEW)


@pytest.mark.parametrize("options", [{"drop_last": True}, {"sampler": range(2, N)}])
def test_a_folder_belongs_to_all_data_of_a_loader_in_an_order_of_its_own(options, tmp_path):
    other = LABELS.clone()
    other[-8:] = (other[-8:] + 1) % cases.CLASSES
    runs = {
        out: DataLoader(TensorDataset(IMAGES, labels), 8, **options) for out, labels in (("a", LABELS), ("b", other))
    }
    for out, loader in runs.items():
        evaluate(cases.mlp(), loader, CONDITIONS, **NORMALIZATION, **QUIET, out=tmp_path / out)
    with pytest.raises(ValueError, match=r"^out: expected a new folder, or the data"):
        evaluate(cases.mlp(), runs["b"], CONDITIONS, **NORMALIZATION, **QUIET, out=tmp_path / "a")
    with pytest.raises(ValueError, match=r"^second: expected a run on the images"):
        compare(tmp_path / "a", tmp_path / "b")


def test_images_that_differ_with_each_reading_are_flagged_and_not_compared(tmp_path):
    rng = np.random.default_rng(0)
    flipped = Items(lambda i: (IMAGES[i].flip(2) if rng.random() < 0.5 else IMAGES[i], int(LABELS[i])))
    for out in "ab":
        report = evaluate(cases.mlp(), flipped, CONDITIONS, **NORMALIZATION, **QUIET, out=tmp_path / out)
        assert "random_images" in {flag["code"] for flag in report.flags}
    with pytest.raises(ValueError, match=r"^runs: expected the same images in both, got .*a, whose images differ"):
        compare(tmp_path / "a", tmp_path / "b")


def test_classes_in_another_order_than_the_cards_are_flagged():
    data = TensorDataset(IMAGES, LABELS)
    data.classes = ["a", "b", "c"]
    for names, codes in ((("a", "b", "c"), set()), (("a", "c", "b"), {"class_names"}), (("x", "y", "z"), set())):
        model = Classifier(cases.mlp(), **NORMALIZATION), ModelCard(None, names, (3, 8, 8))
        report = evaluate(model, data, CONDITIONS, **QUIET)
        assert {flag["code"] for flag in report.flags} & {"class_names"} == codes


@pytest.mark.parametrize(
    "labels", [torch.ones(N, 3, dtype=torch.int64), torch.stack([LABELS, torch.arange(N)], 1), -one_hot()]
)
def test_labels_that_are_no_class_of_each_image_are_an_error(labels):
    with pytest.raises(ValueError, match=r"labels: expected one class for each image: .* with rows that sum to"):
        evaluate(cases.mlp(), (IMAGES, labels), CONDITIONS, **NORMALIZATION, **QUIET)
