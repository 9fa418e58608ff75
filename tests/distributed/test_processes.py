"""`evaluate` and `benchmark` in several processes: the jobs of one, each done once, and a clear end when one dies."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from torch.distributed import HashStore

from robustsigma import FGSM, GaussianNoise, Identity
from robustsigma.data import Baggage
from robustsigma.evaluation import Checks, Evaluation, Retraining, Training
from robustsigma.evaluation.run import RobustnessRun
from robustsigma.models import Architecture
from robustsigma.runs.processes import Processes

SETTINGS = Evaluation(
    dataset=Baggage(size=16, train=24, val=5, test=15),
    architecture=Architecture("small_cnn", {"width": 4}),
    training=Training(epochs=1, batch_size=16),
    retraining=Retraining(
        retrain={"noise": GaussianNoise(0.1)}, on_the_fly={"fgsm": FGSM(0.03)}, samples=10, epochs=1, batch_size=16
    ),
    conditions={"clean": Identity(), "fgsm": FGSM(0.03)},
    checks=Checks(images=0),
)
YAML = """
dataset: {class_path: robustsigma.data.Baggage, init_args: {size: 16, train: 40, val: 10, test: 25}}
architecture: {name: small_cnn, arguments: {width: 4}}
training: {epochs: 2, batch_size: 16, lr: 0.01}
"""
EVALUATE = (
    YAML
    + """
checks: {images: 8, queries: 5}
eval_batch_size: 8
conditions:
  clean: {class_path: robustsigma.Identity}
  fgsm: {class_path: robustsigma.FGSM, init_args: {eps: 0.03}}
retraining:
  samples: 20
  epochs: 1
  retrain: {noise: {class_path: robustsigma.GaussianNoise, init_args: {std: 0.1}}}
  on_the_fly: {fgsm: {class_path: robustsigma.FGSM, init_args: {eps: 0.03}}}
"""
)
BENCHMARK = (
    YAML
    + """
images: 7
checked: 2
batch_size: 3
methods:
  IG: {class_path: robustsigma.IntegratedGradients, init_args: {steps: 3}}
  rollout: {class_path: robustsigma.AttentionRollout}
metrics:
  - {class_path: robustsigma.engine.metrics.InsertionDeletion, init_args: {step: 64}}
  - {class_path: robustsigma.engine.metrics.Cost}
