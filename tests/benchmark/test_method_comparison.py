"""`benchmark` on models, data and methods as people have them."""

from __future__ import annotations

import copy
import functools
import json

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning import LightningDataModule, LightningModule
from safetensors.numpy import save_file
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, SubsetRandomSampler, TensorDataset
from torchvision.datasets import ImageFolder as TorchvisionFolder
from torchvision.transforms.v2.functional import pil_to_tensor

import robustsigma
from robustsigma import (
    AttentionRollout,
    CaptumMethod,
    Classifier,
    ExpectedGradients,
    FunctionMethod,
    Gradient,
    IntegratedGradients,
    StoredMaps,
)
from robustsigma.benchmarking.given_data import GivenSplit
from robustsigma.data import Baggage
from robustsigma.engine.metrics import Cost, InsertionDeletion, Localization, RelativeStandardError
from robustsigma.evaluation.given_images import given_images
from robustsigma.evaluation.given_models import given_models
from robustsigma.models import Architecture
from robustsigma.runs.blocks import Blocks

SPEC = Baggage(size=16, train=20, val=5, test=40)
SPLIT = SPEC.split("test")
IMAGES, LABELS = SPLIT.batch(range(len(SPLIT)))
MASKS = SPLIT.masks
METRICS = [InsertionDeletion(step=64), Localization(), Cost()]
MEAN, STD = (0.5,), (0.25,)


def _net(seed: int = 3) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return Architecture(arguments={"width": 4}).build(3, 5)


NET = _net()


def saliency(model, images, target):
    images.requires_grad_(True)
    return torch.autograd.grad(model(images).gather(1, target[:, None]).sum(), images)[0].abs()


def run(model=NET, data=SPEC, methods=None, **options):
    given = {"mean": MEAN, "std": STD, "metrics": METRICS, "max_images": 4, "checked": 0, "progress": False, **options}
    return robustsigma.benchmark(model, data, {"mine": saliency} if methods is None else methods, **given)


def cells(report, without=("seconds",)):
    """Return the mean of every cell."""
    return {(c["method"], c["metric"]): c["mean"] for c in report.results.cells if c["metric"] not in without}


@pytest.fixture(scope="module")
def expected():
    return cells(run())


class Items(Dataset):
    """Items (image, label, mask), or a dict of them."""

    def __init__(self, *, keys=(), normalized=False, pil=False):
        self.keys, self.normalized, self.pil = keys, normalized, pil

    def __len__(self):
        return len(LABELS)

    def __getitem__(self, index):
        image = (IMAGES[index] - 0.5) / 0.25 if self.normalized else IMAGES[index]
        if self.pil:
            image = Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())
        parts = (image, int(LABELS[index]), MASKS[index])
        return dict(zip(self.keys, parts, strict=True)) if self.keys else parts


class Module(LightningDataModule):
    def test_dataloader(self):
        return DataLoader(Items(), batch_size=7)


DATA = {
    "spec": lambda: (SPEC, {}),
    "arrays": lambda: (SPLIT, {}),
    "dataset of three": lambda: (Items(), {}),
    "PIL images": lambda: (Items(pil=True), {}),
    "dicts": lambda: (Items(keys=("x", "y", "m")), {"images": "x", "labels": "y", "masks": "m"}),
    "loader": lambda: (DataLoader(Items(), batch_size=3), {}),
    "shuffling loader": lambda: (DataLoader(Items(), batch_size=3, shuffle=True), {}),
    "tensors": lambda: ((IMAGES, LABELS, MASKS), {}),
    "uint8": lambda: (((IMAGES * 255).round().byte().numpy(), LABELS.numpy()), {"masks": MASKS.numpy()}),
    "normalized": lambda: (Items(normalized=True), {"normalized": True}),
    "data module": lambda: (Module(), {}),
    "masks by function": lambda: ((IMAGES, LABELS), {"masks": lambda index: MASKS[index]}),
    "masks as a dataset": lambda: (TensorDataset(IMAGES, LABELS), {"masks": [255 * m.byte() for m in MASKS]}),
}


