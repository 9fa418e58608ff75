"""Interrupts at random moments, and what became of the runs: python experiments/stress_interrupts.py.

`fit`, `evaluate`, `benchmark` and `augment`, on tiny settings, are sent SIGINT, SIGTERM or SIGKILL at a moment drawn
uniformly from the processor time that the run takes, and started again. Counted are the runs that the signal ended,
those that then went on to their end, those whose results are those of an uninterrupted run (weights, per-image
outcomes, samples: byte for byte; times left out), and the units of work (epochs of `fit`; trained models, cells and
kept images of `evaluate`; batches of `benchmark` and `augment`) that were finished before the signal and were done
again. After each signal every file with a name of its own is opened: none may be half-written. Then a disk that is
full: files may not grow beyond some size, the run has to end with one line that says what to do, and go on when there
is room.

Each run is a fork of this process, which has imported everything, so that it takes seconds. Needs Linux's /proc.
Writes results/stress_interrupts.json, row by row: stopped and started again, it goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from robustsigma.cli import main as run
from robustsigma.data import Baggage
from robustsigma.evaluation import parts
from robustsigma.files import write_atomically
from robustsigma.models import Architecture, ModelCard, save_model
from robustsigma.provenance import Provenance
from robustsigma.training import LitClassifier

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SETTINGS = "alpha: 0.01, beta: 0.1, objective: logit, paths: 1, max_steps: 3"
WALK = f"{{class_path: robustsigma.SigmaSample, init_args: {{sigma: {{{SETTINGS}}}}}}}"
TINY = """
source: {class_path: robustsigma.data.Baggage, init_args: {size: 16, train: 60, val: 10, test: 40}}
architecture: {name: small_cnn, arguments: {width: 4}}
training: {epochs: 3, batch_size: 16, lr: 0.01}
"""
EVALUATE = f"""{TINY}
test_images: 30
eval_batch_size: 8
checks: {{images: 8, queries: 5}}
conditions:
  clean: {{class_path: robustsigma.Identity}}
  fgsm: {{class_path: robustsigma.FGSM, init_args: {{eps: 0.03}}}}
  sigma: {WALK}
retraining:
  samples: 20
  epochs: 2
  retrain: {{clean: {{class_path: robustsigma.Identity}}, sigma: {WALK}}}
  on_the_fly: {{fgsm: {{class_path: robustsigma.FGSM, init_args: {{eps: 0.03}}}}}}
"""
BENCHMARK = f"""{TINY}
images: 12
checked: 3
batch_size: 3
references: 3
methods:
  SIGMA:
    class_path: robustsigma.Sigma
    init_args: {{alpha: 0.05, beta: 0.2, objective: logit, max_steps: 3, paths: 2}}
  IG: {{class_path: robustsigma.IntegratedGradients, init_args: {{steps: 3}}}}
  rollout: {{class_path: robustsigma.AttentionRollout}}
