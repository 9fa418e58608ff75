"""Projects of other people, whose only change is the lines marked `# robustsigma`, under both Lightning packages."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from pictures import MEAN, STD

from robustsigma import Classifier
from robustsigma.lightning.robust_callback import stage_seed

HERE = Path(__file__).parent
NORMALIZED, PIXELS = {"mean": MEAN, "std": STD}, {}
# Each project's network, its statistics, and images and labels of a batch.
PROJECTS = {
    "hydra_template": (lambda m: m.net, NORMALIZED, (0, 1)),
    "mixup_in_step": (lambda m: m, PIXELS, (0, 1)),
    "cutmix_in_collate": (lambda m: m.model, NORMALIZED, (0, 1)),
    "dict_batches_ema": (lambda m: m.backbone, NORMALIZED, ("image", "target")),
    "two_networks": (lambda m: m.student, NORMALIZED, (0, 1)),
    "streams": (lambda m: m.net, PIXELS, ("pixels", "label")),
    "normalized_on_device": (lambda m: m.net, NORMALIZED, (0, 1)),
}
pytestmark = [
    pytest.mark.third_party_rng,
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists"),
]


def load(name, package="pytorch_lightning", robust=True, **changes):
    """Return a project as a module, under either package, with or without the marked lines."""
    pytest.importorskip(package)  # this project does not depend on the name `lightning`
    if name == "dict_batches_ema":
        pytest.importorskip("timm")
    lines = (HERE / f"{name}.py").read_text(encoding="utf-8").splitlines()
    marked = [line for line in lines if line.endswith("  # robustsigma")]
    assert 1 <= len(marked) <= 3
    text = "\n".join(lines if robust else [line for line in lines if line not in marked])
    text = text.replace("pytorch_lightning", package)
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    module = sys.modules[f"project_{name}"] = ModuleType(f"project_{name}")
    exec(compile(text, name, "exec"), vars(module))
    return module


def run(name, folder, *args, **kwargs):
    torch.default_generator.manual_seed(1)
    return load(name, *args, **kwargs).main(folder)


def part(batch, place):
    return batch[place] if isinstance(batch, (dict, list, tuple)) else getattr(batch, place)


def plain_loop(net, loader, conditions, places, stage="val", **statistics):
    """Return the accuracy under each condition, as a loop over the loader gives it."""
    classifier, correct, count = Classifier(net, **statistics), dict.fromkeys(conditions, 0), 0
    for batch in loader:
        images, labels = (part(batch, place) for place in places)
        pixels = (images * classifier.std + classifier.mean).clamp(0, 1)
        for name, condition in conditions.items():
            made = condition(classifier, pixels, labels, seed=stage_seed(0, stage, name))
            with classifier.frozen():
                correct[name] += int((classifier.logits(made).argmax(1) == labels).sum())
        count += len(labels)
    return {f"{stage}/{name}_acc": n / count for name, n in correct.items()}


@pytest.mark.parametrize("package", ["pytorch_lightning", "lightning.pytorch"])
@pytest.mark.parametrize("name", PROJECTS)
def test_a_project_logs_what_a_plain_loop_gives(name, package, tmp_path):
    net, statistics, places = PROJECTS[name]
    trainer, module, loader = run(name, tmp_path, package)
    conditions = sys.modules[f"project_{name}"].CONDITIONS
    expected = plain_loop(net(module), loader, conditions, places, **statistics)
    logged = {key: float(trainer.callback_metrics[key]) for key in expected}
    assert logged == pytest.approx(expected, abs=1e-6)
    assert logged["val/clean_acc"] == pytest.approx(float(trainer.callback_metrics["val/acc"]), abs=1e-6)
    assert "training_step" not in vars(module)
    if package != "pytorch_lightning":
        return
    _, untouched, _ = run(name, tmp_path / "plain", robust=False)
    assert [*untouched.state_dict()] == [*module.state_dict()]
    weights = zip(untouched.state_dict().values(), module.state_dict().values(), strict=True)
    assert any(not torch.equal(mine, theirs) for mine, theirs in weights), "the training saw no perturbed image"


@pytest.mark.parametrize("package", ["pytorch_lightning", "lightning.pytorch"])
def test_a_run_resumed_in_the_middle_of_an_epoch_is_the_same(package, tmp_path):
    whole, module, _ = run("resumable", tmp_path, package)
    torch.default_generator.manual_seed(2)
    resumed, again, _ = load("resumable", package).main(tmp_path, tmp_path / "step=6.ckpt")  # of 4 steps an epoch
    assert all(map(torch.equal, module.state_dict().values(), again.state_dict().values()))
    assert resumed.callback_metrics == whole.callback_metrics
    assert len(whole.callback_metrics) == 4


def test_the_training_is_the_users_own_but_for_the_images(tmp_path):
    """Conditions alone change no bit, whichever epochs are measured."""
    _, plain, _ = run("hydra_template", tmp_path / "plain", robust=False)
    measured = {"Mixture({attack: 0.5}), CONDITIONS": "None, {'FGSM': attack}, every_n_epochs=2"}
    measured['"val/FGSM_acc"'] = '"val/acc"'  # that EarlyStopping looks at, in every epoch
    trainer, module, _ = run("hydra_template", tmp_path, **measured)
    assert all(map(torch.equal, module.state_dict().values(), plain.state_dict().values()))
    assert "val/FGSM_acc" in trainer.callback_metrics


def test_test_and_validate_alone(tmp_path):
    trainer, module, _ = run("hydra_template", tmp_path)
    conditions, data = sys.modules["project_hydra_template"].CONDITIONS, trainer.datamodule
    for verb, stage in (("test", "test"), ("validate", "val")):
        (logged,) = getattr(trainer, verb)(module, data, verbose=False)
        expected = plain_loop(
            module.net, getattr(data, f"{stage}_dataloader")(), conditions, (0, 1), stage, **NORMALIZED
        )
        assert {key: logged[key] for key in expected} == pytest.approx(expected, abs=1e-6)
        assert logged[f"{stage}/clean_acc"] == pytest.approx(logged[f"{stage}/acc"])