@pytest.mark.parametrize("name", DATA)
def test_every_kind_of_data_gives_the_same_scores(name, expected):
    data, options = DATA[name]()
    found = cells(run(data=data, **options))
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=2e-4), key
    assert ("mine", "iou") in found


class Lit(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = NET

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize("kind", ["classifier", "lightning", "mapping"])
def test_every_kind_of_model_gives_the_same_scores(kind, expected):
    own = kind == "classifier"
    made = {"classifier": Classifier(NET, mean=MEAN, std=STD), "lightning": Lit(), "mapping": {"model": NET}}[kind]
    assert cells(run(made, mean=None if own else MEAN, std=None if own else STD)) == pytest.approx(expected, abs=1e-6)


def test_data_that_come_as_a_stream():
    class Stream(IterableDataset):
        def __iter__(self):
            yield from zip(IMAGES, LABELS.tolist(), strict=True)

    found = run(data=Stream(), masks=MASKS, max_images=5)
    assert found.results.dataset["images"] <= 5
    assert found.score("mine", "iou").n <= 5
    with pytest.raises(ValueError, match="masks: expected 16, one for each image, got 5"):
        run(data=Stream(), masks=MASKS[:5])
    with pytest.raises(ValueError, match="masks: expected arrays or a function of the index"):
        run(data=Stream(), masks=2)


class WithMethods(TensorDataset):
    """A dataset with masks and several correct labels by index."""

    def mask(self, index):
        return MASKS[index]

    def correct_labels(self, index):
        return [int(LABELS[index]), index % 5]


PLAIN = TensorDataset(IMAGES, LABELS)
HELD = {"masks": (PLAIN, {"masks": MASKS}), "third part": (Items(), {}), "mask()": (WithMethods(IMAGES, LABELS), {})}


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize(
    "order",
    [{"sampler": SubsetRandomSampler(range(40))}, {"sampler": range(3, 40)}, {"shuffle": True, "drop_last": True}],
)
def test_masks_need_the_indices_of_images(held, order):
    data, options = HELD[held]
    with pytest.raises(ValueError, match=r"^data: expected images whose indices are known.* pass its dataset or a tor"):
        run(data=DataLoader(data, 8, **order), **options)


def test_a_loader_may_ask_for_items_by_something_else():
    items = {str(index): (IMAGES[index], LABELS[index]) for index in range(40)}
    assert ("mine", "iou") not in cells(run(data=DataLoader(items, 8, sampler=list(items))))


@pytest.mark.parametrize("held", HELD)
def test_subsets_and_loaders_in_order_keep_masks_and_labels(held):
    data, options = HELD[held]
    rows, options = list(range(39, -1, -1)), {**options, "max_images": 10}
    found = cells(run(data=Subset(Subset(data, rows), rows), **options))
    assert found == pytest.approx(cells(run(data=data, **options)), abs=1e-6)
    assert found == pytest.approx(cells(run(data=DataLoader(data, 8, drop_last=True), **options)), abs=1e-6)
    assert ("mine", "iou") in found


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (MASKS[:5], "masks: expected 40, one for each image, got 5"),
        (MASKS[:, :8], r"masks\[0\]: expected shape \(16, 16\), that of the image, got \(8, 16\)"),
        (3 * MASKS.float(), r"masks\[0\]: expected True and False, values in \[0, 1\], or uint8"),
        (2.5, "masks: expected arrays"),
    ],
)
def test_masks_that_do_not_fit(masks, message):
    with pytest.raises(ValueError, match=message):
        run(data=(IMAGES, LABELS), masks=masks)