"""


class Verb(NamedTuple):
    """A command line, where its results are, and what of them is finished work.

    Attributes:
        name: of the verb.
        arguments: of a run in a folder.
        results: what two runs have to have in common.
        finished: what is done for good, by a name: another value later says that it was done again.
    """

    name: str
    arguments: Callable[[Path], list[str]]
    results: Callable[[Path], dict[str, Any]]
    finished: Callable[[Path], dict[str, Any]]


def verbs(folder: Path) -> list[Verb]:
    """Return the four verbs; what they need is written to a folder."""
    (folder / "evaluate.yaml").write_text(EVALUATE)
    (folder / "benchmark.yaml").write_text(BENCHMARK)
    source, architecture = Baggage(size=16, train=200), Architecture("small_cnn", {"width": 4})
    model = folder / "model.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        net = architecture.build(3, 5)
    save_model(model, net, ModelCard(architecture, source.classes, source.shape))
    layers = ("base.yaml", "baggage.yaml", "sigma.yaml", "overlays/bank.yaml")
    fit = [argument for layer in layers for argument in ("--config", str(CONFIGS / "fit" / layer))]
    fit += [f"--data.dataset.init_args.{name}" for name in ("size=16", "train=80", "val=10", "test=10")]
    fit += ["--model.net.init_args.arguments.width=4", "--data.batch_size=16", "--data.num_workers=1"]
    fit += ["--trainer.max_epochs=12", "--trainer.accelerator=cpu", "--trainer.log_every_n_steps=1"]
    fit += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    walk = ["--perturbation=SigmaSample", "--perturbation.sigma.max_steps=8", "--perturbation.sigma.objective=logit"]
    augment = ["--source=Baggage", "--source.size=16", "--source.train=400", "--count=400", f"--model={model}", *walk]
    return [
        Verb(
            "fit", lambda out: ["fit", *fit, f"--trainer.default_root_dir={out}", "--ckpt_path=last"], _fitted, _epoch
        ),
        Verb(
            "evaluate",
            lambda out: ["evaluate", f"--config={folder}/evaluate.yaml", f"--out={out}"],
            lambda out: {**_bytes(out, "*.safetensors"), **_arrays(out / "outcomes"), **_arrays(out / "checks")},
            lambda out: _inodes(out, "models/**/*.safetensors", "outcomes/**/*.npz", "checks/**/*.npz"),
        ),
        Verb(
            "benchmark",
            lambda out: ["benchmark", f"--config={folder}/benchmark.yaml", f"--out={out}"],
            lambda out: {**_bytes(out, "*.safetensors", "judged.json"), **_arrays(out / "parts")},
            lambda out: _inodes(out, "training/models/**/*.safetensors", "parts/**/*.npz", "judged.json"),
        ),
        Verb(
            "augment",
            lambda out: ["augment", *augment, f"--out={out}"],
            lambda out: _bytes(out, "*.png", "*.csv"),
            lambda out: _inodes(out, ".parts/*.csv", *_listed(out)),
        ),
    ]


def _bytes(out: Path, *patterns: str) -> dict[str, Any]:
    return {str(path.relative_to(out)): path.read_bytes() for pattern in patterns for path in out.rglob(pattern)}


def _arrays(out: Path) -> dict[str, Any]:
    found = {}
    for path in out.rglob("*.npz"):
        with np.load(path, allow_pickle=False) as file:
            found |= {f"{path.relative_to(out)}/{k}": file[k].tobytes() for k in file.files if k != "value/seconds"}
    return found


def _inodes(out: Path, *patterns: str) -> dict[str, Any]:
    """Return which files there are: one that is written again is another."""
    found = [path for pattern in patterns for path in out.glob(pattern)]
    return {str(path.relative_to(out)): (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def _listed(out: Path) -> list[str]:
    """Return the images of finished batches."""
    return [row.split(",")[0] for path in out.glob(".parts/*.csv") for row in path.read_text().splitlines()]


def _fitted(out: Path) -> dict[str, Any]:
    (path,) = out.rglob("last.ckpt")
    last = torch.load(path, weights_only=True)
    same = ("state_dict", "optimizer_states", "lr_schedulers", "generators", "RobustDataModule", "epoch", "global_step")
    names = sorted(path.name for path in path.parent.iterdir())
    # A run that was interrupted in its first epoch began anew, in another folder.
    weights = (path.parents[1] / "model.safetensors").read_bytes()
    return {**_bytes_of({name: last[name] for name in same}), "weights": weights, "names": names}


def _bytes_of(value: Any, at: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for key, part in value.items() for k, v in _bytes_of(part, f"{at}/{key}").items()}
    if isinstance(value, (list, tuple)):
        return {k: v for key, part in enumerate(value) for k, v in _bytes_of(part, f"{at}/{key}").items()}
    return {at: value.numpy().tobytes() if isinstance(value, torch.Tensor) else value}


def _epoch(out: Path) -> dict[str, Any]:
    """Return each finished epoch with how often it was begun."""
    last = [torch.load(path, weights_only=True)["epoch"] for path in out.rglob("last.ckpt")]
    log = out / "epochs.log"
    begun = log.read_text().split() if log.is_file() else []
    return {str(epoch): begun.count(str(epoch)) for epoch in range(max(last, default=-1) + 1)}


def start(arguments: list[str], out: Path, *, most: int | None = None, often: float = 0.0) -> int:
    """Fork a run, and return its process.

    Args:
        arguments: of the command line.
        out: its folder; what it tells goes to a file beside.
        most: bytes of a file, or None for no limit.
        often: seconds after which images that are done are kept.
    """
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    torch.cuda.is_available, torch.cuda.device_count = (lambda: False), (lambda: 0)  # no fork can use its parent's GPU
    try:
        out.mkdir(parents=True, exist_ok=True)
        told = os.open(out.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(told, 1)
        os.dup2(told, 2)
        # A test runner's own streams do not write there.
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        parts.OFTEN = often
        LitClassifier.on_train_epoch_start = lambda self: _note(out, self.current_epoch)  # type: ignore[method-assign]
        if most is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        status = run(arguments)
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _note(out: Path, epoch: int) -> None:
    with (out / "epochs.log").open("a") as file:
        file.write(f"{epoch}\n")


def end(child: int) -> int:
    """Wait for a run and return its exit status, negative for the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def work(child: int, seconds: float = float("inf")) -> float:
    """Wait until a run has used so much processor time, which other programs do not change, or has ended; return it."""
    ticks = os.sysconf("SC_CLK_TCK")
    while True:
        state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
        used = (int(state[11]) + int(state[12])) / ticks
        if state[0] == "Z" or used >= seconds:
            return used
        time.sleep(0.002)


