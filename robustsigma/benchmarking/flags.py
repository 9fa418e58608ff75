"""Flags: reasons to doubt a score, a method or the whole benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from robustsigma.benchmarking.table import MetricColumn, ScoreTable
from robustsigma.engine.checks import Flag
from robustsigma.engine.metrics.interval import FEW_IMAGES
from robustsigma.report import text

_TIES = 0.1
_CONVERGED = 0.9
# Above this correlation with the map of a network with shuffled weights, a map says little about the network.
SAME_MAP = 0.9


def cell_flags(table: ScoreTable, method: str, column: MetricColumn) -> list[dict[str, str]]:
    """Return the flags of one cell."""
    count, found = len(table.values(method, column.metric.name)), table.interval(method, column.metric.name)
    if not column.ranks or not count:
        return []
    if found is None:
        return [_flag("all_skipped", "the metric is defined on no image")]
    if found.n < 0.5 * count:
        return [_flag("few_images", f"defined on only {found.n} of {count} images: they are not representative")]
    return []


def run_flags(
    tables: Mapping[str, ScoreTable],
    networks: Mapping[str, Sequence[Flag]] | None = None,
    left_out: Sequence[Mapping[str, str]] = (),
) -> list[dict[str, str]]:
    """Return the flags of the whole run, those of a method with its name, and with the model's where there are more.

    Args:
        tables: what was measured, by model.
        networks: flags of each network, from `inspect_classifier`.
        left_out: `model`, `method` and `reason` of each method that cannot explain a model.
    """
    flags = []
    images = [len(arrays["note/converged"]) for table in tables.values() for arrays in table.arrays.values()]
    if images and max(images) < FEW_IMAGES:
        evaluated = text.count(max(images), "image")
        message = f"Only {evaluated} evaluated: too few for reliable intervals; significant differences may be chance."
        flags.append(_flag("few_images_in_all", message))
    for model, table in tables.items():
        of = f" of model {model}" if len(tables) > 1 else ""
        for entry in left_out:
            if entry["model"] == model:
                flags.append(_flag("left_out", f"{entry['method']}{of} was not measured: {entry['reason']}."))
        flags += [_flag(found.code, f"Model {model}: {found.message}") for found in (networks or {}).get(model, [])]
        for column in table.columns:
            if column.ranks and table.compared and not table.is_informative(column):
                message = f"cannot distinguish any method{of} from random maps here: ignore its ranking"
                flags.append(_flag("metric_tells_nothing", f"{column.metric.title} {message}."))
        for method in table.arrays:
            flags += _method_flags(table, method, of)
    return flags


def _method_flags(table: ScoreTable, method: str, of: str) -> list[dict[str, str]]:
    flags = []
    named = f"{method}{of}"
    if method not in table.controls:
        ranked = [column for column in table.columns if column.ranks]
        verdicts = [(column, table.against_random(method, column)) for column in ranked]
        worse = [c.metric.title for c, verdict in verdicts if verdict is not None and verdict[1] == "worse"]
        if worse:
            flags.append(_flag("worse_than_random", f"{named} is worse than random maps in {', '.join(worse)}."))
    if method != table.random:
        similarity = table.interval(method, "randomization")
        if similarity is not None and similarity.mean >= SAME_MAP:
            told = f"correlates {similarity.mean:.2f} with its map of a network whose weights were shuffled"
            flags.append(
                _flag("same_map_without_weights", f"{named} {told}: it shows little of what the network learned.")
            )
    converged = table.note(method, "converged")
    if converged < _CONVERGED:
        flags.append(_flag("not_converged", f"{named} did not converge on {1 - converged:.0%} of the images."))
    ties = table.note(method, "ties")
    if ties > _TIES:
        message = f"{ties:.0%} of the pixels of {named} have the same value as others: their order is random."
        flags.append(_flag("ties", message))
    constant = table.note(method, "constant")
    if constant > 0:
        flags.append(_flag("constant_maps", f"{named} gave a constant map for {constant:.0%} of the images."))
    return flags


def _flag(code: str, message: str) -> dict[str, str]:
    return {"code": code, "message": message}
