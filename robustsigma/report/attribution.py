"""The tables of an attribution report: what a benchmark wrote, arranged by method and metric."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from scipy.stats import rankdata

from robustsigma.report import rankings, text
from robustsigma.report.table import Exhibit, Heading, TableCell, TableLayout, group_by, headings, listing
from robustsigma.report.text import DASH, interval, number, percent
from robustsigma.runs.results import AttributionResults

GROUPS = {
    "faithfulness": ("Faithfulness", "does the network's output depend on what the map marks as important?"),
    "localization": ("Localization", "does the map lie on the object?"),
    "complexity": ("Complexity", "does the map lie on few pixels?"),
    "consistency": ("Consistency", "does the map have the properties that its method promises?"),
    "cost": ("Cost", "what one map takes"),
}
QUALITIES = ("difference", "sic", "iou")
FIGURES = {
    "curves": "Curves of each method with 95% bands",
    "cost": "Quality of each method against the cost of one map",
    "sanity": "Similarity of the maps after the parameters were shuffled",
    "gallery": "Maps of each method over the same images",
}
SHADE = 0.36  # the part of the color ramp on which dark text stays readable
_WIDEST = 11  # columns of a table that fits the page
_VERDICTS = {
    "better": "better than",
    "worse": "worse than",
    "same": "not significantly different from",
}


def methods(results: dict[str, Any]) -> list[Heading]:
    """Return the headings of the methods."""
    return [head for _, head in headings(results["methods"])]


def names(results: dict[str, Any]) -> dict[str, str]:
    """Return the name of each method by its id."""
    return {head.id: head.label for head in methods(results)}


def controls(results: dict[str, Any]) -> set[str]:
    """Return the ids of the methods that serve as controls."""
    return {entry["id"] for entry in results["methods"] if entry.get("control")}


def scores(results: dict[str, Any], model: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Return what was measured on a model, by method and metric."""
    return {(e["method"], e["metric"]): e for e in results["cells"] if e["model"] == model}


def figure_name(kind: str, model: int, count: int) -> str:
    """Return the file name of a figure of one model; it contains no name of the user, which may be anything."""
    return f"attribution_{kind}" + (f"_{model + 1}" if count > 1 else "")


def arrow(metric: dict[str, Any]) -> str:
    """Return the direction of better scores."""
    return "\u2193" if metric["better"] == "lower" else "\u2191"


def writer(metric: str, entries: dict[tuple[str, str], dict[str, Any]]) -> Callable[[Any], str]:
    """Return the format of a metric's scores: whole numbers where every mean is one, as in counts of passes."""
    found = (text.finite(entry.get("mean")) for key, entry in entries.items() if key[1] == metric)
    means = [mean for mean in found if mean is not None]
    whole = any(abs(mean) > 1 for mean in means) and all(mean == round(mean) for mean in means)
    return number if whole else text.score


def score_tables(results: dict[str, Any]) -> list[TableLayout]:
    """Return a table for each model: methods (rows) and their scores by metric (columns).

    A method without a single score on a model has no row.

    Raises:
        ValueError: if `results` is not of schema 1 and kind "attribution".
    """
    AttributionResults.from_json(results)
    return [_score_table(results, model["id"]) for model in results["models"]]


def _score_table(results: dict[str, Any], model: str) -> TableLayout:
    entries = scores(results, model)
    dataset, shown = results.get("dataset") or {}, controls(results)
    heads = [head for head in methods(results) if any(head.id == method for method, _ in entries)]
    grouped = [("control" if head.id in shown else "", head) for head in heads]
    known = {"": ("", ""), "control": ("Controls", "what every method should beat; neither ranked nor bold")}
    rows = group_by(grouped, known, lambda key, _: " (control)" if key else "")
    columns, cells = [], {}
    for metric in results["metrics"]:
        mine = {method: entry for (method, name), entry in entries.items() if name == metric["id"]}
        counts = {(e["n"], sum((e.get("skipped") or {}).values())) for e in mine.values() if e.get("n")}
        n, skipped = counts.pop() if len(counts) == 1 else (dataset.get("images"), 0)
        detail = "" if n == dataset.get("images") else f"n {number(n)}" + (f"\n{skipped} skipped" if skipped else "")
        about = str(metric.get("about") or "") + (f" ({metric['settings']})" if metric.get("settings") else "")
        label = f"{text.printable(metric['title'])} {arrow(metric)}"
        columns.append((metric["group"], Heading(metric["id"], label, detail, about)))
        ranks, write = _ranks(metric, mine, shown), writer(metric["id"], entries)
        for head in heads:
            if head.id in mine:
                tone = "control" if head.id in shown else ""
                cells[head.id, metric["id"]] = _score(mine[head.id], ranks.get(head.id), write, n, tone)
    title = f"Attribution on {dataset.get('name', 'the images')}"
    title += f", model {model}" if len(results["models"]) > 1 else ""
    return TableLayout("Method", group_by(columns, GROUPS), rows, cells, title, "matrix scores")


