"""The tables of an attribution report: what a benchmark wrote, arranged by method and metric."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

from robustsigma.report import text
from robustsigma.report.table import Exhibit, Heading, HeadingGroup, TableCell, TableLayout, group_by, listing
from robustsigma.report.text import DASH, interval, number, percent
from robustsigma.report.validation import check_attribution

GROUPS = {
    "faithfulness": ("Faithfulness", "does the network's output depend on what the map marks as important?"),
    "localisation": ("Localization", "does the map lie on the object?"),
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


def methods(results: dict[str, Any]) -> tuple[Heading, ...]:
    """Return the methods with their names; methods that would share a name show their ids instead."""
    names = Counter(text.name(entry["id"]) for entry in results["methods"])
    return tuple(
        Heading(
            entry["id"],
            text.name(entry["id"]) if names[text.name(entry["id"])] == 1 else text.printable(entry["id"]),
            hint=str(entry.get("settings") or ""),
        )
        for entry in results["methods"]
    )


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
    check_attribution(results)
    return [_score_table(results, model["id"]) for model in results["models"]]


def _score_table(results: dict[str, Any], model: str) -> TableLayout:
    entries = scores(results, model)
    dataset, shown = results.get("dataset") or {}, controls(results)
    heads = [head for head in methods(results) if any(head.id == method for method, _ in entries)]
    rows = tuple(
        group
        for group in (
            HeadingGroup("", "", "", tuple(head for head in heads if head.id not in shown)),
            HeadingGroup(
                "control", "Controls", "what every method should beat; neither ranked nor bold",
                tuple(head for head in heads if head.id in shown), " (control)",
            ),
        )
        if group.heads
    )  # fmt: skip
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
                cells[head.id, metric["id"]] = _score(head, metric, mine[head.id], ranks.get(head.id), write, n, shown)
    title = f"Attribution on {text.printable(dataset.get('name', 'the images'))}"
    title += f", model {text.printable(model)}" if len(results["models"]) > 1 else ""
    return TableLayout("Method", group_by(columns, GROUPS), rows, cells, title, "matrix scores")


def _score(
    head: Heading, metric: dict[str, Any], entry: dict[str, Any], rank: float | None, write: Callable[[Any], str],
    usual: Any, controls: set[str],
) -> TableCell:  # fmt: skip
    """Return one score with its interval, shaded by its rank, or marked if random maps score as well."""
    low, high = entry.get("low"), entry.get("high")
    details = () if write is number and low == high else interval(entry, write)
    against, flags = entry.get("against_random") or {}, text.flags(entry)
    verdict = str(against.get("verdict", ""))
    mark = {"same": ("\u2248", "random"), "worse": ("\u25bc", "random")}.get(verdict)
    best = bool(entry.get("best")) and bool(entry.get("clear"))
    hints = [f"{head.label}, {metric['title']}: n = {number(entry.get('n'))}"]
    hints += [f"{count} skipped: {reason}" for reason, count in (entry.get("skipped") or {}).items()]
    if against:
        ends = f"{write(against.get('low'))} to {write(against.get('high'))}, n = {number(against.get('n'))}"
        said = _VERDICTS.get(verdict, "compared with")
        hints.append(f"{said} a random map, difference {write(against.get('mean'))} ({ends})")
    if entry.get("best"):
        hints.append("best, significantly ahead of the second" if best else "best, not significantly ahead")
    hints += [f"{code}: {message}" for code, message in flags]
    tone = "control" if head.id in controls else "best" if best else "mark" if mark else ""
    return TableCell(
        write(entry.get("mean")), details, mark, tone, None if rank is None or mark else SHADE * rank, "; ".join(hints),
        flags, remark="" if entry.get("n") in (None, usual) else f"n {number(entry['n'])}",
    )  # fmt: skip


def _ranks(metric: dict[str, Any], entries: dict[str, dict[str, Any]], controls: set[str]) -> dict[str, float]:
    """Return the rank of each method but the controls: 1 for the best, 0 for the worst, the same for equal scores."""
    sign = -1.0 if metric["better"] == "lower" else 1.0
    found = {key: text.finite(entry.get("mean")) for key, entry in entries.items() if key not in controls}
    means = {key: sign * value for key, value in found.items() if value is not None}
    if len(set(means.values())) < 2:
        return {}
    below = {key: sum(v < mean for v in means.values()) for key, mean in means.items()}
    equal = {key: sum(v == mean for v in means.values()) - 1 for key, mean in means.items()}
    return {key: (below[key] + equal[key] / 2) / (len(means) - 1) for key in means}


def skips(results: dict[str, Any], model: str) -> list[tuple[str, str]]:
    """Return each reason why images were skipped with the metrics, the counts and the methods concerned."""
    entries, labels = scores(results, model), names(results)
    found: dict[str, dict[str, dict[int, list[str]]]] = {}
    for metric in results["metrics"]:
        for method in labels:
            for reason, count in (entries.get((method, metric["id"]), {}).get("skipped") or {}).items():
                by_count = found.setdefault(text.printable(reason), {}).setdefault(metric["id"], {})
                by_count.setdefault(count, []).append(method)
    titles = {metric["id"]: text.printable(metric["title"]) for metric in results["metrics"]}
    lines = []
    for reason, by_metric in found.items():
        alike: dict[str, list[str]] = {}
        for metric, by_count in by_metric.items():
            every = sum(key[1] == metric for key in entries)
            parts = []
            for count, ids in sorted(by_count.items(), reverse=True):
                whose = "every method" if len(ids) == every > 1 else ", ".join(labels[key] for key in ids)
                parts.append(f"{count} ({whose})")
            alike.setdefault(", ".join(parts), []).append(titles[metric])
        lines.append((reason, "; ".join(f"{', '.join(metrics)}: {counts}" for counts, metrics in alike.items())))
    return lines


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
            found, method = entry.get("similarity") or {}, entry["method"]
            rows.append({
                "label": labels.get(method, text.printable(method)),
                "control": method in shown,
                **{key: text.finite(found.get(key)) for key in ("mean", "low", "high")},
                "n": found.get("n"),
                "changed": entry.get("changed") is not False,
                "skipped": entry.get("skipped") or {},
            })  # fmt: skip
    return sorted(rows, key=lambda row: math.inf if row["mean"] is None else row["mean"])


def _sanity_table(results: dict[str, Any], model: str) -> TableLayout | None:
    rows = []
    for row in sanity(results, model):
        skipped = "".join(f"; {count} skipped: {reason}" for reason, count in row["skipped"].items())
        verdict = ("changed" if row["changed"] else "\u2717 not significantly changed") + skipped
        rows.append((
            row["label"] + (" (control)" if row["control"] else ""),
            TableCell(text.score(row["mean"]), interval(row, text.score)), number(row["n"]),
            TableCell(verdict, tone="" if row["changed"] else "worse"),
        ))  # fmt: skip
    return listing(("Method", "Similarity", "n", "Map"), ("", "", rows), words={"Map"}) if rows else None


def tiles(results: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return the best method by the usual metrics: title, score, and whose score it is."""
    found, labels, models = [], names(results), results["models"]
    for model in models if len(models) < 3 else []:
        entries = scores(results, model["id"])
        for metric in sorted(
            (m for m in results["metrics"] if m["id"] in QUALITIES), key=lambda m: QUALITIES.index(m["id"])
        ):
            best = [
                (m, e) for (m, name), e in entries.items() if name == metric["id"] and e.get("best") and m in labels
            ]
            if len(best) == 1:
                method, entry = best[0]
                where = f" on {text.printable(model['id'])}" if len(models) > 1 else ""
                ahead = "significantly ahead of the second" if entry.get("clear") else "not significantly ahead"
                score = writer(metric["id"], entries)(entry.get("mean"))
                found.append((f"{metric['title']}{where}", score, f"{labels[method]}: best, {ahead}"))
    return found


