"""The robustness report holds every number, flag and picture of the results."""

import base64
import csv
import json

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from page_reader import Page, printed

from robustsigma.report import curves, gallery, page, robustness, text, write_report
from robustsigma.runs import files
from robustsigma.runs.results import RobustnessResults

SECTIONS = {
    "curves": "Accuracy against the size of the attack",
    "examples": "The same images under each condition",
    "path": "How a SIGMA sample is made",
    "explanations": "What the model looks at",
    "checks": "Is the attack strong enough?",
    "networks": "Are the gradients reliable?",
    "differences": "What retraining changed",
    "per_seed": "Accuracy of every seed",
    "augmentation": "Samples made for training",
}
PICTURES = dict.fromkeys(("curves", "examples", "path", "explanations"), b"png")
MATRIX = "Accuracy of every model under every condition"


@pytest.fixture(scope="module")
def written(_shared, tmp_path_factory):
    """Return the folder and the text of a report, written once."""
    out = tmp_path_factory.mktemp("report") / "new" / "folder"
    path = write_report(*_shared, out)
    assert path == out / "report.html"
    return out, path.read_text(encoding="utf-8")


def render(results):
    return Page(page.robustness_page(results, PICTURES))


def test_every_accuracy_is_in_its_cell_with_its_interval_and_flags(results):
    table = render(results).tables(MATRIX)[0]
    layout = robustness.accuracy_table(results)
    rows = [row for row in table[2:] if len(row) > 1]
    entries = {(entry["regime"], entry["condition"]): entry for entry in results["cells"]}
    for head, row in zip(layout.row_heads, rows, strict=True):
        assert row[0]["text"].strip() == head.label
        for column, cell in zip(layout.column_heads, row[1:], strict=True):
            entry = entries.pop((head.id, column.id), None)
            if entry is None:
                assert cell["text"].strip() == "\u2013"
                continue
            mean, low, high = (text.percent(entry["accuracy"][key]) for key in ("mean", "low", "high"))
            notes = ",".join(str(layout.footnotes.index(flag) + 1) for flag in text.flags(entry))
            assert cell["text"].startswith(
                f"{mean} {notes} {low} \u2013 {high}" if notes else f"{mean} {low} \u2013 {high}"
            )
            assert ("unconv." in cell["text"]) == (entry.get("converged") not in (None, 1))
            assert all(flag["message"] in cell["title"] for flag in entry["flags"])
    assert entries == {}


def test_every_difference_is_in_its_cell_and_colored_where_it_is_significant(results):
    results["differences"][0].update(mean=-0.004, low=-0.01, high=0.002)
    tables = render(results).tables("What retraining changed")
    cells = [
        cell
        for table in tables
        for row in table[2:]
        if len(row) > 1
        for cell in row[1:]
        if cell["text"].strip() != "\u2013"
    ]
    differences = RobustnessResults.from_json(results).differences
    assert len(cells) == len(differences)
    for entry in differences:
        mean, low, high = (text.points(entry[key]) for key in ("mean", "low", "high"))
        tone = "same" if entry["p_holm"] >= 0.05 else "better" if entry["mean"] > 0 else "worse"
        assert any(f"{mean} {low} to {high}" in cell["text"] and tone in cell["class"].split() for cell in cells)
    shown = render(results).section("What retraining changed")
    family = [entry for entry in differences if entry["against"] == "base"]
    changed = sum(entry["p_holm"] < 0.05 for entry in family)
    assert 0 < changed < sum(entry["low"] > 0 or entry["high"] < 0 for entry in family)
    assert f"{changed} of {len(family)} differences are significant" in shown


def test_the_head_shows_findings_flags_and_the_command(results):
    shown = render(results).text
    for wanted in [*results["findings"], results["run"]["command"], results["flags"][0]["message"], "took 1 h 15 min",
                   "10 models under 5 conditions (9 columns)", "train.mix.share"]:  # fmt: skip
        assert wanted in shown


