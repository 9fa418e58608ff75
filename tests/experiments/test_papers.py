"""The scripts of the papers' tables and figures, in their fast form."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from scripts import results, script, untrained

from robustsigma import Classifier, CrediblePath, IntegratedGradients
from robustsigma.models import SmallCNN


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("net"))


@pytest.fixture
def run(net, tmp_path, capsys):
    """Run a script on the untrained network; return its results and what it printed."""

    def ran(name, *options):
        places = ["--work", str(tmp_path / "work"), "--out", str(tmp_path)]
        script(name).main(["--fast", "--model", net, *places, *options])
        return results(tmp_path, name), capsys.readouterr().out

    return ran


def _cell(found, method, metric):
    return next(c for c in found["cells"] if (c["method"], c["metric"]) == (method, metric))


def test_idg_table(run):
    found, printed = run("idg_table")
    made = script("idg_table")
    assert {cell["method"] for cell in found["cells"]} == {*made.METHODS, "gradient", "random"}
    assert _cell(found, "IDG", "insertion")["n"] == 4
    assert _cell(found, "IDG", "sic")["skipped"]  # the untrained network is sure of nothing
    difference = _cell(found, "IDG", "deletion")["mean"] - _cell(found, "IG", "deletion")["mean"]
    gain = next(g for g in found["IDG over others"] if (g["over"], g["metric"]) == ("IG", "deletion"))
    assert gain["mean"] == pytest.approx(-difference)  # less deletion is better
    assert "[0.498, 0.517, 0.276]" in printed
    assert found["run"]["command"].startswith(
        "python experiments/idg_table.py --fast --model net.safetensors --work work"
    )


def test_idg_table_of_a_benchmark(tmp_path, capsys):
    interval = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 7, "skipped": {}}
    cells = [{"model": "A", "method": name, "metric": "aic", **interval} for name in ("IDG", "SIGMA", "random")]
    kinds = [{"id": name, "control": name == "random"} for name in ("IDG", "SIGMA", "random")]
    given = {"methods": kinds, "cells": cells, "run": {"seconds": 1}}
    (tmp_path / "theirs.json").write_text(json.dumps(given))
    script("idg_table").main(["--from", str(tmp_path / "theirs.json"), "--out", str(tmp_path), "--name", "ours"])
    assert [cell["method"] for cell in results(tmp_path, "ours")["cells"]] == ["IDG", "random"]
    assert "| IDG | 0.500 (0.400 to 0.600, n 7) [0.701, 0.718, 0.730] |" in capsys.readouterr().out


def test_idg_ablation(run, tmp_path):
    found, printed = run("idg_ablation")
    assert _cell(found, "N 5 M 50", "deletion")["n"] == 4
    gain = next(g for g in found["N 50 M 50 over others"] if g["over"] == "N 5 M 50")
    assert f"| N 5 M 50 | {_cell(found, 'N 5 M 50', 'deletion')['mean']:.3f} (" in printed
    assert f"| {gain['mean']:.3f} (" in printed
    assert _picture(tmp_path / "idg_ablation.png").std() > 10


def test_idg_sampling(run, tmp_path):
    found, printed = run("idg_sampling")
    assert {"IG US", "IG AS", "IDG US", "IDG AS"} <= {cell["method"] for cell in found["cells"]}
    assert 0 <= _cell(found, "IDG AS", "iou")["mean"] <= 1
    assert "IDG AS over IDG US" in printed
    assert _picture(tmp_path / "idg_sampling.png").std() > 10


def test_credible_tables(run, tmp_path):
    found, printed = run("credible_tables", "--paper", "cifar10")
    made = script("credible_tables")
    assert found["paper"]["images"] == 1000
    assert _cell(found, made.OURS, "difference")["n"] == 4
    assert len(found["curves"]["net"]["share"]) == 10
    assert "0.589 (+7%) | 0.545 (+16%) | 0.512 (+5%)" in printed  # the gains that the paper's table 3 states
    assert _picture(tmp_path / "credible_tables.png").std() > 10


def test_gains_of_the_papers_tables():
    paper = script("credible_tables").PAPER
    told = {
        ("imagenet", "IG gaussian"): (-19.2, -18.1, -36.4),
        ("imagenet", "IG mean"): (25.4, 8.9, 33.7),
        ("imagenet", "AGI"): (7.6, -9.7, -4.4),
        ("imagenet", "Expected Gradients"): (7.9, 2.5, 7.69),
        ("imagenet", "Credible path"): (43.1, 23.5, 58.8),
        ("resnets", "Credible path"): (43.1, 34.5, 48.1),
        ("cifar10", "IG mean"): (2.1, 7.4, 1.8),
        ("cifar10", "Credible path"): (7.1, 16.1, 5.0),
    }
    for (which, method), percent in told.items():
        of = paper[which]["difference"]
        gains = [100 * (mine / ig - 1) for mine, ig in zip(of[method], of["IG"], strict=True)]
        assert gains == pytest.approx(percent, abs=0.11), (which, method)


@pytest.mark.third_party_rng  # weights and dropout
def test_a_network_is_trained_once(tmp_path):
    options = script("shared.options")
    given = options.parser("", images=4).parse_args(["--fast", "--work", str(tmp_path)])
    name, path = options.trained(given)
    before = (tmp_path / path).stat().st_mtime_ns
    assert options.models(given) == {name: path}
    assert (tmp_path / path).stat().st_mtime_ns == before


@pytest.mark.slow
@pytest.mark.third_party_rng  # weights and dropout
def test_figure10(tmp_path, capsys):
    script("figure10").main(["--fast", "--work", str(tmp_path / "work"), "--out", str(tmp_path)])
    found = results(tmp_path, "figure10")
    regimes = {entry["regime"] for entry in found["together"]}
    assert regimes == {"base", "clean/retrain", "gaussian/retrain", "fgsm/retrain", "sigma/retrain"}
    for entry in found["together"]:
        live = ["clean", "gaussian", f"fgsm/{entry['attack_setting']}", f"sigma/{entry['attack_setting']}"]
        cells = {c["condition"]: c["mean"] for c in found["cells"] if c["regime"] == entry["regime"]}
        assert entry["mean"] == pytest.approx(np.mean([cells[name] for name in live]))
    assert "All conditions, transfer: sigma/retrain over the control" in capsys.readouterr().out


def test_photographs_of_a_table_and_of_folders(tmp_path):
    options = script("shared.options")
    for name in ("ant", "bee"):
        (tmp_path / "folders" / name).mkdir(parents=True)
        Image.new("RGB", (9, 8), (1, 2, 3)).save(tmp_path / "folders" / name / "1.png")
    given = options.parser("", images=4).parse_args(["--root", str(tmp_path / "folders"), "--size", "8"])
    assert len(options.source(given).split("test")) == 2
    (tmp_path / "folders" / "labels.csv").write_text("path,class\nant/1.png,ant\nbee/1.png,bee\n")
    columns = ["--folder", ".", "--file-column", "path", "--label-column", "class"]
    given = options.parser("", images=4).parse_args(["--root", str(tmp_path / "folders"), *columns])
    assert options.source(given).classes == ("ant", "bee")
    assert options.source(given).file_column == "path"
    assert options.baseline(given) == "black"


def test_adaptive_points_of_ig_lie_where_the_score_rises():
    class Step(torch.nn.Module):
        def forward(self, x):
            level = x.mean((1, 2, 3), keepdim=False)
            return torch.stack([torch.sigmoid(80 * (level - 0.3)), torch.zeros_like(level)], 1)

    images = torch.ones(1, 1, 4, 4)
    made = script("shared.adaptive_ig").AdaptiveIG(steps=20)(Classifier(Step()), images, 0)
    curve = made.confidence[0, 0].flip(0)  # from the baseline; both ends are no points
    assert ((curve[1:-1] > 0.001) & (curve[1:-1] < 0.999)).float().mean() > 0.9
    uniform = IntegratedGradients(steps=200, rule="midpoint")(Classifier(Step()), images, 0)
    assert float(uniform.gap()) < 1e-3
    assert float(made.values.sum()) > 5 * float(uniform.values.sum())  # a plain mean of steep gradients


def test_valid_gradients_are_those_of_credible_path():
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        net = SmallCNN(3, 4, width=4).double().eval()
    classifier, images = Classifier(net), torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images = images.double()
    kind = script("shared.valid_gradients").ValidGradients
    made = kind(steps=12)(classifier, images, 1)
    # The same integration from a baseline that needs no search and is the black image.
    points = (torch.arange(12, dtype=torch.float64) + 0.5) / 12
    black = CrediblePath(steps=12, blurs=(0.1,), max_search=0, gap=0, alphas=points)
    search = black._search

    def given(*arguments):
        return search(*arguments)._replace(base=torch.zeros_like(images))

    object.__setattr__(black, "_search", given)
    expected = black(classifier, images, 1)
    torch.testing.assert_close(made.values, expected.values)
    torch.testing.assert_close(made.valid, expected.valid)


def _picture(path):
    assert path.stat().st_size < 200_000
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"), dtype=float)


def test_rounding(run):
    made = script("rounding")
    values = torch.tensor([1.0, 1 + 2**-11, 1 + 2**-10, -3.14159265, 1e-30, 6e4])
    rounded = made.to_tf32(values)
    assert rounded[:3].tolist() == [1.0, 1 + 2**-10, 1 + 2**-10]  # halves go away from zero
    torch.testing.assert_close(rounded, values, rtol=2**-11, atol=0)
    assert not (rounded.view(torch.int32) & 0x1FFF).any()
    found, printed = run("rounding", "--images", "2")
    of = found["net"]["SIGMA"]
    assert set(of) == set(made.ROUNDINGS)
    off = {name: row["end off"]["mean"] for name, row in of.items()}
    assert 0 < off["single"] < off["TF32"]
    assert off["gradients in TF32"] == off["gradients in bfloat16"] == off["single"]  # gradients do not lead the walk
    ranks = {name: row["ranks"]["mean"] for name, row in found["net"]["IG"].items()}
    assert ranks["single"] > ranks["TF32"] == ranks["gradients in TF32"] > ranks["gradients in bfloat16"] > 0.9
    assert "net, IG, against double precision" in printed


@pytest.mark.reference
def test_methods_of_other_packages(run):
    for package in ("captum", "saliency"):
        pytest.importorskip(package)
    found, printed = run("third_party_methods")
    names = [entry["id"] for entry in found["methods"]]
    assert {name.split()[0] for name in names} == {"SIGMA", "IG", "captum", "PAIR", "gradient", "random"}
    assert not found["left_out"]
    assert all(_cell(found, name, "difference")["n"] == 4 for name in names)
    ours, theirs = (_cell(found, name, "difference")["mean"] for name in ("IG", "captum IG"))
    assert ours == pytest.approx(theirs, abs=1e-4)
    assert "PAIR XRAI" in printed
