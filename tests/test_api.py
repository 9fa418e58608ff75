"""Docstrings of everything public: they name the arguments, and their examples run."""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import io
import pkgutil
import re
import subprocess
import sys
from doctest import ELLIPSIS, SKIP, DocTestParser, OutputChecker
from pathlib import Path

import metric_cases
import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import TensorDataset

import robustsigma
from robustsigma.evaluation.training import quiet

ROOT = Path(__file__).parents[1]
BELOW = list(pkgutil.walk_packages(robustsigma.__path__, "robustsigma."))
MODULES = ["robustsigma", *(module.name for module in BELOW)]
PACKAGES = ["robustsigma", *(module.name for module in BELOW if module.ispkg)]  # which need no extra


def _public():
    """Return every class and function of ours that an `__all__` names, by the first name it has."""
    found = {}
    for module in map(importlib.import_module, PACKAGES):
        for name in getattr(module, "__all__", ()):
            item = getattr(module, name)
            if (getattr(item, "__module__", None) or "").startswith("robustsigma"):
                found.setdefault(item, f"{module.__name__}.{name}")
    return {name: item for item, name in found.items()}


PUBLIC = _public()


def _arguments(item):
    """Return the names of what a class or function takes, but members of an enumeration, which nobody makes."""
    if inspect.isclass(item) and hasattr(item, "__members__"):
        return []
    try:
        parameters = inspect.signature(item).parameters.values()
    except ValueError:  # of a class whose base hides it
        parameters = list(inspect.signature(item.__init__).parameters.values())[1:]
    return [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def test_everything_public_has_a_docstring_that_names_its_arguments():
    assert len(PUBLIC) > 80
    missing = []
    for name, item in PUBLIC.items():
        # What published code takes beyond its method's own settings is in its docstring, the rest in the method's.
        owners = [owner for owner in inspect.getmro(item) if owner is not object] if inspect.isclass(item) else [item]
        docs = "\n\n".join(inspect.getdoc(owner) or "" for owner in owners)
        text = "\n".join(re.findall(r"^(?:Args|Attributes):\n(.*?)(?=^\S|\Z)", docs, re.MULTILINE | re.DOTALL))
        missing += [f"{name}: {a}" for a in _arguments(item) if not re.search(rf"^ +{a}: \S", text, re.MULTILINE)]
        missing += [] if inspect.getdoc(item) else [name]
    assert missing == []


@pytest.mark.slow
def test_names_and_subpackages_are_imported_when_they_are_used():
    code = "import robustsigma as rs; print(rs.evaluation.run_study.__module__, rs.evaluation.study, rs.FGSM())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.startswith("robustsigma.evaluation.study <module")
    assert {"evaluation", "Sigma"} <= set(dir(robustsigma))
    with pytest.raises(AttributeError, match="module 'robustsigma' has no attribute 'Sgima'"):
        robustsigma.Sgima  # noqa: B018


@pytest.mark.parametrize("name", ["robustsigma", "robustsigma.evaluation", "robustsigma.benchmarking"])
def test_type_checkers_see_what_is_imported_lazily(name):
    module = importlib.import_module(name)
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen = {(node.module, alias.name) for node in block.body for alias in node.names}
    packages = {(name, found.name) for found in pkgutil.iter_modules(module.__path__) if found.ispkg}
    assert seen == packages | {(key, each) for key, names in module._MODULES.items() for each in names}


def test_no_public_name_is_that_of_a_module():
    """Importing the module would replace the name."""
    for package in map(importlib.import_module, PACKAGES):
        modules = {found.name for found in pkgutil.iter_modules(package.__path__)}
        functions = {name for name in getattr(package, "__all__", ()) if not inspect.ismodule(getattr(package, name))}
        assert not modules & functions, package.__name__


# Their examples need a vision transformer, files, a download, a Trainer or a package that may be missing.
_NOT_RUN = {"AttentionAttribution", "AttentionRollout", "LeGrad", "ImageFolder", "ImageTable", "MedMNIST"}
_NOT_RUN |= {"SaliencyBench", "Datasets", "Torchvision", "CorruptionArrays", "Architecture", "Pretrained", "model"}
_NOT_RUN |= {"StoredMaps", "CaptumMethod", "TorchAttack", "benchmark", "Albumentations", "BatchInfo", "MNIST5k"}
_NOT_RUN |= {"with_same_padding", "Digits", "verify_images"}
_SHORT = {name.rpartition(".")[2]: item for name, item in PUBLIC.items()}
_EXAMPLES = {name: DocTestParser().get_examples(inspect.getdoc(item) or "") for name, item in _SHORT.items()}


def test_every_public_class_has_an_example():
    plain = {"Curve", "MetricSpec", "Skip"}  # what metrics return and are described by
    assert {n for n, item in _SHORT.items() if inspect.isclass(item) and not _EXAMPLES[n]} == plain
    assert set(_EXAMPLES) >= _NOT_RUN


@pytest.mark.slow  # together, not each: AutoAttack is among them
@pytest.mark.third_party_rng
@pytest.mark.parametrize("name", sorted({name for name, found in _EXAMPLES.items() if found} - _NOT_RUN))
def test_examples_run(name, tmp_path, monkeypatch):
    """Run the example with the names that all examples use; what it prints is compared where the docstring has it."""
    monkeypatch.chdir(tmp_path)
    images, labels, masks = metric_cases.scene(4)
    net = metric_cases.Colors()
    given = {"torch": torch, "robustsigma": robustsigma, "net": net, "classifier": robustsigma.Classifier(net)}
    given |= {"images": images, "labels": labels, "target": labels, "masks": masks, "Trainer": pl.Trainer}
    given |= {"test_set": TensorDataset(images, labels), "function": lambda model, images, target: images}
    given |= vars(importlib.import_module(_SHORT[name].__module__)) | _SHORT
    for example in _EXAMPLES[name]:
        if SKIP in example.options:
            continue
        with contextlib.redirect_stdout(io.StringIO()) as printed, quiet():
            exec(compile(example.source, name, "single"), given)
        assert not example.want or OutputChecker().check_output(example.want, printed.getvalue(), ELLIPSIS)
