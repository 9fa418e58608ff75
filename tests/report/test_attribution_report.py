"""The attribution report holds every score, flag and picture of the results."""

import base64

import numpy as np
import pytest
from attribution_case import CONTROLS, METHODS, NOT_A_PATH, WITHOUT_MASK
from matplotlib.backends.backend_agg import FigureCanvasAgg
from page_reader import Page, printed

from robustsigma.report import attribution, page, scatter, text, write_report
from robustsigma.report.canvas import png, styled
from robustsigma.report.curves import metric_curves
from robustsigma.report.terminal import rich_table
from robustsigma.runs import files

TITLES = {
    "curves": "Curves",
    "cost": "Cost against quality",
    "sanity": "Does the map depend on the network?",
    "gallery": "The maps",
}


@pytest.fixture(scope="module")
def shown(_shared_attribution):
    """Return the page of the whole report, with other pictures in place of its figures."""
    pictures = {f"attribution_{kind}_{model}": b"png" for kind in TITLES for model in (1, 2)}
    return Page(page.attribution_page(_shared_attribution[0], pictures))


def shown_cells(found, results):
    """Return metric, entry and cell of the page for every score, model by model."""
    tables = iter(found.tables("Scores"))
    pairs = []
    for model, layout in zip(results["models"], attribution.score_tables(results), strict=True):
        entries = attribution.scores(results, model["id"])
        for part in layout.split(lambda part: len(part.column_heads) <= 11):
            rows = [row for row in next(tables)[2:] if len(row) > 1]
            for head, row in zip(part.row_heads, rows, strict=True):
                assert row[0]["text"].strip() == head.label
                for column, cell in zip(part.column_heads, row[1:], strict=True):
                    pairs.append((column.id, entries[head.id, column.id], cell))
    assert next(tables, None) is None
    assert len(pairs) == len(results["cells"])
    return pairs


def test_every_section_is_there_in_order(shown, benchmark_results):
    found = shown
    wanted = ["Warnings about these numbers", "How to read this", "Contents", "Scores", *TITLES.values(),
              "What each metric measures", "The methods", "How this report was made"]  # fmt: skip
    assert list(found.sections) == wanted
    for part in ("2 models", "13 methods and 2 controls", "17 metrics", "14 misclassified", "took 13 min 32 s",
                 "the network has no self-attention", benchmark_results["run"]["command"], "metrics.insertion.steps",
                 NOT_A_PATH, *benchmark_results["findings"]):  # fmt: skip
        assert part in found.text


def test_every_score_is_in_its_cell(shown, benchmark_results):
    for metric, entry, cell in shown_cells(shown, benchmark_results):
        if metric in ("forwards", "backwards"):
            assert cell["text"].strip() == text.number(entry["mean"])
        elif entry["mean"] is None:
            assert cell["text"].startswith(text.DASH)
        else:
            notes = cell["text"].removeprefix(text.score(entry["mean"])).split(text.score(entry["low"]))[0]
            assert len(notes.strip().split(",")) == max(1, len(entry["flags"]))
            assert f"{text.score(entry['low'])} \u2013 {text.score(entry['high'])}" in cell["text"]
        assert all(flag["message"] in cell["title"] for flag in entry["flags"])


def test_bold_is_the_best_score_that_is_significantly_ahead(shown, benchmark_results):
    pairs = shown_cells(shown, benchmark_results)
    for _, entry, cell in pairs:
        marked = (entry["against_random"] or {}).get("verdict") in ("same", "worse")
        assert ("best" in cell["class"].split()) == (entry["best"] and entry["clear"] and not marked)
    assert sum(entry["best"] and not entry["clear"] for _, entry, _ in pairs) > 3