BOX = torch.zeros(16, 16)
BOX[4:12, 3:9] = 1
SOFT = F.interpolate(BOX[None, None, ::2, ::2], (16, 16), mode="bilinear")[0, 0]
CLASSES = torch.arange(16).reshape(4, 4).repeat_interleave(4, 0).repeat_interleave(4, 1).byte()


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (BOX.bool(), BOX),
        (BOX.byte(), BOX),
        (255 * BOX.byte(), BOX),
        ((255 * SOFT).byte(), (255 * SOFT).byte() / 255),
        ((127.5 * (BOX + BOX.roll(1, 1))).byte(), (127.5 * (BOX + BOX.roll(1, 1))).byte() / 255),  # 0, 127 and 255
        ((torch.arange(256).reshape(16, 16)).byte(), torch.arange(256).reshape(16, 16) / 255),
        (15 * BOX.byte(), None),
        (torch.where(CLASSES == 0, 255, 15 * BOX).byte(), None),  # of PASCAL VOC: a person and the border
        (torch.where(CLASSES == 15, 255, CLASSES).byte(), None),
        (torch.where(CLASSES > 9, 130 + CLASSES, CLASSES).byte(), None),  # of ADE20K, which has 150
        (torch.where(CLASSES == 0, 255, BOX).byte(), None),
        (128 * torch.ones(16, 16).byte(), None),
    ],
)
def test_classes_are_not_gray_values(mask, expected):
    data = (IMAGES[:1], LABELS[:1])
    split = functools.partial(
        GivenSplit, given_images(data, given_models(NET, None, None, False), (0, 1), None, 1, 0, 0), [mask]
    )
    if expected is None:
        with pytest.raises(
            ValueError, match=r"^masks\[0\]: expected uint8 of 0 and 1, .* pass mask == class, or mask /"
        ):
            split(1)
    else:
        assert torch.equal(split(1).mask(0), expected)


def test_without_masks_localization_is_left_out():
    found = run(data=(IMAGES, LABELS))
    assert not any(metric["id"] == "iou" for metric in found.results.metrics)
    call = functools.partial(run, data=(IMAGES, LABELS), metrics=None, max_images=2)
    for protocols in ("Saliency-Bench", ["RISE", "Saliency-Bench"]):
        with pytest.raises(ValueError, match=r"^protocols: expected a dataset with masks for 'Saliency-Bench'"):
            call(protocols=protocols)
    assert "Saliency-Bench" not in {entry["id"] for entry in call(protocols="all").results.protocols}


def test_images_are_those_that_every_model_classifies_correctly():
    models = {"a": NET, "b": copy.deepcopy(NET)}
    with torch.no_grad():
        models["b"].features[0][0].weight[0] *= 3
    report = run(models, max_images=40)
    with torch.no_grad():
        right = [(net.eval()((IMAGES - 0.5) / 0.25).argmax(1) == LABELS) for net in models.values()]
    assert report.results.dataset["images"] == int((right[0] & right[1]).sum()) > 0
    assert {cell["model"] for cell in report.results.cells} == {"a", "b"}
    with pytest.raises(ValueError, match=r"model: expected one of \['a', 'b'\], got None"):
        report.score("mine", "insertion")


def test_what_a_report_has(tmp_path):
    report = run(methods={"IG": IntegratedGradients(steps=3), "mine": saliency})
    assert report.path is None
    assert repr(report).startswith("AttributionReport(models: model; methods: IG, mine, gradient, random; metrics: ins")
    table = report.table(width=250)
    assert report.table().split()[0] == "Attribution"
    assert str(report).startswith("\n".join([*report.verdict, report.table()]))
    assert all(text in table for text in ("IG", "mine", "few_images_in_all", "Insertion"))
    assert report._repr_html_().startswith("<table>")
    assert any(flag["code"] == "few_images_in_all" for flag in report.flags)
    assert any("Insertion" in finding for finding in report.findings)
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()
    assert "training" not in report.to_dict()["settings"]
    interval = report.score("mine", "difference")
    assert interval.low <= interval.mean <= interval.high
    for wrong in ({"method": "IGG"}, {"metric": "insertoin"}, {"model": "b"}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected one of"):
            report.score(**{"method": "IG", "metric": "insertion", **wrong})
    assert report.save(tmp_path / "a" / "r.json").is_file()
    with pytest.raises(ValueError, match=r"path: expected a file that ends in \.html or \.json"):
        report.save(tmp_path / "r.pdf")
    pytest.importorskip("jinja2")
    assert "FunctionMethod" in report.save(tmp_path / "r.html").read_text("utf-8")
    frame = pytest.importorskip("pandas") and report.to_pandas()
    assert set(frame["method"]) == {"IG", "mine", "gradient", "random"}
    assert frame.loc[(frame.method == "mine") & (frame.metric == "difference"), "mean"].item() == interval.mean


def test_nothing_is_written_or_changed_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", None)
    net = _net().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    run(net, methods={"mine": saliency, "Grad-CAM": CaptumMethod("LayerGradCam", layer="features.3")}, checked=4)
    assert list(tmp_path.iterdir()) == []
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())


