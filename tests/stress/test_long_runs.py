"""Nothing grows in long runs: the short form of experiments/long_runs.py."""

import gc
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

PATH = Path(__file__).resolve().parents[2] / "experiments" / "long_runs.py"
pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
    pytest.mark.third_party_rng,  # loaders
]
SAME = ("tensors", "tensor_bytes", "files", "threads", "children", "hooks")


@pytest.fixture(scope="module")
def experiment():
    spec = importlib.util.spec_from_file_location("long_runs", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    gc.collect()
    gc.freeze()  # what other tests hold is not looked through at each count
    yield module
    gc.unfreeze()


def test_attributors_leave_nothing_behind(experiment):
    found = experiment.of_attributors(times=4, warm=2)
    assert len(found) >= 12
    for name, row in found.items():
        assert {what: row["grown"][what] for what in SAME} == dict.fromkeys(SAME, 0), name


def test_networks_that_are_let_go_leave_nothing_behind(experiment):
    row = experiment.of_networks(times=6, warm=3)
    assert {what: row["grown"][what] for what in SAME} == dict.fromkeys(SAME, 0)


def test_a_training_with_augmentation_and_a_bank_is_flat_and_its_workers_end(experiment, tmp_path):
    experiment.train(12, tmp_path)  # what is made on first use stays
    row = experiment.of_training(60, tmp_path)
    assert row["course"][-1]["step"] == 60
    for what in ("files", "threads", "children", "hooks"):
        assert row["grown"][what] == 0, what
    assert abs(row["grown"]["tensors"]) <= 12  # one batch is larger than another, and the bank fills up
    assert row["course"][-1]["children"] == 1
    for what in ("files", "threads", "children", "tensors"):
        assert row["after"][what] <= row["before"][what], what


def test_the_counts_see_what_leaks(experiment):
    """A hook, a tensor and a file that are left behind are counted."""
    held = []
    net = torch.nn.Identity()

    def leak(number):
        held.append((torch.zeros(1000), (PATH).open()))
        net.register_forward_hook(lambda *_: None)

    try:
        grown = experiment.grown(leak, 3, 1, net)["grown"]
        assert {what: grown[what] for what in ("tensors", "tensor_bytes", "files", "hooks")} == {
            "tensors": 3, "tensor_bytes": 12_000, "files": 3, "hooks": 3
        }  # fmt: skip
    finally:
        for _, file in held:
            file.close()


@pytest.mark.slow
def test_memory_is_flat(experiment, tmp_path):
    found = experiment.main(["--calls", "60", "--steps", "400", "--trainings", "5", "--out", str(tmp_path)])
    rows = {**found["attributors"], **{name: found[name] for name in ("networks", "training", "trainings")}}
    for name, row in rows.items():
        assert row["grown"]["resident_kb"] < 8_000, name
        assert row["grown"]["files"] == row["grown"]["threads"] == row["grown"]["hooks"] == 0, name
        assert abs(row["grown"]["tensors"]) <= 12, name
