"""Which part may import which, and what importing the package costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import robustsigma

ROOT = Path(robustsigma.__file__).parent
ENGINE = sorted((ROOT / "engine").rglob("*.py"))
FORBIDDEN = (
    "pytorch_lightning",
    "lightning",
    *(f"robustsigma.{part}" for part in ("data", "report", "evaluation", "training", "benchmark", "cli", "models")),
)
HEAVY = ("torchattacks", "albumentations", "matplotlib", "sklearn", "pytorch_lightning", "mlxtend", "captum", "pandas")


def imported(path: Path) -> set[str]:
    """Return the absolute name of every module and name a file imports, wherever in the file."""
    package = ("robustsigma", *path.relative_to(ROOT).parent.parts)
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("path", ENGINE, ids=lambda path: str(path.relative_to(ROOT)))
def test_engine_imports_nothing_above_it(path):
    wrong = {n for n in imported(path) for f in FORBIDDEN if n == f or n.startswith(f"{f}.")}
    assert wrong == set()


@pytest.mark.parametrize("path", ENGINE, ids=lambda path: str(path.relative_to(ROOT)))
def test_engine_keeps_gradients_and_randomness_in_their_place(path):
    """No `.backward()`, no global seeds or switches, and no `torch.rand*` without a generator."""
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    attributes = [call for call in calls if isinstance(call.func, ast.Attribute)]
    banned = {"backward", "manual_seed", "set_default_dtype", "use_deterministic_algorithms", "zero_grad"}
    if path.name == "global_rng.py":  # lends the global generators to code of others, and takes them back
        banned -= {"manual_seed"}
    assert {call.func.attr for call in attributes} & banned == set()
    draws = {"rand", "randn", "randint", "randperm", "bernoulli_", "normal_", "uniform_", "rand_like", "randn_like"}
    for call in attributes:
        if call.func.attr in draws:
            assert "generator" in {keyword.arg for keyword in call.keywords}, ast.unparse(call)


def loaded(statement: str, names: tuple[str, ...]) -> list[str]:
    """Return which of `names` a fresh interpreter has loaded after a statement."""
    script = f"import sys\n{statement}\nprint(*[n for n in {names!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    return done.stdout.split()


def test_importing_the_package_loads_no_optional_or_heavy_library():
    assert loaded("import robustsigma", HEAVY) == []


def test_importing_every_engine_module_loads_nothing_above_it():
    modules = [".".join(("robustsigma", *path.relative_to(ROOT).with_suffix("").parts)) for path in ENGINE]
    statement = "import " + ", ".join(name.removesuffix(".__init__") for name in modules)
    # torchmetrics, a dependency, loads matplotlib where there is one.
    assert loaded(statement, tuple({*FORBIDDEN, *HEAVY} - {"matplotlib"})) == []


def test_public_names_exist():
    assert len(set(robustsigma.__all__)) == len(robustsigma.__all__)
    assert all(hasattr(robustsigma, name) for name in robustsigma.__all__)
