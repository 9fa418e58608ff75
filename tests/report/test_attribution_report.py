import base64
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from attribution_case import CONTROLS, METHODS, NOT_A_PATH, WITHOUT_MASK
from matplotlib.backends.backend_agg import FigureCanvasAgg
from rich.console import Console
from rich.text import Text
from test_report import EVIL, read

from robustsigma import files
from robustsigma.report import print_attribution_table, text, write_attribution_report
from robustsigma.report.attribution import board
from robustsigma.report.attribution.cost import draw_cost
from robustsigma.report.attribution.curves import draw_curves
from robustsigma.report.attribution.lines import _shared

TITLES = {"curves": "<h2>Curves", "sanity": "<h2>Does the map depend", "gallery": "<h2>The maps", "cost": "<h2>Cost ag"}


@pytest.fixture(scope="module")
def written(_shared_attribution, tmp_path_factory):
    """Return the folder and the page of the whole report, written once."""
    out = tmp_path_factory.mktemp("attribution") / "new"
    path = write_attribution_report(*_shared_attribution, out)
    assert path == out / "report.html"
    return out, path.read_text(encoding="utf-8")


def bare(page):
    return re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)


def cells_of(page):
    """Return the class and the content of the cells of scores, in their order."""
    return re.findall(r'<td class="value([^"]*)"[^>]*>(.*?)</td>', page, re.DOTALL)


def boards_cells(results):
    """Return metric and cell as the page lists them: model by model, table by table, methods before controls."""
    return [
        (metric, found.cells[row.id, metric.id])
        for found in board.build(results)
        for pack in found.packs(11)
        for row in found.rows
        for _, _, metrics in pack
        for metric in metrics
    ]


def printed(results, width):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    with console.file:
        print_attribution_table(results, console)
    return console.export_text()


def test_page_is_well_formed_and_needs_no_other_file(written):
    reader = read(written[1])
    assert not {"script", "link", "iframe", "object", "base"} & set(reader.tags)
    links = [value for key, value in reader.attributes if key in {"src", "href", "action"}]
    assert links
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in links)
    targets = {value for key, value in reader.attributes if key == "id"}
    assert {link[1:] for link in links if link.startswith("#")} <= targets
    assert not [word for word in ("://", "@import", "url(") if word in bare(written[1])]


def test_every_section_is_there_in_order(written, benchmark_results):
    page = written[1]
    titles = [TITLES[key] for key in ("curves", "cost", "sanity", "gallery")]
    order = [
        "<h1>",
        benchmark_results["findings"][0],
        "Read the numbers",
        "<h2>Scores",
        *titles,
        "<h2>What each metric",
    ]
    places = [page.index(part) for part in [*order, "<h2>The methods", "Left out", "<h2>How this was made"]]
    assert places == sorted(places)
    wanted = ["2 models", "13 methods and 2 controls", "17 metrics", "14 misclassified", "took 13 min 32 s",
              "the network has no self-attention", benchmark_results["run"]["command"],
              "metrics.<wbr/>insertion.<wbr/>steps", "not clearly changed", NOT_A_PATH]  # fmt: skip
    assert [part for part in wanted if part not in page] == []


def test_every_number_stands_in_its_cell(written, benchmark_results):
    shown, wanted = cells_of(written[1]), boards_cells(benchmark_results)
    assert len(shown) == len(wanted) == len(benchmark_results["cells"])
    for (_, content), (metric, cell) in zip(shown, wanted, strict=True):
        assert content.startswith(metric.write(cell.value("mean")))
        if not metric.whole and cell.value("mean") is not None:
            assert f"{metric.write(cell.value('low'))}&#8239;\u2013&#8239;{metric.write(cell.value('high'))}" in content


def test_bold_only_where_best_and_clear(written, benchmark_results):
    for (classes, _), (_, cell) in zip(cells_of(written[1]), boards_cells(benchmark_results), strict=True):
        assert ("top" in classes.split()) == (cell.entry["best"] and cell.entry["clear"])
    assert sum(cell.entry["best"] and not cell.entry["clear"] for _, cell in boards_cells(benchmark_results)) > 3


def test_cells_not_better_than_random_are_marked_and_not_coloured(written, benchmark_results):
    cells = re.findall(r'<td class="value[^>]*>.*?</td>', written[1], re.DOTALL)
    marks = {"same": "≈ random", "worse": "▼ random"}
    seen = set()
    for content, (_, cell) in zip(cells, boards_cells(benchmark_results), strict=True):
        verdict = (cell.entry["against_random"] or {}).get("verdict")
        assert [mark for mark in marks.values() if mark in content] == ([marks[verdict]] if verdict in marks else [])
        assert not (verdict in marks and "background-color" in content)
        seen.add(verdict)
    assert seen == {"better", "worse", "same", None}


