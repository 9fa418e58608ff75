"""Numbers, names and colours as the report writes them."""

from __future__ import annotations

import math
import re
from typing import Any

MINUS, DASH, TIMES = "\u2212", "\u2013", "\u00d7"
NAMES = {
    "fgsm": "FGSM",
    "sigma": "SIGMA",
    "pgd": "PGD",
    "autoattack": "AutoAttack",
    "integrated_gradients": "integrated gradients",
    "integratedgradients": "integrated gradients",
}
# A blue ramp of falling lightness: it keeps its order in grey and for every kind of colour vision.
_RAMP = ((247, 251, 255), (214, 230, 244), (171, 207, 229), (107, 174, 214), (49, 130, 189), (8, 81, 156), (8, 48, 107))
_RAISED = str.maketrans("-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079")
_DARK, _LIGHT = "#10202e", "#ffffff"


def finite(value: Any) -> float | None:
    """Return the number, or None for what is missing or not finite."""
    if value is None or isinstance(value, (str, dict, list)):
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def percent(value: Any, digits: int = 1) -> str:
    """Write a fraction in per cent without its sign."""
    number = finite(value)
    return DASH if number is None else f"{100 * number:.{digits}f}".replace("-", MINUS)


def points(value: Any) -> str:
    """Write a difference of fractions in signed percentage points."""
    number = finite(value)
    if number is None:
        return DASH
    text = f"{100 * number:+.1f}"
    return "0.0" if text[1:] == "0.0" else text.replace("-", MINUS)


def number(value: Any, digits: int = 3) -> str:
    """Write a number with at most so many significant digits; whole numbers with separators."""
    found = finite(value)
    if found is None:
        return DASH
    text = f"{found:,.0f}" if found == round(found) and abs(found) < 1e15 else f"{found:.{digits}g}"
    return text.replace("-", MINUS)


def measure(value: Any) -> str:
    """Write a measured number with three significant digits."""
    found = finite(value)
    return DASH if found is None else f"{found:#.3g}".rstrip(".").replace("-", MINUS)


def score(value: Any) -> str:
    """Write a score as a column of its like reads best: 0.123, 12.34, 1,234, and powers of ten far from one."""
    found = finite(value)
    if found is None:
        return DASH
    size = abs(found)
    if size and (size < 5e-4 or size >= 1e6):
        mantissa, power = f"{found:.1e}".split("e")
        return f"{mantissa}\u00b710{str(int(power)).translate(_RAISED)}".replace("-", MINUS)
    return f"{found:,.{3 if size < 10 else 2 if size < 100 else 1 if size < 1000 else 0}f}".replace("-", MINUS)


def count(value: int, noun: str) -> str:
    """Return a number of things, whose plural has an s."""
    return f"{value:,} {noun}{'' if value == 1 else 's'}"


def duration(value: Any) -> str:
    """Write seconds as people say them."""
    seconds = finite(value)
    if seconds is None:
        return DASH
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def name(value: Any) -> str:
    """Return a name as readers know it: short forms in capitals."""
    text = printable(value)
    return NAMES.get(text.lower(), text)


def pieces(value: str) -> list[str]:
    """Return a name cut before its inner capitals and after its blanks, hyphens and underscores, where it may break."""
    return re.split(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[-_/ ])", value)


def lines(value: str, most: int) -> list[str]:
    """Return a name in lines of at most so many characters, if its pieces are not longer."""
    found = [""]
    for piece in pieces(value):
        if found[-1] and len(found[-1]) + len(piece.rstrip()) > most:
            found.append("")
        found[-1] += piece
    return [line.strip() for line in found]


def printable(value: Any) -> str:
    """Return the text with control characters, which could steer a terminal, made visible."""
    return "".join(char if char.isprintable() or char == "\n" else "\ufffd" for char in str(value))


def flags(entry: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the code and the message of each flag of a result, or of one of its cells."""
    return [(str(flag.get("code", "")), str(flag.get("message", ""))) for flag in entry.get("flags") or []]


def colour(value: Any) -> tuple[str, str]:
    """Return the background of a cell for a fraction in [0, 1] and the text colour that is read best on it."""
    fraction = finite(value)
    if fraction is None:
        return "#ffffff", _DARK
    place = min(max(fraction, 0.0), 1.0) * (len(_RAMP) - 1)
    lower = min(int(place), len(_RAMP) - 2)
    part = place - lower
    rgb = [round(a + part * (b - a)) for a, b in zip(_RAMP[lower], _RAMP[lower + 1], strict=True)]
    luminance = _luminance(rgb)
    white, black = 1.05 / (luminance + 0.05), (luminance + 0.05) / 0.062
    return "#{:02x}{:02x}{:02x}".format(*rgb), _LIGHT if white > black else _DARK


def _luminance(rgb: list[int]) -> float:
    """Return the relative luminance of WCAG."""
    linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def flatten(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Return nested settings as rows of dotted name and value."""
    if isinstance(value, dict) and value:
        return [row for key, part in value.items() for row in flatten(part, f"{prefix}.{key}" if prefix else str(key))]
    if isinstance(value, list):
        return [(prefix, ", ".join(str(part) for part in value) or "none")]
    return [(prefix, "none" if value is None or value == {} else str(value))]
