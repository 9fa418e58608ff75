"""The scores of an attribution benchmark, laid out: one board a model, methods by metrics."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from robustsigma.report import matrix, text
from robustsigma.report.attribution.checks import check

GROUPS = {
    "faithfulness": ("Faithfulness", "does the network's answer follow what the map calls important?"),
    "localisation": ("Localisation", "does the map lie on the object?"),
    "consistency": ("Consistency", "does the map keep what its method promises?"),
    "cost": ("Cost", "what one map takes"),
}


@dataclass(frozen=True)
class Metric:
    """One metric; `whole` where every mean is a whole number (counts).

    Where all methods were measured on equally many images, but not on all, `n` says on how many, and `skipped` how many
    each skipped.
    """

    id: str
    title: str
    group: str
    better: str
    about: str = ""
    settings: str = ""
    whole: bool = False
    n: int | None = None
    skipped: int = 0

    @property
    def arrow(self) -> str:
        """Where better scores lie."""
        return "\u2193" if self.better == "lower" else "\u2191"

    def write(self, value: Any) -> str:
        """Write one score of this metric."""
        found = text.finite(value)
        return text.number(found) if self.whole and found is not None and found == round(found) else text.score(found)


@dataclass(frozen=True)
class Method:
    """One attribution method, named."""

    id: str
    label: str
    control: bool
    settings: str


@dataclass(frozen=True)
class Cell:
    """One score; `notes` are numbers of footnotes, `rank` is 1 for the best method and 0 for the worst."""

    entry: dict[str, Any]
    notes: tuple[int, ...]
    rank: float | None
    odd_n: bool

    def value(self, key: str) -> float | None:
        """Return the `mean`, or the `low` or `high` end of its interval."""
        return text.finite(self.entry.get(key))

    @property
    def bold(self) -> bool:
        """Whether the score is the best and clearly ahead of the second."""
        return bool(self.entry.get("best")) and bool(self.entry.get("clear"))

    @property
    def against_random(self) -> dict[str, Any]:
        """The paired difference from the random map, empty where there is none."""
        return self.entry.get("against_random") or {}

    @property
    def verdict(self) -> str:
        """`same` or `worse` where the score is not better than that of a random map, else empty."""
        found = str(self.against_random.get("verdict", ""))
        return found if found in ("same", "worse") else ""

    @property
    def skipped(self) -> dict[str, int]:
        """How many images were skipped, by reason."""
        return self.entry.get("skipped") or {}


@dataclass(frozen=True)
class Board:
    """All scores on one model."""

    model: dict[str, Any]
    metrics: tuple[Metric, ...]
    methods: tuple[Method, ...]
    controls: tuple[Method, ...]
    cells: dict[tuple[str, str], Cell]
    notes: list[tuple[str, str]]
    skips: list[tuple[str, str]]

    @property
    def rows(self) -> tuple[Method, ...]:
        """Return the methods, then the controls."""
        return self.methods + self.controls

    def groups(self) -> list[tuple[str, str, list[Metric]]]:
        """Return title, question and metrics of each group that there is."""
        keys = list(dict.fromkeys([*GROUPS, *(m.group for m in self.metrics)]))
        found = [(key, [metric for metric in self.metrics if metric.group == key]) for key in keys]
        return [(*GROUPS.get(key, (text.printable(key), "")), metrics) for key, metrics in found if metrics]

    def packs(self, widest: int) -> list[list[tuple[str, str, list[Metric]]]]:
        """Return the groups in tables of at most so many columns; a group stays whole."""
        packs: list[list[tuple[str, str, list[Metric]]]] = []
        for group in self.groups():
            if packs and sum(len(part[2]) for part in packs[-1]) + len(group[2]) <= widest:
                packs[-1].append(group)
            else:
                packs.append([group])
        return packs


def build(results: dict[str, Any]) -> list[Board]:
    """Lay out a result, one board a model.

    Args:
        results: what the benchmark measured (schema 1, kind "attribution").

    Returns:
        The boards; a method without a single cell on a model has no row on its board.

    Raises:
        ValueError: if the result is not of that kind.
    """
    check(results)
    return [_board(results, model) for model in results["models"]]


def methods(results: dict[str, Any]) -> tuple[Method, ...]:
    """Return the methods by their names; where two would share a name, by their identities."""
    twice = Counter(text.name(entry["id"]) for entry in results["methods"])
    return tuple(
        Method(
            entry["id"],
            text.name(entry["id"]) if twice[text.name(entry["id"])] == 1 else text.printable(entry["id"]),
            bool(entry.get("control")),
            str(entry.get("settings") or ""),
        )
        for entry in results["methods"]
    )


def names(results: dict[str, Any]) -> dict[str, str]:
    """Return the name of each method by its identity."""
    return {method.id: method.label for method in methods(results)}


def _board(results: dict[str, Any], model: dict[str, Any]) -> Board:
    """Lay out the scores on one model."""
    entries = {(e["method"], e["metric"]): e for e in results["cells"] if e["model"] == model["id"]}
    rows = [method for method in methods(results) if any(method.id == key[0] for key in entries)]
    images = (results.get("dataset") or {}).get("images")
    metrics = [_metric(metric, [e for key, e in entries.items() if key[1] == metric["id"]], images)
               for metric in results["metrics"]]  # fmt: skip
    ranks = {metric.id: _ranks(metric, rows, entries) for metric in metrics}
    usual = {metric.id: images if metric.n is None else metric.n for metric in metrics}
    notes: list[tuple[str, str]] = []
    cells = {}
    for method in rows:
        for metric in metrics:
            entry = entries.get((method.id, metric.id))
            if entry is not None:
                odd = entry.get("n") is not None and entry["n"] != usual[metric.id]
                rank = ranks[metric.id].get(method.id)
                cells[method.id, metric.id] = Cell(entry, matrix.footnotes(entry, notes), rank, odd)
    return Board(
        model,
        tuple(metrics),
        tuple(method for method in rows if not method.control),
        tuple(method for method in rows if method.control),
        cells,
        notes,
        _skips(cells, {metric.id: metric.title for metric in metrics}, {row.id: row.label for row in rows}),
    )


def _metric(entry: dict[str, Any], cells: list[dict[str, Any]], images: Any) -> Metric:
    """Return a metric as its column shows it."""
    means = [mean for mean in (text.finite(cell.get("mean")) for cell in cells) if mean is not None]
    whole = bool(means) and all(mean == round(mean) for mean in means) and any(abs(mean) > 1 for mean in means)
    shared = {(cell["n"], sum((cell.get("skipped") or {}).values())) for cell in cells if cell.get("n")}
    count, skipped = shared.pop() if len(shared) == 1 else (None, 0)
    fields = {key: str(entry.get(key) or "") for key in ("about", "settings")}
    return Metric(
        entry["id"], text.printable(entry["title"]), entry["group"], entry["better"], whole=whole,
        n=None if count == images else count,
        skipped=skipped, **fields,
    )  # fmt: skip


def _ranks(metric: Metric, rows: list[Method], entries: dict[tuple[str, str], dict[str, Any]]) -> dict[str, float]:
    """Return the place of each method among those that are not controls; equal scores share their place."""
    sign = -1.0 if metric.better == "lower" else 1.0
    found = {row.id: text.finite(entries.get((row.id, metric.id), {}).get("mean")) for row in rows if not row.control}
    means = {key: sign * value for key, value in found.items() if value is not None}
    if len(set(means.values())) < 2:
        return {}
    below = {key: sum(v < mean for v in means.values()) for key, mean in means.items()}
    equal = {key: sum(v == mean for v in means.values()) - 1 for key, mean in means.items()}
    return {key: (below[key] + equal[key] / 2) / (len(means) - 1) for key in means}


def _skips(cells: dict[tuple[str, str], Cell], titles: dict[str, str], labels: dict[str, str]) -> list[tuple[str, str]]:
    """Return each reason of skipped images with the metrics, the counts and the methods that it struck."""
    struck: dict[str, dict[str, dict[int, list[str]]]] = {}
    for (method, metric), cell in cells.items():
        for reason, count in cell.skipped.items():
            struck.setdefault(str(reason), {}).setdefault(metric, {}).setdefault(count, []).append(method)
    measured = {metric: {key[0] for key in cells if key[1] == metric} for metric in titles}
    lines = []
    for reason, by_metric in struck.items():
        alike: dict[str, list[str]] = {}
        for metric, by_count in by_metric.items():
            parts = []
            for count, ids in sorted(by_count.items(), reverse=True):
                every = set(ids) == measured[metric] and len(ids) > 1
                parts.append(f"{count} ({'every method' if every else ', '.join(labels[key] for key in ids)})")
            alike.setdefault(", ".join(parts), []).append(titles[metric])
        said = "; ".join(f"{', '.join(metrics)}: {counts}" for counts, metrics in alike.items())
        lines.append((text.printable(reason), said))
    return lines
