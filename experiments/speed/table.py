"""The numbers as tables of ratios."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.table import Table


def ratio(found: dict[str, Any] | None, digits: int = 2) -> str:
    """Return median and extremes over repeats."""
    if found is None:
        return ""
    median, low, high = (f"{found[key]:,.{digits}f}" for key in ("median", "low", "high"))
    return f"{median} ({low}\u2013{high})"


def line(name: str, row: dict[str, Any]) -> str:
    """Return a row in one line, as it is printed when it is done."""
    if "skipped" in row:
        return f"{name}: {row['skipped']}"
    parts = []
    if row.get("efficiency"):
        parts.append(f"efficiency {ratio(row['efficiency'])}")
    elif "cost_in_forwards" in row:
        parts.append(f"{ratio(row['cost_in_forwards'])} of a forward pass")
    for peer in row.get("peers", []):
        agreed = "" if peer["deviation"] is None else f", apart {peer['deviation']:.1e}"
        wrong = "" if peer["agrees"] else " DISAGREES"
        times = f"{ratio(peer['times_ours'])}\u00d7 ours, by the {peer['per']}"
        parts.append(f"{peer['name']} takes {times}{agreed}{wrong}")
    for regime, found in row.get("regimes", {}).items():
        parts.append(f"{regime} {found['times_plain']['median']:.2f}\u00d7")
    for part, found in row.get("parts", {}).items():
        parts.append(f"{part} {found['of_a_step']['median']:.2f} of a step")
    for curve, found in row.get("curves", {}).items():
        if found.get("exponent") is not None:
            parts.append(f"{curve}: exponent {found['exponent']:.2f}")
        if "mib" in found:
            parts.append(f"{curve}: {found['passes'][0]:.2f} to {found['passes'][-1]:.2f} passes")
    return f"{name}: " + "; ".join(parts)


def tables(results: dict[str, Any]) -> Iterator[Table]:
    """Yield the tables of every network."""
    for net, found in results["nets"].items():
        rows = found["rows"]
        yield _forms(net, found["limit"])
        yield _calls(net, {name: row for name, row in rows.items() if "cost_in_forwards" in row})
        if "Training" in rows:
            yield _training(net, rows["Training"])
        if "Data" in rows:
            yield _data(net, rows["Data"])


def _forms(net: str, limit: dict[str, Any]) -> Table:
    table = Table(title=f"{net}: a pass of an image, in units of the plain network's at its best batch size")
    batches = sorted({entry["batch"] for entry in limit["ratios"]})
    table.add_column("form")
    for kind in ("forward", "pair"):
        for batch in batches:
            table.add_column(f"{'forward' if kind == 'forward' else 'both ways'}, {batch}", justify="right")
    for form in dict.fromkeys(entry["form"] for entry in limit["ratios"]):
        at = {(e["kind"], e["batch"]): e["ratio"] for e in limit["ratios"] if e["form"] == form}
        table.add_row(form, *(f"{at[kind, batch]:.2f}" for kind in ("forward", "pair") for batch in batches))
    return table


def _calls(net: str, rows: dict[str, Any]) -> Table:
    table = Table(title=f"{net}: calls, against the limit and against peers; median (lowest\u2013highest) of repeats")
    for name in ("", "forward, backward", "counted", "cost in forwards", "efficiency", "MiB", "peer's time", "apart"):
        table.add_column(name, justify="left" if not name else "right")
    for name, row in rows.items():
        table.add_row(
            name,
            _both(row["passes"]),
            _both(row["counted"]),
            ratio(row["cost_in_forwards"]),
            ratio(row["efficiency"]),
            f"{row['memory_mib']:,.0f}",
            "\n".join(f"{p['name']} {ratio(p['times_ours'])}\u00d7{' a pass' if p['per'] == 'pass' else ''}"
                      for p in row["peers"]),
            "\n".join("" if p["deviation"] is None else f"{p['deviation']:.0e}" for p in row["peers"]),
        )  # fmt: skip
    return table


def _both(passes: dict[str, float]) -> str:
    return f"{passes['forwards']:,.4g}, {passes['backwards']:,.4g}"


def _training(net: str, row: dict[str, Any]) -> Table:
    table = Table(title=f"{net}: training step, {row['settings']}")
    for name in ("regime", "times the plain step", "forward, backward beside", "efficiency"):
        table.add_column(name, justify="left" if name == "regime" else "right")
    for name, found in row["regimes"].items():
        table.add_row(name, ratio(found["times_plain"]), _both(found["passes"]), ratio(found["efficiency"]))
    return table


def _data(net: str, row: dict[str, Any]) -> Table:
    table = Table(title=f"{net}: data, an image's cost as a share of its plain training step's")
    table.add_column("part")
    table.add_column("share", justify="right")
    for name, found in row["parts"].items():
        table.add_row(name, ratio(found["of_a_step"]))
    return table
