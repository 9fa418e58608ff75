"""The scripts of SIGMA's tables and figures, in their fast form."""

import json

import pytest
import torch
from cases import generator
from PIL import Image
from scripts import results, script, untrained

from robustsigma import Classifier, IntegratedGradients, Sigma
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


@pytest.fixture(scope="module")
def classifier():
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return Classifier(SmallCNN(3, 4, width=4)).eval()


def shown(path):
    with Image.open(path) as picture:
        return min(picture.size)


def test_path(run, tmp_path):
    found, printed = run("sigma_path")
    of = found["net"]["shares"]
    assert of["IG: points"]["n"] == 4
    assert 0 <= of["IG: points"]["mean"] <= 1
    assert "| SIGMA | " in printed
    assert shown(tmp_path / "sigma_path.png") > 100


def test_a_recorded_path_is_the_attribution(classifier):
    made, image = script("shared.walked"), torch.rand(3, 16, 16, generator=generator(0))
    sigma = Sigma(paths=1, max_steps=5, alpha=0.02, objective="logit", min_sum_ratio=0, epsilon=1e-6)
    walked = made.walk(classifier, sigma, image, 1, 3, "log_prob")
    assert len(walked.points) == int(walked.result.steps) == 5
    torch.testing.assert_close(walked.probability, walked.result.confidence[0, 0, 1:])
    before = walked.result.confidence[0, 0, :-1]
    scale = (before - walked.probability) / walked.gradients.flatten(1).sum(1)
    values = (walked.gradients * scale.reshape(-1, 1, 1, 1)).sum(0)
    torch.testing.assert_close(values, walked.result.values[0], rtol=1e-3, atol=1e-5)
    parts = script("sigma_path").of_sigma(walked, float(before[0]))
    torch.testing.assert_close(
        parts.float(), (walked.gradients.flatten(1).abs().sum(1) * scale.abs()), rtol=1e-3, atol=1e-6
    )
    assert "score_and_gradient" not in vars(classifier)


def test_a_recorded_line_is_the_attribution(classifier):
    image = torch.rand(3, 16, 16, generator=generator(1))
    line = IntegratedGradients(steps=8, rule="midpoint", score="prob")
    walked = script("shared.walked").walk(classifier, line, image, 2, 0, "prob")
    torch.testing.assert_close((image * walked.gradients).mean(0), walked.result.values[0])


def test_sensitive_points_are_those_between():
    made = script("shared.walked")
    none = torch.zeros(0)
    walked = made.Walked(None, none, torch.tensor([0.79, 0.5, 0.09, 0.07]), none)
    assert walked.sensitive(0.8).tolist() == [False, True, True, False]


def test_tsne(run, tmp_path):
    pytest.importorskip("sklearn")
    found, _ = run("sigma_tsne")
    assert {"clean images", "SIGMA's ends", "IG2's ends"} == set(found["net"]["outside"])
    assert found["net"]["outside"]["clean images"]["n"] > 3
    assert shown(tmp_path / "sigma_tsne.png") > 300


def test_outside_is_one_at_the_usual_distance():
    among = torch.tensor([[0.0, 2.0, 9.0], [2.0, 0.0, 9.0], [9.0, 9.0, 0.0]])
    away, targets = torch.tensor([[8.0, 6.0, 1.0], [4.0, 2.0, 1.0], [1.0, 1.0, 1.0]]), torch.tensor([0, 0, 1])
    found = script("sigma_tsne").outside(away, torch.tensor([0, 0, 1]), among, targets)
    assert found == [3, 1]  # of the class with one image there is no usual distance


def test_bounds(run, tmp_path):
    found, printed = run("sigma_bounds")
    assert [row["paths"] for row in found["net"]] == [3, 6]
    assert "| 6 | " in printed
    assert shown(tmp_path / "sigma_bounds.png") > 300


def test_intervals_of_paths_cover_as_they_say():
    made = script("sigma_bounds")
    maps, others = (1 + torch.randn(n, 40, 40, generator=generator(n)) for n in (30, 31))
    found = made.measure(maps, others)
    assert 0.92 < found["covered"] < 0.97
    assert found["relative error"] == pytest.approx(30**-0.5, rel=0.05)


def test_maps(run, tmp_path):
    found, printed = run("sigma_maps")
    assert {"IG", "Guided IG", "IG2", "SIGMA", "gradient", "random"} == {cell["method"] for cell in found["cells"]}
    assert "| SIGMA | " in printed
    assert shown(tmp_path / "sigma_maps.png") > 600
    chosen = script("sigma_maps").highest(torch.tensor([[1.0, 3.0], [2.0, 0.0]]).numpy(), 2)
    assert chosen.tolist() == [[False, True], [True, False]]


def test_parameters(run):
    found, printed = run("sigma_parameters", "--only", "epsilon 0_9", "paths 3", "IG", "--alpha", "3")
    agreement = {cell["method"]: cell for cell in found["agreement"]}
    assert agreement["middle"]["mean"] == 1
    assert agreement["paths 3"]["mean"] < 1
    assert "| epsilon 0.9 | " in printed
    assert "39.75" in printed


@pytest.mark.third_party_rng  # weights and dropout
def test_patches(tmp_path, capsys):
    script("sigma_patches").main(["--fast", "--work", str(tmp_path / "work"), "--out", str(tmp_path)])
    found = results(tmp_path, "sigma_patches")["base"]
    assert found["Attention rollout"]["rollout"]["mean"] == pytest.approx(1)
    assert "patches of 4 pixels" in capsys.readouterr().out
    assert shown(tmp_path / "sigma_patches.png") > 300


def test_structure_inside_patches():
    measure = script("sigma_patches").measure
    rollout = torch.arange(16.0).reshape(4, 4).repeat_interleave(8, 0).repeat_interleave(8, 1)
    smooth = rollout + torch.linspace(0, 0.5, 32)
    noise = rollout + torch.rand(32, 32, generator=generator(0))
    assert measure(smooth, rollout, 8)["rollout"] == pytest.approx(1)
    assert measure(smooth, rollout, 8)["inside patches"] > 0.7
    assert abs(measure(noise, rollout, 8)["inside patches"]) < 0.1
    assert measure(rollout, rollout, 8)["inside patches"] is None


def test_tables(tmp_path, capsys):
    def cell(method, metric, low, high):
        return {
            "model": "A",
            "method": method,
            "metric": metric,
            "mean": (low + high) / 2,
            "low": low,
            "high": high,
            "n": 9,
        }

    cells = [cell("SIGMA", "sic", 0.5, 0.6), cell("IG", "sic", 0.1, 0.2), cell("IG2", "sic", 0.55, 0.7)]
    cells += [cell("SIGMA", "iou", 0.1, 0.2), cell("Guided IG", "iou", 0.3, 0.4)]
    given = {
        "dataset": {"images": 9, "masks": True},
        "models": [{"id": "A", "about": "a network"}],
        "methods": [{"id": name, "settings": name} for name in ("SIGMA", "IG", "IG2", "Guided IG", "random")],
        "cells": cells,
    }
    (tmp_path / "theirs.json").write_text(json.dumps(given))
    script("sigma_tables").main(["--from", str(tmp_path / "theirs.json"), "--out", str(tmp_path)])
    cells = results(tmp_path, "sigma_tables")["networks"][0]["cells"]
    assert cells["Guided IG"]["iou"] == {"mean": pytest.approx(0.35), "low": 0.3, "high": 0.4, "n": 9}
    assert "0.550 (0.500 to 0.600, n 9) [0.60, 0.60, 0.56, 0.75]" in capsys.readouterr().out
