"""The tables of a robustness report: what an evaluation wrote, arranged by regime and condition."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean, median
from typing import Any

from robustsigma.engine.metrics.interval import LEVEL
from robustsigma.report import attacks, text
from robustsigma.report.table import (
    Exhibit,
    Heading,
    HeadingGroup,
    Note,
    TableCell,
    TableLayout,
    difference_cell,
    group_by,
    headings,
    listing,
    mean_cell,
)
from robustsigma.report.text import DASH, interval, measure, number, percent
from robustsigma.report.training import sweeps, training_samples
from robustsigma.runs.results import RobustnessResults

SETTINGS = {
    "none": ("Clean and noise", "the same samples for every model"),
    "adaptive": ("Adaptive", "samples made against the model under test"),
    "worst": ("Worst case", "correct under every one of the adaptive attacks"),
    "distance": ("Minimum norm", "median distance to the nearest error, not an accuracy"),
    "transfer": ("Transfer", "samples made once, against the base model"),
}
STRONGER = {
    "double_steps": "Twice the steps",
    "search": "Search without gradients",
    "noise": "Noise of the same RMSE",
    "transfer": "Samples of the base model",
}
_TIED = 4  # tied models that a tile names
_DEAD = 0.1  # share of useless gradients from which on a cell is highlighted


def accuracy_table(results: dict[str, Any]) -> TableLayout:
    """Return the accuracies of regimes (rows) under conditions (columns).

    Raises:
        ValueError: if `results` is not of schema 1.
    """
    RobustnessResults.from_json(results)
    conditions = headings(attacks.with_own_group(results["conditions"]), "attack_setting")
    regimes = headings(results["regimes"], "protocol")
    protocols = text.PROTOCOLS
    if len(regimes) == 1:  # older results have its samples twice
        conditions, protocols = [entry for entry in conditions if entry[0] != "transfer"], {regimes[0][0]: ("", "")}
    columns = group_by(conditions, SETTINGS, lambda key, _: key * (key != "none"))
    rows = group_by(regimes, protocols, lambda key, title: "" if key in text.BASES else f", {title.lower()}")
    cells = {(entry["regime"], entry["condition"]): _accuracy(entry) for entry in results["cells"]}
    for found in results.get("distances") or []:
        key = found["regime"], found["condition"]
        if key in cells:
            cells[key] = attacks.distance_cell(found, cells[key].flags)
    title = f"Accuracy in % on {(results.get('dataset') or {}).get('name', 'the test set')}"
    return TableLayout("Model", columns, rows, cells, title, "matrix")


def _accuracy(entry: dict[str, Any]) -> TableCell:
    """Return one accuracy with its interval, the share of unconverged samples and its flags."""
    found, converged, flags = entry.get("accuracy") or {}, text.finite(entry.get("converged")), text.flags(entry)
    details, hints = interval(found), [f"{number(entry.get('n'))} images, seeds: {number(entry.get('seeds'))}"]
    for key, name in (("confidence", "mean confidence"), ("calibration", "calibration error")):
        if entry.get(key):
            hints.append(f"{name} {percent(entry[key].get('mean'))}%")
    if converged is not None:
        hints.append(f"{percent(1 - converged)}% of the samples did not converge")
    if converged is not None and converged < 1:
        details += (f"{percent(1 - converged, 0 if converged <= 0.99 else 1)}% unconv.",)
    hints += [f"{code}: {message}" for code, message in flags]
    mean = text.finite(found.get("mean"))
    return TableCell(percent(mean), details, fill=mean, hint="; ".join(hints), flags=flags)


def run_flags(results: dict[str, Any]) -> tuple[Note, ...]:
    """Return the flags of the run; a single seed is always one of them."""
    flags = text.flags(results)
    once = len(results.get("seeds") or []) == 1 and trained(results)
    if once and not any("seed" in " ".join(flag).lower() for flag in flags):
        flags = (("1 seed", "Every model was trained once: how results vary between trainings is unknown."), *flags)
    return flags


def trained(results: dict[str, Any]) -> bool:
    """Return whether the run trained a model, rather than use all of them as they were given."""
    epochs = dict(text.flatten(results.get("settings") or {})).get("training.epochs")
    return epochs != "0" or any(entry.get("protocol") not in text.BASES for entry in results["regimes"])


def sections(results: dict[str, Any]) -> dict[str, list[Exhibit]]:
    """Return what each section of the page shows; a section without contents is empty."""
    table = accuracy_table(results)
    names, target = regime_names(table), (results.get("path") or {}).get("target")
    tables = {
        "accuracy": _single(table) if len(table.row_heads) == 1 else table,
        "checks": _checks(results, table, names),
        "gradients": _gradients(results, names),
        "calibration": _calibration(results, table),
        "augmentation": training_samples(results, names),
        "seeds": _per_seed(results, table, names),
        "models": _models(results, table),
    }
    shown = {
        key: [Exhibit(tables=(found,))] * bool(found.row_heads and found.column_heads) for key, found in tables.items()
    }
    return {
        **shown,
        "threats": attacks.threats(results, _settings(table)),
        "attacks": attacks.attack_by_attack(results, table, names),
        "distances": attacks.distances(results, table, names),
        "changes": _changes(results, table),
        "curves": [Exhibit(picture="curves", alt="Accuracy over eps for each attack and protocol",
                           remarks=attacks.measured_on(results))],
        "examples": [Exhibit(picture="examples", alt="Test images under each condition with the predicted class")],
        "path": [Exhibit("", f"Target class: {text.class_name(results, target)}.", picture="path",
                         alt="Images on the path of a SIGMA sample, confidence and attribution")],
        "explanations": _explanations(results),
        "sweep": sweeps(results),
    }  # fmt: skip


def _single(table: TableLayout) -> TableLayout:
    """Return the table of a single model with its conditions as rows."""
    (group,) = table.rows
    rows = (replace(group, heads=(replace(group.heads[0], label="Accuracy, %"),)),)
    columns = tuple(replace(each, hint="") if each.key == "none" else each for each in table.columns)
    return replace(table, rows=rows, columns=columns, style="matrix single").transposed("Condition")


def regime_names(table: TableLayout) -> dict[str, str]:
    """Return the name of each regime with its protocol, by id."""
    return {head.id: text.regime_name(head.label, group.key) for group in table.rows for head in group.heads}


def _settings(table: TableLayout) -> list[tuple[Heading, str]]:
    """Return each condition with the setting of its attack, a dash for conditions without an attack."""
    names = {"none": DASH, "distance": "adaptive"}
    return [(head, names.get(group.key, group.key)) for group in table.columns for head in group.heads]


def tiles(table: TableLayout) -> list[tuple[str, str, str]]:
    """Return the few numbers that the page opens with: title, number and what it is.

    They are cells of the table: the first column of the first model, its lowest cell, and, of the other models, the
    lowest cell of the one whose lowest cell is highest. If there are worst cases of one norm and radius, only they
    count, as the others hold for no single threat model.
    """
    lowest: dict[str, tuple[TableCell, str]] = {}
    groups = sorted(table.columns, key=lambda group: group.key != "worst")  # of equal cells, the worst case of all
    pairs = [(group, head) for group in groups for head in reversed(group.heads)]
    bounded = [(group, head) for group, head in pairs if group.key == "worst" and head.label != "all"]
    columns = [(head.id, _named(group, head)) for group, head in bounded or pairs]
    of = "worst case" if bounded else "lowest"
    for row in table.row_heads:
        cells = [(table.cells.get((row.id, column)), name) for column, name in columns]
        if filled := [(cell, name) for cell, name in cells if cell is not None and cell.fill is not None]:
            cell, name = min(filled, key=lambda pair: pair[0].fill or 0.0)
            codes = ", ".join(dict.fromkeys(code for code, _ in cell.flags))
            lowest[row.id] = cell, name + f" (flagged: {codes})" * bool(codes)
    names, found = regime_names(table), []
    first, *others = table.row_heads or [Heading("", "")]
    model = names[first.id] if others else "Accuracy"
    if first.id in lowest:
        clean = table.cells.get((first.id, table.column_heads[0].id))
        if clean is not None and clean.fill is not None:
            found.append((f"{model}, {table.column_heads[0].label}", f"{clean.text}%", "without an attack"))
        cell, name = lowest[first.id]
        if cell is not clean:
            found.append((f"{model}, {of}", f"{cell.text}%", name))
    known = [head.id for head in others if head.id in lowest]
    if known:
        # Models that differ by less than the digit shown share the first place.
        value = lowest[max(known, key=lambda key: lowest[key][0].fill or 0.0)][0].text
        best = [key for key in known if lowest[key][0].text == value]
        under = " or ".join(sorted({lowest[key][1] for key in best}))
        if len(best) == 1:
            among = f"; the highest of {len(known)} other models" * (len(known) > 1)
            found.append((f"{names[best[0]]}, {of}", f"{value}%", under + among))
        else:
            rest = [text.count(len(best) - _TIED, "other")] if len(best) > _TIED else []
            listed = "; ".join([names[key] for key in best[:_TIED]] + rest)
            found.append((f"{len(best)} models tied, {of}", f"{value}%", f"{listed} \u00b7 {under}"))
    return found


def _named(group: HeadingGroup, head: Heading) -> str:
    """Return the name of a condition in a few words."""
    if group.key == "worst":
        return f"under all adaptive attacks at once{text.within(head.label)}"
    return f"under {head.label}" + f", {group.key}" * (group.key != "none")


def _changes(results: dict[str, Any], table: TableLayout) -> list[Exhibit]:
    """Return the paired differences in accuracy, one table for each model compared with."""
    names, spans, shown = regime_names(table), {}, []
    differences = RobustnessResults.from_json(results).differences
    for head in table.column_heads:
        mine = [entry for entry in differences if entry["condition"] == head.id]
        ends = [text.finite(entry.get(key)) for entry in mine for key in ("mean", "low", "high")]
        known = [0.01, -0.01, *(end for end in ends if end is not None)]
        spans[head.id] = (min(known), max(known))
    entries = [entry for entry in differences if entry["condition"] in spans]
    for against in dict.fromkeys(entry["against"] for entry in entries):
        cells = {
            (e["regime"], e["condition"]): _change(e, spans[e["condition"]]) for e in entries if e["against"] == against
        }
        changed = sum(cell.tone != "same" for cell in cells.values())
        remark = (
            f"{changed} of {text.count(len(cells), 'difference')} {'is' if changed == 1 else 'are'} significant: with "
            "Holm's correction for their number, the chance of a false one among them is at most 5%. The intervals "
            "themselves are not corrected."
        )
        rows = _only(table.rows, {regime for regime, _ in cells})
        columns = _only(table.columns, {condition for _, condition in cells})
        layout = TableLayout("Model", columns, rows, cells, style="plain changes")
        shown.append(Exhibit(f"Compared with {names.get(against, against)}", tables=(layout,), remarks=(remark,)))
    return shown


def _only(groups: tuple[HeadingGroup, ...], ids: set[str]) -> tuple[HeadingGroup, ...]:
    """Return the groups with only some of their headings, without those that are left empty."""
    kept = [(group, tuple(head for head in group.heads if head.id in ids)) for group in groups]
    return tuple(replace(group, heads=heads) for group, heads in kept if heads)


def _change(entry: dict[str, Any], span: tuple[float, float]) -> TableCell:
    """Return a difference with its bar on the scale of its column, and whether it is significant."""
    mean, low, high, p = (text.finite(entry.get(key)) for key in ("mean", "low", "high", "p_holm"))
    tone, sign = "same", ""
    if mean is not None and p is not None and p < LEVEL:
        tone, sign = ("better", "\u25b2 ") if mean > 0 else ("worse", "\u25bc ")
    scaled = (None if end is None else 4 + 92 * (end - span[0]) / (span[1] - span[0]) for end in (0, low, mean, high))
    bar = None if mean is None else tuple(None if place is None else round(place, 2) for place in scaled)
    cell = difference_cell(entry)
    hint = f"n = {number(entry.get('n'))}, p = {number(p, 2)} with Holm's correction"
    return replace(cell, text=sign + cell.text, tone=tone, bar=bar, hint=hint)


def _checks(results: dict[str, Any], table: TableLayout, names: dict[str, str]) -> TableLayout:
    """Return each attack beside alternatives, marked where they find significantly more errors."""
    entries, labels = results.get("checks") or [], {head.id: head.label for head in table.column_heads}
    bands = []
    for regime, name in names.items():
        rows = []
        for entry in entries:
            if entry["regime"] == regime and entry["condition"] in labels:
                others = (_beside(entry.get(key)) for key in STRONGER)
                rows.append((labels[entry["condition"]], number(entry.get("n")), percent(entry["accuracy"]), *others))
        bands += [(name if len(names) > 1 else "", "", rows)] * bool(rows)
    return listing(("Attack", "Images", "Accuracy", *STRONGER.values()), *bands)


def _beside(part: dict[str, Any] | None) -> TableCell:
    """Return the accuracy under an alternative to the attack, and the difference attack minus alternative."""
    if part is None:
        return TableCell()
    difference = part.get("difference") or {}
    found, low = difference_cell(difference), text.finite(difference.get("low"))
    details = tuple(f"{found.text} ({ends})" for ends in found.details)
    return TableCell(percent(part["accuracy"]), details, tone="worse" if low is not None and low > 0 else "")


def _gradients(results: dict[str, Any], names: dict[str, str]) -> TableLayout:
    """Return what the outputs and the gradients of each model are like."""
    entries = {entry["regime"]: entry for entry in results.get("networks") or []}
    rows = []
    for regime, name in names.items():
        if regime in entries:
            found = entries[regime]
            kind = "probabilities" if found["probabilities"] else "logits"
            repeated = "different at each call" if found["random_outputs"] else "the same at each call"
            odd = "worse" if found["probabilities"] or found["random_outputs"] else ""
            dead = TableCell(percent(found["dead"]), tone="worse" if found["dead"] > _DEAD else "")
            rows.append((name, number(found["images"]), dead, TableCell(f"{kind}, {repeated}", tone=odd)))
    heads = ("Model", "Images", "Gradients zero or not finite, %", "Outputs")
    return listing(heads, ("", "", rows), words={"Outputs"})


def _calibration(results: dict[str, Any], table: TableLayout) -> TableLayout:
    """Return the expected calibration errors, of the conditions that have one."""
    cells = {
        (entry["regime"], entry["condition"]): mean_cell(entry["calibration"], percent)
        for entry in results["cells"]
        if entry.get("calibration")
    }
    columns = _only(table.columns, {condition for _, condition in cells})
    return TableLayout("Model", columns, table.rows, cells)


def _explanations(results: dict[str, Any]) -> list[Exhibit]:
    """Return the heatmaps, and for each method how many searches converged and how much stays unexplained."""
    rows = []
    for method in results.get("explanations") or []:
        converged = [bool(value) for value in method.get("converged") or []]
        gaps = [abs(value) for value in map(text.finite, method.get("gap") or []) if value is not None]
        middle, largest = (measure(median(gaps)), measure(max(gaps))) if gaps else (DASH, DASH)
        rows.append((text.name(method["method"]), percent(fmean(converged)) if converged else DASH, middle, largest))
    table = listing(("Method", "Converged, %", "Median gap", "Largest gap"), ("", "", rows))
    alt = "Heatmaps of each attribution method over the same images"
    return [Exhibit(tables=(table,), picture="explanations", alt=alt)] if rows else []


def _per_seed(results: dict[str, Any], table: TableLayout, names: dict[str, str]) -> TableLayout:
    """Return the accuracies of each training by itself."""
    found: dict[tuple[str, Any], dict[str, Any]] = {}
    for entry in results.get("per_seed") or []:
        found.setdefault((entry["regime"], entry["seed"]), {})[entry["condition"]] = entry.get("accuracy")
    order = list(names)
    known = sorted(found, key=lambda key: order.index(key[0]) if key[0] in names else len(order))
    heads = tuple(Heading(f"{place}", names.get(key[0], key[0]), f"seed {key[1]}") for place, key in enumerate(known))
    cells = {
        (head.id, column.id): TableCell(percent(found[key].get(column.id)))
        for head, key in zip(heads, known, strict=True) for column in table.column_heads
    }  # fmt: skip
    columns = tuple(group for group in table.columns if group.key != "distance")
    return TableLayout("Model", columns, (HeadingGroup("", "", "", heads),), cells)


def _models(results: dict[str, Any], table: TableLayout) -> TableLayout:
    """Return the settings of each model and how long it was trained."""
    seconds = {entry["id"]: text.duration(entry.get("seconds")) for entry in results["regimes"]}
    pairs = [(group.title or DASH, head) for group in table.rows for head in group.heads]
    rows = [(head.label, protocol, head.hint or DASH, seconds[head.id]) for protocol, head in pairs]
    return listing(("Model", "Protocol", "Settings", "Training"), ("", "", rows), words={"Protocol", "Settings"})