def test_the_defaults_are_methods_and_metrics_that_fit():
    from robustsigma.benchmarking.method_comparison import default_methods, default_metrics

    assert list(default_methods()) == ["SIGMA", "IG", "Guided IG"]
    assert default_metrics((3, 224, 224))[0].step == 1568
    assert default_metrics((3, 16, 16))[0].step == 16
    names = [[type(metric).__name__ for metric in default_metrics(shape)] for shape in ((3, 8, 8), (4, 8, 8))]
    assert ("PerformanceInformation" in names[0], "PerformanceInformation" in names[1]) == (True, False)


def test_protocols_score_the_same_maps():
    report = run(metrics=None, protocols="RISE")
    assert {entry["id"] for entry in report.results.protocols} == {"RISE"}
    assert {"insertion (RISE)", "iou", "seconds"} <= {metric["id"] for metric in report.results.metrics}


def test_an_interrupted_call_resumes_and_a_folder_is_of_its_functions(tmp_path, monkeypatch):
    def method(scale):
        def inner(model, images, target):
            return scale * saliency(model, images, target)

        return inner

    methods = {"mine": method(2), "partial": functools.partial(method, 3)()}
    call = functools.partial(run, batch_size=2, out=tmp_path / "out", checked=4)
    add, written = Blocks.add, []

    def stop(self, start, rows):
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(start)
        add(self, start, rows)

    monkeypatch.setattr(Blocks, "add", stop)
    with pytest.raises(KeyboardInterrupt):
        call(methods=methods)
    monkeypatch.setattr(Blocks, "add", lambda self, start, rows: written.append(start) or add(self, start, rows))
    report = call(methods={"mine": method(2), "partial": method(3)})  # made again, they are the same
    assert len(written) == len(set(written)) == 2
    assert cells(report) == pytest.approx(cells(run(methods=methods, checked=4)), abs=1e-5)
    assert report.path == tmp_path / "out" / "report.html"
    assert {"results.json", "values.csv", "arrays.npz", "report.html"} <= {p.name for p in report.path.parent.iterdir()}
    for other in ({**methods, "mine": method(4)}, {**methods, "mine": lambda model, images, target: images}):
        with pytest.raises(ValueError, match=r"^out: expected a new folder, .* functions\.mine"):
            call(methods=other)
    with pytest.raises(ValueError, match="network weights"):
        call(_net(4), methods=methods)
    with pytest.raises(ValueError, match="the data"):
        call(data=(IMAGES.flip(0), LABELS.flip(0), MASKS.flip(0)), methods=methods)
    with pytest.raises(ValueError, match=r"^methods\['x'\]: expected a function with a source, .* leave out `out`"):
        call(methods={"x": torch.mul})


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ([IntegratedGradients()], r"^methods: expected a mapping from names to methods"),
        (
            {"IG": IntegratedGradients},
            r"^methods\['IG'\]: expected an attributor, .* got the class IntegratedGradients",
        ),
        ({"IG": "IG"}, r"^methods\['IG'\]: expected an attributor, a CaptumMethod, a StoredMaps, or a function"),
        (
            {"x": lambda net, x: x},
            r"^methods\['x'\]: expected a function \(model, images, .* got a function \(net, x\)$",
        ),
        ({"a/b": saliency}, "name among methods: expected letters"),
        ({"random": saliency}, "methods: expected RandomAttribution under the name 'random'"),
        (
            {"x": AttentionRollout()},
            r"^methods: expected one that can explain these models, got none; of x: net: expected",
        ),
        ({"x": CaptumMethod("LayerGradCam", layer="features.9")}, r"^layer: .* got 'features.9'"),
    ],
)
def test_methods_that_cannot_be_used(methods, message):
    with pytest.raises(ValueError, match=message):
        run(methods=methods)


