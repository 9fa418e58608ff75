"""Formats of a comparison of two runs: terminal table, JUnit and SARIF, as CI systems read them.

A comparison is the dict of `Comparison.to_dict`, with what its gate refuses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from robustsigma import __version__
from robustsigma.report.text import interval, name, percent, points

if TYPE_CHECKING:
    from rich.console import Console

_MARKS = {"better": "\u25b2 better", "worse": "\u25bc worse", "same": ""}
_SARIF = "https://json.schemastore.org/sarif-2.1.0.json"


def print_comparison(comparison: dict[str, Any], console: Console) -> None:
    """Print every change with its interval, and what the gate refuses."""
    from rich.table import Table
    from rich.text import Text

    title = f"{comparison['first']} \u2192 {comparison['second']}: accuracy in %, difference in points"
    table = Table(title=title, box=None, padding=(0, 2, 0, 0))
    flags = ("Flags",) if any(each["flags"] for each in comparison["changes"]) else ()
    for head in ("Model", "Condition", "Before", "After", "Difference", "p (Holm)", "", *flags):
        words = head in ("Model", "Condition", "Flags")
        table.add_column(head, justify="left" if words or not head else "right", no_wrap=not words, overflow="fold")
    for each in comparison["changes"]:
        accuracies = (percent(each[key]["mean"]) for key in ("before", "after"))
        mark = _MARKS[each["verdict"]] + "\nrefused" * each["refused"]
        difference = _points(each).replace(" ", "\n", 1)
        condition = name(each["condition"]).replace("/", " ")  # a narrow terminal breaks it there
        cells = (each["model"], condition, *accuracies, difference, f"{each['p_holm']:.2g}", mark)
        table.add_row(*map(Text, (*cells, ", ".join(each["flags"]))[: len(table.columns)]))
    console.print(table)
    console.print("Better and worse: p below .05 after Holm's correction for all rows. Flags: see the runs' reports.")
    for line in comparison["left_out"]:
        console.print(f"Left out: {line}", markup=False)


def message(change: dict[str, Any]) -> str:
    """Return a change in one sentence."""
    before, after = (percent(change[key]["mean"]) for key in ("before", "after"))
    flagged = f"; flags: {', '.join(change['flags'])}" if change["flags"] else ""
    return (
        f"{change['model']} under {name(change['condition'])}: accuracy {before}% before, {after}% after, difference "
        f"{_points(change)} points, p = {change['p_holm']:.2g} with Holm's correction{flagged}"
    )


def junit(comparison: dict[str, Any]) -> str:
    """Return a JUnit XML document with one test case for each change."""
    suite = ElementTree.Element(
        "testsuite",
        name=f"robustsigma compare {comparison['first']} {comparison['second']}",
        tests=str(len(comparison["changes"])),
        failures=str(sum(each["refused"] for each in comparison["changes"])),
    )
    for each in comparison["changes"]:
        case = ElementTree.SubElement(suite, "testcase", classname=each["model"], name=each["condition"])
        if each["refused"]:
            ElementTree.SubElement(case, "failure", message=message(each))
        else:
            ElementTree.SubElement(case, "system-out").text = message(each)
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def sarif(comparison: dict[str, Any]) -> dict[str, Any]:
    """Return a SARIF 2.1.0 log: an error for each refused change, a warning for each flagged one."""
    place = {"physicalLocation": {"artifactLocation": {"uri": f"{comparison['second']}/results.json"}}}
    found = [("accuracy-lost", "error", each) for each in comparison["changes"] if each["refused"]]
    found += [("flagged", "warning", e) for e in comparison["changes"] if e["flags"] and not e["refused"]]
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


def _points(change: dict[str, Any]) -> str:
    return f"{points(change['difference']['mean'])} ({' '.join(interval(change['difference'], points))})"
