"""The page of the study, made from the results of all its datasets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shared.output import table as markdown

from robustsigma.engine.validation import fail
from robustsigma.report import text
from robustsigma.runs.files import write_atomically
from study.sentences import TABLES, bold, column, conclusions, correct, difference, percent, row, short, shown
from study.setup import CLEAN, GAUSSIAN, REFERENCE, SAMPLES, TIME, VARIATIONS

NAME = "does_it_help"
_SHORT = """\
Mean accuracy after training on SIGMA samples minus that after other training, in points, with 95% intervals; bold
where it is significant. The first number is the mean over all conditions except transfer (clean images, noise,
FGSM, PGD, adaptive SIGMA), the second also leaves out SIGMA."""
_READ = """\
Accuracies are in % with 95% intervals, differences in points. Intervals resample seeds and images, and differences are
paired over both. Bold differences are significant after Holm's correction for everything that a table compares with the
same row; the intervals themselves are not corrected. With few seeds, bootstrap intervals are somewhat too narrow.
Adaptive attacks are made against the tested network, transfer samples against the base model of the same seed. "Mean of
all" averages all conditions except transfer; "mean without SIGMA" also leaves out adaptive SIGMA, because training on
SIGMA samples stops the very walks that measure it. "All attacks at once" counts an image as correct if it is correct
under each adaptive attack. A percentage after a SIGMA accuracy is the share of walks that did not converge: these
samples are weaker than specified. `c` marks a cell that is not significantly above chance, and a number in brackets a
flag, explained below the table: why the cell may be too high."""


def write(folder: Path) -> Path:
    """Write the page from the results in a folder.

    Raises:
        ValueError: the folder has no results.
    """
    paths = sorted(folder.glob(f"{NAME}_*.json"))
    if not paths:
        raise fail("results", f"a folder with {NAME}_DATASET.json", str(folder))
    every = {path: correct(json.loads(path.read_text(encoding="utf-8"))) for path in paths}
    content = "\n".join(_page(every)) + "\n"
    return write_atomically(folder / f"{NAME}.md", content.encode())


def _page(every: dict[Path, dict[str, Any]]) -> Iterator[str]:
    yield "# Does retraining with SIGMA samples help?\n"
    yield "Made by `python experiments/does_it_help.py DATASET`. Sentences follow from paired differences by rule.\n"
    yield "## In short\n"
    yield f"{_SHORT}\n"
    head, *rows = short(list(every.values()))
    yield markdown(head, rows) + "\n"
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
            yield _differences(table, against, shown(found))
        yield _costs(table)
    yield "Standard deviation of the Gaussian noise, tuned on validation images: " + _sweep(found) + "\n"


def _setting(found: dict[str, Any]) -> str:
    data, again, run = found["dataset"], found["retraining"], found["run"]
    base = found["network"]["training"]
    tests = "; ".join(f"{c['name']} {c['settings']}" for c in found["columns"] if c["attack_setting"] != "transfer")
    return (
        f"{data['train']} training, {data['val']} validation and {data['test']} test images of {len(data['classes'])} "
        f"classes, {'x'.join(map(str, data['shape']))}; `{found['network']['name']}`, {base['epochs']} epochs, "
        f"then retrained with AdamW, learning rate {again['lr']:g}, batches of {again['batch_size']}. Chance is "
        f"{1 / len(data['classes']):.0%}. Test conditions: {tests}. {text.duration(found['seconds'])} on "
        f"{run['hardware']['device']}, {run['hardware']['threads']} thread(s), torch {run['versions']['torch']}."
    )


def _explained(name: str, found: dict[str, Any], table: dict[str, Any]) -> str:
    seeds = f"{len(table['seeds'])} seeds, {found['dataset']['test']} test images."
    if name == SAMPLES:
        return f"Every row has the same number of optimizer steps and, on average, of augmented images. {seeds}"
    if name == TIME:
        return (
            f"Every row has as much time as the most expensive row of the previous table, {found['budget']:,.0f} plain "
            f"steps, in whole epochs. The costs of steps were measured side by side. {seeds}"
        )
    return f"SIGMA on the fly with one part changed, matched by samples (by steps where the share changes). {seeds}"


def _accuracies(table: dict[str, Any], columns: list[str]) -> Iterator[str]:
    cells = {(cell["row"], cell["condition"]): cell for cell in table["cells"]}
    flags: dict[str, int] = {}
    rows = [
        [row(entry["name"]), *(_cell(cells[entry["name"], name], flags) for name in columns)] for entry in table["rows"]
    ]
    yield markdown(["", *map(column, columns)], rows) + "\n"
    yield from (f"[{number}] {message}  " for message, number in flags.items())
    yield from (f"The whole table: {flag['message']}  " for flag in table["flags"])
    yield ""


def _cell(cell: dict[str, Any], flags: dict[str, int]) -> str:
    marks = [] if cell.get("above_chance", True) else ["c"]
    if cell.get("unconverged"):
        marks.append(f"{cell['unconverged']:.0%}")
    marks += [f"[{flags.setdefault(flag['message'], len(flags) + 1)}]" for flag in cell["flags"]]
    return " ".join([percent(cell["accuracy"]), *marks])


def _differences(table: dict[str, Any], against: str, columns: list[str]) -> str:
    found = {e["name"]: [difference(table, e["name"], against, name) for name in columns] for e in table["rows"]}
    rows = [[row(name), *map(bold, cells)] for name, cells in found.items() if None not in cells]
    return markdown(["", *map(column, columns)], rows) + "\n"


def _costs(table: dict[str, Any]) -> str:
    head = ["", "epochs", "steps", "augmented images", "cost in plain steps", "seconds", "converged walks",
            "steps per walk", "from the cache"]  # fmt: skip
    rows = []
    for entry in (entry for entry in table["rows"] if "steps" in entry):
        counts = [f"{entry[key]:,.0f}" for key in ("epochs", "steps", "augmented")]
        cost, walk = _or_dash(entry["cost"], ",.0f"), _or_dash(entry["walk_steps"], ".1f")
        converged, served = (_or_dash(entry[key], ".0%") for key in ("converged", "hit_rate"))
        rows.append([row(entry["name"]), *counts, cost, f"{entry['seconds']:.1f}", converged, walk, served])
    return markdown(head, rows) + "\n"


def _or_dash(value: float | None, form: str) -> str:
    return text.DASH if value is None else format(value, form)


def _sweep(found: dict[str, Any]) -> str:
    (entry,) = found["sweep"]
    rows = ", ".join(f"{r['std']:g}: {percent(r['score'])}" for r in entry["rows"])
    how = f"mean over all conditions except transfer, one seed, {entry['images']} images"
    return f"{rows}; the best is {entry['best']:g} ({how})."
