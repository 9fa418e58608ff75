"""The page of the study, made from the results of all its datasets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from robustsigma.engine.validation import fail
from robustsigma.files import write_atomically
from robustsigma.report import text
from study.conclusions import conclusions, difference, short
from study.plans import CLEAN, GAUSSIAN, REFERENCE, SAMPLES, TIME, VARIATIONS
from study.words import TABLES, column, percent, points, row, shown, sign

NAME = "does_it_help"
_SHORT = """\
Mean accuracy after training on SIGMA samples minus that after other training, in points, with 95 % intervals; bold
where the interval leaves zero out. First over all conditions that are not transfer (clean images, noise, FGSM, PGD,
adaptive SIGMA), then without SIGMA's own."""
_READ = """\
Accuracies are in % with 95 % intervals, differences in points; both are resampled over seeds and images, differences
are paired over both. Bold differences have an interval that leaves zero out ("surely"). The intervals are not
corrected for how many there are: of a hundred true zeros, some five would be bold. With few seeds a bootstrap is
somewhat too narrow. Adaptive attacks are made against the network under test, transfer samples against the base
model of the same seed. "Mean of all" is over the conditions that are not transfer, "mean without SIGMA" without that
one too: training on SIGMA samples stops the very walks that measure it. "All attacks at once" counts an
image that is right under each adaptive attack. A percentage after a SIGMA accuracy is the share of walks that did not
arrive: the sample is weaker than it claims. `c` marks a cell that is not surely above chance, a number in brackets a
flag, told below the table: why the cell may be too good."""


def write(folder: Path) -> Path:
    """Write the page from the results of a folder.

    Raises:
        ValueError: there are none.
    """
    paths = sorted(folder.glob(f"{NAME}_*.json"))
    if not paths:
        raise fail("results", f"a folder with {NAME}_DATASET.json", str(folder))
    every = {path: json.loads(path.read_text(encoding="utf-8")) for path in paths}
    content = "\n".join(_page(every)) + "\n"
    return write_atomically(folder / f"{NAME}.md", content.encode())


def _page(every: dict[Path, dict[str, Any]]) -> Iterator[str]:
    yield "# Does retraining with SIGMA samples help?\n"
    yield "Made by `python experiments/does_it_help.py DATASET`. Each conclusion follows from intervals by rule.\n"
    yield "## In short\n"
    yield f"{_SHORT}\n"
    rows = list(short(list(every.values())))
    yield from (_line(cells) for cells in [rows[0], ["---"] * len(rows[0]), *rows[1:]])
    yield ""
    for found in every.values():
        yield f"## In words: {found['dataset']['title']}\n"
        yield from (f"- {sentence}" for sentence in conclusions(found))
        yield ""
    yield f"## How to read the tables\n\n{_READ}\n"
    for path, found in every.items():
        yield from _dataset(path, found)


def _dataset(path: Path, found: dict[str, Any]) -> Iterator[str]:
    yield f"## Tables: {found['dataset']['title']}\n"
    yield _setting(found) + "\n"
    yield from [found["note"] + "\n"] if found["note"] else []
    for kind in ("", "_variations"):
        yield f"![differences with their intervals]({path.stem}{kind}.png)\n"
    for name, table in found["tables"].items():
        yield f"### {found['dataset']['title']}, {TABLES[name]}\n"
        yield _explained(name, found, table) + "\n"
        yield from _accuracies(table, shown(found))
        others = [CLEAN, GAUSSIAN] + ([REFERENCE] if name == VARIATIONS else [])
        for against in others:
            yield f"Difference from {row(against)}, in points:\n"
            yield from _differences(table, against, shown(found))
        yield from _costs(table)
    yield "Strength of the Gaussian noise, swept on validation images: " + _sweep(found) + "\n"


