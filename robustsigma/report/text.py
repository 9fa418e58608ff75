"""Format numbers, names and colors for every table, page and figure."""

from __future__ import annotations

import math
import re
from typing import Any

MINUS, DASH, THIN_SPACE = "\u2212", "\u2013", "\u202f"
PROTOCOLS = {
    "given": ("", ""),
    "none": ("Not retrained", "the base model, from which all others start"),
    "retrain": ("Retrained", "on samples made before training"),
    "on_the_fly": ("On the fly", "on samples made against the model while it trains"),
}
BASES = ("given", "none")  # protocols of models that were not trained on
NAMES = {
    "fgsm": "FGSM",
    "sigma": "SIGMA",
    "pgd": "PGD",
    "autoattack": "AutoAttack",
    "integrated_gradients": "integrated gradients",
    "integratedgradients": "integrated gradients",
}
_SUPERSCRIPT = str.maketrans("-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079")


def finite(value: Any) -> float | None:
    """Return the number, or None for what is missing or not finite."""
    if value is None or isinstance(value, (str, dict, list)):
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def percent(value: Any, digits: int = 1) -> str:
    """Format a fraction as a percentage without the percent sign."""
    number = finite(value)
    return DASH if number is None else _signed(f"{100 * number:.{digits}f}")


def points(value: Any) -> str:
    """Format a difference of fractions as percentage points with a sign."""
    number = finite(value)
    return DASH if number is None else _signed(f"{100 * number:+.1f}")


def number(value: Any, digits: int = 3) -> str:
    """Format a number with at most `digits` significant digits; a whole number with thousands separators."""
    found = finite(value)
    if found is None:
        return DASH
    return _signed(f"{found:,.0f}" if found == round(found) and abs(found) < 1e15 else f"{found:.{digits}g}")


def measure(value: Any) -> str:
    """Format a measurement with three significant digits."""
    found = finite(value)
    return DASH if found is None else _signed(f"{found:#.3g}".rstrip("."))


def score(value: Any) -> str:
    """Format a score so that a column of scores aligns: 0.123, 12.34, 1,234; very large or small as a power of ten."""
    found = finite(value)
    if found is None:
        return DASH
    size = abs(found)
    if size and (size < 5e-4 or size >= 1e6):
        mantissa, power = f"{found:.1e}".split("e")
        return _signed(f"{mantissa}\u00b710{str(int(power)).translate(_SUPERSCRIPT)}")
    return _signed(f"{found:,.{3 if size < 10 else 2 if size < 100 else 1 if size < 1000 else 0}f}")


def _signed(text: str) -> str:
    """Return a formatted number with a true minus sign, and without any sign if it rounds to zero."""
    return text.replace("-", MINUS) if re.search("[1-9]", text) else text.lstrip("+-")


def interval(estimate: Any, write: Any = percent) -> tuple[str, ...]:
    """Return the interval of an estimate as one line, or nothing if an end is missing."""
    low, high = (finite((estimate or {}).get(key)) for key in ("low", "high"))
    return () if low is None or high is None else (f"{write(low)}{THIN_SPACE}{DASH}{THIN_SPACE}{write(high)}",)


def radius(value: Any) -> str:
    """Format a radius: as a multiple of 1/255, as papers write it, unless it has at most two significant digits."""
    found = finite(value)
    levels = 0 if found is None else round(255 * found)
    known = 0 < levels < 255 and f"{levels / 255:.3g}" == f"{found:.3g}" != f"{found:.2g}"
    return f"{levels}/255" if known else number(value)


def radii(words: str) -> str:
    """Return a text with its decimals formatted as radii, such as the name of a worst case."""
    return re.sub(r"\b0\.\d+$", lambda found: radius(float(found[0])), words)


def within(case: str) -> str:
    """Return the norm and radius of a worst case in a sentence, nothing for the one over all attacks."""
    return "" if case == "all" else f" within {radii(case)}"


def class_name(results: dict[str, Any], index: Any) -> str:
    """Return the name of a class of some results by its index; an index without a name stands for itself."""
    classes = (results.get("dataset") or {}).get("classes") or []
    return str(classes[index] if isinstance(index, int) and 0 <= index < len(classes) else index)


def parameters(known: Any) -> str:
    """Return parameters as one line."""
    pairs = [(key, key.split(".")[-1], value) for key, value in flatten(known or {})]
    shown = ((key, radius(float(value)) if end == "eps" and value != "none" else value) for key, end, value in pairs)
    return ", ".join(f"{key} = {value}" if key else value for key, value in shown)


def count(value: int, noun: str) -> str:
    """Return a number with its noun, in the plural (with an s, or es after one) unless the number is 1."""
    return f"{value:,} {noun}{'' if value == 1 else 'es' if noun.endswith('s') else 's'}"


def duration(value: Any) -> str:
    """Format seconds as hours, minutes and seconds."""
    seconds = finite(value)
    if seconds is None:
        return DASH
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def name(value: Any) -> str:
    """Return a name as readers know it: acronyms in capitals."""
    text = printable(value)
    return NAMES.get(text.lower(), text)


def regime_name(label: str, protocol: str) -> str:
    """Return the label of a regime followed by its protocol, such as "SIGMA, retrained"."""
    known = PROTOCOLS.get(protocol, (printable(protocol),))[0].lower()
    return label if protocol in BASES else f"{label}, {known}"


def printable(value: Any) -> str:
    """Return the text with control characters, which could steer a terminal, replaced by a visible mark."""
    kept = ("\n", "\u2009", "\u202f", "\xa0")  # thin and no-break spaces are in intervals
    return "".join(char if char.isprintable() or char in kept else "\ufffd" for char in str(value))


def one_line(value: Any) -> str:
    """Return the printable text on one line."""
    return " ".join(printable(value).split())


def flags(entry: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return the code and the message of each flag of a result, or of one of its cells."""
    return tuple((str(flag.get("code", "")), str(flag.get("message", ""))) for flag in entry.get("flags") or [])


def flatten(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Return nested settings as rows of dotted name and value."""
    if isinstance(value, dict) and value:
        return [row for key, part in value.items() for row in flatten(part, f"{prefix}.{key}" if prefix else str(key))]
    if isinstance(value, list):
        return [(prefix, ", ".join(str(part) for part in value) or "none")]
    return [(prefix, "none" if value is None or value == {} else str(value))]
