"""The Python of README and documentation runs as it stands there; what is quoted is true."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import cases
import metric_cases
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms.functional import normalize

from robustsigma.evaluation.training import quiet

ROOT = Path(__file__).parents[1]
PAGES = {
    path: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
}
SUMMARY, RETRAINING = (PAGES[ROOT / "docs" / "results" / f"{name}.md"] for name in ("index", "retraining"))
BLOCKS = [block for page in PAGES.values() for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL)]


class _Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = metric_cases.Colors()

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def _lightning_project() -> dict[str, Any]:
    """Return a module, and loaders of images that are normalized as ImageNet's are."""
    images, labels, _ = metric_cases.scene(4)
    data = TensorDataset(normalize(images, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]), labels)
    return {"my_module": _Module(), "my_train_loader": DataLoader(data, 2), "my_val_loader": DataLoader(data, 2)}


class _Layered(metric_cases.Colors):
    def __init__(self):
        super().__init__()
        self.layer4 = torch.nn.Identity()

    def forward(self, images):
        return super().forward(self.layer4(images))


@pytest.mark.third_party_rng  # a new network draws its weights, and a loader its order
@pytest.mark.parametrize(
    "place",
    [pytest.param(k, marks=[pytest.mark.slow] * ("benchmark(" in block)) for k, block in enumerate(BLOCKS)],
)
def test_runs(place, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images, labels, masks = metric_cases.scene(4)
    data = TensorDataset(images, labels)
    names: dict[str, Any] = {"images": images, "labels": labels, "masks": masks, "net": metric_cases.Colors()}
    names |= {"my_train": data, "my_val": data, "my_test": data, "my_classes": ("a", "b", "c"), "__name__": "mine"}
    names |= _lightning_project() | {"loader": DataLoader(data, 2)}
    names["classifier"] = cases.Classifier(metric_cases.Colors())
    if "benchmark(" in BLOCKS[place]:
        pytest.importorskip("captum")
        names["net"] = _Layered()
        (tmp_path / "maps").mkdir()
        for index, mask in enumerate(masks):
            np.save(tmp_path / "maps" / f"{index}.npy", mask.numpy().astype("float32"))
    code = BLOCKS[place].replace(
        "max_epochs=20", 'max_epochs=1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False'
    )
    code = code.replace("AutoAttack(8 / 255)", "AutoAttack(8 / 255, steps=2, queries=5)")
    assert (code != BLOCKS[place]) == ("Trainer" in code or "AutoAttack(" in code)
    with quiet():
        exec(compile(code, f"block {place}", "exec"), names)
    if "for method in" in code:
        lines = [line for line in code.splitlines() if line.strip()]
        assert len(lines) < 15
        printed = capsys.readouterr().out.splitlines()
        assert len(printed) == 3 * 7
        assert any("pointing_game" in line for line in printed)
    if "evaluate(" in code:
        assert "PGD" in capsys.readouterr().out
        assert (tmp_path / "runs" / "mine" / "report.html").is_file()
    if "benchmark(" in code:
        printed = capsys.readouterr().out
        assert all(method in printed for method in ("SIGMA", "Grad-CAM", "Occlusion", "mine", "theirs", "not measured"))
        assert (tmp_path / "runs" / "mine_benchmark" / "report.html").is_file()
    if "RobustCallback" in code:
        assert set(names["trainer"].callback_metrics) >= {"val/clean_acc", "val/FGSM_acc"}
    if "AttributionMonitor" in code:
        assert {"attribution/Sigma/clean_converged", "attribution/Sigma/FGSM_relative_stderr"} <= {
            *names["trainer"].callback_metrics
        }
        assert len([*tmp_path.rglob("attributions/Sigma/*.png")]) == 1
    if "trainer.test" in code:
        assert set(names["trainer"].callback_metrics) >= {"test_clean_acc", "test_noise_acc", "test_SIGMA_acc"}
    if "AutoAttack(" in code:
        assert list(names["attack"].accuracies(names["info"].found_by)) == ["clean", *names["attack"].attacks]
        assert names["state"].fraction == 1
    if "class Saliency" in code:
        found = names["Saliency"]()(names["classifier"], images, labels)
        assert (found.values.flatten(1).sum(1) > 0).all()


LOOP = """
import sys
import torch
torch.manual_seed(0)
layers = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Dropout(0.5)
net = torch.nn.Sequential(*layers, torch.nn.Linear(144, 3))
loader = [(torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])) for _ in range(3)]
before = net[1].running_mean.clone(), net[4].weight.clone()
{code}
assert all(module.training for module in net.modules())
assert not torch.equal(before[0], net[1].running_mean)
assert not torch.equal(before[1], net[4].weight)
assert not any(name.startswith(("lightning", "pytorch_lightning")) for name in sys.modules)
"""


def test_the_plain_loop_loads_no_lightning():
    (code,) = (block for block in BLOCKS if "optimizer.step()" in block)
    subprocess.run([sys.executable, "-c", LOOP.format(code=code)], check=True, timeout=120)


def test_links_between_files_lead_somewhere():
    files = [*PAGES, *(ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "experiments/README.md"))]
    links = [(path, link) for path in files for link in re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8"))]
    # Sphinx writes the pages of the API.
    local = [(path, link) for path, link in links if "://" not in link and "api/" not in link]
    assert len(local) > 50
    assert [(path.name, link) for path, link in local if not (path.parent / link).exists()] == []


def test_there_is_python_in_it():
    assert len(BLOCKS) == 21


def test_what_is_said_of_retraining_is_what_the_study_says():
    page = (ROOT / "results" / "does_it_help.md").read_text(encoding="utf-8").splitlines()
    said = [line for line in RETRAINING.split("## On top")[0].splitlines() if line.startswith(("- ", "|"))]
    assert len(said) > 10
    quoted = [line for line in SUMMARY.splitlines() if line.startswith("|")]
    assert len(quoted) == 4
    assert [line for line in (*said, *quoted) if line not in page] == []


def stored(name: str) -> Any:
    return json.loads((ROOT / "results" / f"{name}.json").read_text(encoding="utf-8"))


def test_the_numbers_in_short_are_those_of_the_results():
    """Each number is in the summary, in whatever sentence."""
    numbers: list[str] = []
    datasets = stored("training_step")["datasets"].values()
    numbers += [f"{data['steps'][name]['ratio']:.1f}" for data in datasets for name in ("mixed", "mixed, cached")]
    for line in stored("orders")["summary"]:
        every, holds, _, contradicted = re.findall(r"\d+", line.split(": ", 1)[1])
        numbers += [every, holds, contradicted] if contradicted != "0" else [every, holds]
    for entries in stored("sigma_settings")["datasets"].values():
        numbers += [f"{e['converged']['mean']:.0%}" for e in entries if e["name"] == "logit, the default"]
    text = " ".join(SUMMARY.split("## In short")[1].split("\n## ")[0].split())
    assert [each for each in numbers if not re.search(rf"(?<![\d.]){re.escape(each)}(?!\d|\.\d)", text)] == []