def test_the_lead_uses_the_singular(results):
    results["regimes"], results["conditions"] = results["regimes"][:1], results["conditions"][:1]
    assert "1 model under 1 condition" in render(results).text


def test_the_threat_model_has_norm_eps_knowledge_goal_and_every_parameter(results):
    rows, listed = (
        [[cell["text"].strip() for cell in row] for row in table[1:]]
        for table in render(results).tables("What is done to the images")
    )
    change = ["0.0270 0.0261 \u2013 0.0279", "0.0314 0.0304 \u2013 0.0324", "0.940 0.909 \u2013 0.971"]
    assert [
        "PGD",
        "adaptive",
        "L\u221e",
        "8/255",
        *change,
        "weights of the model under test",
        "any wrong class",
    ] in rows
    assert ["PGD", "adaptive", "attack = PGD, steps = 40, walk.alpha = 0.01"] in listed
    assert [row[2:4] for row in rows if row[:2] == ["SIGMA", "adaptive"]] == [["unbounded", "\u2013"]]
    # Results of an older version have settings in place of parameters.
    assert [row[4:] for row in rows if row[0] == "clean"] == [["\u2013"] * 5]
    assert [row[2] for row in listed if row[0] in ("clean", "gaussian")] == [
        "untouched images",
        "sigma = 0.1, the best of 5 swept",
    ]


def test_the_use_of_a_cache_is_shown_where_there_is_one(results):
    title = SECTIONS["augmentation"]
    (table,) = render(results).tables(title)
    mixture = [[cell["text"].strip() for cell in row] for row in table if row[0]["text"].startswith("mixture")]
    assert all(row[-4:] == ["62.0", "1.5", "11.0", "7.0"] for row in mixture)
    for entry in results["augmentation"]:
        entry.pop("cache")  # as in results of an older version
    assert len(render(results).tables(title)[0][0]) == len(table[0]) - 4


def test_tiles_are_the_lowest_cells_of_their_rows_and_name_the_attack(results):
    means = {}
    for cell in results["cells"]:
        means.setdefault(cell["regime"], {})[cell["condition"]] = cell["accuracy"]["mean"]
    lowest = {regime: min(row.values()) for regime, row in means.items()}
    clean, base, best = robustness.tiles(robustness.accuracy_table(results))
    assert clean == ("base, clean", f"{text.percent(means['base']['clean'])}%", "without an attack")
    assert base == ("base, lowest", f"{text.percent(lowest.pop('base'))}%", "under all adaptive attacks at once")
    assert best[:2] == ("SIGMA, retrained, lowest", f"{text.percent(max(lowest.values()))}%")
    assert best[2].endswith("; the highest of 9 other models")
    # Whatever is lowest is what the tile shows, with the flags of the cell.
    (moved,) = (c for c in results["cells"] if (c["regime"], c["condition"]) == ("base", "pgd/transfer"))
    moved.update(accuracy={"mean": 0.001, "low": 0, "high": 0.01}, flags=[{"code": "R9", "message": "masked"}])
    tiles = robustness.tiles(robustness.accuracy_table(results))
    assert tiles[1] == ("base, lowest", "0.1%", "under PGD, transfer (flagged: R9)")


def test_tiles_name_every_model_that_shares_the_first_place(results):
    worst = {c["regime"]: c["accuracy"] for c in results["cells"] if c["condition"] == "worst/all"}
    ordered = sorted((key for key in worst if key != "base"), key=lambda key: worst[key]["mean"], reverse=True)
    for cell in results["cells"]:
        cell["accuracy"]["mean"] = 0.9
    for key, mean in zip(ordered, (0.61234, 0.61231, 0.61239, *[0.5] * 6), strict=True):  # equal to the digit shown
        worst[key]["mean"] = mean
    title, value, hint = robustness.tiles(robustness.accuracy_table(results))[-1]
    assert (title, value) == ("3 models tied, lowest", "61.2%")
    assert hint.count("; ") == 2
    for key in ordered:
        worst[key]["mean"] = 0.5
    title, _, hint = robustness.tiles(robustness.accuracy_table(results))[-1]
    assert title == f"{len(ordered)} models tied, lowest"
    assert f"; {len(ordered) - 4} others" in hint


