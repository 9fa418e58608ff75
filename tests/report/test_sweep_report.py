import re
from html import unescape

import pytest
from rich.console import Console

from robustsigma.report import curves, print_sweep
from robustsigma.report import html as report_html

EVIL = "<script>alert('x')</script>"
MEANS = {0.05: (0.98, 0.2), 0.1: (0.96, 0.36), 0.2: (0.9, 0.3)}


def _interval(mean):
    return {"mean": mean, "low": mean - 0.04, "high": min(1.0, mean + 0.04), "n": 400}


def _entry(protocol="retrain", by="mean"):
    rows = []
    for std, (clean, attacked) in MEANS.items():
        score = (clean + attacked) / 2
        behind = None if std == 0.1 else {"mean": score - 0.66, "low": score - 0.68, "high": score - 0.64, "n": 400}
        accuracy = {"clean": _interval(clean), "fgsm/adaptive": _interval(attacked)}
        rows.append({"std": std, "best": std == 0.1, "score": _interval(score), "behind": behind,
                     "accuracy": accuracy, "seconds": 12.5})  # fmt: skip
    columns = [{"id": "clean", "name": "clean", "reading": "none"},
               {"id": "fgsm/adaptive", "name": "fgsm", "reading": "adaptive"}]  # fmt: skip
    return {"regime": f"gaussian/{protocol}", "name": "gaussian", "protocol": protocol, "seed": 3, "by": by,
            "images": 400, "held_out": "val", "columns": columns, "best": 0.1, "rows": rows}  # fmt: skip


@pytest.fixture
def swept(results):
    return {**results, "sweep": [_entry(), _entry("on_the_fly")]}


def _section(page):
    return next(part for part in page.split("<section>") if "<h2>Which Gaussian noise was trained on</h2>" in part)


def test_the_table_of_a_sweep_is_in_the_report(swept):
    part = _section(report_html.render(swept, {}))
    shown = " ".join(unescape(re.sub(r"<[^>]+>", " ", part)).split())
    assert "with the first seed, 3, and judged on 400 images of the validation split: no test image" in shown
    for title in ("gaussian, retrained", "gaussian, on the fly"):
        assert f"{title} Std clean FGSM adaptive Mean" in shown
    assert "0.1 \u25b2 best 96.0 92.0 \u2013 100.0 36.0" in shown
    assert "59.0" in shown
    assert "\u22127.0 \u22129.0 to \u22125.0" in shown
    assert part.count('class="better"') == part.count("\u25b2 best</th>") == 2


def test_a_report_without_a_sweep_has_no_such_section(results):
    for gone in ({}, {"sweep": []}):
        assert "Which Gaussian noise" not in report_html.render({**results, **gone}, {})


def test_the_chart_has_a_line_for_each_column_and_marks_the_best(swept):
    swept["sweep"][1]["rows"][0]["accuracy"]["clean"] = None  # what is missing is not drawn
    figure = curves.draw_sweep(swept)
    for axis, title in zip(figure.axes, ("gaussian, retrained", "gaussian, on the fly"), strict=True):
        assert axis.get_title() == title
        lines = {line.get_label(): line for line in axis.lines}
        assert {"clean", "FGSM", "mean"} <= set(lines)
        assert list(lines["FGSM"].get_xdata()) == list(MEANS)
        assert list(lines["FGSM"].get_ydata()) == [attacked for _, attacked in MEANS.values()]
        assert list(axis.lines[-1].get_xdata()) == [0.1, 0.1]


def test_the_terminal_marks_the_best():
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    with console.file:
        print_sweep({"sweep": [_entry(by="worst")]}, console)
    shown = " ".join(console.export_text().split())
    assert re.search(r"0\.1 96\.0 36\.0 66\.0 best", shown)
    assert shown.count("best") == 1
    assert "Worst case" in shown
    assert "400 images of the validation split" in shown
    assert "right under every column" in shown


def test_escapes_every_string(swept):
    for entry in swept["sweep"]:
        entry.update(name=EVIL, protocol=EVIL, by=EVIL, held_out=EVIL, seed=EVIL)
        for column in entry["columns"]:
            column.update(name=EVIL + column["name"], reading=EVIL)
    part = _section(report_html.render(swept, {}))
    assert "<script" not in part
    assert "&lt;script&gt;" in part
    curves.draw_sweep(swept)
