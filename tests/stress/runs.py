"""Runs of the command line in forked processes, their results, and the work they have finished. Needs Linux's /proc."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from robustsigma.cli import main
from robustsigma.data import Baggage
from robustsigma.evaluation import training
from robustsigma.lightning import LitClassifier
from robustsigma.models import Architecture, ModelCard, save_model
from robustsigma.runs.blocks import Blocks

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SETTINGS = "alpha: 0.01, beta: 0.1, objective: logit, paths: 1, max_steps: 3"
WALK = f"{{class_path: robustsigma.SigmaSample, init_args: {{sigma: {{{SETTINGS}}}}}}}"
TINY = """
dataset: {class_path: robustsigma.data.Baggage, init_args: {size: 16, train: 60, val: 10, test: 40}}
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
    """A command.

    Attributes:
        arguments: command line of a run in a folder.
        results: results that two runs must have in common.
        finished: units of finished work by name, with a value that changes when the unit is computed again.
    """

    arguments: Callable[[Path], list[str]]
    results: Callable[[Path], dict[str, Any]]
    finished: Callable[[Path], dict[str, Any]]


def verbs(folder: Path) -> dict[str, Verb]:
    """Return the four verbs by name, and write their input files to a folder."""
    (folder / "evaluate.yaml").write_text(EVALUATE)
    (folder / "benchmark.yaml").write_text(BENCHMARK)
    source, architecture = Baggage(size=16, train=200), Architecture("small_cnn", {"width": 4})
    model = folder / "model.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        net = architecture.build(3, 5)
    save_model(model, net, ModelCard(architecture, source.classes, source.shape))
    layers = ("base.yaml", "baggage.yaml", "sigma.yaml", "overlays/cache.yaml")
    fit = [argument for layer in layers for argument in ("--config", str(CONFIGS / "fit" / layer))]
    fit += [f"--data.dataset.init_args.{name}" for name in ("size=16", "train=80", "val=10", "test=10")]
    fit += ["--model.net.init_args.arguments.width=4", "--data.batch_size=16", "--data.num_workers=1"]
    fit += ["--trainer.max_epochs=12", "--trainer.accelerator=cpu", "--trainer.log_every_n_steps=1"]
    fit += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    walk = ["--perturbation=SigmaSample", "--perturbation.sigma.max_steps=8", "--perturbation.sigma.objective=logit"]
    augment = [
        "--dataset=Baggage",
        "--dataset.size=16",
        "--dataset.train=400",
        "--count=400",
        f"--model={model}",
        *walk,
    ]
    return {
        "fit": Verb(
            lambda out: ["fit", *fit, f"--trainer.default_root_dir={out}", "--ckpt_path=last"], _fitted, _epochs
        ),
        "evaluate": Verb(
            lambda out: ["evaluate", f"--config={folder}/evaluate.yaml", f"--out={out}"],
            lambda out: {**_bytes(out, "*.safetensors"), **_arrays(out / "outcomes"), **_arrays(out / "checks")},
            lambda out: _inodes(out, "models/**/*.safetensors", "outcomes/**/*.npz", "checks/**/*.npz"),
        ),
        "benchmark": Verb(
            lambda out: ["benchmark", f"--config={folder}/benchmark.yaml", f"--out={out}"],
            lambda out: {**_bytes(out, "*.safetensors", "evaluated_images.json"), **_scores(out / "scores")},
            lambda out: _inodes(out, "training/models/**/*.safetensors", "scores/**/*.npz", "evaluated_images.json"),
        ),
        "augment": Verb(
            lambda out: ["augment", *augment, f"--out={out}"],
            lambda out: _bytes(out, "*.png", "*.csv"),
            lambda out: _inodes(out, ".parts/*.csv", *_listed(out)),
        ),
    }


def _bytes(out: Path, *patterns: str) -> dict[str, Any]:
    return {str(path.relative_to(out)): path.read_bytes() for pattern in patterns for path in out.rglob(pattern)}


def _arrays(out: Path) -> dict[str, Any]:
    found = {}
    for path in out.rglob("*.npz"):
        with np.load(path, allow_pickle=False) as file:
            found |= {f"{path.relative_to(out)}/{k}": file[k].tobytes() for k in file.files}
    return found


def _scores(out: Path) -> dict[str, Any]:
    columns = {path.name: Blocks(path).all() for path in out.glob("*.npz")}
    return {
        f"{name}/{k}": of[k].tobytes() for name, of in columns.items() for k in of if not k.endswith("|value/seconds")
    }


