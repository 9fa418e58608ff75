"""The benchmark of speed in its fast form, and what its numbers rest on: the limit, the counts, the plain loop."""

import json
from pathlib import Path

import cases
import pytest
import torch
from PIL import Image
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PEERS = ("captum", "saliency", "torchattacks", "albumentations")


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    """Let `experiments` be imported, as it is from the project's folder."""
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.fixture
def run(tmp_path, monkeypatch):
    from experiments.speed.run import main

    def call(*options):
        code = main(["--fast", "--repeats", "1", "--threads", str(torch.get_num_threads()),
                     "--work", str(tmp_path / "work"), "--out", str(tmp_path), *options])  # fmt: skip
        path = tmp_path / f"speed_{DEVICE}.json"
        return code, json.loads(path.read_text())

    return call


def check(results, folder):
    for net in results["nets"].values():
        assert {"forward", "pair"} == set(net["limit"]["best"])
        for row in net["rows"].values():
            assert row.get("reported_as_counted", True)
            peers = [peer["times_ours"] for peer in row.get("peers", [])]
            for found in [row.get("efficiency"), row.get("cost_in_forwards"), *peers]:
                if found is not None:
                    assert 0 < found["low"] <= found["median"] <= found["high"]
            if "counted" in row and row["efficiency"] is not None and not row["settings"].startswith("randomization"):
                assert row["passes"]["forwards"] <= row["counted"]["forwards"]
                assert row["passes"]["backwards"] <= row["counted"]["backwards"]
    for path in folder.glob("speed_*.png"):
        with Image.open(path) as picture:
            assert min(picture.size) > 100


@pytest.mark.third_party_rng  # torchattacks' generators are lent and given back, weights are drawn
def test_the_fast_form_runs_and_goes_on(run, tmp_path, capsys):
    for name in PEERS:
        pytest.importorskip(name)
    rows = ["--rows", "SIGMA", "IG", "IG-bfloat16", "PGD", "Infidelity", "Gaps"]
    code, results = run("--nets", "small", *rows)
    assert code == 0
    check(results, tmp_path)
    found = results["nets"]["small"]["rows"]
    assert set(found) == {"SIGMA", "IG", "IG-bfloat16", "PGD", "Infidelity", "Gaps"}
    peers = {name: {peer["name"]: peer for peer in row.get("peers", [])} for name, row in found.items()}
    assert peers["SIGMA"]["one by one"]["deviation"] < 1e-6
    assert peers["IG"]["captum"]["deviation"] < 1e-6
    assert 1e-6 < peers["IG-bfloat16"]["full precision"]["deviation"] < 0.1
    assert found["IG-bfloat16"]["counted"] == found["IG"]["counted"]
    # The published code makes one forward pass more a step, and one more a path.
    paths, steps = 2, 2 * 2
    assert found["SIGMA"]["counted"] == {"forwards": 1 + 3 * steps, "backwards": steps}
    assert peers["SIGMA"]["one by one"]["passes"] == {"forwards": paths + 4 * steps, "backwards": steps}
    assert {path.name for path in tmp_path.glob("*.png")} == {
        f"speed_{DEVICE}_efficiency.png",
        f"speed_{DEVICE}_gap.png",
    }
    printed = capsys.readouterr().out
    assert "[6/6] small Gaps" in printed
    assert "| SIGMA, 7 paths |" in printed

    before = (tmp_path / "work" / DEVICE / "small" / "IG.json").read_bytes()
    _, again = run("--nets", "small", "--rows", "IG")
    assert again["nets"] == results["nets"]  # nothing was measured again, nothing was lost
    assert (tmp_path / "work" / DEVICE / "small" / "IG.json").read_bytes() == before


def test_forms_are_the_same_network():
    from experiments.speed.limit import forms

    net = cases.cnn_bn_dropout()
    found = forms(net)
    assert set(found) == {"plain", "folded", "channels_last", "both"}
    assert not any(isinstance(module, nn.BatchNorm2d) for module in found["both"].modules())
    x = cases.images()
    for form in found.values():
        torch.testing.assert_close(form(x), found["plain"](x), rtol=1e-4, atol=1e-5)
    assert net.training  # the network itself is left alone
    assert set(forms(cases.mlp())) == {"plain", "channels_last"}