"""
)


def _crew(world):
    store = HashStore()
    return [Processes(rank, world, store) for rank in range(world)]


def _in_threads(call, crew):
    threads = [threading.Thread(target=call, args=(processes,)) for processes in crew]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("world", [1, 2, 5])
def test_each_job_is_done_once_and_waits_for_those_before_it(world):
    done, taken, ends = [], Counter(), []

    def run(processes):
        for job in processes.share("jobs", range(20)):
            processes.wait(lambda job=job: job == 0 or 0 in done)
            time.sleep(0.01)
            done.append(job)
            taken[processes.rank] += 1
        processes.barrier("jobs")
        ends.append(len(done))

    _in_threads(run, _crew(world))
    assert sorted(done) == list(range(20))
    assert done[0] == 0
    assert ends == [20] * world, "one went on before all were there"
    assert len(taken) == world


def test_the_first_goes_before_the_others_and_counters_are_common():
    order, counts = [], []

    def run(processes):
        time.sleep(0.05 if processes.is_main else 0)
        processes.main_process_first("begin", lambda: order.append(processes.rank))
        count = processes.counter()
        counts.extend(count() for _ in range(5))

    _in_threads(run, _crew(3))
    assert order[0] == 0
    assert sorted(order) == [0, 1, 2]
    assert sorted(counts) == list(range(1, 16))
    assert [Processes().counter()() for _ in range(2)] == [1, 1]


@pytest.mark.third_party_rng  # weights
def test_an_evaluation_in_two_shares_is_that_of_one(tmp_path):
    """The shares one after the other, in one process: they meet in the folder alone."""

    class Half(Processes):
        def share(self, name, jobs):
            yield from jobs[self.rank :: 2]

    for rank in range(2):
        RobustnessRun(SETTINGS, tmp_path / "two", Console(file=io.StringIO()), Half(rank)).run()
    RobustnessRun(SETTINGS, tmp_path / "one", Console(file=io.StringIO())).run()
    assert _same(tmp_path / "one", tmp_path / "two") > 10


def _same(one, two):
    """Compare all files but those that say how long something took; return how many there are."""
    names = {path.relative_to(one) for path in one.rglob("*") if path.is_file()}
    assert names == {path.relative_to(two) for path in two.rglob("*") if path.is_file()}
    compared = 0
    for name in sorted(names):
        if name.suffix == ".npz":
            with np.load(one / name) as first, np.load(two / name) as second:
                assert first.files == second.files
                for key in set(first.files) - {"value/seconds"}:
                    np.testing.assert_array_equal(first[key], second[key], err_msg=f"{name}: {key}")
        elif name.suffix in (".safetensors", ".png"):
            assert (one / name).read_bytes() == (two / name).read_bytes(), name
        else:
            continue
        compared += 1
    return compared


def _command(*arguments):
    return [
        sys.executable,
        "-c",
        "import sys; from robustsigma.cli import main; sys.exit(main())",
        *map(str, arguments),
    ]


def _run(*arguments, launcher=()):
    done = subprocess.run([*launcher, *_command(*arguments)], capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("verb", "settings"), [("evaluate", EVALUATE), ("benchmark", BENCHMARK)])
def test_two_processes_give_the_bits_of_one(verb, settings, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    config = tmp_path / "settings.yaml"
    config.write_text(settings)
    _run(verb, "--config", config, "--out", tmp_path / "one")
    out = _run(verb, "--config", config, "--out", tmp_path / "two", "--processes", 2)
    assert out.count("The report:") == 1
    assert _same(tmp_path / "one", tmp_path / "two") > 10
    # torchrun gives each process one thread where OMP_NUM_THREADS is not set, and a training rounds by that.
    threads = json.loads((tmp_path / "one" / "results.json").read_text())["run"]["hardware"]["threads"]
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--no-python"]
    _run(verb, "--config", config, "--out", tmp_path / "three", launcher=torchrun)
    assert _same(tmp_path / "one", tmp_path / "three") > 10
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_which_then_goes_on(tmp_path):
    pytest.importorskip("matplotlib")
    config = tmp_path / "settings.yaml"
    config.write_text(EVALUATE)
    arguments = ("evaluate", "--config", config, "--processes", 2)
    with subprocess.Popen(_command(*arguments, "--out", tmp_path / "two"), stderr=subprocess.PIPE, text=True) as run:
        base = tmp_path / "two" / "models" / "seed0" / "base.safetensors"
        _until(base.is_file, run)
        victim = _workers(run.pid)[1]
        os.kill(victim, signal.SIGKILL)
        _, told = run.communicate(timeout=900)
    assert run.returncode == 2
    assert "process 1 of 2 was ended by SIGKILL" in told
    assert "Traceback" not in told
    before = base.stat().st_mtime_ns
    _run(*arguments, "--out", tmp_path / "two")
    assert base.stat().st_mtime_ns == before
    _run(*arguments[:-2], "--out", tmp_path / "one")
    assert _same(tmp_path / "one", tmp_path / "two") > 10


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_of_the_one_that_started_them_ends_all(sent, tmp_path):
    config = tmp_path / "settings.yaml"
    config.write_text(EVALUATE)
    command = _command("evaluate", "--config", config, "--processes", 2, "--out", tmp_path / "two")
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as run:
        _until((tmp_path / "two" / "settings.json").is_file, run)
        workers = _workers(run.pid)
        run.send_signal(sent)
        _, told = run.communicate(timeout=900)
    assert run.returncode == 128 + sent
    assert told.count("run the command again to resume") == 1
    assert not any(Path(f"/proc/{worker}/cmdline").is_file() for worker in workers)


@pytest.mark.slow
def test_a_mistake_is_told_once(tmp_path):
    config = tmp_path / "settings.yaml"
    config.write_text(EVALUATE)
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "settings.json").write_text(json.dumps({"training": {"epochs": 7}}))
    command = _command("evaluate", "--config", config, "--processes", 2, "--out", tmp_path / "two")
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 2
    assert done.stderr.count("out: expected a new folder") == 1


def _until(ready, run):
    end = time.monotonic() + 600
    while not ready():
        assert run.poll() is None, run.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.01)


def _workers(pid):
    """Return the processes that a process started to share its work, in their order."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    found = [child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
    return sorted(map(int, found))
