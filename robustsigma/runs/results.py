"""Typed results of a robustness evaluation and of an attribution benchmark, read and written as JSON (schema 1)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from robustsigma.engine.metrics.interval import from_dict, holm
from robustsigma.engine.validation import fail
from robustsigma.runs.files import read_json, write_json

if TYPE_CHECKING:
    from typing_extensions import Self

Entries = list[dict[str, Any]]


@dataclass(frozen=True)
class Results:
    """Results of a run; each field is a key of `results.json`, and every entry is a dict of plain JSON types.

    Attributes:
        settings: settings of the run.
        dataset: name, classes and shape.
        cells: the measured values with their intervals and flags.
        curves: values over a grid.
        flags: reasons to doubt the whole run; each has a `code` and a `message`.
        verdict: at most three sentences that a reader needs before any table; empty in older results.
        findings: sentences about the measured values, with their intervals.
        run: command, time, versions and hardware.
    """

    HEADER: ClassVar[dict[str, Any]] = {"schema": 1}
    REQUIRED: ClassVar[dict[str, tuple[str, ...]]] = {}

    settings: dict[str, Any] = field(default_factory=dict)
    dataset: dict[str, Any] = field(default_factory=dict)
    cells: Entries = field(default_factory=list)
    curves: Entries = field(default_factory=list)
    flags: list[dict[str, str]] = field(default_factory=list)
    verdict: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    run: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, found: Any) -> Self:
        """Return the results that a dict of plain JSON types holds; unknown keys are left out.

        Raises:
            ValueError: the dict is of another schema or kind, or an entry lacks a string that identifies it.
        """
        came = {key: found.get(key) for key in cls.HEADER} if isinstance(found, dict) else {}
        if came != cls.HEADER:
            expected, got = (", ".join(f"{k} {v!r}" for k, v in each.items()) for each in (cls.HEADER, came))
            raise fail("results", f"a dict with {expected}", got or type(found).__name__)
        for key, wanted in cls.REQUIRED.items():
            if not isinstance(found.get(key), list):
                raise fail(f"results[{key!r}]", "a list", type(found.get(key)).__name__)
            for index, entry in enumerate(found[key]):
                for part in wanted:
                    if not isinstance(entry.get(part), str):
                        raise fail(f"results[{key!r}][{index}][{part!r}]", "a str", repr(entry.get(part)))
        names = [each.name for each in dataclasses.fields(cls)]
        return cls(**{name: found[name] for name in names if found.get(name) is not None})

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read `results.json`; a damaged file or one of another kind is a ValueError."""
        return cls.from_json(read_json(path))

    def to_json(self) -> dict[str, Any]:
        """Return a dict of plain JSON types; sections that were not made are left out."""
        found = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        return {**self.HEADER, **{name: value for name, value in found.items() if value is not None}}

    def write(self, path: Path) -> Path:
        """Write `results.json` in one step."""
        return write_json(path, self.to_json(), indent=1, allow_nan=False)


def holm_of(differences: Entries) -> list[float]:
    """Return the corrected p-value of each difference; a family is what was compared with the same row, `against`."""
    found = [1.0] * len(differences)
    for against in {entry["against"] for entry in differences}:
        family = [place for place, entry in enumerate(differences) if entry["against"] == against]
        for place, p in zip(family, holm([from_dict(differences[place]) for place in family]), strict=True):
            found[place] = p
    return found


