"""The HTML file of an attribution benchmark: what the template shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from robustsigma.report import page, text
from robustsigma.report.attribution import board as boards
from robustsigma.report.attribution import figures
from robustsigma.report.attribution.board import Board, Cell, Metric
from robustsigma.report.attribution.cost import QUALITIES
from robustsigma.report.attribution.sanity import sanity_rows

WIDEST = 11  # columns of a table that fits the page
SOFT = 0.36  # part of the colour ramp on which dark letters stay easy to read


def write(results: dict[str, Any], arrays: dict[str, np.ndarray], out: Path) -> Path:
    """Write the report and its figures; see `robustsigma.report.write_attribution_report`."""
    pictures = figures.draw(results, arrays)
    return page.publish(render(results, pictures), pictures, out, ["attribution_*"])


def render(results: dict[str, Any], pictures: dict[str, bytes]) -> str:
    """Return the report as one HTML text.

    Args:
        results: what the benchmark measured (schema 1, kind "attribution").
        pictures: PNG files by name, as `figures.draw` returns them.
    """
    return page.render("attribution.html.j2", view(results, set(pictures)), pictures)


def view(results: dict[str, Any], drawn: set[str]) -> dict[str, Any]:
    """Return what the template shows.

    Args:
        results: what the benchmark measured.
        drawn: names of the figures that there are.
    """
    found = boards.build(results)
    models = [_model(results, board, index, len(found), drawn) for index, board in enumerate(found)]
    names = boards.names(results)
    return {
        **page.common(results),
        "tiles": _tiles(found),
        "models": models,
        "metric_groups": found[0].groups() if found else [],
        "metrics": found[0].metrics if found else (),
        "methods": boards.methods(results),
        "left_out": [{**entry, "method": names.get(entry["method"], entry["method"])}
                     for entry in results.get("left_out") or []],
        "shapes": {kind: any(kind in model["figures"] for model in models)
                   for kind in ("curves", "cost", "sanity", "gallery")},
        "shade": lambda rank: text.colour(SOFT * rank)[0],
        "soft": SOFT,
        "against": _against,
    }  # fmt: skip


def _model(results: dict[str, Any], board: Board, index: int, count: int, drawn: set[str]) -> dict[str, Any]:
    """Return what the template shows of one model."""
    named = {kind: figures.name(kind, index, count) for kind in ("curves", "cost", "sanity", "gallery")}
    rows = sanity_rows(results, board)
    return {
        "board": board,
        "title": text.printable(board.model["id"]),
        "about": board.model.get("about") or "",
        "accuracy": board.model.get("accuracy") or {},
        "tables": board.packs(WIDEST),
        "prefix": f"note-{index + 1}",
        "sanity": rows,
        "figures": {kind: name for kind, name in named.items() if name in drawn},
    }


def _tiles(found: list[Board]) -> list[tuple[str, str, str, str]]:
    """Return the best method by the usual metrics: title, score, no unit, whose it is and how far that is certain."""
    tiles = []
    for board in found if len(found) < 3 else []:
        for metric in (metric for key in QUALITIES for metric in board.metrics if metric.id == key):
            cells = [(row, board.cells.get((row.id, metric.id))) for row in board.methods]
            best = [(row, cell) for row, cell in cells if cell is not None and cell.entry.get("best")]
            if len(best) == 1:
                row, cell = best[0]
                where = f" on {text.printable(board.model['id'])}" if len(found) > 1 else ""
                sure = "clearly ahead of the second" if cell.bold else "not clearly ahead of the second"
                tiles.append(
                    (f"{metric.title}{where}", metric.write(cell.value("mean")), "", f"{row.label}: best, {sure}")
                )
    return tiles


def _against(cell: Cell, metric: Metric) -> str:
    """Say how a score compares with that of a random map."""
    found = cell.against_random
    if not found:
        return ""
    verdict = {"better": "better than", "worse": "worse than", "same": "not clearly other than"}
    said = verdict.get(str(found.get("verdict")), "compared with")
    ends = " to ".join(metric.write(found.get(key)) for key in ("low", "high"))
    return f"{said} a random map: {metric.write(found.get('mean'))} ({ends}), n = {text.number(found.get('n'))}"