@pytest.mark.parametrize("protocol", ["given", "none"])
def test_a_single_model_has_a_row_for_each_condition_and_no_word_about_other_models(results, protocol):
    results["regimes"] = [{"id": "base", "name": "mine", "protocol": protocol}]
    results["cells"] = [cell for cell in results["cells"] if cell["regime"] == "base"]
    kept = {key: results[key] for key in ("schema", "dataset", "conditions", "regimes", "cells", "flags", "run")}
    found = render({**kept, "seeds": []})
    (table,) = found.tables("Accuracy under every condition")
    rows = [row for row in table[1:] if len(row) > 1]
    assert [row[0]["text"].strip() for row in rows] == ["clean", "gaussian", "FGSM", "SIGMA", "PGD", "all"]
    assert [cell["text"] for cell in table[0]] == ["Condition", "Accuracy, %"]
    assert "1 model under 5 conditions (6 columns)" in found.text
    words = found.text.lower()
    assert not [word for word in ("regime", "retrain", "base model", "transfer", "first model") if word in words]


def test_the_verdict_is_above_everything_and_the_findings_are_folded(results):
    findings = results["findings"]
    before = render(results)
    assert before.text.index(findings[0]) < before.text.index("Contents"), "an older result has findings alone"
    results["verdict"] = ["The first sentence.", "The second one."]
    after = render(results)
    assert after.text.index("The first sentence. The second one.") < after.text.index("base, clean")
    assert all(sentence in after.section("The findings with their intervals") for sentence in findings)
    assert after.text.count(findings[0]) == 1


def test_the_results_can_be_downloaded_from_the_page(results):
    results["cells"][0].update(regime="=1+1", note=None)
    addresses = {each.split(",")[0]: base64.b64decode(each.split(",")[1]) for each in render(results).addresses
                 if each.startswith("data:") and "image" not in each}  # fmt: skip
    assert json.loads(addresses["data:application/json;base64"]) == results
    rows = list(csv.DictReader(addresses["data:text/csv;base64"].decode().splitlines()))
    assert rows[0]["regime"] == "'=1+1", "a spreadsheet must not run it"
    for row, cell in zip(rows[1:], results["cells"][1:], strict=True):
        assert (row["regime"], row["condition"]) == (cell["regime"], cell["condition"])
        assert float(row["accuracy.mean"]) == cell["accuracy"]["mean"]
        assert row["flags"].split() == [flag["code"] for flag in cell["flags"]]


def test_an_example_shows_the_prediction_and_the_confidence_in_the_true_class(results, arrays):
    results["examples"]["items"][2].update(predictions=[0, 4], confidences=[0.98, 0.02])
    results["examples"]["items"][3].update(predictions=[5, 5], confidences=[0.02, 0.02])
    results["dataset"]["classes"][5] = "a very long name"
    figure = gallery.examples(results, arrays["examples"])
    captions = [axis.get_xlabel() for axis in figure.axes]
    assert captions[4:7] == ["\u2713 98%", "\u2717 scissors\ntrue 2%", "\u2717 a very long\u2026\ntrue 2%"]
    FigureCanvasAgg(figure).draw()
    below = [axis.xaxis.label.get_window_extent() for axis in figure.axes]
    for place, box in enumerate(below[:-2]):  # no caption runs into the next column or the next row
        assert box.y0 >= figure.axes[place + 2].get_window_extent().y1
        assert place % 2 or box.x1 <= below[place + 1].x0


