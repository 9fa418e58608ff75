"""`evaluate` and `benchmark` in ranks and shards: the bits of one process, nothing lost, nothing twice, a clear end."""

import io
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch.distributed import HashStore
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data.distributed import DistributedSampler

import robustsigma
from robustsigma import FGSM, GaussianNoise, Identity
from robustsigma.cli import main
from robustsigma.data import Baggage
from robustsigma.evaluation import Checks, Evaluation, Retraining, Training
from robustsigma.evaluation.run import RobustnessRun
from robustsigma.evaluation.settings import TrainerOptions
from robustsigma.models import Architecture
from robustsigma.runs import ranks as ranks_module
from robustsigma.runs.ranks import Phases, Ranks, Shard

YAML = """
dataset: {class_path: robustsigma.data.Baggage, init_args: {size: 16, train: 40, val: 10, test: 25}}
architecture: {name: small_cnn, arguments: {width: 4}}
training: {epochs: 2, batch_size: 16, lr: 0.01}
"""
EVALUATE = (
    YAML
    + """
checks: {images: 8, queries: 5}
eval_batch_size: 4
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
SETTINGS = Evaluation(
    dataset=Baggage(size=16, train=24, val=5, test=15),
    architecture=Architecture("small_cnn", {"width": 4}),
    training=Training(epochs=1, batch_size=16),
    retraining=Retraining(
        retrain={"noise": GaussianNoise(0.1)}, on_the_fly={"fgsm": FGSM(0.03)}, samples=10, epochs=1, batch_size=16
    ),
    conditions={"clean": Identity(), "fgsm": FGSM(0.03)},
    eval_batch_size=4,
    checks=Checks(images=0),
)
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks, and reads /proc")


def _in_threads(call, world=3):
    """Call a function with each of some ranks, and return what it returned or raised, by rank."""
    store, found = HashStore(), {}

    def run(rank):
        try:
            found[rank] = call(Ranks(rank, world, store))
        except (ValueError, OSError) as error:
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    return [found[rank] for rank in range(world)]


def test_ranks_wait_for_each_other_and_know_what_the_first_one_said():
    order = []

    def run(ranks):
        time.sleep(0.05 * (2 - ranks.rank))
        order.append("before")
        ranks.barrier()
        order.append("after")
        said = ranks.broadcast([ranks.rank, "of the first"])
        return said, list(ranks.deal(range(7))), ranks.main_first(lambda: order.append(ranks.rank))

    found = _in_threads(run)
    assert order[:6] == ["before"] * 3 + ["after"] * 3
    assert order[6] == 0
    assert sorted(order[6:]) == [0, 1, 2]
    assert [each[:2] for each in found] == [([0, "of the first"], [*range(rank, 7, 3)]) for rank in range(3)]


def test_a_mistake_of_the_first_rank_ends_all():
    def run(ranks):
        def call():
            raise ValueError("wrong")

        ranks.main_first(call)

    first, *others = _in_threads(run)
    assert str(first) == "wrong"
    assert {str(each) for each in others} == {"rank 0 of this run has ended, see its message"}


def test_a_call_that_other_ranks_do_not_make_is_refused(monkeypatch):
    monkeypatch.setattr(ranks_module, "_ARRIVE_WITHIN", timedelta(seconds=0.1))
    with pytest.raises(
        ValueError, match=r"^distributed: expected all 2 processes .*; distributed=False computes in this"
    ):
        Ranks(1, 2, HashStore())


def test_ranks_that_see_different_folders_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(ranks_module, "_VISIBLE_WITHIN", 0.2)
    for name in ("same", "other"):
        (tmp_path / name).mkdir()
    _in_threads(lambda ranks: ranks.check_folder(tmp_path / "same"))
    assert not list((tmp_path / "same").iterdir())
    found = _in_threads(lambda ranks: ranks.check_folder(tmp_path / ("other" if ranks.rank == 2 else "same")))
    for each in found:
        assert str(each).startswith("out: expected a folder that every rank sees, got ")
        assert "which rank 2 (on " in str(each)


def _run(out, part=None, settings=SETTINGS):
    RobustnessRun(settings, out, Console(file=io.StringIO())).run(*(() if part is None else (part,)))


@pytest.mark.third_party_rng  # weights
def test_shards_in_any_order_are_one_run_and_what_is_missing_is_named(tmp_path):
    out, shard = tmp_path / "shards", lambda number: Phases.of_shard(Shard(number, 2), "robustsigma x")
    with pytest.raises(ValueError, match=r"^trainings: expected all .* 3 that .* base of seed 0; run `robustsigma x -"):
        _run(out, shard(1))
    _run(out, shard(0))
    _run(out, shard(2))
    told = r"^blocks: expected all .* 2 that are not, the first of images 1 to 4; run `robustsigma x`"
    with pytest.raises(ValueError, match=told):
        _run(out, Phases.of_report("robustsigma x"))
    _run(out, shard(1))
    _run(out, Phases.of_report("robustsigma x"))
    _run(tmp_path / "one")
    assert _same(tmp_path / "one", out) == 9


def test_a_training_on_several_devices_needs_as_many_ranks(tmp_path):
    two = Evaluation(**{**vars(SETTINGS), "trainer": TrainerOptions(devices=2, strategy="ddp")})
    with pytest.raises(ValueError, match=r"^trainer\.devices: expected as many .*, 2, got 1 ranks; add --devices 2"):
        _run(tmp_path, settings=two)


def _same(one, two):
    """Compare all files but those that say how long something took; return how many there are."""
    names = {path.relative_to(one) for path in one.rglob("*") if path.is_file()}
    assert names == {path.relative_to(two) for path in two.rglob("*") if path.is_file()}
    compared = 0
    for name in sorted(names):
        if name.suffix == ".npz":
            with np.load(one / name) as first, np.load(two / name) as second:
                assert first.files == second.files
                for key in first.files:
                    np.testing.assert_array_equal(*_untimed(first, second, key), err_msg=f"{name}: {key}")
        elif name.suffix in (".safetensors", ".png"):
            assert (one / name).read_bytes() == (two / name).read_bytes(), name
        else:
            continue
        compared += 1
    return compared


def _untimed(first, second, key):
    """Return two arrays of a file without the rows that are seconds."""
    both = [file[key] for file in (first, second)]
    if key.isdecimal() and "names" in first.files:
        names = json.loads(str(first["names"]))[int(key)]
        kept = [place for place, name in enumerate(names) if not name.endswith("|value/seconds")]
        both = [array[kept] for array in both]
    return both


# Processes


def _port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _forked(call, world, *arguments):
    """Start ranks that call a function, each as a launcher sets its environment."""
    context, port = multiprocessing.get_context("fork"), _port()
    crew = [context.Process(target=_rank, args=(rank, world, port, call, arguments)) for rank in range(world)]
    for process in crew:
        process.start()
    return crew


def _rank(rank, world, port, call, arguments):
    torch.cuda.is_available, torch.cuda.device_count = (lambda: False), (lambda: 0)  # a fork cannot use a GPU
    which = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in which.items()})
    sys.exit(call(*arguments))


def _join(crew, timeout=300):
    for process in crew:
        process.join(timeout)
    return [process.exitcode for process in crew]


def _until(ready, alive=lambda: True):
    end = time.monotonic() + 300
    while not ready():
        assert alive(), "it has ended"
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(scope="module", params=["evaluate", "benchmark"])
def one(request, tmp_path_factory):
    """Return a verb, its settings, and the folder of one process."""
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "settings.yaml").write_text({"evaluate": EVALUATE, "benchmark": BENCHMARK}[request.param])
    command = [request.param, f"--config={folder / 'settings.yaml'}"]
    assert main([*command, f"--out={folder / 'one'}"]) == 0
    return command, folder / "one"


@pytest.mark.slow
@linux
@pytest.mark.third_party_rng  # weights
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_give_the_bits_of_one_process(world, one, tmp_path):
    command, expected = one
    assert _join(_forked(main, world, [*command, f"--out={tmp_path / 'ranks'}"])) == [0] * world
    assert _same(expected, tmp_path / "ranks") > 3
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.slow
@pytest.mark.third_party_rng  # weights
def test_shards_by_hand_give_the_bits_of_one_process_also_in_a_moved_folder(one, tmp_path, capsys, monkeypatch):
    command, expected = one
    for shard in ("0/3", "2/3", "1/3", "3/3"):
        assert main([*command, f"--out={tmp_path / 'shards'}", f"--shard={shard}"]) == 0
    assert f"robustsigma report {tmp_path / 'shards'}" in capsys.readouterr().out
    (tmp_path / "shards").rename(tmp_path / "moved here")
    monkeypatch.chdir(tmp_path)
    for name in ("moved here", str(tmp_path / "moved here")):  # the first one writes where the folder is now
        assert main(["report", name]) == 0
    assert not (tmp_path / "shards").exists()
    assert _same(expected, tmp_path / "moved here") > 3


# A background job of a shell ignores SIGINT.
_SCRIPT = """
import signal, sys
from robustsigma.cli import main
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
"""


def _start(*arguments):
    """Start Python with as many threads as this process has: a training rounds by their number."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.Popen([sys.executable, *map(str, arguments)], env=environment, stderr=subprocess.PIPE, text=True)


def _torchrun(script, out, *options):
    script.write_text(_SCRIPT)
    return _start("-m", "torch.distributed.run", *options, script, *out)


@pytest.mark.slow
@linux
@pytest.mark.third_party_rng  # weights
@pytest.mark.parametrize("one", ["evaluate"], indirect=True)
def test_two_nodes_of_torchrun_give_the_bits_of_one_process(one, tmp_path):
    (command, expected), port = one, _port()
    options = ["--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}"]
    arguments = [*command, f"--out={tmp_path / 'nodes'}"]
    nodes = [_torchrun(tmp_path / f"{k}.py", arguments, *options, f"--node-rank={k}") for k in (0, 1)]
    told = [node.communicate(timeout=300)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], told
    assert _same(expected, tmp_path / "nodes") > 3


@pytest.mark.slow
@linux
@pytest.mark.third_party_rng  # weights
@pytest.mark.parametrize("one", ["evaluate"], indirect=True)
def test_a_rank_of_torchrun_that_is_killed_is_started_again(one, tmp_path):
    command, expected = one
    out = tmp_path / "again"
    options = ["--nproc-per-node=2", "--max-restarts=1", "--master-addr=127.0.0.1", f"--master-port={_port()}"]
    with _torchrun(tmp_path / "run.py", [*command, f"--out={out}"], *options) as run:
        _until((out / "models" / "seed0" / "base.safetensors").is_file, lambda: run.poll() is None)
        before = (out / "models" / "seed0" / "base.safetensors").stat().st_mtime_ns
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        os.kill(int(children[1]), signal.SIGKILL)
        _, told = run.communicate(timeout=300)
    assert run.returncode == 0, told
    assert (out / "models" / "seed0" / "base.safetensors").stat().st_mtime_ns == before
    assert _same(expected, out) > 3


@pytest.mark.slow
@linux
@pytest.mark.third_party_rng  # weights
@pytest.mark.parametrize("one", ["evaluate"], indirect=True)
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_killed_ends_the_run_which_then_resumes(victim, one, tmp_path):
    command, expected = one
    arguments = [*command, f"--out={tmp_path / 'two'}"]
    with _start("-c", _SCRIPT, *arguments, "--devices=2") as run:
        base = tmp_path / "two" / "models" / "seed0" / "base.safetensors"
        _until(base.is_file, lambda: run.poll() is None)
        os.kill(_workers(run.pid)[victim], signal.SIGKILL)
        killed = time.monotonic()
        _, told = run.communicate(timeout=300)
    assert run.returncode == 2
    assert time.monotonic() - killed < 60
    assert "Finished work is kept: run the command again to resume" in told
    assert "Traceback" not in told
    before = base.stat().st_mtime_ns
    assert main(arguments) == 0
    assert base.stat().st_mtime_ns == before
    assert _same(expected, tmp_path / "two") > 3


@pytest.mark.slow
@linux
@pytest.mark.third_party_rng  # weights
@pytest.mark.parametrize("one", ["benchmark"], indirect=True)
def test_a_rank_that_is_killed_does_not_leave_the_others_waiting(one, tmp_path):
    """Where the launcher ends nobody, as SLURM's may not."""
    command, _ = one
    crew = _forked(main, 2, [*command, f"--out={tmp_path}"])
    _until((tmp_path / "evaluated_images.json").is_file, crew[0].is_alive)
    crew[1].kill()
    assert _join(crew, timeout=60) == [2, -signal.SIGKILL]
    assert _join(_forked(main, 2, [*command, f"--out={tmp_path}"])) == [0, 0]


@pytest.mark.slow
@linux
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_of_the_one_that_started_them_ends_all(sent, tmp_path):
    (tmp_path / "settings.yaml").write_text(EVALUATE)
    command = ["evaluate", f"--config={tmp_path}/settings.yaml", "--devices=2", f"--out={tmp_path / 'two'}"]
    with _start("-c", _SCRIPT, *command) as run:
        _until((tmp_path / "two" / "settings.json").is_file, lambda: run.poll() is None)
        workers = _workers(run.pid)
        run.send_signal(sent)
        _, told = run.communicate(timeout=300)
    assert run.returncode == 128 + sent
    assert told.count("run the command again to resume") == 1
    assert not any(Path(f"/proc/{worker}/cmdline").is_file() for worker in workers)


@pytest.mark.slow
@linux
@pytest.mark.third_party_rng  # weights
def test_ranks_train_one_model_together_where_the_trainer_has_several_devices(tmp_path):
    (tmp_path / "settings.yaml").write_text(EVALUATE + "trainer: {devices: 2, strategy: ddp, accelerator: cpu}\n")
    command = ["evaluate", f"--config={tmp_path / 'settings.yaml'}", f"--out={tmp_path / 'out'}"]
    assert _join(_forked(main, 2, command)) == [0, 0]
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["settings"]["trainer"]["devices"] == 2
    assert len(found["cells"]) == 3 * 3
    assert main(command) == 0  # all is trained: one process may write the report again


def _call(images, labels, path):
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 3))
    with torch.no_grad():
        for each in net.parameters():
            each.copy_(torch.linspace(-1, 1, each.numel()).reshape(each.shape).sin())
    options = {"batch_size": 4, "progress": False, "checks": Checks(images=4, queries=2, curves=False)}
    report = robustsigma.evaluate({"a": net, "b": net}, (images, labels), {"fgsm": FGSM(0.1)}, **options)
    found = {**report.to_dict(), "run": None}
    (path / f"{os.environ.get('RANK', 'alone')}.json").write_text(json.dumps(found))


