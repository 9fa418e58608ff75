"""The benchmark from settings to report: what it holds, that it goes on, and that it says what it should."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch.utils.data import TensorDataset

from robustsigma import AttentionRollout, ExpectedGradients, Gradient, IntegratedGradients, RandomAttribution, Sigma
from robustsigma.benchmarking import AttributionReport, Benchmark, run_benchmark
from robustsigma.benchmarking import run as running
from robustsigma.benchmarking.evaluated_images import adapt_to_models, find_images, gallery_places
from robustsigma.benchmarking.results import misclassified
from robustsigma.benchmarking.run import BenchmarkRun
from robustsigma.cli import main
from robustsigma.cli.benchmark import PRESETS
from robustsigma.data import Baggage, Datasets, Digits, ImageFolder
from robustsigma.data.dataset_spec import ArrayDataset
from robustsigma.data.resize_crop import ResizeCrop
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.metrics import (
    Cost,
    InsertionDeletion,
    Localization,
    PerformanceInformation,
    RelativeStandardError,
    SensitivityN,
)
from robustsigma.engine.validation import not_finite
from robustsigma.models import Architecture, ModelCard, Pretrained, save_model
from robustsigma.runs.blocks import Blocks
from robustsigma.runs.ranks import WHOLE

METRICS = (
    InsertionDeletion(step=64),
    PerformanceInformation(min_confidence=0.0, thresholds=(0.1, 0.5)),
    SensitivityN(fractions=(0.1, 0.5), subsets=5),
    Localization(),
    RelativeStandardError(),
    Cost(),
)
METHODS = {
    "SIGMA": Sigma(alpha=0.05, beta=0.2, objective="logit", max_steps=3, paths=2),
    "IG": IntegratedGradients(steps=3),
    "rollout": AttentionRollout(),
}
SOURCE = Baggage(size=16, train=20, val=5, test=60)
SOURCE_NET = Architecture(arguments={"width": 4})


def quiet() -> Console:
    return Console(quiet=True)


def saved(path: Path, seed: int, *, scale: float = 1.0, source=SOURCE) -> str:
    """Save a small network: untrained, so that it gets about one image in five right; its weights are scaled."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        architecture = Architecture(arguments={"width": 4})
        net = architecture.build(source.shape[0], len(source.classes))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter *= scale
    card = ModelCard(architecture, source.classes, source.shape)
    return str(save_model(path, net, card))


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> Benchmark:
    folder = tmp_path_factory.mktemp("models")
    models = {"a": saved(folder / "a.safetensors", 3)}
    return Benchmark(
        SOURCE, models=models, methods=METHODS, metrics=METRICS, images=7, checked=2, batch_size=3, references=3
    )