def test_what_is_stronger_than_an_attack_is_highlighted(results):
    (table,) = render(results).tables("Is the attack strong enough?")
    cells = [cell for row in table[1:] for cell in row]
    weak = [cell for cell in cells if "worse" in cell["class"]]
    assert len(weak) == len(results["regimes"])  # twice the steps of PGD
    assert {cell["text"].strip() for cell in weak} == {"41.0 +5.0 (+3.0 to +7.0)"}
    (gradients,) = render(results).tables("Are the gradients reliable?")
    odd = [cell["text"].strip() for row in gradients[1:] for cell in row if "worse" in cell["class"]]
    assert odd == ["25.0", "logits, different at each call"]


def test_calibration_is_shown_for_the_conditions_that_have_it(results):
    (table,) = render(results).tables("Calibration")
    measured = [cell for cell in results["cells"] if cell.get("calibration")]
    shown = [cell["text"].strip() for row in table for cell in row]
    assert shown.count("5.0 3.0 \u2013 7.0") == len(measured)
    assert "Worst case" not in shown


def test_a_curve_of_a_given_model_is_titled_by_its_attack_alone(results):
    for entry in results["regimes"]:
        entry["protocol"] = "given"
    titles = [axis.get_title() for axis in curves.accuracy_over_eps(results).axes]
    assert titles
    assert not any(title.endswith((",", " ")) for title in titles)


@pytest.mark.slow
@pytest.mark.parametrize("gone", ["none", "absent"])
@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_without_data_is_left_out(results, arrays, monkeypatch, name, gone):
    for module, functions in ((curves, ("accuracy_over_eps",)), (gallery, ("examples", "path", "explanations"))):
        for function in functions:
            monkeypatch.setattr(module, function, lambda *_: None)
    results[name] = None
    if gone == "absent":
        del results[name]
    drawn = {figure for figure, _ in page._robustness_figures(results, arrays)}
    assert drawn == {"matrix", *PICTURES} - {name}
    sections = Page(page.robustness_page(results, dict.fromkeys(drawn, b"png"))).sections
    assert {other for other, title in SECTIONS.items() if title not in sections} == {name}


@pytest.mark.slow
def test_figures_are_beside_the_page_and_in_it(written):
    out, shown = written
    inlined = [base64.b64decode(address.split(",")[1]) for address in Page(shown).pictures]
    names = {"matrix", "curves", "examples", "path", "explanations"}
    assert {path.stem for path in (out / "figures").iterdir()} == names
    for name in names:
        content = (out / "figures" / f"{name}.png").read_bytes()
        assert content.startswith(b"\x89PNG")
        assert b"matplotlib" not in content.lower()
        assert name == "matrix" or content in inlined


def test_the_smallest_result(tmp_path):
    least = {"schema": 1, "conditions": [{"id": "clean", "name": "clean"}], "regimes": [{"id": "b", "name": "base"}],
             "cells": [{"regime": "b", "condition": "clean", "accuracy": {"mean": 0.5}}]}  # fmt: skip
    found = Page(write_report(least, {}, tmp_path).read_text(encoding="utf-8"))
    assert found.tables("Accuracy under every condition")[0][-1][1]["text"].strip() == "50.0"
    assert "50.0" in printed(least)


def test_missing_numbers_are_dashes(results, arrays, tmp_path):
    for cell in results["cells"][:3]:
        cell.update(accuracy={"mean": float("nan"), "low": None, "high": None, "n": 0}, confidence=None, quality=None)
    results["differences"][0].update(low=None, high=None)
    results["differences"][1].update(mean=float("nan"), low=float("nan"))
    results["path"]["confidence"][3] = None
    arrays = {key: value[..., :1, :, :] if key in {"examples", "path", "explained"} else value
              for key, value in arrays.items()}  # grayscale images  # fmt: skip
    arrays["explanations"] = np.full_like(arrays["explanations"], np.nan)
    results["conditions"][1]["quality"] = {"rmse": None}
    shown = Page(write_report(results, arrays, tmp_path).read_text(encoding="utf-8"))
    assert "nan" not in shown.text.replace("explanation", "")
    assert shown.tables(MATRIX)[0][3][1]["text"].strip() == "\u2013"