def unreadable(out: Path) -> list[str]:
    """Return the files with names of their own that cannot be read."""
    readers: dict[str, Callable[[Path], Any]] = {
        ".npz": lambda path: [np.load(path)[name] for name in np.load(path).files],
        ".safetensors": load_file,
        ".json": lambda path: json.loads(path.read_text()),
        ".ckpt": lambda path: torch.load(path, weights_only=True),
        ".png": lambda path: Image.open(path).load(),
        ".csv": lambda path: [row for row in path.read_text().splitlines() if len(row.split(",")) < 6],
        ".html": lambda path: path.read_text().index("</html>"),
    }
    found = []
    for path in out.rglob("*"):
        if path.is_file() and path.suffix in readers and not path.name.startswith("."):
            try:
                wrong = path.suffix == ".csv" and readers[path.suffix](path)
                if path.suffix != ".csv":
                    readers[path.suffix](path)
                found += [str(path)] if wrong else []
            except Exception as error:  # whatever a reader makes of half a file
                found.append(f"{path}: {error!r}")
    return found


def interrupted(verb: Verb, out: Path, sent: signal.Signals, delay: float, whole: Any, often: float) -> dict[str, int]:
    """Interrupt one run, start it again, and return what happened as 0, 1 or a count."""
    child = start(verb.arguments(out), out, often=often)
    work(child, delay)
    os.kill(child, sent)
    status = end(child)
    before, broken = verb.finished(out), unreadable(out)
    again = end(start(verb.arguments(out), out, often=often))
    after = verb.finished(out)
    other = differing(verb, out, whole) if again == 0 else ["everything"]
    equal = not other
    if again or broken or other:
        print(f"{verb.name}, {sent.name} after {delay:.3f} s: {status}, then {again}, other: {other}; {broken}")
        print(out.with_suffix(".log").read_text()[-2000:], flush=True)
    return {
        "tried": 1,
        "ended_by_the_signal": int(status != 0),
        "said_so": int(status == {signal.SIGINT: 130, signal.SIGTERM: 143}.get(sent, -sent)),
        "went_on": int(again == 0),
        "equal": int(equal),
        "units_finished_before": len(before),
        "units_finished_in_the_end": len(after),
        "recomputed": sum(after.get(name) != value for name, value in before.items() if ".parts/" not in name),
        "half_written": len(broken),
        "left_over": len(list(out.rglob(".*.part"))),
    }


def differing(verb: Verb, out: Path, whole: dict[str, Any]) -> list[str]:
    """Return the names of the results that are not those of an uninterrupted run."""
    found = verb.results(out)
    return [name for name in sorted({*found, *whole}) if name not in found or found[name] != whole.get(name)]