def test_tiles_follow_the_flags(benchmark_results):
    """No tile names the best method of a metric that ranks nothing, as a flag says; a control is never the best."""
    titles = [title for title, _, _ in attribution.tiles(benchmark_results)]
    assert titles == [f"{name} on {model}" for model in ("base", "retrained")
                      for name in ("Insertion \u2212 deletion", "SIC", "IoU, area of the mask")]  # fmt: skip
    for cell in benchmark_results["cells"]:
        if cell["metric"] == "sic" and cell["model"] == "base" and cell["against_random"]:
            cell["against_random"]["verdict"] = "worse" if cell["best"] else "same"
    titles.remove("SIC on base")
    assert [title for title, _, _ in attribution.tiles(benchmark_results)] == titles
    cells = attribution.score_tables(benchmark_results)[0].cells
    assert "best" not in {cells[row, "sic"].tone for row in METHODS}


def test_scores_not_better_than_random_are_marked_and_not_shaded(shown, benchmark_results):
    marks = {"same": "\u2248 random", "worse": "\u25bc random"}
    seen = set()
    for _, entry, cell in shown_cells(shown, benchmark_results):
        verdict = (entry["against_random"] or {}).get("verdict")
        assert [mark for mark in marks.values() if mark in cell["text"]] == (
            [marks[verdict]] if verdict in marks else []
        )
        seen.add(verdict)
    assert seen == {"better", "worse", "same", None}
    for table in attribution.score_tables(benchmark_results):
        assert all(cell.fill is None for cell in table.cells.values() if cell.mark)


def test_the_shade_is_darkest_for_the_best_in_either_direction(benchmark_results):
    for cell in benchmark_results["cells"]:
        cell["against_random"] = None
    table = attribution.score_tables(benchmark_results)[0]
    entries = attribution.scores(benchmark_results, "base")
    for metric in benchmark_results["metrics"]:
        fills = {row.id: table.cells[row.id, metric["id"]].fill for row in table.row_heads}
        assert all(fills[control] is None for control in CONTROLS)
        known = {method: fill for method, fill in fills.items() if fill is not None}
        means = {method: entries[method, metric["id"]]["mean"] for method in known}
        best = (min if metric["better"] == "lower" else max)(means.values())
        assert {m for m, fill in known.items() if fill == max(known.values())} == {m for m in means if means[m] == best}


def test_unusual_counts_are_shown_once(shown, benchmark_results):
    found = shown
    heads = [cell["text"] for table in found.tables("Scores") for cell in table[1]]
    assert sum("n 97 3 skipped" in head for head in heads) == 8  # every method skipped the same images
    odd = [
        (metric, entry["method"])
        for metric, entry, cell in shown_cells(found, benchmark_results)
        if "n 98" in cell["text"]
    ]
    assert odd == [("insertion", "CrediblePath")] * 2
    assert not [cell for _, _, cell in shown_cells(found, benchmark_results) if "n 97" in cell["text"]]
    localized = "IoU, area of the mask, IoU, fixed share, IoU, best threshold, Pointing game: 3 (every method)"
    assert (WITHOUT_MASK, localized) in attribution.skips(benchmark_results, "base")
    assert f"{WITHOUT_MASK}: {localized}" in found.section("Scores")


def test_a_method_that_was_left_out_has_no_row_on_that_model(benchmark_results):
    first, second = attribution.score_tables(benchmark_results)
    assert {head.id for head in first.row_heads} - {head.id for head in second.row_heads} == {"AttentionRollout"}


def test_the_sanity_check_marks_maps_that_do_not_change(shown, benchmark_results):
    tables = shown.tables(TITLES["sanity"])
    for model, table in zip(benchmark_results["models"], tables, strict=True):
        rows = attribution.sanity(benchmark_results, model["id"])
        assert [row["mean"] for row in rows] == sorted(row["mean"] for row in rows)
        for row, cells in zip(rows, table[1:], strict=True):
            assert cells[1]["text"].startswith(text.score(row["mean"]))
            assert ("worse" in cells[3]["class"]) == (not row["changed"]) == row["label"].startswith("CrediblePath")


def test_figures_are_beside_the_page_and_in_it(few_methods, tmp_path):
    path = write_report(*few_methods, tmp_path / "new")
    assert path == tmp_path / "new" / "report.html"
    inlined = [base64.b64decode(address.split(",")[1]) for address in Page(path.read_text(encoding="utf-8")).pictures]
    names = [f"attribution_{kind}_{model}.png" for kind in TITLES for model in (1, 2)]
    assert sorted(figure.name for figure in (path.parent / "figures").iterdir()) == sorted(names)
    for name in names:
        content = (path.parent / "figures" / name).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert content in inlined


