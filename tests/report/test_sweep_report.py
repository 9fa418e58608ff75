"""The sweep of the training noise in the page, the figure and the terminal."""

import pytest
from page_reader import Page, printed

from robustsigma.report import curves, page, print_sweep

TITLE = "Choice of the Gaussian noise for training"


def test_the_page_shows_every_accuracy_and_marks_the_best(swept):
    found = Page(page.robustness_page(swept, {}))
    tables = found.tables(TITLE)
    for table, regime in zip(tables, ("gaussian, retrained", "gaussian, on the fly"), strict=True):
        head, band, *rows = [[cell["text"].strip() for cell in row] for row in table]
        assert head == ["Std", "clean", "FGSM adaptive", "Mean", "Against the best", "Training"]
        assert band == [regime]
        assert [row[0] for row in rows] == ["0.05", "0.1 \u25b2 best", "0.2"]
        for row, entry in zip(rows, swept["sweep"][0]["rows"], strict=True):
            means = [entry["accuracy"]["clean"], entry["accuracy"]["fgsm/adaptive"], entry["score"]]
            assert [cell.split()[0] for cell in row[1:4]] == [f"{100 * each['mean']:.1f}" for each in means]
        assert rows[0][4] == "\u22127.0 \u22129.0 to \u22125.0"
        assert {cell["class"] for cell in table[3][1:]} == {"value better"}
    assert "seed 3, evaluated on 400 images of the validation split" in found.section(TITLE)


def test_a_report_without_a_sweep_has_no_such_section(results):
    for gone in ({}, {"sweep": []}):
        assert TITLE not in Page(page.robustness_page({**results, **gone}, {})).sections


def test_the_figure_has_a_line_for_each_column_and_marks_the_best(swept):
    swept["sweep"][1]["rows"][0]["accuracy"]["clean"] = None  # what is missing is not drawn
    figure = curves.sweep(swept)
    for axis, entry, title in zip(
        figure.axes, swept["sweep"], ("gaussian, retrained", "gaussian, on the fly"), strict=True
    ):
        assert axis.get_title() == title
        lines = {line.get_label(): line for line in axis.lines}
        assert {"clean", "FGSM", "mean"} <= set(lines)
        assert list(lines["FGSM"].get_xdata()) == [row["std"] for row in entry["rows"]]
        means = [row["accuracy"]["fgsm/adaptive"]["mean"] for row in entry["rows"]]
        assert list(lines["FGSM"].get_ydata()) == means
        assert list(axis.lines[-1].get_xdata()) == [0.1, 0.1]


@pytest.mark.parametrize("width", [40, 160])
def test_the_terminal_shows_the_same_table(swept, width):
    shown = " ".join(printed({"sweep": [{**swept["sweep"][0], "by": "worst"}]}, width, print_sweep).split())
    for wanted in ("98.0", "20.0", "96.0", "36.0", "66.0", "\u22127.0", "Worst case", "400 images of the validation"):
        assert wanted in shown
    assert "0.1 \u25b2 best" in shown
