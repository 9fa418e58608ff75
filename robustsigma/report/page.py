"""What the HTML files of both reports share: the templates' environment, the common parts, the way to the disk."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from robustsigma.files import write_atomically
from robustsigma.report import text

_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def render(template: str, shown: dict[str, Any], pictures: dict[str, bytes]) -> str:
    """Return one HTML text that needs no other file.

    Args:
        template: file name in `report/templates`.
        shown: what the template shows; every string is escaped.
        pictures: PNG files by name, to be inlined.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=text.percent,
        points=text.points,
        number=text.number,
        measure=text.measure,
        score=text.score,
        duration=text.duration,
        label=text.name,
        colour=text.colour,
        breakable=breakable,
        breakable_key=breakable_key,
    )
    inlined = {name: base64.b64encode(picture).decode("ascii") for name, picture in pictures.items()}
    return environment.get_template(template).render(**shown, pictures=inlined)


def _visible(value: Any) -> Any:
    """Return what is written with all that could hide or turn round what is beside it made visible.

    Those are control characters, marks of direction, and halves of characters, which no file can hold.
    """
    return type(value)(_HIDDEN.sub("\ufffd", value)) if isinstance(value, str) else value


def breakable(value: Any) -> Markup:
    """Return a name, escaped, that may be broken before its inner capitals and after its hyphens and underscores."""
    return Markup("<wbr/>").join(text.pieces(str(value)))


def breakable_key(value: Any) -> Markup:
    """Return a dotted key, escaped, that may be broken after its dots and underscores."""
    return Markup("<wbr/>").join(re.split(r"(?<=[._])(?=.)", str(value)))


def common(results: dict[str, Any], **data: Any) -> dict[str, Any]:
    """Return what the base template shows of any result, but for its tiles.

    Args:
        results: what was measured (schema 1).
        data: further rows of the table of data.
    """
    run = {"command": None, "versions": {}, "hardware": {}, **(results.get("run") or {})}
    dataset = results.get("dataset") or {}
    parts = {"Settings": results.get("settings"), "Versions": run["versions"], "Hardware": run["hardware"]}
    tables = [(title, text.flatten(part)) for title, part in parts.items() if part]
    return {
        "dataset": dataset,
        "run": run,
        "started": str(run.get("started") or "")[:16].replace("T", " "),
        "findings": results.get("findings") or [],
        "flags": text.flags(results),
        "tables": [("Data", _data({**dataset, **data})), *tables],
    }


def publish(page: str, pictures: dict[str, bytes], out: Path, stale: Iterable[str]) -> Path:
    """Write `out/report.html` and the figures beside it, each file whole or not at all.

    Args:
        page: the HTML text.
        pictures: PNG files by name.
        out: folder of the report; made if it is not there.
        stale: patterns of the names of this report's figures; those of a former report that were not drawn now go.

    Returns:
        The path of the HTML file.
    """
    folder = out / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        write_atomically(folder / f"{name}.png", picture)
    path = write_atomically(out / "report.html", page.encode("utf-8"))
    for former in (found for pattern in stale for found in folder.glob(f"{pattern}.png")):
        if former.stem not in pictures:
            former.unlink()
    return path


def _data(dataset: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the rows of the table of data."""
    rows = []
    for key, value in dataset.items():
        if isinstance(value, (list, tuple)):
            rows.append((key, (f" {text.TIMES} " if key == "shape" else ", ").join(map(str, value)) or text.DASH))
        elif isinstance(value, dict):
            rows += text.flatten(value, key) if value else []
        else:
            rows.append((key, str(value)))
    return rows