def _setting(found: dict[str, Any]) -> str:
    data, again, run = found["dataset"], found["retraining"], found["run"]
    base = found["network"]["training"]
    tests = "; ".join(f"{c['name']} {c['settings']}" for c in found["columns"] if c["reading"] != "transfer")
    return (
        f"{data['train']} training, {data['val']} validation and {data['test']} test images of {len(data['classes'])} "
        f"classes, {'x'.join(map(str, data['shape']))}; `{found['network']['name']}`, {base['epochs']} epochs before, "
        f"then retrained with AdamW, learning rate {again['lr']:g}, batches of {again['batch_size']}. Chance is "
        f"{1 / len(data['classes']):.0%}. Test conditions: {tests}. {text.duration(found['seconds'])} on "
        f"{run['hardware']['device']}, {run['hardware']['threads']} thread(s), torch {run['versions']['torch']}."
    )


def _explained(name: str, found: dict[str, Any], table: dict[str, Any]) -> str:
    seeds = f"{len(table['seeds'])} seeds, {found['dataset']['test']} test images."
    if name == SAMPLES:
        return f"The same number of optimiser steps and, in expectation, of augmented images in every row. {seeds}"
    if name == TIME:
        return (
            f"Every row has as much time as the most expensive one of the table before, {found['budget']:,.0f} plain "
            f"steps, in whole epochs; what a step costs was measured side by side. {seeds}"
        )
    return f"SIGMA on the fly with one part changed, matched by samples (by steps where the share changes). {seeds}"


def _accuracies(table: dict[str, Any], columns: list[str]) -> Iterator[str]:
    cells = {(cell["row"], cell["condition"]): cell for cell in table["cells"]}
    told: dict[str, int] = {}
    yield _line(["", *map(column, columns)])
    yield _line(["---"] * (len(columns) + 1))
    for entry in table["rows"]:
        yield _line([row(entry["name"]), *(_cell(cells[entry["name"], name], told) for name in columns)])
    yield ""
    yield from (f"[{number}] {message}  " for message, number in told.items())
    yield from (f"Of the whole table: {flag['message']}  " for flag in table["flags"])
    yield ""


def _cell(cell: dict[str, Any], told: dict[str, int]) -> str:
    marks = [] if cell.get("above_chance", True) else ["c"]
    if cell.get("unconverged"):
        marks.append(f"{cell['unconverged']:.0%}")
    marks += [f"[{told.setdefault(flag['message'], len(told) + 1)}]" for flag in cell["flags"]]
    return " ".join([percent(cell["accuracy"]), *marks])


def _differences(table: dict[str, Any], against: str, columns: list[str]) -> Iterator[str]:
    yield _line(["", *map(column, columns)])
    yield _line(["---"] * (len(columns) + 1))
    for entry in table["rows"]:
        found = [difference(table, entry["name"], against, name) for name in columns]
        if None not in found:
            shown_ = [f"**{points(one)}**" if sign(one) else points(one) for one in found if one is not None]
            yield _line([row(entry["name"]), *shown_])
    yield ""


def _costs(table: dict[str, Any]) -> Iterator[str]:
    yield _line(
        [
            "",
            "epochs",
            "steps",
            "augmented images",
            "cost in plain steps",
            "seconds",
            "walks arrived",
            "walk's steps",
            "from the bank",
        ]
    )
    yield _line(["---"] * 9)
    for entry in table["rows"]:
        if "steps" in entry:
            shares = [text.DASH if entry[key] is None else f"{entry[key]:.0%}" for key in ("converged", "hit_rate")]
            walk = text.DASH if entry["walk_steps"] is None else f"{entry['walk_steps']:.1f}"
            cost = text.DASH if entry["cost"] is None else f"{entry['cost']:,.0f}"
            counts = [f"{entry[key]:,.0f}" for key in ("epochs", "steps", "augmented")]
            yield _line([row(entry["name"]), *counts, cost, f"{entry['seconds']:.1f}", shares[0], walk, shares[1]])
    yield ""


def _sweep(found: dict[str, Any]) -> str:
    (entry,) = found["sweep"]
    rows = ", ".join(f"{r['std']:g}: {percent(r['score'])}" for r in entry["rows"])
    how = f"mean over the conditions that are not transfer, one seed, {entry['images']} images"
    return f"{rows}; the best is {entry['best']:g} ({how})."


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
