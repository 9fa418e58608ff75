"""The pages in a browser: nothing overflows, every text can be read, and what the script adds works."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from robustsigma.report import page
from robustsigma.report.canvas import png

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--enable-logging=stderr")


def _pages(swept, benchmark_results):
    """Return pages of every kind: many models and flags, one model, older results, and a benchmark."""
    picture = png(Figure(figsize=(12, 1)))
    robust = dict.fromkeys(("curves", "sweep", "examples", "path", "explanations"), picture)
    scores = {f"attribution_{kind}_{model}": picture for kind in ("curves", "cost", "sanity") for model in (1, 2)}
    one = {**swept, "regimes": swept["regimes"][:1], "verdict": ["The model is weak."], "differences": [], "sweep": []}
    benchmark_results["verdict"] = ["A verdict."]
    return {
        "study": page.robustness_page({**swept, "verdict": ["A verdict.", "Another sentence."]}, robust),
        "older": page.robustness_page(swept, robust),
        "one model": page.robustness_page(one, robust),
        "benchmark": page.attribution_page(benchmark_results, scores),
    }


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_pages_are_readable_at_every_width_in_light_and_dark(swept, benchmark_results, tmp_path):
    pages = json.dumps(_pages(swept, benchmark_results)).replace("</", "<\\/")
    script = (Path(__file__).parent / "measure_pages.js").read_text(encoding="utf-8")
    harness = tmp_path / "harness.html"
    start = '<!DOCTYPE html><meta charset="utf-8"><body><script>'
    harness.write_text(f"{start}const PAGES = {pages};\n{script}</script>", encoding="utf-8")
    command = [CHROMIUM, *OPTIONS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", harness.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    found, unscripted = json.loads(html.unescape(re.search("<pre>(.*?)</pre>", done.stdout, re.DOTALL)[1]))
    assert len(found) == 16
    assert unscripted == {name: {"overflow": 0, "opened": True, "hints": ["block"]} for name in unscripted}
    for name, each in found.items():
        assert each["overflow"] <= 0, name
        assert each["faint"] == [], name
        assert each["texts"] > 300, name
        assert each["unannounced"] == 0, f"{name}: what scrolls says so"
        assert each["shut"] == 0, f"{name}: sections are folded"
        assert each["opened"], f"{name}: a link opens its section"
        assert each["folded"] < 0.6 * each["unfolded"], name
        assert each["zoomed"], name
        assert each["dark"] == ("dark" in name), name
        before, falling, rising = each["orders"]
        for group, down, up in zip(before, falling, rising, strict=True):
            values = sorted((float(value) for value in group if value != "\u2013"), reverse=True)
            assert [float(value) for value in down if value != "\u2013"] == values, name
            assert [float(value) for value in up if value != "\u2013"] == values[::-1], name
