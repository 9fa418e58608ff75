import base64
import html.parser
import json
import re
import subprocess
import sys
from html import unescape

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from rich.console import Console

from robustsigma import files
from robustsigma.report import gallery, matrix, print_table, text, write_report
from robustsigma.report import html as report_html

SECTIONS = {
    "curves": "Accuracy against the size",
    "examples": "The same images",
    "path": "How a SIGMA sample",
    "explanations": "What the model looks at",
}
EVIL = "<script>alert('x')</script>\"$x^{$"
VOID = {"meta", "img", "br", "link"}


class Reader(html.parser.HTMLParser):
    """Collect tags, and check that they are balanced."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.attributes = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def read(page):
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    return reader


def printed(results, width=120):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    with console.file:
        print_table(results, console)
    return console.export_text()


def poison(value):
    """Return the value with every string that people choose made hostile; identities stay."""
    if isinstance(value, dict):
        kept = {"id", "regime", "condition", "against", "started", "reading", "protocol"}
        return {key: part if key in kept else poison(part) for key, part in value.items()}
    if isinstance(value, list):
        return [poison(part) for part in value]
    return value + EVIL if isinstance(value, str) else value


def test_renders(results, arrays, tmp_path):
    json.dumps(results)
    path = write_report(results, arrays, tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "report.html"
    page = path.read_text(encoding="utf-8")
    read(page)
    for wanted in [*SECTIONS.values(), "Adaptive", "Transfer", "On the fly", "What retraining changed", "R9", "unconv.",
                   results["run"]["command"], "train.<wbr/>mix.<wbr/>share", "95.8", *results["findings"]]:  # fmt: skip
        assert wanted in page


def test_settings_are_folded_away_and_their_keys_break_at_dots_and_underscores(results):
    results["settings"] = {"retrain": {"clean_images": 3}, "a<b": {"c": 1}}
    page = report_html.render(results, {})
    (folded,) = re.findall(r"<details><summary>All settings</summary>(.*?)</details>", page, re.DOTALL)
    keys = re.findall(r"<th>(.*?)</th>", folded)
    assert keys == ["retrain.<wbr/>clean_<wbr/>images", "a&lt;b.<wbr/>c"]
    assert "details::details-content" in page[page.index("@media print") :]
    assert "<h3>Versions</h3>" in page.replace(folded, "")


def _section(page, title):
    """Return the text of one section, tags taken out, blanks made one."""
    part = next(part for part in page.split("<section>") if f"<h2>{title}</h2>" in part)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", part)).split())


def test_the_threat_model_names_norm_eps_knowledge_goal_and_every_parameter(results):
    shown = _section(report_html.render(results, {}), "Threat model")
    assert (
        "PGD adaptive L\u221e 0.0314 weights of the model under test any wrong class "
        "attack = PGD, steps = 40, walk.alpha = 0.01"
    ) in shown
    assert "SIGMA adaptive unbounded \u2013" in shown
    assert "gaussian \u2013 \u2013 \u2013 \u2013 \u2013 sigma = 0.1, the best of 5 swept" in shown  # an older version's
    assert "all worst" in shown


def test_a_bank_has_columns_where_there_is_one(results):
    shown = _section(report_html.render(results, {}), "Samples made for training")
    assert "From the bank, % Mean age, epochs Too old, % Relearnt, % Time" in shown
    assert "62.0 1.5 11.0 7.0" in shown
    for entry in results["augmentation"]:
        entry.pop("bank")  # as in results of an older version
    assert "bank" not in _section(report_html.render(results, {}), "Samples made for training")


def test_the_worst_case_is_a_column_and_a_tile(results):
    page = report_html.render(results, {})
    worst = {c["regime"]: c["accuracy"]["mean"] for c in results["cells"] if c["condition"] == "worst/all"}
    matrix = _section(page, "Accuracy of every model under every condition")
    assert all(text.percent(mean) in matrix for mean in worst.values())
    tiles = re.sub(r"<[^>]+>", " ", page[page.index('class="tiles"') : page.index('class="findings"')])
    assert text.percent(worst["base"]) in tiles
    assert text.percent(max(mean for regime, mean in worst.items() if regime != "base")) in tiles


def _tile(results):
    """Return title, number, unit and hint of the tile of the best regime."""
    return report_html._tiles(matrix.build(results))[-1]


def test_the_tile_of_the_best_names_no_single_regime_where_some_are_alike(results):
    worst = {c["regime"]: c["accuracy"] for c in results["cells"] if c["condition"] == "worst/all"}
    ordered = sorted((key for key in worst if key != "base"), key=lambda key: worst[key]["mean"], reverse=True)
    alone = {"sigma/retrain": "SIGMA, retrained", "sigma/on_the_fly": "SIGMA, on the fly"}
    assert _tile(results)[0] == alone[ordered[0]]
    assert _tile(results)[3].startswith("the best regime: ")
    for key, mean in zip(ordered, (0.61234, 0.61231, 0.61239), strict=False):  # alike to the digit shown
        worst[key]["mean"] = mean
    title, value, _, hint = _tile(results)
    assert (title, value) == ("3 best regimes, tied", "61.2")
    assert "the best regime" not in hint
    assert all(name in hint for name in alone.values())
    for key in ordered:
        worst[key]["mean"] = 0.5
    assert _tile(results)[0] == f"{len(ordered)} best regimes, tied"
    assert f"; {len(ordered) - 4} others \u00b7 right under each" in _tile(results)[3]


def test_an_example_says_whose_confidence_it_shows(results, arrays):
    results["examples"]["items"][2].update(predictions=[0, 4], confidences=[0.98, 0.02])
    results["examples"]["items"][3].update(predictions=[5, 5], confidences=[0.02, 0.02])
    results["dataset"]["classes"][5] = "something long"
    figure = gallery.examples(results, arrays["examples"])
    captions = [axis.get_xlabel() for axis in figure.axes]
    assert captions[4] == "\u2713 98 %"
    assert captions[5] == "\u2717 said scissors\ntrue 2 %"
    assert captions[6] == "\u2717 said\nsomething l\u2026\ntrue 2 %"
    FigureCanvasAgg(figure).draw()
    below = [axis.xaxis.label.get_window_extent() for axis in figure.axes]
    for place, box in enumerate(below[:-2]):  # no caption runs into the next column or the next row
        assert box.y0 >= figure.axes[place + 2].get_window_extent().y1
        assert place % 2 or box.x1 <= below[place + 1].x0


def test_what_beats_an_attack_stands_out(results):
    page = report_html.render(results, {})
    part = next(part for part in page.split("<section>") if "<h2>Is the attack strong enough?</h2>" in part)
    assert part.count('<td class="worse">') == len(results["regimes"])  # twice the steps of PGD
    assert part.count("<b>41.0</b>") == len(results["regimes"])
    assert "64 of the test images" in part
    gradients = next(part for part in page.split("<section>") if "<h2>Can the gradients be followed?</h2>" in part)
    assert gradients.count('class="worse">25.0') == 1
    assert gradients.count("logits, other ones at each call") == 1


def test_calibration_stands_beside_accuracy(results):
    page = report_html.render(results, {})
    shown = _section(page, "Calibration")
    measured = [cell for cell in results["cells"] if cell.get("calibration")]
    assert shown.count("5.0 3.0 \u2013 7.0") == len(measured)
    assert "worst" not in shown.lower()
    for cell in results["cells"]:
        cell.pop("calibration", None)
    assert "<h2>Calibration" not in report_html.render(results, {})


def test_a_result_without_checks_has_no_such_sections(results, arrays, tmp_path):
    for key in ("checks", "networks", "curves"):
        results[key] = []
    page = write_report(results, arrays, tmp_path).read_text(encoding="utf-8")
    for title in ("Is the attack strong enough?", "Can the gradients be followed?", "Accuracy against the size"):
        assert title not in page
    assert not (tmp_path / "figures" / "curves.png").exists()


def test_figures_exist_and_are_the_ones_inlined(results, arrays, tmp_path):
    page = write_report(results, arrays, tmp_path).read_text(encoding="utf-8")
    inlined = [base64.b64decode(found) for found in re.findall(r'src="data:image/png;base64,([^"]+)"', page)]
    for name in ("matrix", "curves", "examples", "path", "explanations"):
        content = (tmp_path / "figures" / f"{name}.png").read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 5000
        assert name == "matrix" or content in inlined


def test_one_file_without_scripts_or_addresses(results, arrays, tmp_path):
    page = write_report(results, arrays, tmp_path).read_text(encoding="utf-8")
    reader = read(page)
    assert not {"script", "link", "iframe", "object", "base"} & set(reader.tags)
    links = [value for key, value in reader.attributes if key in {"src", "href", "action"}]
    assert links
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in links)
    bare = re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)
    assert "://" not in bare
    assert "@import" not in bare
    assert "url(" not in bare
    assert b"matplotlib" not in (tmp_path / "figures" / "matrix.png").read_bytes().lower()


def test_escapes_every_string(results, arrays, tmp_path):
    out = tmp_path / "<script>alert(1)<"
    evil = poison(results)
    evil["settings"][EVIL] = {"<script>": EVIL}
    evil["run"]["versions"]["<script>k"] = "v"
    evil["dataset"]["<script>k"] = "v"
    for entry in evil["conditions"][:2] + evil["regimes"][:2]:
        entry["reading" if "reading" in entry else "protocol"] = EVIL
    page = write_report(evil, arrays, out).read_text(encoding="utf-8")
    reader = read(page)
    assert "script" not in reader.tags
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not [key for key, _ in reader.attributes if key.startswith("on")]


def test_hostile_identities(results, arrays, tmp_path):
    text_of = json.dumps(results).replace("sigma/retrain", "<script>id</script>").replace("pgd/transfer", "'\\\"><u>")
    page = write_report(json.loads(text_of), arrays, tmp_path).read_text(encoding="utf-8")
    assert "<script" not in page
    assert "<u>" not in page


@pytest.mark.parametrize("gone", [None, "absent"])
@pytest.mark.parametrize("name", sorted(SECTIONS))
def test_missing_section_is_left_out(results, arrays, tmp_path, name, gone):
    write_report(results, arrays, tmp_path)
    if gone is None:
        results[name] = None
    else:
        del results[name]
    kept = {key: value for key, value in arrays.items() if not key.startswith(name)}
    page = write_report(results, kept, tmp_path).read_text(encoding="utf-8")
    for other, title in SECTIONS.items():
        assert (title in page) == (other != name)
        assert (tmp_path / "figures" / f"{other}.png").exists() == (other != name)


def test_least_result(tmp_path):
    least = {"schema": 1, "conditions": [{"id": "clean", "name": "clean"}], "regimes": [{"id": "b", "name": "base"}],
             "cells": [{"regime": "b", "condition": "clean", "accuracy": {"mean": 0.5}}]}  # fmt: skip
    page = write_report(least, {}, tmp_path).read_text(encoding="utf-8")
    read(page)
    assert "50.0" in page
    assert "50.0" in printed(least)


def test_not_a_number_and_none_are_dashes(results, arrays, tmp_path):
    for cell in results["cells"][:3]:
        cell.update(accuracy={"mean": float("nan"), "low": None, "high": None, "n": 0}, confidence=None, quality=None)
    results["differences"][0].update(low=None, high=None)
    results["differences"][1].update(mean=float("nan"), low=float("nan"))
    results["path"]["confidence"][3] = None
    arrays["explanations"] = np.full_like(arrays["explanations"], np.nan)
    results["conditions"][1]["quality"] = {"rmse": None}
    page = write_report(results, arrays, tmp_path).read_text(encoding="utf-8")
    assert "nan" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", page).replace("explanation", "")


def test_grey_images(results, arrays, tmp_path):
    grey = {
        key: value[..., :1, :, :] if key in {"examples", "path", "explained"} else value
        for key, value in arrays.items()
    }
    assert write_report(results, grey, tmp_path).exists()


def test_single_seed_is_said(results, arrays, tmp_path):
    results["seeds"] = [0]
    assert "1 seed</span>" in write_report(results, arrays, tmp_path).read_text(encoding="utf-8")
    assert "1 seed:" in printed(results)


def test_a_failed_write_leaves_the_former_report(results, arrays, tmp_path, monkeypatch):
    path = write_report(results, arrays, tmp_path)
    before = path.read_bytes()
    results["findings"] = ["another"]

    def fail(self, target):
        raise OSError("disk")

    monkeypatch.setattr(files.Path, "replace", fail)
    with pytest.raises(OSError, match="disk"):
        write_report(results, arrays, tmp_path)
    assert path.read_bytes() == before
    assert sorted(found.name for found in tmp_path.rglob("*")) == sorted(
        ["figures", "report.html", "matrix.png", "curves.png", "examples.png", "path.png", "explanations.png"]
    )


def test_same_input_same_bytes(results, arrays, tmp_path):
    assert (
        write_report(results, arrays, tmp_path / "a").read_bytes()
        == write_report(results, arrays, tmp_path / "b").read_bytes()
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r, a: r.update(schema=2), "schema 1, got 2"),
        (lambda r, a: r.pop("cells"), r"results\['cells'\]: expected a list, got NoneType"),
        (lambda r, a: r["regimes"][2].pop("id"), r"results\['regimes'\]\[2\]\['id'\]: expected a str, got None"),
        (lambda r, a: a.pop("examples"), r"arrays\['examples'\]: expected an array of 5 dimensions"),
        (lambda r, a: a.update(examples=a["examples"][:2]), r"arrays\['examples'\]: expected 8 conditions.*, got 2"),
        (lambda r, a: a.update(path=a["path"][:2]), r"arrays\['path'\]: expected 8 images.*, got 2"),
        (lambda r, a: a.update(explanations=a["explanations"][0]), r"arrays\['explanations'\]: expected an array of 4"),
        (lambda r, a: r["examples"]["labels"].pop(), r"results\['examples'\]\['labels'\]: expected 2"),
        (lambda r, a: a.update(masks=a["masks"][:1]), r"arrays\['masks'\]: expected 2"),
    ],
)
def test_bad_input_is_named(results, arrays, tmp_path, change, message):
    change(results, arrays)
    with pytest.raises(ValueError, match=message):
        write_report(results, arrays, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("width", [80, 140])
def test_terminal_shows_every_number(results, width):
    results["regimes"][1]["name"] = "[red]markup[/red]\x1b[2J"
    shown = printed(results, width)
    for cell in results["cells"]:
        assert text.percent(cell["accuracy"]["mean"]) in shown
    assert "[red]markup[/red]" in shown
    assert "\x1b" not in shown
    assert "R6" in shown
    assert "\u2026" not in shown


def test_text_is_readable_on_every_cell():
    def luminance(colour):
        return text._luminance([int(colour[i : i + 2], 16) for i in (1, 3, 5)])

    levels = [luminance(text.colour(step / 100)[0]) for step in range(101)]
    assert levels == sorted(levels, reverse=True)
    for step, level in enumerate(levels):
        ink = luminance(text.colour(step / 100)[1])
        assert (max(ink, level) + 0.05) / (min(ink, level) + 0.05) > 4.0


@pytest.mark.parametrize(
    ("call", "wanted"),
    [
        (text.percent(0.98765), "98.8"), (text.percent(None), "\u2013"), (text.points(-0.031), "\u22123.1"),
        (text.points(-0.0001), "0.0"), (text.points(0.2), "+20.0"), (text.number(24000), "24,000"),
        (text.measure(0.1), "0.100"), (text.duration(4521.3), "1 h 15 min"), (text.duration(59.96), "1 min 00 s"),
        (text.duration(12.34), "12.3 s"), (text.name("fgsm"), "FGSM"),
        (text.flatten({"a": {"b": [1, 2]}, "c": None, "d": {}}), [("a.b", "1, 2"), ("c", "none"), ("d", "none")]),
    ],
)  # fmt: skip
def test_text(call, wanted):
    assert call == wanted


def test_import_is_light_and_says_what_is_missing():
    code = (
        "import sys; sys.modules['jinja2'] = None\n"
        "import robustsigma.report as r\n"
        "assert 'matplotlib' not in sys.modules or 'torch' in sys.modules\n"
        "try: r.write_report({}, {}, 'x')\n"
        "except ImportError as e: assert \"pip install 'robustsigma[report]'\" in str(e), e\n"
        "else: raise SystemExit(1)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