def full(verb: Verb, out: Path, most: int, whole: Any) -> dict[str, int]:
    """Run where no file can grow beyond so many bytes, then where it can, and return what happened."""
    arguments = verb.arguments(out)
    if verb.name == "fit":
        arguments = [*arguments, "--data.num_workers=0"]  # the limit is one of shared memory too, which loaders need
    status = end(start(arguments, out, most=most))
    told = out.with_suffix(".log").read_text().strip().splitlines()[-1:]
    said = bool(told) and "could not write" in told[0] and "run the command again" in told[0]
    named = said and str(out) in told[0]  # the system does not say which file it is where one is open for long
    broken = unreadable(out)
    again = end(start(arguments, out))
    equal = again == 0 and not differing(verb, out, whole)
    if status != 2 or not said or not equal:
        print(f"{verb.name}, at most {most} bytes: {status}, {told}, then {again}, equal: {equal}", flush=True)
    return {
        "tried": 1,
        "ended_with_an_error": int(status == 2),
        "said_so": int(said),
        "named_the_file": int(named),
        "half_written": len(broken),
        "went_on": int(again == 0),
        "equal": int(equal),
    }


def summed(rows: list[dict[str, int]]) -> dict[str, int]:
    """Return the sums of counts."""
    return {name: sum(row[name] for row in rows) for name in rows[0]}


class Results:
    """The file of the results, which has each row as soon as it is counted: a script that is stopped goes on.

    Args:
        path: of the file. Rows of another number of signals or another seed are counted anew.
        options: of the command line.
    """

    def __init__(self, path: Path, options: argparse.Namespace) -> None:
        self.path = path
        self.found: dict[str, Any] = {"times": options.times, "seed": options.seed, "signals": {}, "full_disk": {}}
        if path.is_file():
            before = json.loads(path.read_text())
            if all(before.get(name) == self.found[name] for name in ("times", "seed")):
                self.found = before

    def count(self, kind: str, verb: str, name: str, rows: Callable[[], Iterator[dict[str, int]]]) -> None:
        """Count one row, unless it is there."""
        if name not in self.found[kind].setdefault(verb, {}):
            self.found[kind][verb][name] = summed(list(rows()))
            self.write()
        print(f"{verb:10}{name:12}", self.found[kind][verb][name], flush=True)

    def write(self) -> Path:
        """Write the file."""
        return write_atomically(self.path, (json.dumps(self.found, indent=1) + "\n").encode())


def count(verb: Verb, folder: Path, results: Results, times: int, seed: int) -> None:
    """Count everything of one verb."""
    with contextlib.redirect_stdout(io.StringIO()):
        run(verb.arguments(folder / "warm"))  # imports what it needs, here, so that the forks need not
    child = start(verb.arguments(folder / "whole"), folder / "whole")
    seconds = work(child)
    if end(child):
        raise SystemExit((folder / "whole.log").read_text())
    whole, out = verb.results(folder / "whole"), folder / "run"

    def signals(sent: signal.Signals) -> Iterator[dict[str, int]]:
        draw = random.Random(f"{seed} {verb.name} {sent.name}")
        for number in range(times):
            # Every other run keeps images only every few seconds, as runs do.
            often = 0.0 if number % 2 else 5.0
            yield interrupted(verb, out, sent, draw.uniform(0, seconds), whole, often)
            shutil.rmtree(out)

    def disks() -> Iterator[dict[str, int]]:
        draw = random.Random(f"{seed} {verb.name} disk")
        for _ in range(max(1, times // 4)):
            yield full(verb, out, draw.randint(2_000, 9_000), whole)
            shutil.rmtree(out)

    for sent in SIGNALS:
        results.count("signals", verb.name, sent.name, lambda sent=sent: signals(sent))  # type: ignore[misc]
    results.count("full_disk", verb.name, "counts", disks)
    for name in ("warm", "whole"):
        shutil.rmtree(folder / name)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Interrupt, count, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20, help="signals of each kind to each verb")
    parser.add_argument("--verbs", nargs="+", default=["fit", "evaluate", "benchmark", "augment"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    provenance = Provenance("python experiments/stress_interrupts.py")
    results = Results(options.out / "stress_interrupts.json", options)
    with tempfile.TemporaryDirectory() as name:
        for verb in verbs(Path(name)):
            if verb.name in options.verbs:
                count(verb, Path(name), results, options.times, options.seed)
    results.found["provenance"] = provenance.record()
    print(results.write())
    return results.found


if __name__ == "__main__":
    main()