@pytest.fixture(scope="module")
def made(settings, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("made")
    report = run_benchmark(settings, out, console=quiet(), command="robustsigma benchmark")
    assert isinstance(report, AttributionReport)
    assert report.path == out / "report.html"
    assert report.to_dict() == json.loads((out / "results.json").read_text())
    return out


def measured(out: Path) -> list[tuple[str, ...]]:
    """Return every line of values.csv but the times."""
    with (out / "values.csv").open() as file:
        return [tuple(row) for row in csv.reader(file) if row[2] != "seconds"]


def test_the_result_holds_every_cell_with_its_interval(made, settings):
    found = json.loads((made / "results.json").read_text())
    methods = [method["id"] for method in found["methods"]]
    assert methods == ["SIGMA", "IG", "rollout", "gradient", "random"]
    assert [method["control"] for method in found["methods"]] == [False, False, False, True, True]
    assert [entry["method"] for entry in found["left_out"]] == ["rollout"]
    metrics = [metric["id"] for metric in found["metrics"]]
    assert {"insertion", "sic", "sensitivity_n", "iou", "relative_stderr", "stability", "seconds"} < set(metrics)
    assert len(found["cells"]) == 4 * len(metrics)
    images = found["dataset"]["images"]
    for cell in found["cells"]:
        n = 3 if cell["metric"] == "stability" else images  # of the first batch
        assert cell["n"] + sum(cell["skipped"].values()) == n
        if cell["n"]:
            assert cell["low"] <= cell["mean"] <= cell["high"]
        assert not (cell["clear"] and not cell["best"])
        assert not (cell["best"] and cell["method"] in ("gradient", "random"))
    assert {line["method"] for line in found["curves"][0]["lines"]} == {"SIGMA", "IG", "gradient", "random"}
    sanity = {entry["method"]: entry for entry in found["sanity"]}
    assert sanity["random"]["similarity"]["mean"] == pytest.approx(1)
    assert sanity["random"]["changed"] is False
    assert found["run"]["versions"]["torch"]
    for name in ("report.html", "values.csv", "arrays.npz"):
        assert (made / name).stat().st_size > 0


def test_the_values_are_what_the_engine_gives(made, settings):
    run = BenchmarkRun(settings, made, quiet())
    rows = [row for row in measured(made)[1:] if row[1] == "gradient" and row[2] == "insertion"]
    assert [int(row[3]) for row in rows] == run.evaluated.indices
    images, labels = SOURCE.split("test").batch(run.evaluated.indices)
    classifier = run.models["a"].cpu()
    from robustsigma.engine import noise
    from robustsigma.engine.metrics import MetricContext

    seeds = noise.image_seeds(0, "benchmark", "metrics", 0, torch.tensor(run.evaluated.indices))
    subject = MetricContext(classifier, images, labels, seed=seeds)
    expected = InsertionDeletion(step=64)(subject, Gradient()(classifier, images, labels)).values["insertion"]
    np.testing.assert_allclose([float(row[4]) for row in rows], expected.numpy(), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("after", [0, 1, 2])
def test_interrupted_it_goes_on_and_ends_with_the_same_numbers(settings, made, tmp_path, monkeypatch, after):
    add, written = Blocks.add, []

    def stop(self, start, rows):
        if len(written) == after:
            raise KeyboardInterrupt
        written.append((self.path.stem, start))
        add(self, start, rows)

    monkeypatch.setattr(Blocks, "add", stop)
    with pytest.raises(KeyboardInterrupt):
        run_benchmark(settings, tmp_path, console=quiet())
    assert not (tmp_path / "results.json").exists()

    def record(self, start, rows):
        written.append((self.path.stem, start))
        add(self, start, rows)

    monkeypatch.setattr(Blocks, "add", record)
    run_benchmark(settings, tmp_path, console=quiet())
    assert len(written) == len(set(written)) == 3  # nothing twice
    assert measured(tmp_path) == measured(made)


def test_batches_do_not_matter(settings, made, tmp_path):
    other = dataclasses.replace(settings, batch_size=7, checked=0)
    run_benchmark(other, tmp_path, console=quiet())

    def table(out: Path) -> dict[tuple[str, ...], tuple[str, str]]:
        return {row[:4]: row[4:] for row in measured(out) if row[2] not in ("stability", "randomization")}

    one, many = table(tmp_path), table(made)
    assert one.keys() == many.keys()
    for key, (value, skipped) in one.items():
        assert skipped == many[key][1]
        if key != ("model", "method", "metric", "image") and value:
            assert float(value) == pytest.approx(float(many[key][0]), abs=1e-4), key


def test_a_folder_of_other_settings_or_another_model_is_refused(settings, made, tmp_path):
    with pytest.raises(ValueError, match=r"out: expected .* images = 8"):
        run_benchmark(dataclasses.replace(settings, images=8), made, console=quiet())
    path = settings.models["a"]
    before = Path(path).read_bytes()
    try:
        saved(Path(path), 4)
        with pytest.raises(ValueError, match=r"out: expected .* network weights"):
            run_benchmark(settings, made, console=quiet())
    finally:
        Path(path).write_bytes(before)


def test_a_folder_of_a_network_that_code_makes_is_of_its_weights(settings, tmp_path, monkeypatch):
    module = types.ModuleType("networks_of_mine")
    exec("from torch import nn\ndef make():\n    return SEED[0]()", vars(module))
    monkeypatch.setitem(sys.modules, "networks_of_mine", module)

    def make(seed):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return SOURCE_NET.build(3, 5)

    module.SEED = [lambda: make(0)]
    mine = Pretrained("networks_of_mine.make", classes=5, mean=[0.5], std=[0.5], geometry=ResizeCrop(16))
    of = dataclasses.replace(settings, models={"mine": mine}, methods={}, allow=("networks_of_mine",))
    first = BenchmarkRun(of, tmp_path / "out", quiet())
    BenchmarkRun(of, tmp_path / "out", quiet())
    module.SEED = [lambda: make(1)]
    with pytest.raises(ValueError, match=r"out: expected .* network weights"):
        BenchmarkRun(of, tmp_path / "out", quiet())
    assert first.store


def test_a_folder_is_of_its_images_and_masks(settings, tmp_path):
    def of(change):
        test = settings.dataset.split("test")
        parts = [test.images.clone(), test.labels.clone(), test.masks.clone()]
        if change is not None:
            parts[change][-1] = parts[change][-1] == 0
        source = Datasets(test=ArrayDataset(*parts), classes=settings.dataset.classes)
        return dataclasses.replace(settings, dataset=source, methods={})

    BenchmarkRun(of(None), tmp_path, quiet())
    BenchmarkRun(of(None), tmp_path, quiet())
    for change in (0, 1, 2):
        with pytest.raises(ValueError, match=r"^out: expected .* the data \(images and labels\) of the run"):
            BenchmarkRun(of(change), tmp_path, quiet())


@pytest.mark.slow
def test_a_damaged_batch_or_choice_of_images_is_told_and_made_again(settings, made, tmp_path):
    out = shutil.copytree(made, tmp_path / "out")
    for place in ("scores/a.npz", "evaluated_images.json"):
        content = (out / place).read_bytes()
        (out / place).write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match=rf"{place}: expected an? .* that is whole, got .*; delete it, and"):
            run_benchmark(settings, out, console=quiet())
        (out / place).unlink()
        run_benchmark(settings, out, console=quiet())
        assert measured(out) == measured(made)


def test_a_folder_is_of_the_source_of_what_is_allowed(settings, tmp_path, monkeypatch):
    module = f"mine_{tmp_path.name.translate(str.maketrans('-[]', '___'))}"
    (tmp_path / f"{module}.py").write_text("STEPS = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    of = dataclasses.replace(settings, allow=(module, "nowhere"))
    BenchmarkRun(of, tmp_path / "out", quiet())
    BenchmarkRun(of, tmp_path / "out", quiet())
    (tmp_path / f"{module}.py").write_text("STEPS = 2\n")
    with pytest.raises(ValueError, match=rf"out: expected .*code\.{module} = \w+ \(the folder has \w+\)"):
        BenchmarkRun(of, tmp_path / "out", quiet())


def test_references_count_by_content(settings, tmp_path):
    images = torch.zeros(3, 3, 16, 16)
    other = images.clone()
    other[1, 1, 8, 8] = 1  # which a tensor's print leaves out
    of = [
        dataclasses.replace(settings, methods={"EG": ExpectedGradients(2, references=each)}) for each in (images, other)
    ]
    BenchmarkRun(of[0], tmp_path / "out", quiet())
    with pytest.raises(ValueError, match=r"out: expected .*references.*sha256"):
        BenchmarkRun(of[1], tmp_path / "out", quiet())


def test_all_methods_draw_from_the_same_seeds(settings, tmp_path):
    of = dataclasses.replace(settings, methods=dict.fromkeys(("one", "two"), METHODS["SIGMA"]), metrics=METRICS[-1:])
    of = dataclasses.replace(of, keep_maps=True)
    run = BenchmarkRun(of, tmp_path, quiet())
    run.run(WHOLE)
    one, two = (run.arrays("a")[name]["map"] for name in ("one", "two"))
    np.testing.assert_array_equal(one, two)


def test_weights_are_shuffled_by_the_runs_seed(settings, tmp_path, monkeypatch):
    seeds, shuffle = [], running.shuffle_parameters
    monkeypatch.setattr(running, "shuffle_parameters", lambda net, seed: seeds.append(seed) or shuffle(net, seed))
    BenchmarkRun(dataclasses.replace(settings, methods={}, metrics=METRICS[-1:], seed=3), tmp_path, quiet()).run()
    assert seeds == [3]


def test_max_sensitivity_is_measured_on_the_checked_images(settings, tmp_path):
    of = dataclasses.replace(settings, methods={"IG": METHODS["IG"]}, metrics=METRICS[-1:], sensitivity_samples=2)
    report = run_benchmark(of, tmp_path, console=quiet())
    found = {cell["method"]: cell for cell in report.results.cells if cell["metric"] == "max_sensitivity"}
    assert found["IG"]["n"] == 3
    assert found["IG"]["mean"] > 0 == found["random"]["mean"]
    assert "Max-sensitivity" in report.path.read_text()


def test_references_of_the_evaluated_split_are_images_that_are_not_evaluated(settings, tmp_path):
    of = dataclasses.replace(settings, split="train", dataset=dataclasses.replace(SOURCE, train=60), references=60)
    run = BenchmarkRun(of, tmp_path, quiet())
    references, others = run.references(), run.split.batch(run.evaluated.indices)[0]
    assert len(references) == 60 - len(others)
    assert not (references[:, None] == others).flatten(2).all(2).any()


@pytest.mark.slow
def test_several_models_are_evaluated_on_the_same_images(settings, tmp_path):
    models = {**settings.models, "b": saved(tmp_path / "b.safetensors", 3, scale=0.9)}
    few = dataclasses.replace(settings, models=models, images=2, metrics=METRICS[:1], methods={"IG": METHODS["IG"]})
    run_benchmark(few, tmp_path / "out", console=quiet())
    rows = measured(tmp_path / "out")[1:]
    images = {model: {row[3] for row in rows if row[0] == model} for model in models}
    assert images["a"] == images["b"]
    x, y = SOURCE.split("test").batch([int(index) for index in images["a"]])
    for classifier in BenchmarkRun(few, tmp_path / "out", quiet()).models.values():
        with classifier.cpu().frozen():
            assert torch.equal(classifier.logits(x).argmax(1), y)


@pytest.mark.slow
@pytest.mark.third_party_rng
def test_without_a_model_one_is_trained_and_without_masks_their_metrics_are_left_out(tmp_path):
    fast = tmp_path / "fast.yaml"
    fast.write_text(
        "training: {epochs: 1}\nimages: 5\nchecked: 0\nbatch_size: 5\n"
        "methods: {IG: {class_path: robustsigma.IntegratedGradients, init_args: {steps: 2}}}\n"
    )
    arguments = ["benchmark", "--preset", "digits", "--config", str(fast), "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["dataset"]["masks"] is False
    assert not {"iou", "pointing_game", "stability"} & {metric["id"] for metric in found["metrics"]}
    assert found["run"]["command"].startswith("robustsigma benchmark --preset digits")
    weights = tmp_path / "out" / "training" / "models" / "seed0" / "base.safetensors"
    stamp = weights.stat().st_mtime_ns
    assert main(arguments) == 0
    assert weights.stat().st_mtime_ns == stamp


@pytest.mark.third_party_rng
def test_a_model_that_is_not_given_is_planned_as_an_evaluation_does(tmp_path):
    one = Benchmark(SOURCE, metrics=METRICS[:1], architecture=SOURCE_NET)
    assert (BenchmarkRun(one, tmp_path / "run", quiet())._plan.mean, one.mean) == ((0.5,), None)
    BenchmarkRun(dataclasses.replace(one, mean=(0.5,), std=(0.25,)), tmp_path / "run", quiet())  # of an earlier version
    weights = saved(tmp_path / "a.safetensors", 0)
    given = dataclasses.replace(one, architecture=dataclasses.replace(SOURCE_NET, weights=weights))
    assert BenchmarkRun(given, tmp_path / "given", quiet())._plan.mean == (0.0,), "its file says so"
    torch.save(SOURCE_NET.build(3, 5).state_dict(), tmp_path / "net.pt")
    given = dataclasses.replace(given, architecture=dataclasses.replace(SOURCE_NET, weights=str(tmp_path / "net.pt")))
    with pytest.raises(ValueError, match=r"^mean and std: expected the numbers"):
        BenchmarkRun(given, tmp_path / "other", quiet())
    for place in ("a", "b"):
        (tmp_path / "images" / place).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / place / "0.png")
    tests = dataclasses.replace(one, dataset=ImageFolder(str(tmp_path / "images"), test_fraction=1))
    with pytest.raises(ValueError, match=r"^models: expected at least one, as ImageFolder has no training images"):
        BenchmarkRun(tests, tmp_path / "other", quiet())
    assert not (tmp_path / "other").exists()


def test_numbers_that_are_not_finite_are_no_reason_to_leave_a_method_out(settings, tmp_path, monkeypatch):
    def broken(self, *_):
        raise not_finite("logits", self)

    monkeypatch.setattr(IntegratedGradients, "attribute", broken)
    with pytest.raises(ValueError, match=r"^net: expected finite logits, got NaN or infinity, in IntegratedGradients"):
        run_benchmark(settings, tmp_path / "out", console=quiet())


@pytest.mark.parametrize("name", ["baggage", "digits", "mnist5k"])
def test_presets(name):
    found = PRESETS.load(name)
    assert set(found.methods) >= {"SIGMA", "IG", "Credible path", "gradient", "random"}
    assert len(found.methods) == 12
    assert found.images == 100


@pytest.mark.parametrize("name", ["folder", "photographs", "saliency_bench"])
def test_configs_parse(name, capsys):
    path = Path(__file__).parents[2] / "configs" / "benchmark" / f"{name}.yaml"
    assert main(["benchmark", "--config", str(path)]) == 2  # its paths are the reader's own
    assert "expected" in capsys.readouterr().err


def test_evaluated_images_are_those_that_all_models_classify_correctly():
    dataset = Digits().split("test")

    class Knows(torch.nn.Module):
        def __init__(self, classes: set[int]) -> None:
            super().__init__()
            self.classes = classes
            self.answers = {dataset[i][0].flatten().numpy().tobytes(): dataset[i][1] for i in range(len(dataset))}

        def forward(self, x):
            truth = torch.tensor([self.answers[row.flatten().numpy().tobytes()] for row in x])
            said = torch.where(torch.isin(truth, torch.tensor(sorted(self.classes))), truth, (truth + 1) % 10)
            return torch.nn.functional.one_hot(said, 10).float()

    found = find_images(dataset, {"a": Classifier(Knows({1, 2, 3})), "b": Classifier(Knows({2, 3, 4}))}, 12, seed=0)
    assert len(found.indices) == 12
    assert found.indices == sorted(found.indices)
    assert set(found.labels.tolist()) <= {2, 3}
    assert [dataset[i][1] for i in found.indices] == found.labels.tolist()
    assert len(found.correct["a"]) == found.tried
    with pytest.raises(ValueError, match="classify correctly"):
        find_images(dataset, {"a": Classifier(Knows({1})), "b": Classifier(Knows({2}))}, 12, seed=0)


def test_an_image_is_passed_over_that_any_model_gets_wrong():
    assert misclassified({"a": [1.0, 0.0, 1.0, 0.0], "b": [1.0, 1.0, 0.0, 0.0]}) == 3


def test_shown_images_are_of_different_classes():
    assert gallery_places(torch.tensor([2, 2, 0, 1, 0]), 2) == [2, 3]
    assert gallery_places(torch.tensor([2, 2, 0, 1, 0]), 4) == [2, 3, 0, 4]
    assert gallery_places(torch.tensor([1, 1]), 8) == [0, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": ()}, "metrics: expected at least one"),
        ({"metrics": (Cost(), Cost())}, "forwards twice"),
        ({"images": 0}, "images: expected"),
        ({"batch_size": 0}, "batch_size: expected"),
        ({"checked": -1}, "checked: expected"),
        ({"split": "all"}, "split: expected"),
        ({"methods": {"../x": Gradient()}}, "name among methods"),
        ({"models": {"a/b": "c"}}, "name among models"),
        ({"methods": {"my IG": Gradient(), "my_ig": Gradient()}}, "methods: expected names that differ"),
        ({"methods": {"Random": IntegratedGradients()}}, "methods: expected names .*'Random', 'random'"),
        ({"models": {"a": "c", "A": "d"}}, "models: expected names .* got 'a', 'A'"),
        ({"methods": {"random": IntegratedGradients()}}, "methods: expected RandomAttribution"),
    ],
)
def test_bad_settings(change, message):
    with pytest.raises(ValueError, match=message):
        Benchmark(**{"metrics": (Cost(),), **change})


def test_controls_are_always_rows():
    found = Benchmark(metrics=(Cost(),), methods={"mine": Gradient()})
    assert [type(method) for method in found.methods.values()] == [Gradient, RandomAttribution]


def test_a_model_of_other_images_is_refused(settings, tmp_path):
    other = Baggage(size=32, train=20, val=5, test=20)
    with pytest.raises(ValueError, match=r"models.a: expected a model of \(3, 32, 32\)"):
        run_benchmark(dataclasses.replace(settings, dataset=other), tmp_path, console=quiet())
    few = dataclasses.replace(settings, metrics=(Localization(),), dataset=Datasets(
        test=TensorDataset(torch.zeros(2, 3, 16, 16), torch.zeros(2).long()), classes=SOURCE.classes))  # fmt: skip
    with pytest.raises(ValueError, match="metrics: expected one that needs no masks"):
        run_benchmark(few, tmp_path, console=quiet())
    assert not list(tmp_path.iterdir()), "the folder is not bound to settings that have to change"
    card = ModelCard(SOURCE_NET, other.classes, (3, 224, 224), geometry=ResizeCrop(224, 256))
    with pytest.raises(ValueError, match=r"; if .* of 32 pixels, add geometry: \{size: 32\} to models\.a$"):
        adapt_to_models(other, {"a": card})
    with pytest.raises(ValueError, match="model: expected an existing"):
        run_benchmark(dataclasses.replace(settings, models={"a": "none.safetensors"}), tmp_path / "b", console=quiet())
