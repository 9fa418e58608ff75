"""Two processes give what one gives, under DDP and FSDP2, in training with augmentation and a cache, and in tests."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from jobs import (
    CONDITIONS,
    EPOCHS,
    SOURCE,
    STRATEGIES,
    fit_and_test,
    fit_under_strategies,
    fit_unequal_streams,
    together,
)
from safetensors.torch import load_file

from robustsigma.lightning.loaders import KeySampler

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "fit"
pytestmark = [
    pytest.mark.third_party_rng,  # weights
    pytest.mark.filterwarnings("ignore:.*torch.distributed.*"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return what one process found, and what each of two found under each strategy."""
    folder = tmp_path_factory.mktemp("strategies")
    fit_and_test(0, 1, folder)
    together(fit_under_strategies, 2, folder)
    assert len([*folder.rglob("*.samples")]) == 1 + len(STRATEGIES)  # those of checkpoints that were removed are gone
    names = ["auto-0", *(f"{name}{how}-{rank}" for name in STRATEGIES for how in ("", "-resumed") for rank in (0, 1))]
    exported = {name: load_file(folder / f"{name}.safetensors") for name in STRATEGIES}
    return exported | {name: torch.load(folder / f"{name}.pt", weights_only=False) for name in names}


def _of(runs, strategy):
    return runs["auto-0"], [runs[f"{strategy}-{rank}"] for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_image_is_trained_on_once_by_its_process_and_perturbed_alike(strategy, runs):
    one, two = _of(runs, strategy)
    owned = [{index for _, index in each["seen"]} for each in two]
    assert not owned[0] & owned[1]  # in any epoch
    both = two[0]["seen"] | two[1]["seen"]
    assert set(both) == set(one["seen"]) == {(epoch, i) for epoch in range(EPOCHS) for i in range(SOURCE.train)}
    assert two[0]["padding"] + two[1]["padding"] == EPOCHS  # 41 images: one is padding in each epoch
    for key, image in one["seen"].items():
        assert torch.allclose(image, both[key], rtol=0, atol=1e-6), key


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [each + how for each in STRATEGIES for how in ("", "-resumed")])
def test_weights_and_caches_are_those_of_one_process(strategy, runs):
    one, two = _of(runs, strategy)
    for each in two:
        assert len(each["sharded"]) == (len(each["weights"]) if "fsdp2" in strategy else 0)
        for name, weight in one["weights"].items():
            assert torch.allclose(weight, each["weights"][name], rtol=0, atol=1e-7), name
    for name, cache in one["caches"].items():
        shares = [each["caches"][name] for each in two]
        joined = {column: torch.cat([share[column] for share in shares]) for column in cache}
        order, expected = (found["owners"].argsort() for found in (joined, cache))
        assert min(len(share["owners"]) for share in shares) > 5
        assert max(len(share["owners"]) for share in shares) <= 21
        for column, values in cache.items():
            assert torch.equal(joined[column][order], values[expected]), column


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_exported_weights_are_whole(strategy, runs):
    for name, weight in runs["auto-0"]["weights"].items():
        assert torch.allclose(runs[strategy][name.removeprefix("classifier.net.")], weight, rtol=0, atol=1e-7), name


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_perturbing_a_batch_gathers_parameters_once_and_sends_nothing_else(strategy, runs):
    for rank in (0, 1):
        found = runs[f"{strategy}-{rank}"]["collectives"]
        groups = 2 if "fsdp2" in strategy else 0  # of parameters: those of the block, and the others
        assert found["training"] == [groups] * (EPOCHS * 6)
        assert set(found["test"]) == {0}  # gathered for all of it, with 4 batches in one process and 3 in the other
    assert len(runs[f"{strategy}-0"]["collectives"]["test"]) > len(runs[f"{strategy}-1"]["collectives"]["test"])


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_statistics_are_those_of_one_process(strategy, runs):
    one, two = _of(runs, strategy)
    for each in two:
        for name in ("samples", "attempted", "converged", "steps", "requested", "expired", "stale", "ages"):
            assert each["totals"][name] == one["totals"][name]
        assert each["totals"]["hits"] == one["totals"]["hits"] > 10
    assert one["metrics"]["train_acc"] == pytest.approx(two[0]["metrics"]["train_acc"], abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_tested_image_has_the_same_outcome_once(strategy, runs):
    one, two = _of(runs, strategy)
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
def test_each_image_belongs_to_one_process_and_shares_are_equal(count, world):
    samplers = [KeySampler(range(50, 50 + count), shuffle=True, seed=1, rank=r, world_size=world) for r in range(world)]
    whole = KeySampler(range(50, 50 + count), shuffle=True, seed=1)
    before = [set() for _ in samplers]
    for epoch in range(3):
        for sampler in (*samplers, whole):
            sampler.set_epoch(epoch)
        shares = [list(sampler) for sampler in samplers]
        assert {len(share) for share in shares} == {-(-count // world)}
        counted = [not key.is_padding for place in zip(*shares, strict=True) for key in place]
        for sampler in samplers:  # each process knows what all have in a batch of 2
            found = [sampler.images(batch, 2) for batch in range(-(-count // world // 2))]
            assert found == [sum(counted[start : start + 2 * world]) for start in range(0, len(counted), 2 * world)]
        place = {key.image: place for place, key in enumerate(whole)}
        for share, sampler, seen in zip(shares, samplers, before, strict=True):
            own = [key.image for key in share if not key.is_padding]
            assert not any(key.is_padding for key in share[: len(own)])
            assert [place[image] for image in own] == sorted(place[image] for image in own)
            assert epoch == 0 or set(own) == seen
            assert sampler.owned(torch.tensor(own, dtype=torch.int64)).all()
            seen |= set(own)
        assert sum(key.is_padding for share in shares for key in share) == -count % world
    assert sorted(image for seen in before for image in seen) == list(range(50, 50 + count))
    owned = torch.stack([sampler.owned(torch.arange(60)) for sampler in samplers])
    assert owned.sum(0)[50 : 50 + count].tolist() == [1] * count


@pytest.mark.slow
def test_streams_of_unequal_lengths_end_after_their_steps(tmp_path):
    together(fit_unequal_streams, 2, tmp_path)
    (first, loss), (second, other) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert all(map(torch.equal, first.values(), second.values()))
    assert loss != other  # each of its own images


def test_fewer_images_than_processes_are_refused():
    with pytest.raises(ValueError, match="images: expected one or more for each of 3 processes, got 2"):
        KeySampler(range(2), shuffle=False, seed=0, rank=0, world_size=3)


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
