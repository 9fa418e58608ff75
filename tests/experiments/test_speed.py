"""The benchmark of speed in its fast form, and what its numbers rest on: the limit, the counts, the plain loop."""

import json
from pathlib import Path

import cases
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PEERS = ("captum", "saliency", "torchattacks")


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    """Let `experiments` be imported, as it is from the project's folder."""
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.fixture
def run(tmp_path):
    from experiments.speed.run import main

    def call(*options):
        threads = str(torch.get_num_threads())
        code = main(["--fast", "--repeats", "1", "--threads", threads, "--out", str(tmp_path), *options])
        return code, json.loads((tmp_path / f"speed_{DEVICE}.json").read_text())

    return call


def check(results):
    for net in results["nets"].values():
        assert set(net["limit"]) == {"forward", "pair"}
        for row in net["rows"].values():
            for found in [row["efficiency"], *(peer["times_ours"] for peer in row["peers"])]:
                assert 0 < found["low"] <= found["median"] <= found["high"]
            # Left-IG stops early, which its formula does not know.
            assert row["passes"]["forwards"] <= row["counted"]["forwards"]
            assert row["passes"]["backwards"] <= row["counted"]["backwards"]


@pytest.mark.third_party_rng  # torchattacks' generators are lent and given back, weights are drawn
def test_the_fast_form_runs_and_resumes(run, tmp_path, capsys):
    for name in PEERS:
        pytest.importorskip(name)
    code, results = run("--nets", "small", "--rows", "SIGMA", "IG", "PGD")
    assert code == 0
    check(results)
    found = results["nets"]["small"]["rows"]
    peers = {name: {peer["name"]: peer for peer in row["peers"]} for name, row in found.items()}
    assert peers["SIGMA"]["one by one"]["deviation"] < 1e-6
    assert peers["IG"]["captum"]["deviation"] < 1e-6
    assert peers["PGD"]["torchattacks"]["deviation"] < 1e-3
    passes = found["SIGMA"]["counted"]
    assert found["SIGMA"]["passes"] == passes
    assert passes["forwards"] == 1 + 3 * passes["backwards"] > 1 + 3 * 6  # 7 paths
    assert "| SIGMA, 7 paths |" in capsys.readouterr().out

    _, again = run("--nets", "small", "--rows", "IG")
    assert again == results  # nothing was measured again, nothing was lost
    with pytest.raises(ValueError, match="measured with other settings"):
        run("--nets", "small", "--repeats", "2")


def test_the_limit_is_the_cheapest_order_and_batch():
    from experiments.speed.networks import Cost, Limit, Passes

    limit = Limit(cases.cnn_bn_dropout(), cases.images(1), (1, 2), least=0.0)
    for order, batch in limit.best.values():
        assert order in ("contiguous", "channels last")
        assert batch in (1, 2)
    assert min(limit.sample()) > 0
    # A backward pass costs what a pair costs beyond its forward pass.
    assert Cost(forward=2, pair=5).of(Passes(10, 4)) == 10 * 2 + 4 * 3


def test_passes_are_counted():
    from experiments.speed.networks import counted

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


def test_every_method_that_makes_passes_has_a_row():
    import robustsigma
    from experiments.speed.networks import case
    from experiments.speed.rows import ROWS
    from robustsigma.engine.metrics import AttributionMetric

    for name in PEERS:
        pytest.importorskip(name)
    subject = case("vit", CPU, fast=True)
    measured = {build(subject).settings.split("(")[0] for build in ROWS.values()}
    free = {"RandomAttribution", "Identity", "GaussianNoise", "Corruption", "Mixture", "Localization"}
    free |= {"CompletenessGap", "RelativeStandardError", "Cost"}  # of their own they make no pass
    free |= {"Sparseness", "RelevanceAccuracy"}
    free |= {"CaptumMethod", "FunctionMethod", "StoredMaps"}  # others' code takes its own time
    for base in (robustsigma.Attributor, robustsigma.Perturbation, AttributionMetric):
        assert {kind.__name__ for kind in cases.concrete(base)} - free <= measured


@pytest.mark.slow
@pytest.mark.third_party_rng
def test_every_row(run):
    for name in PEERS:
        pytest.importorskip(name)
    code, results = run()
    assert code == 0
    check(results)
    assert set(results["nets"]) == {"small", "resnet18", "vit"}


@pytest.mark.parametrize("path", sorted((ROOT / "results").glob("speed_*.json")), ids=lambda path: path.stem)
def test_the_page_has_the_measured_table(path):
    from experiments.speed.run import table

    results = json.loads(path.read_text(encoding="utf-8"))
    assert table(results) in (ROOT / "docs" / "results" / "speed.md").read_text(encoding="utf-8")
    check(results)