def test_a_single_seed_is_a_flag(results):
    results["seeds"] = [0]
    assert [flag[0] for flag in robustness.run_flags(results)] == ["1 seed", "R12"]
    assert "trained once" in render(results).text
    assert "1 seed" in printed(results)
    kept = {**results, "settings": {"training": {"epochs": 0}}, "regimes": results["regimes"][:1]}
    assert [flag[0] for flag in robustness.run_flags(kept)] == ["R12"], "nothing was trained"
    results["flags"].append({"code": "R1", "message": "a single seed"})
    assert "1 seed" not in dict(robustness.run_flags(results))


def test_a_failed_write_leaves_the_earlier_report(written, results, monkeypatch):
    out, before = written
    names = sorted(found.name for found in out.rglob("*"))
    monkeypatch.setattr(page, "draw_robustness", lambda *_: PICTURES)

    def fail(self, target):
        raise OSError("disk")

    monkeypatch.setattr(files.Path, "replace", fail)
    with pytest.raises(OSError, match="disk"):
        write_report({**results, "findings": ["another"]}, {}, out)
    assert (out / "report.html").read_text(encoding="utf-8") == before
    assert sorted(found.name for found in out.rglob("*")) == names


def test_the_same_input_gives_the_same_bytes(written, results, arrays):
    out, before = written
    pictures = {path.stem: path.read_bytes() for path in (out / "figures").iterdir()}
    assert page.robustness_page(json.loads(json.dumps(results)), pictures) == before
    with page.styled():
        name, figure = next(page._robustness_figures(results, arrays))
        assert page.png(figure) == pictures[name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r, a: r.update(schema=2), "schema 1, got schema 2"),
        (lambda r, a: r.pop("cells"), r"results\['cells'\]: expected a list, got NoneType"),
        (lambda r, a: r["regimes"][2].pop("id"), r"results\['regimes'\]\[2\]\['id'\]: expected a str, got None"),
        (lambda r, a: a.pop("examples"), r"arrays\['examples'\]: expected an array of 5 dimensions"),
        (lambda r, a: a.update(examples=a["examples"][:2]), r"arrays\['examples'\]: expected 8 conditions.*, got 2"),
        (lambda r, a: a.update(path=a["path"][:2]), r"arrays\['path'\]: expected 8 images.*, got 2"),
        (lambda r, a: a.update(explanations=a["explanations"][0]), r"arrays\['explanations'\]: expected an array of 4"),
        (lambda r, a: r["examples"]["labels"].pop(), r"results\['examples'\]\['labels'\]: expected 2"),
        (lambda r, a: r["examples"]["items"][1]["confidences"].pop(), r"\['items'\]\[1\]\['confidences'\]: expected 2"),
        (lambda r, a: a.update(masks=a["masks"][:1]), r"arrays\['masks'\]: expected 2"),
    ],
)
def test_bad_input_is_named(results, arrays, tmp_path, monkeypatch, change, message):
    monkeypatch.setattr(page, "png", lambda figure: b"png")
    change(results, arrays)
    with pytest.raises(ValueError, match=message):
        write_report(results, arrays, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("width", [80, 140])
def test_the_terminal_shows_every_accuracy_and_flag(results, width):
    results["regimes"][1]["name"] = "[red]markup[/red]\x1b[2J"
    shown = printed(results, width)
    for cell in results["cells"]:
        assert text.percent(cell["accuracy"]["mean"]) in shown
    for wanted in ("[red]markup[/red]", "R6 R9", "R12", "transfer beats adaptive", "SIGMA, on the fly"):
        assert wanted in shown
    assert "\x1b" not in shown
    assert "\u2026" not in shown
    assert max(len(line) for line in shown.splitlines() if "\u2500" in line) <= width