def _score(entry: dict[str, Any], rank: float | None, write: Callable[[Any], str], usual: Any, tone: str) -> TableCell:
    """Return one score with its interval, shaded by its rank, or marked if random maps score as well."""
    low, high = entry.get("low"), entry.get("high")
    details = () if write is number and low == high else interval(entry, write)
    against, flags = entry.get("against_random") or {}, text.flags(entry)
    verdict = str(against.get("verdict", ""))
    mark = {"same": ("\u2248", "random"), "worse": ("\u25bc", "random")}.get(verdict)
    best = bool(entry.get("best")) and bool(entry.get("clear")) and mark is None
    hints = [f"n = {number(entry.get('n'))}"]
    hints += [f"{count} skipped: {reason}" for reason, count in (entry.get("skipped") or {}).items()]
    if against:
        ends = f"{write(against.get('low'))} to {write(against.get('high'))}, n = {number(against.get('n'))}"
        comparison = _VERDICTS.get(verdict, "compared with")
        hints.append(f"{comparison} a random map, difference {write(against.get('mean'))} ({ends})")
    if entry.get("best") and mark is None:
        hints.append("best, significantly ahead of the second" if best else "best, not significantly ahead")
    hints += [f"{code}: {message}" for code, message in flags]
    tone = tone or ("best" if best else "mark" if mark else "")
    fill = None if rank is None or mark else SHADE * rank
    remark = "" if entry.get("n") in (None, usual) else f"n {number(entry['n'])}"
    if not entry.get("n") and any(reason.startswith("not measured") for reason in entry.get("skipped") or {}):
        return TableCell("not measured", tone=tone, hint="; ".join(hints))
    return TableCell(write(entry.get("mean")), details, mark, tone, fill, "; ".join(hints), flags, remark=remark)


def _ranks(metric: dict[str, Any], entries: dict[str, dict[str, Any]], controls: set[str]) -> dict[str, float]:
    """Return the rank of each method but the controls: 1 for the best, 0 for the worst, the same for equal scores."""
    sign = -1.0 if metric["better"] == "lower" else 1.0
    found = {key: text.finite(entry.get("mean")) for key, entry in entries.items() if key not in controls}
    means = {key: sign * value for key, value in found.items() if value is not None}
    if len(set(means.values())) < 2:
        return {}
    return dict(zip(means, (rankdata(list(means.values())) - 1) / (len(means) - 1), strict=True))


def skips(results: dict[str, Any], model: str) -> list[tuple[str, str]]:
    """Return each reason why images were skipped with the metrics, the counts and the methods concerned."""
    entries, labels = scores(results, model), names(results)
    found: dict[str, dict[str, list[str]]] = {}  # reason, counts with their methods, metrics
    for metric in results["metrics"]:
        mine = {method: entry.get("skipped") or {} for (method, name), entry in entries.items() if name == metric["id"]}
        for reason in dict.fromkeys(reason for skipped in mine.values() for reason in skipped):
            counts: dict[int, list[str]] = {}
            for method, skipped in mine.items():
                counts.setdefault(skipped.get(reason, 0), []).append(labels.get(method, method))
            parts = []
            for count, whose in sorted(counts.items(), reverse=True):
                if count:
                    parts.append(f"{count} ({'every method' if len(whose) == len(mine) > 1 else ', '.join(whose)})")
            found.setdefault(text.printable(reason), {}).setdefault(", ".join(parts), []).append(metric["title"])
    return [(reason, "; ".join(f"{', '.join(metrics)}: {counts}" for counts, metrics in by_counts.items()))
            for reason, by_counts in found.items()]  # fmt: skip


