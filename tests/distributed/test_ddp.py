"""Two processes give what one gives, image by image: in training with augmentation and a sample cache, and in tests."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from jobs import CONDITIONS, EPOCHS, SOURCE, fit_and_test, together

from robustsigma.lightning.loaders import KeySampler
from robustsigma.lightning.sample_caches import ProcessRank

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "fit"
pytestmark = [
    pytest.mark.third_party_rng,  # weights
    pytest.mark.filterwarnings("ignore:.*torch.distributed.*"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return what one process and each of two found."""
    folder = tmp_path_factory.mktemp("ddp")
    fit_and_test(0, 1, folder)
    together(fit_and_test, 2, folder)
    return [torch.load(folder / name, weights_only=False) for name in ("1-0.pt", "2-0.pt", "2-1.pt")]


@pytest.mark.slow
def test_every_image_is_trained_on_once_and_perturbed_alike(runs):
    one, *two = runs
    assert not set(two[0]["seen"]) & set(two[1]["seen"])
    both = two[0]["seen"] | two[1]["seen"]
    assert set(both) == set(one["seen"]) == {(epoch, i) for epoch in range(EPOCHS) for i in range(SOURCE.train)}
    assert two[0]["padding"] + two[1]["padding"] == EPOCHS  # 41 images: one is padding in each epoch
    for key, image in one["seen"].items():
        assert torch.allclose(image, both[key], rtol=0, atol=1e-9), key


@pytest.mark.slow
def test_weights_and_caches_are_those_of_one_process(runs):
    one, *two = runs
    for each in two:
        for name, weight in one["weights"].items():
            assert torch.allclose(weight, each["weights"][name], rtol=0, atol=1e-9), name
        assert each["caches"].keys() == one["caches"].keys()
        for name, cache in one["caches"].items():
            assert len(cache["owners"]) > 10
            for column, values in cache.items():
                other = each["caches"][name][column]
                assert values == other if isinstance(values, str) else torch.equal(values, other), column
        for name in ("samples", "attempted", "converged", "steps", "requested", "expired", "stale", "ages"):
            assert each["totals"][name] == one["totals"][name]
        assert each["totals"]["hits"] == one["totals"]["hits"] > 10
    for name in ("train_acc", "train_loss"):
        assert two[0]["metrics"].get(name) == pytest.approx(one["metrics"].get(name), abs=1e-9)


@pytest.mark.slow
def test_every_tested_image_has_the_same_outcome_once(runs):
    one, *two = runs
    for each in two:
        assert set(each["outcomes"]) == set(CONDITIONS)
        for name, outcomes in one["outcomes"].items():
            assert outcomes["indices"].tolist() == list(range(SOURCE.test))
            for column, values in outcomes.items():
                found = each["outcomes"][name][column]
                np.testing.assert_allclose(found, values, rtol=0, atol=1e-6, err_msg=f"{name}: {column}")
        for name in CONDITIONS:
            assert each["metrics"][f"test_{name}_acc"] == pytest.approx(one["metrics"][f"test_{name}_acc"], abs=1e-6)


@pytest.mark.parametrize(("count", "world"), [(1, 2), (2, 3), (7, 2), (8, 2), (9, 4)])
def test_shares_of_training_are_equal_and_the_rest_says_so(count, world):
    samplers = [KeySampler(range(50, 50 + count), shuffle=True, seed=1, rank=r, world_size=world) for r in range(world)]
    whole = list(KeySampler(range(50, 50 + count), shuffle=True, seed=1, rank=0, world_size=1))
    shares = [list(sampler) for sampler in samplers]
    assert {len(share) for share in shares} == {-(-count // world)}
    together = [key for row in zip(*shares, strict=True) for key in row]
    assert [key.image for key in together if not key.is_padding] == [key.image for key in whole]
    assert sum(key.is_padding for key in together) == -count % world


def test_fewer_images_than_processes_are_refused():
    with pytest.raises(ValueError, match="images: expected one or more for each of 3 processes, got 2"):
        KeySampler(range(2), shuffle=False, seed=0, rank=0, world_size=3)


def test_gathered_samples_are_in_the_order_of_the_whole_batch_and_each_once(monkeypatch):
    """Two shares of a batch of images 10, 11, 12, 13, 10, of which the last is padding and row 1 has no sample."""
    mine = torch.tensor([0, 1, 2]), torch.tensor([10, 12, 10]), torch.tensor([1.0, 3.0, 5.0])
    other = torch.tensor([1]), torch.tensor([13]), torch.tensor([4.0])
    both = iter([(mine[0] * 2, other[0] * 2 + 1), (mine[1], other[1]), (mine[2], other[2])])
    monkeypatch.setattr("robustsigma.lightning.sample_caches.gather_all_tensors", lambda tensor: next(both))
    indices, values = ProcessRank(0, 2).gather(*mine)
    assert indices.tolist() == [10, 12, 13]
    assert values.tolist() == [1.0, 3.0, 4.0]


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_process_of_fit_that_dies_ends_it_with_one_line_and_it_goes_on(tmp_path):
    layers = ("base", "baggage", "sigma", "overlays/cache")
    arguments = ["fit", *(a for layer in layers for a in ("--config", str(CONFIGS / f"{layer}.yaml")))]
    arguments += [f"--data.dataset.init_args.{name}" for name in ("size=16", "train=41", "val=9", "test=10")]
    arguments += [f"--trainer.{name}" for name in ("devices=2", "strategy=ddp", "accelerator=cpu", "max_epochs=200")]
    arguments += ["--model.net.init_args.arguments.width=4", "--data.batch_size=8", "--ckpt_path=last"]
    arguments += ["--trainer.enable_progress_bar=false", f"--trainer.default_root_dir={tmp_path}"]
    script = tmp_path / "run.py"  # Lightning starts the other process with the same line
    script.write_text("import sys\nfrom robustsigma.cli import main\nsys.exit(main())\n")
    with subprocess.Popen([sys.executable, str(script), *arguments], stderr=subprocess.PIPE, text=True) as run:
        while not list(tmp_path.rglob("last.ckpt")):
            assert run.poll() is None
            time.sleep(0.01)
        (other,) = map(int, Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split())
        os.kill(other, signal.SIGKILL)
        _, told = run.communicate(timeout=900)
    assert run.returncode == 2
    assert "another process of this training died. Finished work is kept" in told.splitlines()[-1]
    (path,) = tmp_path.rglob("last.ckpt")
    epochs = torch.load(path, weights_only=True)["epoch"] + 3
    again = [argument.replace("=200", f"={epochs}") for argument in arguments]
    done = subprocess.run(
        [sys.executable, str(script), *again], capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr
    assert torch.load(path, weights_only=True)["epoch"] == epochs - 1
