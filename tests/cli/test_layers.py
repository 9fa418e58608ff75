"""A class that a later file or option names takes nothing from the settings below it, in every verb and every file."""

from __future__ import annotations

import dataclasses
import inspect
import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import yaml
from jsonargparse import Namespace

from robustsigma import FGSM, PGD, Sigma, SigmaSample
from robustsigma.cli import augment, explain, lightning_cli
from robustsigma.cli.benchmark import PRESETS as BENCHMARKS
from robustsigma.cli.evaluate import PRESETS as EVALUATIONS
from robustsigma.data import ImageFolder, SaliencyBench
from robustsigma.engine.attributors import IntegratedGradients
from robustsigma.models import Pretrained
from robustsigma.runs.fingerprint import describe

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
VERBS = {"evaluate": EVALUATIONS, "benchmark": BENCHMARKS}


def files_of(verb: str) -> list[Path]:
    return sorted((CONFIGS / verb).rglob("*.yaml"))


def configs(*files: object) -> list[str]:
    return [argument for file in files for argument in ("--config", str(file))]


def evaluation(*arguments: str, preset: str = "baggage") -> Any:
    return EVALUATIONS.load(preset, arguments)


def kind(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(__import__(module, fromlist=[name]), name)


def default_of(owner: Any, name: str) -> Any:
    fields = {field.name: field for field in dataclasses.fields(owner)} if dataclasses.is_dataclass(owner) else {}
    found = inspect.signature(owner).parameters.get(name)
    if found is not None and "<factory>" not in repr(found.default):
        return found.default
    # A factory, or one of its **kwargs.
    return fields[name].default_factory() if found is not None else None


def plain(value: Any) -> Any:
    """Return a value, parsed or made, in plain types."""
    if isinstance(value, Namespace) and "class_path" in value:
        return {"class": value.class_path.rpartition(".")[2], **plain(value.get("init_args", Namespace()))}
    if isinstance(value, Namespace):
        return {name: plain(part) for name, part in vars(value).items()}
    return describe(value)


def check(said: Any, found: Any) -> int:
    """Hold parsed settings to a file, and to the defaults of the classes that it names; return how many classes."""
    if isinstance(found, Namespace) and "class_path" in found:
        given = {} if isinstance(said, str) else said.get("init_args", {}) if "class_path" in said else said
        owner, count = kind(found.class_path), 1
        if isinstance(said, dict) and "class_path" in said:
            assert kind(said["class_path"]) is owner
        for name, value in vars(found.get("init_args", Namespace())).items():
            if name in given:
                count += check(given[name], value)
            else:
                assert plain(value) == plain(default_of(owner, name)), (owner, name)
        return count
    if isinstance(said, dict):
        assert isinstance(found, Namespace) or set(said) == set(found)
        return sum(check(part, found[name]) for name, part in said.items())
    if isinstance(said, list) and found is not None:
        assert len(said) == len(found)
        return sum(check(part, other) for part, other in zip(said, found, strict=True))
    assert found == said
    return 0


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_every_file_over_a_preset_says_what_its_classes_are(verb):
    presets, count = VERBS[verb], 0
    parser, folder = presets._parser("layers"), ROOT / presets.package.replace(".", "/") / "presets"
    layers = [(path, "mnist5k") for path in files_of(verb)]
    layers += [(folder / f"{name}.yaml", "baggage") for name in presets.names]
    for path, below in layers:
        found = parser.parse_args([*presets._configs(below), *configs(path)])
        count += check(yaml.safe_load(path.read_text(encoding="utf-8")), found)
    assert count > 100


@pytest.fixture
def fit(monkeypatch):
    """Return a function that parses a command line of `fit`."""
    parsed: list[Namespace] = []
    monkeypatch.setattr(lightning_cli._CLI, "instantiate_classes", lambda self: parsed.append(self.config.fit))
    monkeypatch.setattr(lightning_cli._CLI, "_run_subcommand", lambda *_: None)

    def parse(*arguments: str) -> Namespace:
        lightning_cli.run("fit", list(arguments))
        return parsed[-1]

    return parse


@pytest.mark.slow
@pytest.mark.third_party_rng  # `fit` seeds everything
def test_every_file_of_fit_says_what_its_classes_are(fit):
    below = [CONFIGS / "fit" / name for name in ("base.yaml", "baggage.yaml", "sigma.yaml", "overlays/robust.yaml")]
    for path in files_of("fit"):
        found = fit(*configs(*below, path))
        assert check(yaml.safe_load(path.read_text(encoding="utf-8")), found)


def test_a_file_of_one_entry_takes_the_defaults_of_its_class():
    names = "conditions: {clean: Identity, fgsm: FGSM, attack: robustsigma.FGSM, pgd: {class_path: PGD}}"
    found = evaluation("--config", names).conditions
    assert list(found) == ["clean", "fgsm", "attack", "pgd"]
    assert (found["fgsm"], found["attack"], found["pgd"]) == (FGSM(), FGSM(), PGD())


@pytest.mark.parametrize("name", ["digits", "mnist5k"])
def test_digits_are_explained_from_black(name):
    methods = BENCHMARKS.load(name).methods
    assert [methods[m].baseline for m in ("IG", "Left-IG", "Guided IG", "IDG")] == ["black"] * 4
    assert BENCHMARKS.load("baggage").methods["IG"].baseline == "white"


def test_a_dataset_has_a_size_of_its_own():
    cifar = evaluation(*configs(CONFIGS / "evaluate" / "cifar10.yaml"))
    assert cifar.dataset.size is None
    saliency = BENCHMARKS.load("baggage", configs(CONFIGS / "benchmark" / "saliency_bench.yaml"))
    assert saliency.dataset.size == SaliencyBench("x").size == 224


@pytest.mark.parametrize("name", ["figure10_cifar10", "figure10_photographs"])
def test_figure10_is_retrained_as_its_numbers_were(name):
    stored = json.loads((ROOT / "results" / f"{name}.json").read_text(encoding="utf-8"))["about"]
    found = evaluation(*configs(CONFIGS / "evaluate" / f"{name}.yaml"))
    assert found.retraining.retrain["fgsm"] == eval(stored["retrained on"]["fgsm"])  # settings added later are defaults
    assert found.conditions["fgsm"] == eval(stored["conditions"]["fgsm"])


@pytest.mark.slow
def test_an_option_that_names_a_class_takes_its_defaults():
    assert evaluation("--conditions.pgd", "PGD").conditions["pgd"] == PGD()
    assert evaluation("--conditions.pgd.class_path=FGSM").conditions["pgd"] == FGSM()
    assert evaluation("--conditions.sigma.init_args.sigma=Sigma").conditions["sigma"] == SigmaSample(Sigma())
    assert evaluation("--dataset=ImageFolder", "--dataset.root=x").dataset == ImageFolder("x")
    assert evaluation("--dataset.size=32", "--dataset.class_path=ImageFolder", "--dataset.root=x").dataset.size is None
    assert BENCHMARKS.load("baggage", ["--methods.IG=IntegratedGradients"]).methods["IG"] == IntegratedGradients()
    lists = BENCHMARKS.load("baggage", ["--metrics=[{class_path: InsertionDeletion, init_args: {step: 9}}, Cost]",
                                        "--metrics=[InsertionDeletion, Cost]"])  # fmt: skip
    assert lists.metrics[0].step is None


@pytest.mark.slow
def test_an_option_of_a_class_changes_one_argument_of_the_class_below():
    assert evaluation("--conditions.pgd.init_args.steps=3").conditions["pgd"] == PGD(0.0078431, steps=3)
    walk = evaluation().conditions["sigma"].sigma
    found = evaluation("--conditions.sigma.init_args.sigma.alpha=0.2").conditions
    assert found["sigma"] == SigmaSample(dataclasses.replace(walk, alpha=0.2))
    assert list(found) == list(evaluation().conditions)
    named = evaluation("--conditions.pgd.eps=0.1", "--conditions.pgd=FGSM", "--conditions.pgd.random_start=true",
                       "--config=training: {epochs: 3}", "--conditions.pgd.eps=0.2", "--training.lr=0.5")  # fmt: skip
    assert (named.training.epochs, named.training.lr) == (3, 0.5)
    assert named.conditions["pgd"] == FGSM(0.2, random_start=True)


@pytest.mark.slow
def test_a_file_within_a_file_lies_over_what_is_below(tmp_path):
    (tmp_path / "again.yaml").write_text("retrain: {clean: Identity, fgsm: FGSM}\n")
    (tmp_path / "mine.yaml").write_text("retraining: again.yaml\n")
    for given in (configs(tmp_path / "mine.yaml"), [f"--retraining={tmp_path}/again.yaml"]):
        found = evaluation(*given).retraining
        assert list(found.retrain) == ["clean", "fgsm"]
        assert found.retrain["fgsm"] == FGSM()
        assert found.on_the_fly == evaluation().retraining.on_the_fly


@pytest.mark.slow
def test_an_entry_without_a_class_and_an_empty_mapping():
    named = evaluation("--config=conditions: {clean: Identity, fgsm: {init_args: {random_start: true}}}")
    assert named.conditions["fgsm"] == FGSM(0.0078431, random_start=True)
    assert evaluation("--config=retraining: {on_the_fly: {}}").retraining.on_the_fly == {}
    assert evaluation("--config=dataset: {init_args: {size: 32}}").dataset.size == 32


@pytest.mark.slow
@pytest.mark.third_party_rng  # `fit` seeds everything
def test_fit_keeps_nothing_of_the_class_below(fit):
    base = configs(CONFIGS / "fit" / "base.yaml", CONFIGS / "fit" / "baggage.yaml", CONFIGS / "fit" / "sigma.yaml")
    found = fit(*base, "--model.optimizer=torch.optim.AdamW", "--data.dataset=MNIST5k", "--data.conditions.fgsm=FGSM",
                "--config=data: {train_perturbation: FGSM}")  # fmt: skip
    assert found.model.optimizer.init_args.lr == default_of(kind("torch.optim.AdamW"), "lr")
    assert found.data.conditions["fgsm"].init_args.eps == FGSM().eps
    assert found.data.train_perturbation.init_args.random_start is False
    assert fit(*base, "--model.optimizer.lr=0.5").model.optimizer.init_args.weight_decay == 0.001
    with redirect_stdout(io.StringIO()) as printed, pytest.raises(SystemExit):
        fit(*base, "--print_config")
    assert fit("--config", printed.getvalue()).as_dict() | {"config": None} == fit(*base).as_dict() | {"config": None}


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_printed_settings_give_the_same_over_any_preset(verb):
    presets = VERBS[verb]
    with redirect_stdout(io.StringIO()) as printed, pytest.raises(SystemExit):
        presets.parse(verb, "", "runs", ["--preset=digits", "--print_config"])
    again = presets.parse(verb, "", "runs", ["--config", printed.getvalue()]).settings
    assert describe(again) == describe(presets.load("digits"))


@pytest.mark.parametrize("module", [explain, augment])
def test_explain_and_augment_take_a_class_as_it_is(module, monkeypatch, tmp_path):
    parsed: list[Any] = []
    if module is explain:
        monkeypatch.setattr(explain, "_Explainer", lambda found, made, methods: parsed.append(made) or Mock())
    else:
        monkeypatch.setattr(augment, "_augment", lambda found, made: parsed.append(made))
    name, of = ("method", Sigma) if module is explain else ("perturbation", SigmaSample)

    def parse(*arguments: str) -> Any:
        module.run("verb", ["x.png", "--model=resnet18", *arguments])
        return parsed[-1][name]

    assert parse(f"--{name}={of.__name__}") == of()
    other = {"method": "IntegratedGradients", "perturbation": "FGSM"}[name]
    (tmp_path / "a.yaml").write_text(f"{name}: {{class_path: {other}, init_args: {INIT[other]}}}\n")
    (tmp_path / "b.yaml").write_text(f"{name}: {other}\n")
    assert parse(*configs(tmp_path / "a.yaml", tmp_path / "b.yaml")) == kind(f"robustsigma.{other}")()
    if module is explain:
        assert parse("--method.init_args.paths=3") == dataclasses.replace(Sigma.photographs(), max_steps=24, paths=3)
    else:
        found = parse("--perturbation.init_args.sigma.paths=3")
        assert found == SigmaSample(dataclasses.replace(SigmaSample().sigma, paths=3))


INIT = {"IntegratedGradients": "{steps: 7}", "FGSM": "{eps: 0.3}"}


def test_a_network_of_a_benchmark_inherits_nothing_from_another(tmp_path):
    first = "models: {m: {name: 'torchvision:resnet18', weights: first.pt, classes: 5, mean: [.1], std: [.9]}}"
    found = BENCHMARKS.load("digits", ["--config", first, "--config", "models: {m: {name: 'torchvision:resnet34'}}"])
    assert found.models["m"] == Pretrained("torchvision:resnet34")
