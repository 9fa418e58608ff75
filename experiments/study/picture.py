"""Pictures of the differences with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from robustsigma.report.canvas import LINE, QUIET, WRONG, png, styled
from study.sentences import TABLES, column, difference, row, shown
from study.setup import CLEAN, GAUSSIAN, REFERENCE, SAMPLES, TIME, VARIATIONS

_LOOKS = ({"color": LINE, "marker": "o"}, {"color": WRONG, "marker": "s", "mfc": "white"})


def draw(found: dict[str, Any]) -> dict[str, bytes]:
    """Return PNG files by suffix of their name: rows against the clean control, variations against SIGMA."""
    first = found["tables"][SAMPLES]
    names = [entry["name"] for entry in first["rows"] if entry["name"] not in ("base", CLEAN)]
    both = [(TABLES[name], found["tables"][name], CLEAN) for name in (SAMPLES, TIME)]
    table = found["tables"][VARIATIONS]
    varied = [entry["name"] for entry in table["rows"] if entry["name"] not in ("base", CLEAN, GAUSSIAN, REFERENCE)]
    changed = [("", table, REFERENCE)]
    title = found["dataset"]["title"]
    with styled():
        return {
            "": png(_forest(f"{title}: minus the clean control, points", names, both, shown(found))),
            "_variations": png(_forest(f"{title}: minus SIGMA on the fly, points", varied, changed, shown(found))),
        }


def _forest(
    title: str, names: Sequence[str], tables: Sequence[tuple[str, dict[str, Any], str]], columns: Sequence[str]
) -> Figure:
    """Draw a panel per column, a row per training and a mark per table."""
    figure = Figure(figsize=(1.7 + 1.25 * len(columns), 1.1 + 0.3 * len(names)))
    axes = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axis, name in zip(axes, columns, strict=True):
        axis.axvline(0, color=QUIET, linewidth=0.8)
        for number, ((label, table, against), look) in enumerate(zip(tables, _LOOKS, strict=False)):
            for place, regime in enumerate(names):
                found = difference(table, regime, against, name)
                if found is not None:
                    mean, low, high = (100 * found[key] for key in ("mean", "low", "high"))
                    at = place + (number - (len(tables) - 1) / 2) * 0.3
                    legend = label if place == 0 else None
                    axis.errorbar([mean], [at], xerr=[[mean - low], [high - mean]], ms=3.5, lw=1, label=legend, **look)
        axis.set_title(column(name), fontsize=7.5)
        axis.tick_params(labelsize=7)
    axes[0].set_yticks(range(len(names)), [row(name) for name in names], fontsize=7.5)
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    figure.suptitle(title, fontsize=9.5, fontweight="bold", y=1.0 + 0.1 / figure.get_figheight())
    if len(tables) > 1:
        figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncols=2, fontsize=7.5, frameon=False,
                      bbox_to_anchor=(0.5, -0.35 / figure.get_figheight()))  # fmt: skip
    return figure