def left_out(results: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return method, model and reason of each method that was not evaluated on a model."""
    labels = names(results)
    return [
        (labels.get(entry["method"], entry["method"]), entry["model"], entry.get("reason") or "no reason given")
        for entry in results.get("left_out") or []
    ]


def sanity(results: dict[str, Any], model: str) -> list[dict[str, Any]]:
    """Return the check with shuffled parameters on a model, the least similar maps first, missing numbers last."""
    rows, labels, shown = [], names(results), controls(results)
    for entry in results.get("sanity") or []:
        if entry["model"] == model:
            estimate, method = entry.get("similarity") or {}, entry["method"]
            row = {key: text.finite(estimate.get(key)) for key in ("mean", "low", "high", "n")}
            label, changed = labels.get(method, text.printable(method)), entry.get("changed") is not False
            rows.append({**entry, **row, "label": label, "control": method in shown, "changed": changed})
    return sorted(rows, key=lambda row: math.inf if row["mean"] is None else row["mean"])


def _sanity_tables(results: dict[str, Any], model: str) -> tuple[TableLayout, ...]:
    rows = []
    for row in sanity(results, model):
        skipped = "".join(f"; {count} skipped: {reason}" for reason, count in (row.get("skipped") or {}).items())
        verdict = ("changed" if row["changed"] else "\u2717 not significantly changed") + skipped
        similarity = TableCell(text.score(row["mean"]), interval(row, text.score))
        label = (row["label"], "control" if row["control"] else "")
        rows.append((label, similarity, number(row["n"]), TableCell(verdict, tone="" if row["changed"] else "worse")))
    return (listing(("Method", "Similarity", "n", "Map"), ("", "", rows), words={"Map"}),) if rows else ()


def tiles(results: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return the best method by the usual metrics: title, score, and whose score it is.

    A metric under which no method is significantly better than random maps (which a flag says) has no best method.
    """
    found, labels, models, shown = [], names(results), results["models"], controls(results)
    titles = {metric["id"]: metric["title"] for metric in results["metrics"]}
    for model in models if len(models) < 3 else []:
        entries, where = scores(results, model["id"]), f" on {text.printable(model['id'])}" * (len(models) > 1)
        for metric in filter(titles.__contains__, QUALITIES):
            mine = {m: e for (m, name), e in entries.items() if name == metric and m in labels and m not in shown}
            best = [method for method, entry in mine.items() if entry.get("best")]
            verdicts = {(entry.get("against_random") or {}).get("verdict") for entry in mine.values()}
            if len(best) == 1 and (verdicts == {None} or "better" in verdicts):
                entry = mine[best[0]]
                ahead = "significantly ahead of the second" if entry.get("clear") else "not significantly ahead"
                score = writer(metric, entries)(entry.get("mean"))
                found.append((f"{titles[metric]}{where}", score, f"{labels[best[0]]}: best, {ahead}"))
    return found


def sections(results: dict[str, Any]) -> dict[str, list[Exhibit]]:
    """Return what each section of the page shows; a section without contents is empty."""
    found: dict[str, list[Exhibit]] = {key: [] for key in ("scores", *FIGURES)}
    found["rankings"] = rankings.exhibits(results, names(results))
    tables, several = score_tables(results), len(results["models"]) > 1
    for place, (model, table) in enumerate(zip(results["models"], tables, strict=True)):
        parts = tuple(table.split(lambda part: len(part.column_heads) <= _WIDEST)) if table.columns else ()
        remarks = tuple(f"Skipped images, {reason}: {where}" for reason, where in skips(results, model["id"]))
        title, key = text.printable(model["id"]), f"note-{place + 1}"
        found["scores"].append(Exhibit(title, _about(model), parts, remarks=remarks, key=key))
        for kind, alt in FIGURES.items():
            beside = _sanity_tables(results, model["id"]) if kind == "sanity" else ()
            name = figure_name(kind, place, len(results["models"]))
            found[kind].append(Exhibit(title if several else "", "", beside, name, alt))
    rows = [((h.label, "control" if h.id in controls(results) else ""), h.hint or DASH) for h in methods(results)]
    others = {
        "metrics": _metrics(results),
        "protocols": rankings.protocols(results),
        "methods": listing(("Method", "Settings"), ("", "", rows), words={"Settings"}),
        "left_out": listing(("Left out", "Model", "Reason"), ("", "", left_out(results)), words={"Model", "Reason"}),
    }
    shown = {key: [Exhibit(tables=(table,))] * bool(table.row_heads) for key, table in others.items()}
    shown["methods"] += shown.pop("left_out")
    return {**found, **shown}


def _about(model: dict[str, Any]) -> str:
    """Return how a model was made and how accurate it is."""
    accuracy, about = model.get("accuracy") or {}, [str(model["about"])] if model.get("about") else []
    if text.finite(accuracy.get("mean")) is not None:
        n = [f"n = {number(accuracy['n'])}"] if accuracy.get("n") else []
        inner = ", ".join([*interval(accuracy), *n])
        about.append(f"accuracy {percent(accuracy['mean'])}%" + (f" ({inner})" if inner else ""))
    return " \u00b7 ".join(about)


def _metrics(results: dict[str, Any]) -> TableLayout:
    """Return what each metric measures, by group."""
    entries, bands = {metric["id"]: metric for metric in results["metrics"]}, []
    for group in group_by([(metric["group"], Heading(metric["id"], "")) for metric in results["metrics"]], GROUPS):
        rows = []
        for metric in (entries[head.id] for head in group.heads):
            better = f"{arrow(metric)} {'low' if metric['better'] == 'lower' else 'high'}"
            title = (metric["title"], "" if metric["id"] == metric["title"] else metric["id"])
            rows.append((title, better, metric.get("about") or DASH, metric.get("settings") or DASH))
        bands.append((group.title, group.hint, rows))
    heads = ("Metric", "Better", "What it measures", "Settings")
    return listing(heads, *bands, words=heads)
