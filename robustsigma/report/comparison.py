"""Formats of a comparison of two runs: terminal table, JUnit and SARIF, as CI systems read them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from robustsigma import __version__
from robustsigma.report.text import interval, name, percent, points

if TYPE_CHECKING:
    from collections.abc import Collection

    from rich.console import Console

    from robustsigma.evaluation.comparison import Change, Comparison

_MARKS = {"better": "\u25b2 better", "worse": "\u25bc worse", "same": ""}
_SARIF = "https://json.schemastore.org/sarif-2.1.0.json"


def print_comparison(comparison: Comparison, failures: Collection[Change], console: Console) -> None:
    """Print every change with its interval, and what the gate refuses."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"{comparison.first} \u2192 {comparison.second}: accuracy in %, difference in points")
    for head in ("Model", "Condition", "Before", "After", "Difference", "p (Holm)", "", "Flags"):
        table.add_column(head, justify="right" if head in ("Before", "After", "Difference", "p (Holm)") else "left")
    for each in comparison.changes:
        cells = [each.model, name(each.condition), percent(each.before.mean), percent(each.after.mean)]
        cells += [_points(each), f"{each.p_holm:.2g}", _MARKS[each.verdict] + " refused" * (each in failures)]
        table.add_row(*map(Text, (*cells, ", ".join(each.flags))))
    console.print(table)
    console.print("Better and worse: p below .05 after Holm's correction for all rows. Flags: see the runs' reports.")
    for line in comparison.left_out:
        console.print(f"Left out: {line}", markup=False)


def message(change: Change) -> str:
    """Return a change in one sentence."""
    flagged = f"; flags: {', '.join(change.flags)}" if change.flags else ""
    return (
        f"{change.model} under {name(change.condition)}: accuracy {percent(change.before.mean)}% before, "
        f"{percent(change.after.mean)}% after, difference {_points(change)} points, "
        f"p = {change.p_holm:.2g} with Holm's correction{flagged}"
    )


def junit(comparison: Comparison, failures: Collection[Change]) -> str:
    """Return a JUnit XML document with one test case for each change."""
    suite = ElementTree.Element(
        "testsuite",
        name=f"robustsigma compare {comparison.first} {comparison.second}",
        tests=str(len(comparison.changes)),
        failures=str(len(failures)),
    )
    for each in comparison.changes:
        case = ElementTree.SubElement(suite, "testcase", classname=each.model, name=each.condition)
        if each in failures:
            ElementTree.SubElement(case, "failure", message=message(each))
        else:
            ElementTree.SubElement(case, "system-out").text = message(each)
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def sarif(comparison: Comparison, failures: Collection[Change]) -> dict[str, Any]:
    """Return a SARIF 2.1.0 log: an error for each refused change, a warning for each flagged one."""
    place = {"physicalLocation": {"artifactLocation": {"uri": (comparison.second / "results.json").as_posix()}}}
    found = [("accuracy-lost", "error", each) for each in failures]
    found += [("flagged", "warning", each) for each in comparison.changes if each.flags and each not in failures]
    rules = {
        "accuracy-lost": "The accuracy under a condition is lower than the gate allows.",
        "flagged": "An accuracy has a flag, so it should not be believed as it stands.",
    }
    driver = {
        "name": "robustsigma",
        "version": __version__,
        "rules": [{"id": key, "shortDescription": {"text": text}} for key, text in rules.items()],
    }
    results = [
        {"ruleId": rule, "level": level, "message": {"text": message(each)}, "locations": [place]}
        for rule, level, each in found
    ]
    return {"$schema": _SARIF, "version": "2.1.0", "runs": [{"tool": {"driver": driver}, "results": results}]}


def _points(change: Change) -> str:
    return f"{points(change.difference.mean)} ({' '.join(interval(vars(change.difference), points))})"