def _inodes(out: Path, *patterns: str) -> dict[str, Any]:
    """Return an identity of each file that changes when the file is written again."""
    found = [path for pattern in patterns for path in out.glob(pattern)]
    return {str(path.relative_to(out)): (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def _listed(out: Path) -> list[str]:
    """Return the image files of finished batches."""
    return [row.split(",")[0] for path in out.glob(".parts/*.csv") for row in path.read_text().splitlines()]


def _fitted(out: Path) -> dict[str, Any]:
    (path,) = out.rglob("last.ckpt")
    last = torch.load(path, weights_only=True)
    same = ("state_dict", "optimizer_states", "lr_schedulers", "RobustDataModule", "epoch", "global_step")
    names = sorted(path.name for path in path.parent.iterdir())
    # A run that is interrupted in its first epoch starts again in another folder.
    weights = (path.parents[1] / "model.safetensors").read_bytes()
    return {**_bytes_of({name: last[name] for name in same}), "weights": weights, "names": names}


def _bytes_of(value: Any, at: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for key, part in value.items() for k, v in _bytes_of(part, f"{at}/{key}").items()}
    if isinstance(value, (list, tuple)):
        return {k: v for key, part in enumerate(value) for k, v in _bytes_of(part, f"{at}/{key}").items()}
    return {at: value.numpy().tobytes() if isinstance(value, torch.Tensor) else value}


def _epochs(out: Path) -> dict[str, Any]:
    """Return how often each finished epoch was started."""
    last = [torch.load(path, weights_only=True)["epoch"] for path in out.rglob("last.ckpt")]
    log = out / "epochs.log"
    starts = log.read_text().split() if log.is_file() else []
    return {str(epoch): starts.count(str(epoch)) for epoch in range(max(last, default=-1) + 1)}


def start(arguments: list[str], out: Path, *, largest_file: int | None = None, save_interval: float = 0.0) -> int:
    """Fork a run, and return its process id.

    Args:
        arguments: command line.
        out: output folder; the run's output goes to a log file beside it.
        largest_file: most bytes of a file, as on a full disk; None for no limit.
        save_interval: seconds after which finished epochs are saved.
    """
    sys.stdout.flush()
    out.mkdir(parents=True, exist_ok=True)
    log = os.open(out.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    if largest_file is not None:  # the log has no limit: another process writes it
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=log) as writer:
            return _fork(arguments, out, writer.stdin.fileno(), largest_file, save_interval)
    child = _fork(arguments, out, log, largest_file, save_interval)
    os.close(log)
    return child


def _fork(arguments: list[str], out: Path, log: int, largest_file: int | None, save_interval: float) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    torch.cuda.is_available, torch.cuda.device_count = (lambda: False), (lambda: 0)  # a fork cannot use a GPU
    try:
        os.dup2(log, 1)
        os.dup2(log, 2)
        # A test runner replaces the streams by its own.
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
        signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
        training.SAVE_INTERVAL = save_interval
        LitClassifier.on_train_epoch_start = lambda self: _note(out, self.current_epoch)  # type: ignore[method-assign]
        if largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
        status = main(arguments)
    except BaseException:
        out.with_suffix(".error").write_text(traceback.format_exc()[-1_500:])  # below the limit of a full disk
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _note(out: Path, epoch: int) -> None:
    with (out / "epochs.log").open("a") as file:
        file.write(f"{epoch}\n")


def wait(child: int) -> int:
    """Wait for a run and return its exit status, negative for the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def cpu_seconds(child: int, most: float = float("inf")) -> float:
    """Wait until a run has used `most` CPU seconds or has ended, and return the CPU seconds it used."""
    ticks = os.sysconf("SC_CLK_TCK")
    while True:
        state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
        used = (int(state[11]) + int(state[12])) / ticks
        if state[0] == "Z" or used >= most:
            return used
        time.sleep(0.002)


def _whole_rows(path: Path) -> None:
    assert all(len(row.split(",")) >= 6 for row in path.read_text().splitlines())


def incomplete(out: Path) -> list[str]:
    """Return the files that cannot be read; temporary files start with a dot and are left out."""
    readers: dict[str, Callable[[Path], Any]] = {
        ".npz": lambda path: [np.load(path)[name] for name in np.load(path).files],
        ".safetensors": load_file,
        ".json": lambda path: json.loads(path.read_text()),
        ".ckpt": lambda path: torch.load(path, weights_only=True),
        ".png": lambda path: Image.open(path).load(),
        ".csv": _whole_rows,
        ".html": lambda path: path.read_text().index("</html>"),
    }
    found = []
    for path in out.rglob("*"):
        if path.is_file() and path.suffix in readers and not path.name.startswith("."):
            try:
                readers[path.suffix](path)
            except Exception as error:  # readers raise errors of any kind
                found.append(f"{path}: {error!r}")
    return found