@dataclass(frozen=True)
class RobustnessResults(Results):
    """Results of an evaluation: regimes (rows) under conditions (columns).

    Attributes:
        settings: settings of the run.
        dataset: name, classes and shape.
        cells: the measured values with their intervals and flags.
        curves: values over a grid.
        flags: reasons to doubt the whole run; each has a `code` and a `message`.
        verdict: at most three sentences that a reader needs before any table; empty in older results.
        findings: sentences about the measured values, with their intervals.
        run: command, time, versions and hardware.
        seeds: seeds of the trainings.
        conditions: columns, worst cases among them.
        regimes: rows.
        differences: paired differences in accuracy from the base model and from the control; `p_holm` is the p-value,
            corrected for the number of differences from the same model.
        per_seed: accuracy of each training, if there are several.
        checks: accuracy under each attack beside that under further attacks.
        networks: outputs and gradients of each regime's models.
        distances: of minimum-norm attacks, with the accuracy over the radius.
        augmentation: samples made for training, by regime and seed.
        sweep: accuracy for each standard deviation of the training noise.
        examples: predictions of some images under each condition.
        path: one walk of SIGMA.
        explanations: explanations of some images.

    Example:
        >>> RobustnessResults.from_json({"schema": 1, "conditions": [], "regimes": [], "cells": []}).seeds
        []
    """

    REQUIRED: ClassVar = {"conditions": ("id", "name"), "regimes": ("id", "name"), "cells": ("regime", "condition")}

    seeds: list[int] = field(default_factory=list)
    conditions: Entries = field(default_factory=list)
    regimes: Entries = field(default_factory=list)
    differences: Entries = field(default_factory=list)
    per_seed: Entries = field(default_factory=list)
    checks: Entries = field(default_factory=list)
    networks: Entries = field(default_factory=list)
    distances: Entries = field(default_factory=list)
    augmentation: Entries = field(default_factory=list)
    sweep: Entries = field(default_factory=list)
    examples: dict[str, Any] | None = None
    path: dict[str, Any] | None = None
    explanations: Entries | None = None

    def __post_init__(self) -> None:
        """Correct the differences of results that were written before corrected p-values were."""
        if all("p_holm" in entry for entry in self.differences):
            return
        pairs = zip(self.differences, holm_of(self.differences), strict=True)
        object.__setattr__(self, "differences", [{**entry, "p_holm": p} for entry, p in pairs])


@dataclass(frozen=True)
class AttributionResults(Results):
    """Results of a benchmark: attribution methods by metrics, for each model.

    Attributes:
        settings: settings of the run.
        dataset: name, classes and shape.
        cells: the measured values with their intervals and flags.
        curves: values over a grid.
        flags: reasons to doubt the whole run; each has a `code` and a `message`.
        verdict: at most three sentences that a reader needs before any table; empty in older results.
        findings: sentences about the measured values, with their intervals.
        run: command, time, versions and hardware.
        models: with the accuracy of each.
        methods: with their settings.
        left_out: methods that cannot explain a model, with the reason.
        metrics: columns.
        sanity: similarity of each method's maps to those of a network with shuffled weights.
        gallery: labels, models and methods of the images in `arrays.npz`.
        rankings: each pair of methods, and which protocols order them which way.
        protocols: the published protocols of the run.

    Example:
        >>> results = AttributionResults.read("results/benchmark_baggage.json")  # doctest: +SKIP
    """

    HEADER: ClassVar = {"schema": 1, "kind": "attribution"}
    REQUIRED: ClassVar = {
        "models": ("id",),
        "methods": ("id",),
        "metrics": ("id", "title", "group", "better"),
        "cells": ("model", "method", "metric"),
    }

    models: Entries = field(default_factory=list)
    methods: Entries = field(default_factory=list)
    left_out: Entries = field(default_factory=list)
    metrics: Entries = field(default_factory=list)
    sanity: Entries = field(default_factory=list)
    gallery: dict[str, Any] = field(default_factory=dict)
    rankings: Entries = field(default_factory=list)
    protocols: Entries = field(default_factory=list)

    @classmethod
    def from_json(cls, found: Any) -> Self:
        """Return the results that a dict of plain JSON types holds, see `Results.from_json`."""
        results = super().from_json(found)
        for key in ("models", "methods", "metrics"):
            ids = [entry["id"] for entry in getattr(results, key)]
            if len(set(ids)) != len(ids):
                raise fail(f"results[{key!r}]", "a different id in every entry", ", ".join(ids))
        for index, metric in enumerate(results.metrics):
            if metric["better"] not in ("higher", "lower"):
                raise fail(f"results['metrics'][{index}]['better']", "'higher' or 'lower'", repr(metric["better"]))
        for place, curve in enumerate(results.curves):
            for index, line in enumerate(curve["lines"]):
                for key in ("mean", "low", "high"):
                    if line.get(key) is not None and len(line[key]) != len(curve["x"]):
                        where = f"results['curves'][{place}]['lines'][{index}][{key!r}]"
                        raise fail(where, f"{len(curve['x'])} values, one per x", len(line[key]))
        return results
