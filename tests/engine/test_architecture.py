"""Which part may import which, and what importing the package costs."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import robustsigma

ROOT = Path(robustsigma.__file__).parent
ENGINE = sorted((ROOT / "engine").rglob("*.py"))
# From the bottom: a package or module imports from layers below its own only.
LAYERS = (
    ("engine", "lazy_imports"),
    ("runs",),
    ("data", "report"),
    ("models",),
    ("lightning",),
    ("evaluation",),
    ("benchmarking",),
    ("cli",),
)
LAYER = {name: layer for layer, names in enumerate(LAYERS) for name in names}
PACKAGES = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))
DOCS = ROOT.parent / "docs"
FORBIDDEN = ("pytorch_lightning", "lightning", *(f"robustsigma.{name}" for name in LAYER if name not in LAYERS[0]))
OPTIONAL = ("torchattacks", "albumentations", "sklearn", "mlxtend", "captum", "pandas")
HEAVY = (*OPTIONAL, "pytorch_lightning", "matplotlib", "scipy", "torchmetrics", "torchvision")


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imported(path: Path) -> set[str]:
    """Return the absolute name of every module and name a file imports, wherever in the file."""
    package = ("robustsigma", *path.relative_to(ROOT).parent.parts)
    names = set()
    for node in ast.walk(tree(path)):
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
    modules = {path.stem for path in ROOT.glob("*.py")} - {"__init__", "__main__"}
    assert set(LAYER) == modules | set(PACKAGES)


def test_imports_point_down():
    assert [(name, other) for name in LAYER for other in imports(name) if LAYER[other] >= LAYER[name]] == []


def test_the_page_names_every_package_and_module_and_no_other():
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `robustsigma\.(\w+)` \|", page, re.MULTILINE)) == PACKAGES
    assert set(re.findall(r"`robustsigma\.(\w+)", page)) <= set(LAYER)
    assert {name for name in LAYER if f"`{name}`" in page} == set(LAYER) - set(PACKAGES)


def test_engine_imports_nothing_above_it():
    wrong = [
        (path.name, n) for path in ENGINE for n in imported(path) if n.startswith(tuple(f"{f}." for f in FORBIDDEN))
    ]
    assert wrong + [(path.name, n) for path in ENGINE for n in imported(path) & set(FORBIDDEN)] == []


def test_engine_keeps_gradients_and_randomness_in_their_place():
    """No `.backward()`, no global seeds or switches, and no `torch.rand*` without a generator."""
    banned = {"backward", "manual_seed", "set_default_dtype", "use_deterministic_algorithms", "zero_grad"}
    draws = {"rand", "randn", "randint", "randperm", "bernoulli_", "normal_", "uniform_", "rand_like", "randn_like"}
    wrong = []
    for path in ENGINE:
        calls = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
        for call in (call for call in calls if isinstance(call.func, ast.Attribute)):
            name = call.func.attr
            # global_rng.py lends the global generators to other libraries, and restores them.
            forbidden = name in banned and (path.name, name) != ("global_rng.py", "manual_seed")
            if forbidden or (name in draws and "generator" not in {keyword.arg for keyword in call.keywords}):
                wrong.append(f"{path.name}: {ast.unparse(call)}")
    assert wrong == []


def loaded(code: str, names: tuple[str, ...]) -> list[str]:
    """Return which of some modules a new interpreter has loaded after running code."""
    lines = f"import sys\n{code}\nprint(*(name for name in {names!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True, timeout=120)
    return done.stdout.split()


def test_imports_load_no_optional_or_heavy_library():
    """Neither the package, the entry point and the settings of `evaluate`, nor the engine."""
    assert loaded("import robustsigma, robustsigma.cli", (*HEAVY, "torch")) == []
    assert loaded("import robustsigma.cli.evaluate", tuple({*HEAVY} - {"scipy"})) == []
    modules = [".".join(("robustsigma", *path.relative_to(ROOT).with_suffix("").parts)) for path in ENGINE]
    names = (name.removesuffix(".__init__") for name in modules)
    assert loaded("import " + ", ".join(names), (*FORBIDDEN, *HEAVY)) == []