def test_ramp_is_darkest_for_the_best_in_either_direction(benchmark_results):
    found = board.build(benchmark_results)[0]
    for metric in found.metrics:
        ranks = {key[0]: cell.rank for key, cell in found.cells.items() if key[1] == metric.id}
        assert all(ranks[control] is None for control in CONTROLS)
        known = {key: rank for key, rank in ranks.items() if rank is not None}
        means = {key: found.cells[key, metric.id].value("mean") for key in known}
        best = (min if metric.better == "lower" else max)(means.values())
        assert {key for key, rank in known.items() if rank == max(known.values())} == {
            key for key, mean in means.items() if mean == best
        }


def test_odd_counts_are_said_once(written):
    page = written[1]
    assert page.count("n 97</small></th>") == 8  # every method skipped the same images: said in the head, not in cells
    assert "n 97</small></td>" not in page
    assert page.count("n 98</small></td>") == 2
    assert (
        f"<b>{WITHOUT_MASK}</b>: IoU, area of the mask, IoU, fixed share, IoU, best threshold, Pointing game: 3 (every"
        in page
    )
    assert "the search &lt;b&gt;failed&lt;/b&gt;" in page


def test_left_out_method_has_no_row_on_that_model(benchmark_results):
    first, second = board.build(benchmark_results)
    assert {row.id for row in first.rows} - {row.id for row in second.rows} == {"AttentionRollout"}


def test_figures_are_the_ones_inlined(written):
    inlined = [base64.b64decode(found) for found in re.findall(r'src="data:image/png;base64,([^"]+)"', written[1])]
    names = [f"attribution_{kind}_{model}.png" for kind in TITLES for model in (1, 2)]
    assert sorted(path.name for path in (written[0] / "figures").iterdir()) == sorted(names)
    assert all((written[0] / "figures" / name).read_bytes() in inlined for name in names)


def test_escapes_every_string(benchmark_results, benchmark_arrays, tmp_path):
    few = ("Sigma", "AGI", "RandomAttribution")  # soon drawn
    for key in ("cells", "sanity"):
        benchmark_results[key] = [e for e in benchmark_results[key] if e["method"] in few and e["model"] == "base"]
    benchmark_results["gallery"].update(models=["base"], methods=list(METHODS)[:3])
    benchmark_arrays["maps"] = benchmark_arrays["maps"][:1, :3]
    benchmark_results["models"] = benchmark_results["models"][:1]
    benchmark_results["curves"] = benchmark_results["curves"][:1]
    content = json.dumps(benchmark_results)
    for word in ("Sigma", "base", "difference", "Insertion", "faithfulness", "knife", "A3", "the image has no mask",
                 "misclassified", "probability of the class"):  # fmt: skip
        content = content.replace(f'"{word}"', json.dumps(word + EVIL + "\x07"))
    evil = json.loads(content)
    evil["settings"][EVIL] = {"<script>": EVIL}
    evil["dataset"].update(name=EVIL, passed_over={EVIL: 3})
    evil["run"]["command"] = evil["findings"][0] = evil["flags"][0]["message"] = EVIL
    for entry in (*evil["models"], *evil["methods"], *evil["metrics"]):
        entry.update(about=EVIL, settings=EVIL)
    path = write_attribution_report(evil, benchmark_arrays, tmp_path)
    page = path.read_text(encoding="utf-8")
    reader = read(page)
    assert "script" not in reader.tags
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not [key for key, _ in reader.attributes if key.startswith("on")]
    assert "\x07" not in printed(evil, 100)


@pytest.mark.parametrize("gone", ["curves", "sanity", "gallery"])
def test_missing_section_vanishes(benchmark_results, benchmark_arrays, tmp_path, gone):
    few = {"Sigma", "Gradient", "RandomAttribution"}  # soon drawn
    kept = {key: value for key, value in benchmark_results.items() if key != gone}
    kept["models"] = kept["models"][:1]
    kept["cells"] = [cell for cell in kept["cells"] if cell["method"] in few]
    if "curves" in kept:
        curve = kept["curves"][0]
        kept["curves"] = [{**curve, "lines": [line for line in curve["lines"] if line["method"] in few]}]
    arrays = {} if gone == "gallery" else {**benchmark_arrays, "maps": benchmark_arrays["maps"][:1, :3]}
    if "gallery" in kept:
        kept["gallery"] = {**kept["gallery"], "models": ["base"], "methods": list(METHODS)[:3]}
    page = write_attribution_report(kept, arrays, tmp_path).read_text(encoding="utf-8")
    for name, title in TITLES.items():
        assert (title in page) == (name != gone)
        assert bool(list((tmp_path / "figures").glob(f"attribution_{name}.png"))) == (name != gone)


