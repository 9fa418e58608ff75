"""The HTML file of each report with its figures, from the results to the disk."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

try:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup, escape
    from matplotlib.figure import Figure
except ImportError as error:
    told = f"The report needs {error.name}, which is not installed: pip install 'robustsigma[report]'"
    raise ImportError(told) from error

from robustsigma.report import attacks, attribution, curves, gallery, robustness, scatter, text
from robustsigma.report.canvas import draw_table, png, shades, styled
from robustsigma.report.cells_csv import cells_csv
from robustsigma.report.validation import array, check_gallery
from robustsigma.runs.files import write_atomically
from robustsigma.runs.results import AttributionResults

_TEMPLATES = Path(__file__).parent / "templates"
_ROBUSTNESS_FIGURES = ("matrix", "curves", "distances", "sweep", "examples", "path", "explanations")
_BREAKS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[-_/ ])")  # where a line may break in a name
_OPTIONS = re.compile(r"--[a-z][\w.-]*(?: \d+)?")  # of a command line, in which a line must not break
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def write_report(results: dict[str, Any], arrays: dict[str, np.ndarray], out: Path) -> Path:
    """Write `out/report.html`, which needs no other file, and its figures as `out/figures/*.png`.

    Each file is replaced atomically, so an interrupted call leaves the earlier report intact. Figures of an earlier
    report are deleted if they were not drawn now.

    Args:
        results: what an evaluation or a benchmark wrote, in plain JSON types (schema 1; a benchmark's `kind` is
            "attribution").
        arrays: of an evaluation, images and heatmaps of the sections `examples`, `path` and `explanations`; of a
            benchmark, the gallery: `images` (N, C, H, W) in [0, 1], `maps` (models, methods, N, H, W) with NaN for
            methods that were left out, and optionally `masks` (N, H, W) of bool. May be empty without these pictures.
        out: folder of the report; it is created if needed.

    Returns:
        The path of the HTML file.

    Raises:
        ImportError: if jinja2 or matplotlib is not installed.
        ValueError: if `results` is not of schema 1 or an array does not fit it.
    """
    page, pictures = _drawn(results, arrays)
    folder = Path(out) / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        write_atomically(folder / f"{name}.png", picture)
    path = write_atomically(Path(out) / "report.html", page.encode("utf-8"))
    patterns = ["attribution_*"] if results.get("kind") == "attribution" else _ROBUSTNESS_FIGURES
    for former in (found for pattern in patterns for found in folder.glob(f"{pattern}.png")):
        if former.stem not in pictures:
            former.unlink()
    return path


def write_page(results: dict[str, Any], arrays: dict[str, np.ndarray], path: Path) -> Path:
    """Write the page of `write_report` alone, and return its path.

    Args:
        results: as in `write_report`.
        arrays: as in `write_report`.
        path: file to write, atomically.
    """
    return write_atomically(path, _drawn(results, arrays)[0].encode("utf-8"))


def _drawn(results: dict[str, Any], arrays: dict[str, np.ndarray]) -> tuple[str, dict[str, bytes]]:
    """Return the page and its pictures, by name."""
    if results.get("kind") == "attribution":
        pictures = draw_attribution(results, arrays)
        return attribution_page(results, pictures), pictures
    pictures = draw_robustness(results, arrays)
    return robustness_page(results, pictures), pictures


def robustness_page(results: dict[str, Any], pictures: dict[str, bytes]) -> str:
    """Return the robustness report as one HTML text; `pictures` are PNG files by name."""
    seeds, table = results.get("seeds") or [], robustness.accuracy_table(results)
    kinds = {entry["name"] for entry in results["conditions"] if entry.get("attack_setting") != "worst"}
    return _render(
        "robustness.html.j2", results, pictures, robustness.sections(results), {"seeds": seeds},
        title=f"Robustness on {_dataset_name(results, 'a test set')}", flags=robustness.run_flags(results), seeds=seeds,
        tiles=robustness.tiles(table), conditions=len(kinds), columns=len(table.column_heads), quality=attacks.QUALITY,
        once=len(seeds) == 1 and robustness.trained(results), worst=[h.label for g in table.columns
        if g.key == "worst" for h in g.heads], attacked=any(g.key in ("adaptive", "transfer") for g in table.columns),
        unconverged=any("unconv." in line for cell in table.cells.values() for line in cell.details),
        flagged=bool(table.footnotes),
        retrained=any(group.key not in text.BASES for group in table.rows),
        transferred=any(group.key == "transfer" for group in table.columns),
    )  # fmt: skip


def attribution_page(results: dict[str, Any], pictures: dict[str, bytes]) -> str:
    """Return the attribution report as one HTML text; `pictures` are PNG files by name."""
    return _render(
        "attribution.html.j2", results, pictures, attribution.sections(results), {},
        title=f"Attribution methods on {_dataset_name(results, 'images')}", flags=text.flags(results),
        tiles=attribution.tiles(results), shade=attribution.SHADE, controls=len(attribution.controls(results)),
    )  # fmt: skip


def _dataset_name(results: dict[str, Any], otherwise: str) -> str:
    return str((results.get("dataset") or {}).get("name") or otherwise)


def draw_robustness(results: dict[str, Any], arrays: dict[str, np.ndarray]) -> dict[str, bytes]:
    """Draw what an evaluation measured: PNG files by name."""
    with styled():
        return {name: png(figure) for name, figure in _robustness_figures(results, arrays)}


def _robustness_figures(results: dict[str, Any], arrays: dict[str, np.ndarray]) -> Iterator[tuple[str, Figure]]:
    yield "matrix", draw_table(robustness.accuracy_table(results))
    if results.get("curves"):
        yield "curves", curves.accuracy_over_eps(results)
    if results.get("distances"):
        yield "distances", curves.accuracy_over_distance(results)
    if results.get("sweep"):
        yield "sweep", curves.sweep(results)
    if (results.get("examples") or {}).get("items"):
        yield "examples", gallery.examples(results, array(arrays, "examples", 5))
    if (results.get("path") or {}).get("shown_steps"):
        heat = array(arrays, "path_attribution", 2) if arrays.get("path_attribution") is not None else None
        yield "path", gallery.path(results["path"], array(arrays, "path", 4), heat)
    if results.get("explanations"):
        heat, images = array(arrays, "explanations", 4), array(arrays, "explained", 4)
        yield "explanations", gallery.explanations(results, heat, images, arrays.get("masks"))


def draw_attribution(results: dict[str, Any], arrays: dict[str, np.ndarray]) -> dict[str, bytes]:
    """Draw what a benchmark measured: PNG files by name, which end in the number of the model if there are several."""
    AttributionResults.from_json(results)
    if (results.get("gallery") or {}).get("items"):
        check_gallery(results["gallery"], arrays)
    found: dict[str, bytes] = {}
    with styled():
        for place, model in enumerate(entry["id"] for entry in results["models"]):
            drawn = {
                "curves": curves.metric_curves(results, model),
                "cost": scatter.cost(results, model),
                "sanity": scatter.sanity(results, model),
                "gallery": gallery.maps(results, model, arrays),
            }
            for kind, figure in drawn.items():
                if figure is not None:
                    found[attribution.figure_name(kind, place, len(results["models"]))] = png(figure)
    return found


def _render(
    template: str, results: dict[str, Any], pictures: dict[str, bytes], sections: dict[str, Any], data: dict[str, Any],
    **shown: Any,
) -> str:  # fmt: skip
    """Fill a template; every string is escaped, and the pictures are inlined."""
    run = {"command": None, "versions": {}, "hardware": {}, **(results.get("run") or {})}
    dataset = results.get("dataset") or {}
    parts = {"Data": {**dataset, **data}, "Settings": results.get("settings"), "Versions": run["versions"],
             "Hardware": run["hardware"]}  # fmt: skip
    script = (_TEMPLATES / "page.js").read_text(encoding="utf-8")
    return _environment().get_template(template).render(
        results=results, run=run, dataset=dataset, sections=sections,
        started=str(run.get("started") or "")[:16].replace("T", " "),
        verdict=results.get("verdict") or [], findings=results.get("findings") or [],
        settings={key: text.flatten(part) for key, part in parts.items() if part},
        pictures={name: _base64(picture) for name, picture in pictures.items()},
        downloads={
            "results.json": f"data:application/json;base64,{_base64(json.dumps(results).encode())}",
            "results.csv": f"data:text/csv;base64,{_base64(cells_csv(results['cells']).encode())}",
        },
        contents=[],  # the sections add themselves
        style=Markup((_TEMPLATES / "page.css").read_text(encoding="utf-8")),
        script=Markup(script), script_hash=f"sha256-{_base64(hashlib.sha256(script.encode()).digest())}",
        **shown,
    )  # fmt: skip


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        whole_options=lambda words: Markup(_OPTIONS.sub(r'<span class="option">\g<0></span>', str(escape(words)))),
        number=text.number, duration=text.duration, count=text.count, shades=shades,
        breakable=lambda name: Markup("<wbr/>").join(_BREAKS.split(str(name))),
        breakable_key=lambda key: Markup("<wbr/>").join(re.split(r"(?<=[._])(?=.)", str(key))),
    )  # fmt: skip
    return environment


def _visible(value: Any) -> Any:
    """Replace characters that hide or reorder what is beside them: controls, direction marks and lone surrogates."""
    return type(value)(_HIDDEN.sub("\ufffd", value)) if isinstance(value, str) else value