def test_the_limit_is_the_cheapest_form():
    from experiments.speed.limit import Cost, Limit, Passes

    limit = Limit(cases.cnn_bn_dropout(), cases.images(1), (1, 2), least=0.0)
    for kind, (form, batch) in limit.best.items():
        assert limit.seconds[form, batch, kind] == min(s for key, s in limit.seconds.items() if key[2] == kind)
    assert len(limit.ratios()) == 4 * 2 * 2
    plain = [entry["ratio"] for entry in limit.ratios() if entry["form"] == "plain" and entry["kind"] == "pair"]
    assert min(plain) == 1
    # A backward pass costs what a pair costs beyond its forward pass.
    assert Cost(forward=2, pair=5).of(Passes(10, 4)) == 10 * 2 + 4 * 3


def test_passes_are_counted():
    from experiments.speed.limit import counted

    net, x = cases.mlp(), cases.images(5).requires_grad_(True)
    with counted(net) as passes:
        logits = net(x)
        torch.autograd.grad(logits[:, 0].sum(), x, retain_graph=True)
        torch.autograd.grad(logits[:, 1].sum(), x)
        with torch.no_grad():
            net(x)
    assert (passes.forwards, passes.backwards) == (10, 10)
    assert passes.per(5) == {"forwards": 2, "backwards": 2}
    assert not net._forward_pre_hooks


def test_peak_memory():
    from experiments.speed.rows import peak

    def call():
        first = torch.zeros(2**18)
        second = first + 1
        del first
        return second * 2

    assert peak(call, CPU) == pytest.approx(2, rel=0.01)


def test_every_method_has_a_row():
    import robustsigma
    from experiments.speed.cases import case
    from experiments.speed.methods import ROWS
    from robustsigma.engine.metrics import AttributionMetric

    for name in PEERS:
        pytest.importorskip(name)
    subject = case("vit", CPU, fast=True)
    measured = {build(subject).settings.split("(")[0] for build in ROWS.values()}
    for base in (robustsigma.Attributor, robustsigma.Perturbation, AttributionMetric):
        # Others' code takes its own time.
        assert {kind.__name__ for kind in cases.concrete(base)} - {"CaptumMethod", "FunctionMethod"} <= measured


@pytest.mark.slow
@pytest.mark.third_party_rng
def test_every_row(run, tmp_path):
    for name in PEERS:
        pytest.importorskip(name)
    code, results = run()
    assert code == 0
    check(results, tmp_path)
    assert set(results["nets"]) == {"small", "resnet18", "vit"}
    rows = results["nets"]["resnet18"]["rows"]
    assert rows["Training"]["regimes"]["sigma"]["passes"]["forwards"] > 0
    assert set(rows["Data"]["parts"]) == {"generation", "loading", "loading and augmentation"}
    assert len(list(tmp_path.glob("*.png"))) == 4


def test_rows_of_tf32_are_for_gpus():
    from experiments.speed.methods import GPU_ONLY
    from experiments.speed.run import names

    assert set(names("small", None, torch.device("cuda"))) - set(names("small", None, CPU)) == set(GPU_ONLY)


@pytest.mark.parametrize("path", sorted((ROOT / "results").glob("speed_*.json")), ids=lambda path: path.stem)
def test_the_page_says_what_was_measured(path):
    from experiments.speed.markdown import markdown

    results = json.loads(path.read_text(encoding="utf-8"))
    assert markdown(results) in (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    check(results, ROOT / "results")


@pytest.mark.third_party_rng  # a layer draws its weights
def test_passes_are_counted_in_operations_and_beside_matrix_products():
    from experiments.speed.limit import Limit

    convolution = cases._made(nn.Conv2d, 3, 8, 3, bias=False)
    net, images = nn.Sequential(convolution, nn.AdaptiveAvgPool2d(1), nn.Flatten()), cases.images(2)
    limit = Limit(net, images, (2,), least=0.0)
    assert limit.operations() == 2 * 8 * 3 * 9 * 6 * 6
    assert all(0 < share < 2 for share in limit.share_of_matmul().values())
