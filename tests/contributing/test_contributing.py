"""CONTRIBUTING.md followed to the letter, in a copy of the project, with a toy of each kind."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOYS = Path(__file__).with_name("toys")
SECTIONS = dict(re.findall(r"^## Add an? (\w+)\n(.*?)(?=^## )", (ROOT / "CONTRIBUTING.md").read_text(), re.M | re.S))


def _importing(module):
    """Import Foo, before the first import of the package."""

    def edit(text):
        at = re.search(r"^from robustsigma", text, re.M).start()
        return f"{text[:at]}from {module} import Foo\n{text[at:]}"

    return edit


def _writing(line, *, after):
    """Write on after a text that is there once."""

    def edit(text):
        assert text.count(after) == 1, after
        return text.replace(after, after + line)

    return edit


def _both(first, second):
    return lambda text: second(first(text))


def _listing_lazily(module):
    """Name Foo in the table of lazy imports, and in the imports that type checkers read."""
    read = _writing("        Foo,\n", after=f"    from {module} import (\n")
    return _both(read, _writing('        "Foo",\n', after=f'    "{module}": (\n'))


def _listing(module):
    return _both(_importing(module), _writing('    "Foo",\n', after="__all__ = [\n"))


# What a person would write at the steps 2 and 3, by file.
EDITS = {
    "attributor": {
        "robustsigma/engine/attributors/__init__.py": _listing("robustsigma.engine.attributors.foo"),
        "robustsigma/__init__.py": _listing_lazily("robustsigma.engine.attributors"),
        "tests/engine/attributors/settings.py": _writing(
            '    "Foo": Entry(({}, {"gray": 0.25})),\n', after="_TABLE: dict[str, Entry] = {\n"
        ),
        "experiments/gallery.py": _both(
            _importing("robustsigma"),
            _writing('        "foo": Foo(),\n', after='        "random": RandomAttribution(),\n'),
        ),
    },
    "perturbation": {
        "robustsigma/engine/perturbations/__init__.py": _listing("robustsigma.engine.perturbations.foo"),
        "robustsigma/__init__.py": _listing_lazily("robustsigma.engine.perturbations"),
        "tests/cases.py": _both(
            _importing("robustsigma"),
            _writing(
                "    Foo: (Foo(), Foo(0.1)),\n",
                after="CHEAP: dict[type[Perturbation], tuple[Perturbation, ...]] = {\n",
            ),
        ),
        "tests/engine/test_every_perturbation.py": lambda text: text,  # the toy draws nothing
    },
    "metric": {
        "robustsigma/engine/metrics/__init__.py": _listing("robustsigma.engine.metrics.foo"),
        "tests/metric_cases.py": _both(
            _importing("robustsigma.engine.metrics"),
            _writing(
                '    Foo: (Foo(), Foo(reduction="sum_abs")),\n',
                after="CHEAP: dict[type[AttributionMetric], tuple[AttributionMetric, ...]] = {\n",
            ),
        ),
    },
    "dataset": {
        "robustsigma/data/__init__.py": _listing("robustsigma.data.foo"),
        "tests/data/test_dataset_specs.py": _both(
            _both(_importing("robustsigma.data"), _writing('"Foo", ', after="\nUNMASKED = [")),
            _writing(
                '        "Foo": lambda seed=0: Foo(seed),\n', after="    table = _table(folder, masks)\n    return {\n"
            ),
        ),
    },
}
# Where its properties are tested, and how many of them there are at least.
TESTED = {
    "attributor": ("tests/engine/attributors/test_every_attributor.py tests/experiments/test_gallery.py", 60),
    "perturbation": ("tests/engine/test_every_perturbation.py", 30),
    "metric": ("tests/engine/metrics/test_every_metric.py", 15),
    "dataset": ("tests/data/test_dataset_specs.py", 6),
}
CHOSEN = "Foo or is_listed or cheap_settings or test_scans"  # its own, and those over the lists


def steps(kind):
    """Return the text of each numbered step of a section."""
    return re.findall(r"^\d\. (.*?)(?=^\d\. |\Z)", SECTIONS[kind], re.M | re.S)


def named(step):
    return re.findall(r"`([\w/]+\.py)`", step)


@pytest.mark.parametrize("kind", EDITS)
def test_three_steps_that_name_files_which_exist(kind):
    first, second, third = steps(kind)
    (new,) = named(first)
    assert new.endswith("/foo.py")
    assert (ROOT / new).parent.is_dir()
    assert {*named(second), *named(third)} == set(EDITS[kind])
    assert all((ROOT / path).is_file() for path in EDITS[kind])


def test_there_are_no_other_sections_and_toys():
    assert set(SECTIONS) == set(EDITS) == {path.stem for path in TOYS.glob("*.py")}


@pytest.mark.slow  # each starts an interpreter and some dozens of tests
@pytest.mark.parametrize("kind", EDITS)
def test_following_them(kind, tmp_path):
    for folder in ("robustsigma", "tests", "experiments"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "golden"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    first, second, third = steps(kind)
    shutil.copy(TOYS / f"{kind}.py", tmp_path / named(first)[0])
    for path in {*named(second), *named(third)}:
        edited = EDITS[kind][path]((tmp_path / path).read_text(encoding="utf-8"))
        (tmp_path / path).write_text(edited, encoding="utf-8")
    files, least = TESTED[kind]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    environment.pop("PYTEST_XDIST_WORKER", None)
    command = [sys.executable, *f"-m pytest -q -p no:cacheprovider -n 0 {files} -k".split(), CHOSEN]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    passed = int(re.search(r"(\d+) passed", done.stdout)[1])
    assert passed >= least