@pytest.mark.parametrize("gone", ["curves", "sanity", "gallery"])
def test_a_section_without_data_is_left_out(few_methods, monkeypatch, gone):
    monkeypatch.setattr(page, "png", lambda figure: b"png")
    results, arrays = few_methods
    del results[gone]
    pictures = page.draw_attribution(results, {} if gone == "gallery" else arrays)
    assert {name.split("_")[1] for name in pictures} == TITLES.keys() - {gone}
    found = Page(page.attribution_page(results, pictures))
    assert {name for name, title in TITLES.items() if title not in found.sections} == {gone}


def test_figures_of_an_earlier_report_are_deleted(scores_only, tmp_path):
    folder = tmp_path / "figures"
    folder.mkdir()
    for name in ("attribution_gallery_7.png", "mine.png"):
        (folder / name).write_bytes(b"x")
    write_report(scores_only, {}, tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["attribution_cost.png", "mine.png"]


def test_the_smallest_result(tmp_path):
    least = {"schema": 1, "kind": "attribution", "models": [{"id": "m"}], "methods": [{"id": "A"}],
             "metrics": [{"id": "x", "title": "X", "group": "other", "better": "lower"}],
             "cells": [{"model": "m", "method": "A", "metric": "x", "mean": 0.5}]}  # fmt: skip
    found = Page(write_report(least, {}, tmp_path).read_text(encoding="utf-8"))
    assert not found.sections.keys() & set(TITLES.values())
    assert found.tables("Scores")[0][-1][1]["text"].strip() == "0.500"
    assert "1 model \u00b7 1 method \u00b7 1 metric" in found.text
    assert "0.500" in printed(least, 60)
    empty = {**least, "models": [], "methods": [], "metrics": [], "cells": []}
    assert "Scores" not in Page(page.attribution_page(empty, {})).sections


def test_numbers_that_are_not_finite_are_dashes(scores_only):
    for cell in scores_only["cells"][::3]:
        cell.update(mean=float("nan"), low=float("inf"), high=None)
    words = Page(page.attribution_page(scores_only, {})).text.split()
    assert not {"nan", "inf"} & set(words)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r, a: r.update(schema=2), "schema 2, kind 'attribution'"),
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
        write_report(benchmark_results, benchmark_arrays, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_earlier_report(scores_only, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "png", lambda figure: b"png")
    write_report(scores_only, {}, tmp_path)
    before = {found: found.read_bytes() for found in tmp_path.rglob("*.*")}
    assert len(before) == 2

    def fail(self, target):
        raise OSError("disk")

    monkeypatch.setattr(files.Path, "replace", fail)
    with pytest.raises(OSError, match="disk"):
        write_report({**scores_only, "findings": ["another"]}, {}, tmp_path)
    assert {found: found.read_bytes() for found in tmp_path.rglob("*.*")} == before


def test_the_same_input_gives_the_same_bytes(scores_only):
    with styled():
        first, second = (png(scatter.cost(scores_only, "base")) for _ in range(2))
    assert first == second
    assert page.attribution_page(scores_only, {}) == page.attribution_page(scores_only, {})


@pytest.mark.parametrize("width", [60, 200])
def test_the_terminal_shows_every_score(benchmark_results, width):
    shown = printed(benchmark_results, width)
    for table in attribution.score_tables(benchmark_results):
        assert [cell.text for cell in table.cells.values() if cell.text not in shown] == []
    rules = [len(line) for line in shown.splitlines() if "\u2500" in line]
    assert rules
    assert max(rules) <= width
    for wanted in ("model retrained", "RandomAttribution (control)", "\u25bc", "3 skipped", "n 98", "A3", "left out"):
        assert wanted in shown
    assert [metric["title"] for metric in benchmark_results["metrics"] if metric["title"] not in shown] == []


def test_the_terminal_shows_the_best_in_bold(benchmark_results):
    layout = attribution.score_tables(benchmark_results)[0]
    table = rich_table(layout)
    for column, head in zip(table.columns[1:], layout.column_heads, strict=True):
        for row, cell in zip(layout.row_heads, column.cells, strict=True):
            entry = attribution.scores(benchmark_results, "base")[row.id, head.id]
            assert (cell.style == "bold") == (entry["best"] and entry["clear"])


def test_a_curve_lists_the_scores_of_the_table_best_first(benchmark_results):
    curve = next(curve for curve in benchmark_results["curves"] if curve["id"] == "sic")
    for place, line in enumerate(curve["lines"]):
        line["auc"] = place / 100  # the area under a median curve is not the mean of the areas
    legend = metric_curves({**benchmark_results, "curves": [curve]}, "base").axes[0].get_legend()
    entries = attribution.scores(benchmark_results, "base")
    means = {method: entries[method, "sic"]["mean"] for method in METHODS}
    ranked = sorted(means, key=means.__getitem__, reverse=True)
    listed = [entry.get_text().split("  ") for entry in legend.get_texts()]
    assert [score for score, _ in listed] == [text.score(means[method]) for method in ranked]
    names = attribution.names(benchmark_results)
    assert [name[:20] for _, name in listed] == [names[method][:20] for method in ranked]
    assert "high is better" in legend.get_title().get_text()
    legend = metric_curves({**benchmark_results, "curves": [{**curve, "id": "other"}]}, "base").axes[0].get_legend()
    assert legend.get_texts()[0].get_text().startswith(text.score((len(means) - 1) / 100))
    assert "area" in legend.get_title().get_text()


@pytest.mark.parametrize("few", [2, 15])
def test_labels_and_legends_of_a_panel_do_not_overlap(benchmark_results, few):
    kept = list(METHODS)[:few]
    for curve in benchmark_results["curves"]:
        curve["lines"] = [line for line in curve["lines"] if line["method"] in kept]
        curve["y_title"] = "a normalized probability that came back"
    figure = metric_curves(benchmark_results, "base")
    FigureCanvasAgg(figure).draw()
    panels = [axis.get_window_extent() for axis in figure.axes]
    assert len(panels) == len(benchmark_results["curves"])
    for axis, panel in zip(figure.axes, panels, strict=True):
        label = axis.yaxis.label.get_window_extent()
        assert panel.y0 <= label.y0 < label.y1 <= panel.y1
        legend = axis.get_legend().get_window_extent()
        assert not [other for other in panels if legend.overlaps(other)]


def test_names_beside_points_do_not_overlap(benchmark_results):
    figure = scatter.cost(benchmark_results, "base")
    for axis in figure.axes:
        boxes = [found.get_window_extent() for found in axis.texts if found.get_text()]
        assert len(boxes) == len(METHODS)
        for index, box in enumerate(boxes):
            for other in boxes[:index]:  # a corner may be under another name, where all places are taken
                assert scatter.shared_area(box, other) < 0.1 * min(box.width * box.height, other.width * other.height)


def test_every_protocol_has_a_panel_of_cost(benchmark_results):
    """Also where the usual metrics have no value, as without masks."""
    of = {"insertion": "insertion (RISE)", "pointing_game": "pointing_game (mine)"}
    for cell in benchmark_results["cells"]:
        if cell["metric"] in ("difference", "sic", "iou"):
            cell |= {"mean": None, "low": None, "high": None}
        cell["metric"] = of.get(cell["metric"], cell["metric"])
    for metric in benchmark_results["metrics"]:
        metric["id"] = of.get(metric["id"], metric["id"])
    assert scatter.cost(benchmark_results, "base").axes
    benchmark_results["protocols"] = [{"id": key, "ranks_by": [name]} for key, name in of.items()]
    figure = scatter.cost(benchmark_results, "base")
    assert [len([text for text in axis.texts if text.get_text()]) for axis in figure.axes] == [len(METHODS)] * 2