def test_former_figures_go(scores_only, tmp_path):
    folder = tmp_path / "figures"
    folder.mkdir()
    for name in ("attribution_gallery_7.png", "mine.png"):
        (folder / name).write_bytes(b"x")
    write_attribution_report(scores_only, {}, tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == [
        "attribution_cost.png",
        "mine.png",
    ]


def test_least_result(tmp_path):
    least = {"schema": 1, "kind": "attribution", "models": [{"id": "m"}], "methods": [{"id": "A"}],
             "metrics": [{"id": "x", "title": "X", "group": "other", "better": "lower"}],
             "cells": [{"model": "m", "method": "A", "metric": "x", "mean": 0.5}]}  # fmt: skip
    page = write_attribution_report(least, {}, tmp_path).read_text(encoding="utf-8")
    read(page)
    assert not [title for title in TITLES.values() if title in page]
    assert "0.500" in page
    assert "0.500" in printed(least, 60)
    empty = {**least, "models": [], "methods": [], "metrics": [], "cells": []}
    read(write_attribution_report(empty, {}, tmp_path).read_text(encoding="utf-8"))


def test_what_is_not_finite_is_a_dash(scores_only, tmp_path):
    for cell in scores_only["cells"][::3]:
        cell.update(mean=float("nan"), low=float("inf"), high=None)
    page = write_attribution_report(scores_only, {}, tmp_path).read_text(encoding="utf-8")
    assert not re.search(r"\b(nan|inf)\b", bare(page))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r, a: r.update(schema=2), "schema 2, kind 'attribution'"),
        (lambda r, a: r.update(kind="robustness"), "results: expected .*got schema 1, kind 'robustness'"),
        (lambda r, a: r.pop("cells"), r"results\['cells'\]: expected a list, got NoneType"),
        (lambda r, a: r["metrics"][2].pop("better"), r"results\['metrics'\]\[2\]\['better'\]: expected a str"),
        (lambda r, a: r["metrics"][2].update(better="more"), r"\['better'\]: expected 'higher' or 'lower', got 'more'"),
        (lambda r, a: r["methods"][1].update(id="Sigma"), r"results\['methods'\]: expected a different id"),
        (
            lambda r, a: r["curves"][1]["lines"][0]["low"].pop(),
            r"\['curves'\]\[1\]\['lines'\]\[0\]\['low'\]: expected 33",
        ),
        (lambda r, a: a.pop("images"), r"arrays\['images'\]: expected shape \(2, C, H, W\).*, got None"),
        (lambda r, a: a.update(images=a["images"][:1]), r"arrays\['images'\]"),
        (lambda r, a: a.update(maps=a["maps"][:, :3]), r"arrays\['maps'\]: expected shape \(2, 15, 2, 28, 28\)"),
        (lambda r, a: a.update(masks=np.ones((2, 28, 27), bool)), r"arrays\['masks'\]: expected shape \(2, 28, 28\)"),
    ],
)
def test_bad_input_is_named(benchmark_results, benchmark_arrays, tmp_path, change, message):
    change(benchmark_results, benchmark_arrays)
    with pytest.raises(ValueError, match=message):
        write_attribution_report(benchmark_results, benchmark_arrays, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_leaves_the_former_report(scores_only, tmp_path, monkeypatch):
    path = write_attribution_report(scores_only, {}, tmp_path)
    before = {found: found.read_bytes() for found in tmp_path.rglob("*.*")}
    assert len(before) == 2

    def fail(self, target):
        raise OSError("disk")

    monkeypatch.setattr(files.Path, "replace", fail)
    with pytest.raises(OSError, match="disk"):
        write_attribution_report({**scores_only, "findings": ["another"]}, {}, tmp_path)
    assert path in before
    assert {found: found.read_bytes() for found in tmp_path.rglob("*.*")} == before


def test_same_input_same_bytes(scores_only, tmp_path):
    pages = [write_attribution_report(scores_only, {}, tmp_path / name).read_bytes() for name in "ab"]
    assert pages[0] == pages[1]


@pytest.mark.parametrize("width", [60, 200])
def test_terminal_shows_every_score(benchmark_results, width):
    shown = printed(benchmark_results, width)
    for metric, cell in boards_cells(benchmark_results):
        assert metric.write(cell.value("mean")) in shown
    tables = [line for line in shown.splitlines() if "│" in line or "─" in line]
    assert tables
    assert max(map(len, tables)) <= width
    for wanted in ("model retrained", "RandomAttribution (control)", "▼", "2 skipped", "A3", "left out"):
        assert wanted in shown
    heads = {metric.title for metric, _ in boards_cells(benchmark_results)}
    assert [head for head in heads if head not in shown] == []


def test_terminal_bold_only_where_best_and_clear(benchmark_results):
    from robustsigma.report.attribution.terminal import _cell

    for metric, cell in boards_cells(benchmark_results):
        drawn = _cell(cell, metric, "")
        assert isinstance(drawn, Text)
        assert (drawn.style == "bold") == (cell.entry["best"] and cell.entry["clear"])


def _legends(figure):
    """Return the texts of each legend: its head, then scores and names."""
    return [[found.get_text() for found in axis.texts] for axis in figure.axes if axis.texts]


def test_a_curve_lists_the_scores_of_the_table_best_first(benchmark_results):
    curve = next(curve for curve in benchmark_results["curves"] if curve["id"] == "sic")
    for place, line in enumerate(curve["lines"]):
        line["auc"] = place / 100  # a median curve has another area than the mean of the images' areas
    found = board.build(benchmark_results)[0]
    figure = draw_curves({**benchmark_results, "curves": [curve]}, found)
    ((head, *listed),) = _legends(figure)
    assert head == "as in the table, high is good"
    means = {row.id: found.cells[row.id, "sic"].value("mean") for row in found.rows}
    wanted = sorted(means, key=means.__getitem__, reverse=True)
    assert listed[::2] == [text.score(means[key]) for key in wanted]
    names = board.names(benchmark_results)
    assert [name[:20] for name in listed[1::2]] == [names[key][:20] for key in wanted]
    figure = draw_curves({**benchmark_results, "curves": [{**curve, "id": "other"}]}, found)
    ((head, first, *_),) = _legends(figure)
    assert (head, first) == ("area, high is good", text.score((len(means) - 1) / 100))


@pytest.mark.parametrize("few", [2, 15])
def test_labels_of_a_panel_keep_to_it(benchmark_results, few):
    kept = list(METHODS)[:few]
    for curve in benchmark_results["curves"]:
        curve["lines"] = [line for line in curve["lines"] if line["method"] in kept]
        curve["y_title"] = "a normalised probability that came back"
    figure = draw_curves(benchmark_results, board.build(benchmark_results)[0])
    FigureCanvasAgg(figure).draw()
    labelled = [axis for axis in figure.axes if axis.get_ylabel()]
    assert len(labelled) == len(benchmark_results["curves"])
    for axis in labelled:
        label, panel = axis.yaxis.label.get_window_extent(), axis.get_window_extent()
        assert panel.y0 <= label.y0 < label.y1 <= panel.y1


def test_names_beside_points_do_not_overlap(benchmark_results):
    figure = draw_cost(benchmark_results, board.build(benchmark_results)[0])
    for axis in figure.axes:
        boxes = [found.get_window_extent() for found in axis.texts if found.get_text()]
        assert len(boxes) == len(METHODS)
        for index, box in enumerate(boxes):
            for other in boxes[:index]:  # a corner may be under another's, where all places are taken
                assert _shared(box, other) < 0.1 * min(box.width * box.height, other.width * other.height)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(0.12345, "0.123"), (0, "0.000"), (-1.5e-5, "\u22121.5·10⁻⁵"), (12.345, "12.35"), (2048.3, "2,048"),
     (3.2e7, "3.2·10⁷"),
     (-0.5, "\u22120.500"), (None, "\u2013"), (float("nan"), "\u2013")],
)  # fmt: skip
def test_score(value, wanted):
    assert text.score(value) == wanted


def test_lines_of_a_name():
    assert text.lines("LeftIntegratedGradients", 14) == ["LeftIntegrated", "Gradients"]
    assert text.lines("integrated gradients", 14) == ["integrated", "gradients"]
    assert text.lines("", 14) == [""]


def test_import_is_light():
    code = (
        "import sys, robustsigma.report as r\n"
        "assert not {'matplotlib.figure', 'jinja2.environment'} & set(sys.modules) or 'torch' in sys.modules\n"
        "assert not [m for m in sys.modules if m.startswith('robustsigma.report.')]\n"
        "sys.modules['matplotlib'] = None\n"
        "try: r.write_attribution_report({}, {}, 'x')\n"
        "except ImportError as e: assert \"pip install 'robustsigma[report]'\" in str(e), e\n"
        "else: raise SystemExit(1)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
