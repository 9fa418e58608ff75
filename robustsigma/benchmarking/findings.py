"""The verdict and the findings of a benchmark in sentences, each only as strong as its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from robustsigma.benchmarking.flags import SAME_MAP
from robustsigma.benchmarking.table import MetricColumn, ScoreTable
from robustsigma.engine.metrics.interval import FEW_IMAGES
from robustsigma.report import text

# Some metrics measure the same in several ways; the sentences are about these.
_HEADLINES = ("difference", "sic", "sensitivity_n", "infidelity", "iou", "pointing_game")
_MOST_NAMES = 6  # in a list of them


def verdict(tables: Mapping[str, ScoreTable], rankings: Sequence[str]) -> list[str]:
    """Return at most three sentences, without intervals, that a reader needs before any table.

    Args:
        tables: what was measured, by model.
        rankings: findings about the protocols of the run.
    """
    if len(tables) > 1:
        found = [f"{model}: {_leader(table)}" for model, table in tables.items()]
        others = f"The tables show the other {len(found) - 2} models."
        return found if len(found) <= 3 else [*found[:2], others]
    (table,) = tables.values()
    count = len(table.values(table.random, table.columns[0].metric.name))
    few = (
        f"Only {text.count(count, 'image')} evaluated: too few for reliable comparisons." if count < FEW_IMAGES else ""
    )
    found = [*rankings, _leader(table), _useless(table), few, _beaten(table)]
    return [sentence for sentence in found if sentence][:3]


def _leader(table: ScoreTable) -> str:
    """Return which method is best in the first metric that distinguishes methods from random maps."""
    if not table.compared:
        return "No method was compared: only the plain gradient and random maps were measured."
    ranking = [column for column in table.columns if column.ranks]
    ranking.sort(key=lambda c: _HEADLINES.index(c.metric.name) if c.metric.name in _HEADLINES else len(_HEADLINES))
    if not ranking:
        return "No metric that compares methods was measured."
    column = next(filter(table.is_informative, ranking), None)
    if column is None:
        return "No metric distinguishes any method from random maps on these images."
    (best, *others), peers = table.ranked(column), table.peers(column)
    verb = "is" if len(peers) == 1 else "are"
    ahead = f", but {_names(peers)} {verb} not significantly behind" if peers else ", significantly ahead of all others"
    return f"{best} has the best score in {column.metric.title}{ahead if others else ''}."


def _useless(table: ScoreTable) -> str:
    """Return which metrics or methods say nothing here."""
    metrics = [column.metric.title for column in table.columns if column.ranks and not table.is_informative(column)]
    if metrics and table.compared:
        ranks = "its ranking" if len(metrics) == 1 else "their rankings"
        return f"{_names(metrics)} cannot distinguish any method from random maps here: ignore {ranks}."
    similar = {method: table.interval(method, "randomization") for method in table.arrays if method != table.random}
    same = [method for method, found in similar.items() if found is not None and found.mean >= SAME_MAP]
    return f"The maps of {_names(same)} hardly depend on what the network learned." if same else ""


def findings(tables: Mapping[str, ScoreTable]) -> list[str]:
    """Return sentences about each model."""
    sentences = []
    for model, table in tables.items():
        before = f"{model}: " if len(tables) > 1 else ""
        columns = [c for c in table.columns if c.metric.name in _HEADLINES and table.is_informative(c)]
        sentences += [before + _best(table, column) for column in columns]
        sentences += [before + sentence for sentence in (_beaten(table), _cheap(table)) if sentence]
    return sentences


def _best(table: ScoreTable, column: MetricColumn) -> str:
    order = table.ranked(column)
    first = table.interval(order[0], column.metric.name)
    assert first is not None  # ranked by its mean
    told = f"{column.metric.title}: {order[0]} is best, {text.score(first.mean)}"
    if table.is_clear(column):
        second = table.interval(order[1], column.metric.name)
        assert second is not None
        return f"{told}, significantly ahead of {order[1]} ({text.score(second.mean)})."
    peers = table.peers(column)
    if not peers:
        return f"{told}."
    return f"{told}, but not significantly better than {_names(peers)} ({text.count(first.n, 'image')})."


def _beaten(table: ScoreTable) -> str:
    """Return which methods are not significantly ahead of the plain gradient, if it was measured."""
    column = next((c for c in table.columns if c.metric.name == "difference"), None)
    gradients = [m for m in table.controls if m != table.random]
    if column is None or not gradients:
        return ""
    ranked = table.ranked(column)
    if not ranked:
        return ""
    signs = table.significance([(method, gradients[0]) for method in ranked], column)
    behind = [method for method, sign in zip(ranked, signs, strict=True) if sign <= 0]
    if not behind:
        return f"Every method is significantly ahead of the plain gradient in {column.metric.title}."
    if len(behind) == len(ranked):
        return f"No method is significantly ahead of the plain gradient in {column.metric.title}."
    verb = "is" if len(behind) == 1 else "are"
    return f"{_names(behind)} {verb} not significantly ahead of the plain gradient in {column.metric.title}."


def _cheap(table: ScoreTable) -> str:
    """Return the cheapest method that the best one is not significantly ahead of."""
    column = next((c for c in table.columns if c.metric.name == "difference"), None)
    if column is None or not table.ranked(column):
        return ""
    best = table.ranked(column)[0]
    peers = [best, *table.peers(column)]
    passes = {m: _passes(table, m) for m in peers}
    if any(cost is None for cost in passes.values()) or len(peers) < 2:
        return ""
    cheapest = min(peers, key=lambda m: passes[m] or 0)
    if cheapest == best:
        return ""
    return (
        f"{cheapest} is not significantly behind {best} in {column.metric.title}, with {passes[cheapest]:,.0f} "
        f"passes per image instead of {passes[best]:,.0f}."
    )


def _passes(table: ScoreTable, method: str) -> float | None:
    found = [table.interval(method, name) for name in ("forwards", "backwards")]
    return None if None in found else sum(it.mean for it in found if it is not None)


def _names(names: list[str]) -> str:
    most = _MOST_NAMES - 1
    shown = names if len(names) <= _MOST_NAMES else [*names[:most], f"{len(names) - most} others"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