def test_other_arguments_that_cannot_be_used():
    for options, message in (
        ({"max_images": 0}, "max_images"),
        ({"seed": -1}, "seed"),
        ({"batch_size": 1.5}, "batch_size"),
        ({"metrics": []}, "metrics: expected at least one"),
        ({"references": torch.zeros(2, 3, 8, 8)}, r"references: expected images \(R, 3, 16, 16\)"),
    ):
        with pytest.raises(ValueError, match=message):
            run(**options)


def test_a_layer_that_only_one_model_has_leaves_the_method_out_there():
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = NET

        def forward(self, x):
            return self.inner(x)

    report = run({"a": NET, "b": Other()}, methods={"Grad-CAM": CaptumMethod("LayerGradCam", layer="features.3")})
    (entry,) = report.results.left_out
    assert (entry["model"], entry["method"]) == ("b", "Grad-CAM")
    (flag,) = [flag for flag in report.flags if flag["code"] == "left_out"]
    assert flag["message"].startswith("Grad-CAM of model b was not measured: layer: ")
    assert "'features.3'; did you mean 'inner.features.3" in entry["reason"]
    assert report.score("Grad-CAM", "iou", "a") is not None


def test_references_are_those_given_or_images_that_are_not_evaluated():
    methods = {"EG": ExpectedGradients(draws=4), "SHAP": CaptumMethod("DeepLiftShap")}
    names = ("forwards", "seconds")
    black, few, data = (
        run(methods=methods, references=each)
        for each in (torch.zeros(3, 3, 16, 16), 3, TensorDataset(torch.zeros(3, 3, 16, 16), torch.zeros(3).long()))
    )
    assert cells(black, names) == pytest.approx(cells(data, names), abs=1e-6)
    assert cells(black, names) != pytest.approx(cells(few, names), abs=1e-6)
    assert black.score("SHAP", "forwards").mean == 1 + 2 * 3
    answers = Classifier(NET, mean=MEAN, std=STD).eval()(IMAGES[:8]).argmax(1)
    with pytest.raises(ValueError, match=r"^max_images: .* since 'EG' compares .* got 8, which .* pass references="):
        run(data=(IMAGES[:8], answers), methods=methods, max_images=8)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
def test_stored_maps_score_as_the_method_that_made_them(tmp_path, suffix, expected):
    maps = FunctionMethod(saliency)(Classifier(NET, mean=MEAN, std=STD), IMAGES, LABELS).values.numpy()
    for index, values in enumerate(maps):
        path = tmp_path / f"{index}{suffix}"
        if suffix == ".npy":
            np.save(path, values)
        elif suffix == ".npz":
            np.savez(path, map=values)
        else:
            save_file({"map": np.ascontiguousarray(values)}, path)
    metrics = [*METRICS, RelativeStandardError()]
    report = run(methods={"theirs": StoredMaps(tmp_path)}, metrics=metrics, checked=4)
    found = cells(report)
    for metric in ("insertion", "deletion", "iou", "pointing_game"):
        assert found["theirs", metric] == pytest.approx(expected["mine", metric], abs=1e-6)
    missing = [cell for cell in report.results.cells if cell["method"] == "theirs" and cell["n"] == 0]
    assert {cell["metric"] for cell in missing} == {"forwards", "backwards", "seconds", "stability", "relative_stderr"}
    assert all(cell["skipped"] == {"not measured, as the maps were made elsewhere": 4} for cell in missing)
    (sanity,) = (entry for entry in report.results.sanity if entry["method"] == "theirs")
    assert sanity["similarity"]["n"] == 0
    assert "not measured" in report.table(300)


