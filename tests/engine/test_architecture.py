"""Which part may import which, and what importing the package costs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import robustsigma

ROOT = Path(robustsigma.__file__).parent
ENGINE = sorted((ROOT / "engine").rglob("*.py"))
# From the bottom: a package or module imports from layers below its own only.
LAYERS = (
    ("engine",),
    ("device", "files", "fingerprint", "geometry", "processes"),
    ("provenance",),
    ("data", "models", "report"),
    ("mistyped", "training", "trust"),
    ("parser",),
    ("evaluation",),
    ("benchmark",),
    ("cli",),
)
LAYER = {name: layer for layer, names in enumerate(LAYERS) for name in names}
PACKAGES = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))
DOCS = ROOT.parent / "docs"
FORBIDDEN = ("pytorch_lightning", "lightning", *(f"robustsigma.{name}" for name in LAYER if name != "engine"))
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


def imports(name: str) -> set[str]:
    """Return the other packages and modules of ours that one imports."""
    paths = [ROOT / f"{name}.py"] if (ROOT / f"{name}.py").is_file() else (ROOT / name).rglob("*.py")
    ours = {each for path in paths for each in imported(path) if each.startswith("robustsigma.")}
    return {each.split(".")[1] for each in ours} & set(LAYER) - {name}


def test_every_package_and_module_has_its_layer():
    modules = {path.stem for path in ROOT.glob("*.py")} - {"__init__"}
    assert set(LAYER) == modules | set(PACKAGES)
    ours = {name.split(".")[1] for name in imported(ROOT / "__init__.py") if name.startswith("robustsigma.")}
    assert ours == {"engine"}


@pytest.mark.parametrize("name", LAYER)
def test_imports_point_down(name):
    assert {other for other in imports(name) if LAYER[other] >= LAYER[name]} == set()


def test_the_page_and_the_picture_show_every_package_and_no_other():
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `robustsigma\.(\w+)` \|", page, re.MULTILINE)
    assert sorted(rows) == PACKAGES
    for name in re.findall(r"`robustsigma\.(\w+)", page):
        assert name in LAYER
    modules = set(LAYER) - set(PACKAGES)
    assert {name for name in LAYER if f"`{name}`" in page} == modules
    picture = (DOCS / "architecture.svg").read_text(encoding="utf-8")
    assert sorted(re.findall(r'<g id="(\w+)">', picture)) == sorted([*PACKAGES, "modules"])
    assert all(name in picture for name in modules)


def test_the_arrows_are_the_imports():
    """All but those of `cli`, which imports everything, and those of what everything imports."""
    picture = (DOCS / "architecture.svg").read_text(encoding="utf-8")
    arrows = set(re.findall(r'data-from="(\w+)" data-to="(\w+)"', picture))
    drawn = [name for name in PACKAGES if name not in ("cli", "engine")]
    assert arrows == {(name, other) for name in drawn for other in imports(name) if other in drawn}
    assert imports("cli") >= set(drawn)


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