@pytest.mark.slow
@linux
@pytest.mark.third_party_rng  # weights
def test_a_call_in_every_rank_returns_the_report_of_one(tmp_path):
    images = torch.rand(18, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    arguments = images, torch.arange(18) % 3, tmp_path
    assert _join(_forked(_call, 3, *arguments)) == [0] * 3
    _call(*arguments)
    assert len({(tmp_path / f"{rank}.json").read_text() for rank in (0, 1, 2, "alone")}) == 1


class _Stream(IterableDataset):
    """18 images of three classes, of which a rank may read only its own."""

    def __init__(self, divides):
        self.divides = divides

    def __iter__(self):
        rank, world = (
            int(os.environ[name]) if self.divides else unset for name, unset in (("RANK", 0), ("WORLD_SIZE", 1))
        )
        images = torch.rand(18, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        return iter([(images[place], place % 3) for place in range(rank, 18, world)])


def _with_own_sampler():
    whole = list(_Stream(divides=False))
    return DataLoader(whole, 4, sampler=DistributedSampler(whole, 2, int(os.environ["RANK"]), shuffle=False))


def _count(call, make, path):
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    torch.nn.init.constant_(net[1].weight, 0.0)
    more = {"methods": {"gradient": robustsigma.Gradient()}} if call == "benchmark" else {"checks": None}
    try:
        found = getattr(robustsigma, call)(net, make(), batch_size=4, progress=False, **more)
        told = str(found.results.dataset.get("test"))
    except ValueError as error:
        told = str(error)
    (path / os.environ["RANK"]).write_text(told)


@pytest.mark.slow
@linux
@pytest.mark.third_party_rng  # weights
@pytest.mark.parametrize(
    ("call", "make", "told"),
    [
        ("evaluate", lambda: _Stream(divides=False), "18"),
        ("evaluate", lambda: _Stream(divides=True), "data: expected the same images in every rank"),
        ("evaluate", _with_own_sampler, "data: expected the same images in every rank"),
        ("benchmark", lambda: _Stream(divides=True), "data: expected the same images in every rank"),
    ],
)
def test_ranks_refuse_data_that_are_divided_already(call, make, told, tmp_path):
    assert _join(_forked(_count, 2, call, make, tmp_path)) == [0, 0]
    assert all((tmp_path / rank).read_text().startswith(told) for rank in "01")


def test_slurm_and_others_are_read_where_they_have_started_the_process(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("SLURM_", "RANK", "WORLD_SIZE", "MASTER_"))]:
        monkeypatch.delenv(name)
    slurm = {
        "NTASKS": 4,
        "NTASKS_PER_NODE": 2,
        "PROCID": 3,
        "LOCALID": 1,
        "NODEID": 1,
        "JOB_ID": 77,
        "JOB_NAME": "mine",
        "NODELIST": "n[1-2]",
    }
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    ranks_module.read_cluster()
    assert ranks_module.world_size() == 1, "a script of sbatch that srun has not started"
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # to be restored
        monkeypatch.delenv(name)
    ranks_module.read_cluster()
    assert ranks_module.world_size() == 4
    assert not ranks_module.is_main_process()
    assert (os.environ["RANK"], os.environ["LOCAL_RANK"], os.environ["MASTER_ADDR"]) == ("3", "1", "n1")
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name)


