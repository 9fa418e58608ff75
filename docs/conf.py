"""Settings of the documentation site: `sphinx-build -W --keep-going docs OUT` writes it."""

from __future__ import annotations

import inspect
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import robustsigma

project = "robustsigma"
author = "The robustsigma developers"
copyright = "2026, the robustsigma developers"
version = release = robustsigma.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
templates_path = ["_templates"]

html_theme = "furo"
html_title = f"robustsigma {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

# The tutorials run when the site is built; one that raises an error fails the build.
nb_execution_mode = "cache"
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_output_stderr = "remove"  # such as tqdm's advice to install widgets
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("PYTHONPATH", str(Path(__file__).parents[1]))

napoleon_use_ivar = True
default_role = "code"  # docstrings write `name`, as Markdown does
add_module_names = False
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80
# What a class has from these is in the documentation of torch and Lightning.
_FOREIGN = """Module, LightningModule, LightningDataModule, DataHooks, ModelHooks, CheckpointHooks,
HyperparametersMixin, _DeviceDtypeModuleMixin, Callback, CheckpointIO, Dataset, float, tuple, dict, int,
IntEnum, ReprEnum"""
autosummary_context = {"foreign": " ".join(_FOREIGN.split())}

PAGES = {
    "classifier": ("Classifier", "robustsigma.engine.classifier"),
    "attributors": ("Attribution methods", "robustsigma.engine.attributors"),
    "published": ("Published variants of attribution methods", "robustsigma.engine.attributors.published"),
    "perturbations": ("Perturbations and attacks", "robustsigma.engine.perturbations"),
    "metrics": ("Metrics", "robustsigma.engine.metrics"),
    "lightning": ("Lightning", "robustsigma.lightning"),
    "data": ("Data", "robustsigma.data"),
    "models": ("Models", "robustsigma.models"),
    "evaluation": ("Evaluation", "robustsigma.evaluation"),
    "benchmarking": ("Attribution benchmark", "robustsigma.benchmarking"),
    "report": ("Reports", "robustsigma.report"),
}


def _write_api(folder: Path) -> None:
    """Write a page for each package, which lists its public names; Sphinx writes a page for each name."""
    folder.mkdir(exist_ok=True)
    pages: dict[str, str] = {}
    known: set[str] = set()
    for page, (title, package) in PAGES.items():
        module = import_module(package)
        names = [n for n in getattr(module, "__all__", ["Classifier"]) if not inspect.ismodule(getattr(module, n))]
        ours = [n for n in names if (getattr(getattr(module, n), "__module__", None) or "").startswith("robustsigma")]
        listed = [f"~{'robustsigma' if n in robustsigma.__all__ else package}.{n}" for n in sorted(ours, key=str.lower)]
        summary = (inspect.getdoc(module) or "").split("\n\n")[0]
        lines = [title, "=" * len(title), "", summary, "", ".. autosummary::", "   :toctree:", ""]
        text = "\n".join([*lines, *(f"   {name}" for name in listed), ""])
        pages[page] = text
        known |= {name[1:] for name in listed}
    introduction = "Every public name with its arguments, errors and an example. `from robustsigma import X` imports"
    lines = ["API reference", "=============", "", f"{introduction} those whose full name is `robustsigma.X`.", ""]
    pages["index"] = "\n".join([*lines, ".. toctree::", "   :maxdepth: 1", "", *(f"   {page}" for page in PAGES), ""])
    for stub in folder.glob("robustsigma.*.rst"):  # of a name that is gone
        if stub.stem not in known:
            stub.unlink()
    for page, text in pages.items():
        path = folder / f"{page}.rst"
        if not path.exists() or path.read_text(encoding="utf-8") != text:  # an unchanged page is not read again
            path.write_text(text, encoding="utf-8")


def _escape_bars(app: object, what: str, name: str, item: object, options: object, lines: list[str]) -> None:
    """Escape `|x|` in prose, which reStructuredText takes for a substitution."""
    lines[:] = [line if line.lstrip().startswith(">>>") else line.replace("|", "\\|") for line in lines]


def setup(app: Any) -> None:
    """Connect what Sphinx calls."""
    app.connect("autodoc-process-docstring", _escape_bars)


sys.path.insert(0, str(Path(__file__).parents[1]))
_write_api(Path(__file__).with_name("api"))
