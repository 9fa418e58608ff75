"""Docstrings of everything public, and the reference that is made of them."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import robustsigma

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


@pytest.mark.slow
def test_the_reference_is_made_without_a_warning(tmp_path):
    for extra in ("pdoc", "matplotlib", "jinja2"):
        pytest.importorskip(extra)
    command = [sys.executable, str(ROOT / "docs" / "api.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Warning" not in done.stderr
    pages = {
        path.relative_to(tmp_path).with_suffix("").as_posix().replace("/", ".") for path in tmp_path.rglob("*.html")
    }
    assert set(MODULES) <= pages
    page = (tmp_path / "robustsigma" / "engine" / "attributors" / "sigma.html").read_text(encoding="utf-8")
    assert "confidence at which a path has converged" in page
