"""Scripts of experiments/ as modules, and small things to run them on."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import torch

from robustsigma.data import Baggage
from robustsigma.models import Architecture, ModelCard, save_model

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"


def script(name):
    """Return a script; its folder is on the path, as when it is run."""
    if str(EXPERIMENTS) not in sys.path:
        sys.path.append(str(EXPERIMENTS))
    return importlib.import_module(name)


def untrained(folder):
    """Return the file of a network of small scans that knows nothing: it is right by chance."""
    source = Baggage(size=16, train=150, val=10, test=60)
    architecture = Architecture(arguments={"width": 4})
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        net = architecture.build(3, len(source.classes))
    return str(save_model(folder / "net.safetensors", net, ModelCard(architecture, source.classes, source.shape)))


def results(folder, name):
    """Return what a script wrote."""
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
