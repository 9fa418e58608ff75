"""Formats of numbers, names and colors, and what importing the package costs."""

import ast
import sys
from pathlib import Path

import pytest

from robustsigma import report
from robustsigma.report import text
from robustsigma.report.canvas import luminance, shades


def test_text_is_readable_on_every_cell():
    levels = [luminance(shades(step / 100)[0]) for step in range(101)]
    assert levels == sorted(levels, reverse=True)
    for step, level in enumerate(levels):
        ink = luminance(shades(step / 100)[1])
        assert (max(ink, level) + 0.05) / (min(ink, level) + 0.05) > 4.0
    assert shades(None)[0] == "#ffffff"


@pytest.mark.parametrize(
    ("call", "wanted"),
    [
        (text.percent(0.98765), "98.8"), (text.percent(None), "\u2013"), (text.percent(-0.0001), "0.0"),
        (text.points(-0.031), "\u22123.1"), (text.points(-0.0001), "0.0"), (text.points(0), "0.0"),
        (text.points(0.2), "+20.0"), (text.number(24000), "24,000"), (text.number(-0.0), "0"),
        (text.measure(0.1), "0.100"), (text.measure(-0.0), "0.00"), (text.duration(4521.3), "1 h 15 min"),
        (text.duration(59.96), "1 min 00 s"), (text.duration(12.34), "12.3 s"), (text.name("fgsm"), "FGSM"),
        (text.score(0.12345), "0.123"), (text.score(0), "0.000"), (text.score(-1.5e-5), "\u22121.5\u00b710⁻⁵"),
        (text.score(12.345), "12.35"), (text.score(2048.3), "2,048"), (text.score(3.2e7), "3.2\u00b710⁷"),
        (text.score(-0.5), "\u22120.500"), (text.score(None), "\u2013"), (text.score(float("nan")), "\u2013"),
        (text.radius(8 / 255), "8/255"), (text.radius(0.2), "0.2"), (text.radii("L2 0.5"), "L2 0.5"),
        (text.radii("L\u221e 0.00784"), "L\u221e 2/255"), (text.parameters({"eps": 2 / 255}), "eps = 2/255"),
        (text.count(1, "model"), "1 model"), (text.count(1200, "image"), "1,200 images"),
        (text.regime_name("SIGMA", "on_the_fly"), "SIGMA, on the fly"), (text.regime_name("base", "none"), "base"),
        (text.flatten({"a": {"b": [1, 2]}, "c": None, "d": {}}), [("a.b", "1, 2"), ("c", "none"), ("d", "none")]),
    ],
)  # fmt: skip
def test_text(call, wanted):
    assert call == wanted


@pytest.mark.parametrize("name", ["write_report", "write_page"])
@pytest.mark.parametrize("missing", ["jinja2", "matplotlib"])
def test_a_missing_package_is_named(monkeypatch, name, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    for loaded in ("matplotlib.figure", "robustsigma.report.page"):  # as in a new process
        monkeypatch.delitem(sys.modules, loaded, raising=False)
    monkeypatch.delitem(vars(report), name, raising=False)
    with pytest.raises(ImportError, match=rf"{missing}.*pip install 'robustsigma\[report\]'"):
        getattr(report, name)({}, {}, "x")


def test_import_is_light():
    """Every module of the package is imported when it is needed: they need matplotlib, jinja2 and rich."""
    tree = ast.parse(Path(report.__file__).read_text(encoding="utf-8"))
    modules = {name.name for node in tree.body if isinstance(node, ast.Import) for name in node.names}
    modules |= {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert modules <= {"robustsigma.lazy_imports", *sys.stdlib_module_names}