_PLACES = """
import os
from robustsigma.runs.launch import launch

def main(arguments):
    with open(f"{arguments[0]}/{os.environ['RANK']}", "w") as file:
        print(*(os.environ[name] for name in ("LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR")), file=file)
    return 0

if __name__ == "__main__":
    launch(2, 2, main, [os.path.dirname(__file__)])
"""


@pytest.mark.slow
@pytest.mark.parametrize("job", [{"NTASKS": 1}, {"NTASKS": 2, "NTASKS_PER_NODE": 2}])
def test_processes_know_their_places_in_a_script_of_sbatch(job, tmp_path):
    slurm = {"JOB_ID": 7, "JOB_NAME": "mine", "NODELIST": "n1", "PROCID": 0, "LOCALID": 0, "NODEID": 0, **job}
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "RANK", "MASTER_"))}
    inside = {f"SLURM_{name}": str(value) for name, value in slurm.items()}
    second = {"NODE_RANK": "1", "MASTER_ADDR": "here", "MASTER_PORT": "29500"}
    (tmp_path / "script.py").write_text(_PLACES)
    subprocess.run([sys.executable, tmp_path / "script.py"], env={**outside, **inside, **second}, check=True)
    assert (tmp_path / "2").read_text() == "0 4 here\n"
    assert (tmp_path / "3").read_text() == "1 4 here\n"


def _workers(pid):
    """Return the processes that a process started to share its work, in their order."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    found = [child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
    return sorted(map(int, found))