def sections(results: dict[str, Any]) -> dict[str, list[Exhibit]]:
    """Return what each section of the page shows; a section without contents is empty."""
    tables, models = score_tables(results), results["models"]
    found: dict[str, list[Exhibit]] = {"scores": [], "curves": [], "cost": [], "sanity": [], "gallery": []}
    for place, (model, table) in enumerate(zip(models, tables, strict=True)):
        title = text.printable(model["id"]) if len(models) > 1 else ""
        if table.column_heads:
            parts = tuple(table.split(lambda part: len(part.column_heads) <= _WIDEST))
            remarks = tuple(f"Skipped images, {reason}: {where}" for reason, where in skips(results, model["id"]))
            found["scores"].append(Exhibit(
                text.printable(model["id"]), _about(model), parts, footnotes=tuple(table.footnotes), remarks=remarks,
                key=f"note-{place + 1}",
            ))  # fmt: skip
        for kind, alt in FIGURES.items():
            alone = _sanity_table(results, model["id"]) if kind == "sanity" else None
            name = figure_name(kind, place, len(models))
            if kind != "sanity" or alone:
                found[kind].append(Exhibit(title, "", (alone,) if alone else (), name, alt))
    found["metrics"] = [Exhibit(tables=(_metrics(results),))] if results["metrics"] else []
    rows = [((head.label, "control" if head.id in controls(results) else ""), head.hint or DASH)
            for head in methods(results)]  # fmt: skip
    found["methods"] = [Exhibit(tables=(listing(("Method", "Settings"), ("", "", rows), words={"Settings"}),))] * bool(
        rows
    )
    if left := left_out(results):
        words = {"Model", "Reason"}
        found["methods"].append(
            Exhibit("Left out", "", (listing(("Method", "Model", "Reason"), ("", "", left), words=words),))
        )
    found["numbers"] = [Exhibit(tables=(_numbers(results, tables),))] if any(t.cells for t in tables) else []
    return found


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
    groups = group_by([(metric["group"], Heading(metric["id"], "")) for metric in results["metrics"]], GROUPS)
    entries = {metric["id"]: metric for metric in results["metrics"]}
    bands = []
    for group in groups:
        rows = []
        for metric in (entries[head.id] for head in group.heads):
            better = f"{arrow(metric)} {'low' if metric['better'] == 'lower' else 'high'}"
            title = (metric["title"], "" if metric["id"] == metric["title"] else metric["id"])
            rows.append((title, better, metric.get("about") or DASH, metric.get("settings") or DASH))
        bands.append((group.title, group.hint, rows))
    heads = ("Metric", "Better", "What it measures", "Settings")
    return listing(heads, *bands, words=heads)


def _numbers(results: dict[str, Any], tables: list[TableLayout]) -> TableLayout:
    """Return everything that was measured in each cell."""
    rows = []
    for model, table in zip(results["models"], tables, strict=True):
        entries = scores(results, model["id"])
        for method in table.row_heads:
            for metric in results["metrics"]:
                found = entries.get((method.id, metric["id"]))
                if found is not None:
                    write, against = writer(metric["id"], entries), found.get("against_random") or {}
                    skipped = sum((found.get("skipped") or {}).values())
                    ends = ("mean", "low", "high")
                    rows.append((
                        model["id"], method.id, metric["id"], *(write(found.get(key)) for key in ends),
                        number(found.get("n")), number(skipped), *(write(against.get(key)) for key in ends),
                    ))  # fmt: skip
    heads = ("Model", "Method", "Metric", "Mean", "Low", "High", "n", "Skipped", "Against random", "low", "high")
    return listing(heads, ("", "", rows), words={"Method", "Metric"})
