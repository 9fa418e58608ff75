"""Pictures of titled panels in rows, drawn by Pillow alone: what `explain` and `AttributionMonitor` write."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from robustsigma.report.text import one_line, printable

CORRECT, WRONG, INK, QUIET, FRAME = "#00805e", "#c8420b", "#1d2a35", "#5d6b78", "#b8c2cc"
_GAP, _LEADING = 12, 1.3


@dataclass(frozen=True)
class Panel:
    """A picture with text.

    Attributes:
        picture: of any size.
        title: above it.
        lines: below it.
        color: of the lines.
        frame: color of a thick frame, or None for a thin gray one.
    """

    picture: Image.Image
    title: str = ""
    lines: tuple[str, ...] = ()
    color: str = QUIET
    frame: str | None = None


def draw_panels(
    rows: Sequence[Sequence[Panel]],
    names: Sequence[str] = (),
    bar: tuple[Image.Image, str, str] | None = None,
    size: int = 15,
) -> Image.Image:
    """Return a picture of rows of panels.

    Args:
        rows: panels, those of a row of equal height.
        names: of the rows, before their first panel.
        bar: colors, which are drawn beside the first row, and the words for their upper and lower end.
        size: of the text, in pixels.
    """
    line = round(_LEADING * size)
    margin = max((round(_font(size, part).getlength(part)) for name in names for part in _broken(name)), default=-_GAP)
    left = margin + 2 * _GAP
    heights = []
    for row in rows:
        above = line * any(panel.title for panel in row)
        heights.append((above, max(panel.picture.height for panel in row), line * max(len(p.lines) for p in row)))
    right = left + max(sum(panel.picture.width + _GAP for panel in row) for row in rows)
    words = 0 if bar is None else bar[0].width + round(max(_font(size - 2).getlength(word) for word in bar[1:])) + _GAP
    total = sum(sum(each) + _GAP for each in heights) + _GAP
    canvas = Image.new("RGB", (right + words + (_GAP if bar else 0), total), "white")
    brush, top = ImageDraw.Draw(canvas), _GAP
    for number, (row, (above, tall, below)) in enumerate(zip(rows, heights, strict=True)):
        if number < len(names):
            for place, part in enumerate(_broken(names[number])):
                at = (left - _GAP, top + above + tall // 2 + line * (place - len(_broken(names[number])) / 2))
                brush.text(at, part, INK, _font(size, part), anchor="ra")
        across = left
        for panel in row:
            wide, here = panel.picture.width, top + above
            brush.text((across, top), title := _fit(panel.title, size, wide), INK, _font(size, title))
            canvas.paste(panel.picture, (across, here))
            box = (across - 1, here - 1, across + wide, here + panel.picture.height)
            brush.rectangle(box, outline=panel.frame or FRAME, width=3 if panel.frame else 1)
            for place, text in enumerate(panel.lines):
                where = (across, here + tall + 3 + line * place)
                shown = _fit(text, size - 1, wide)
                brush.text(where, shown, panel.color, _font(size - 1, shown))
            across += wide + _GAP
        if bar is not None and number == 0:
            canvas.paste(bar[0], (right, top + above))
            beside = right + bar[0].width + 5
            brush.text((beside, top + above), bar[1], QUIET, _font(size - 2), anchor="lt")
            brush.text((beside, top + above + bar[0].height), bar[2], QUIET, _font(size - 2), anchor="ls")
        top += above + tall + below + _GAP
    return canvas


def _broken(name: str) -> list[str]:
    return printable(name).split("\n")


def _font(size: int, text: str = "") -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return Pillow's own font, which has no letters but those of ASCII; for others another one, if there is one."""
    return _loaded(size, text.replace("…", "").isascii())


@cache
def _loaded(size: int, ascii_only: bool) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    names = [] if ascii_only else ["DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial.ttf"]
    found = None if ascii_only else find_spec("matplotlib")
    if found is not None and found.origin is not None:
        names.insert(0, str(Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"))
    for name in names:
        with suppress(OSError):
            return ImageFont.truetype(name, size)
    return ImageFont.load_default(size)


def _fit(text: str, size: int, width: int) -> str:
    """Return a text on one line, cut to a width in pixels."""
    text = one_line(text)
    font = _font(size, text)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"
