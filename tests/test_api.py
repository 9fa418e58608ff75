"""Docstrings of everything public, and the reference that is made of them."""

from __future__ import annotations

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
        section = re.search(r"^(?:Args|Attributes):\n(.*)", inspect.getdoc(item) or "", re.MULTILINE | re.DOTALL)
        text = section[1] if section else ""
        missing += [f"{name}: {a}" for a in _arguments(item) if not re.search(rf"^ +{a}: \S", text, re.MULTILINE)]
        missing += [] if inspect.getdoc(item) else [name]
    assert missing == []


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
    assert "confidence at which a path has arrived" in page