def test_stored_maps_are_found_by_the_files_of_images_and_upsampled(tmp_path):
    for index, label in enumerate(LABELS[:20].tolist()):
        path = tmp_path / "images" / f"class{label}" / f"photo {index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((IMAGES[index] * 255).byte().permute(1, 2, 0).numpy()).save(path)
        (tmp_path / "maps").mkdir(exist_ok=True)
        np.save(tmp_path / "maps" / f"photo {index}.npy", np.eye(4, dtype=np.float32))
    data = TorchvisionFolder(str(tmp_path / "images"), transform=pil_to_tensor)
    model = nn.Sequential(nn.Flatten(), nn.utils.skip_init(nn.Linear, 3 * 16 * 16, len(data.classes)))
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.copy_(torch.eye(len(data.classes))[0])
    report = run(model, data, {"theirs": StoredMaps(tmp_path / "maps")}, metrics=METRICS[:1])
    assert report.results.dataset["classes"] == data.classes
    (shown,) = {len(np.unique(each)) for each in report.arrays["maps"][0, 0]}
    assert shown > 2
    for path in (tmp_path / "maps").iterdir():
        path.rename(path.with_stem(f"another {path.stem}"))
    message = r"expected a map of every image, got 4 without, such as 'class\d/photo \d+.npy' or 'photo \d+.npy' or '\d"
    with pytest.raises(ValueError, match=message):
        run(model, data, {"theirs": StoredMaps(tmp_path / "maps")}, metrics=METRICS[:1])


def test_stored_maps_that_cannot_be_used(tmp_path):
    call = functools.partial(run, methods={"theirs": StoredMaps(str(tmp_path))}, data=(IMAGES, LABELS))
    with pytest.raises(ValueError, match=r"^data: expected images whose indices are known, .* stored maps"):
        call(data=DataLoader(PLAIN, 8, sampler=SubsetRandomSampler(range(40))))
    with pytest.raises(ValueError, match=r"^folder: expected a folder of maps \(.npy, .npz, .safetensors\), got"):
        call()
    for array, message in (
        (
            np.zeros((17, 16)),
            r"expected a map \(3, 16, 16\), \(1, 16, 16\) or \(16, 16\), or smaller, got float64 \(17, 16\)",
        ),
        (np.zeros((2, 16, 16)), r"got float64 \(2, 16, 16\)"),
        (np.full((16, 16), np.nan), "expected finite values, got NaN"),
        (np.array(["a"]), "or smaller, got <U1"),
    ):
        for index in range(40):
            np.save(tmp_path / f"{index}.npy", array)
        with pytest.raises(ValueError, match=message):
            call()
    (tmp_path / "0.npy").write_bytes(b"nothing")
    for index in range(40):
        (tmp_path / f"{index}.npy").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="expected a map that is whole, got a damaged one"):
        call()
    with pytest.raises(ValueError, match="method: expected one that can be run, outside of a benchmark"):
        StoredMaps(str(tmp_path))(Classifier(NET), IMAGES[:1])


def test_a_folder_is_of_its_stored_maps(tmp_path):
    maps = tmp_path / "maps" / "model"
    maps.mkdir(parents=True)
    for index in range(40):
        np.save(maps / f"{index}.npy", np.eye(16, dtype=np.float32))
    methods = {"theirs": StoredMaps(f"{tmp_path}/maps/{{model}}")}
    call = functools.partial(run, data=(IMAGES, LABELS), methods=methods, out=tmp_path / "out")
    assert cells(call()) == cells(call())
    np.save(maps / "0.npy", np.ones((16, 16), np.float32))
    with pytest.raises(ValueError, match=r"^out: expected a new folder, .*maps\.theirs"):
        call()


def test_controls_may_be_named_by_the_user():
    assert [entry["id"] for entry in run(methods={"plain": Gradient()}).results.methods] == ["plain", "random"]
