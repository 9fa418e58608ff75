"""`compare`: two runs on the same images, by paired differences of their stored per-image outcomes."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustsigma.engine.metrics import Interval, holm, paired_difference, share_interval
from robustsigma.engine.metrics.interval import LEVEL
from robustsigma.engine.validation import choice, fail
from robustsigma.evaluation.block_evaluation import outcomes_file, outcomes_of
from robustsigma.evaluation.plan import TRANSFER
from robustsigma.evaluation.store import model_name
from robustsigma.runs.blocks import Blocks, Rows
from robustsigma.runs.directory import read_settings
from robustsigma.runs.results import RobustnessResults


@dataclass(frozen=True)
class RunFolder:
    """A finished run of `evaluate`.

    Attributes:
        path: path of its folder.
    """

    path: Path

    @cached_property
    def results(self) -> RobustnessResults:
        """What the run measured."""
        file = self.path / "results.json"
        if not file.is_file():
            raise fail("run", "the folder of a finished run of evaluate, with results.json in it", self.path)
        return RobustnessResults.read(file)

    @property
    def models(self) -> list[str]:
        """Names of its models, the rows of the report."""
        return [entry["id"] for entry in self.results.regimes]

    @property
    def data(self) -> Any:
        """The fingerprint of its images and labels."""
        return (read_settings(self.path) or {}).get("data")

    @cached_property
    def conditions(self) -> dict[str, dict[str, Any]]:
        """Its conditions by id, without minimum-norm attacks and transferred samples, which depend on another model."""
        kept = [e for e in self.results.conditions if e["attack_setting"] != TRANSFER and not e.get("minimum_norm")]
        return {entry["id"]: entry for entry in kept}

    def correct(self, model: str, condition: str) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.float64]]:
        """Return indices and labels of the images (n,), and 1 where the prediction is correct, (seeds, n)."""
        members = self.conditions[condition].get("members")
        if members:  # a worst case
            found = [self.correct(model, member) for member in members]
            return *found[0][:2], np.min([correct for *_, correct in found], axis=0)
        seeds = [outcomes_of(self._columns(model, seed), condition) for seed in self.results.seeds or (None,)]
        return seeds[0].indices, seeds[0].labels, np.stack([each.correct for each in seeds])

    @cache  # noqa: B019  a comparison has two of them
    def _columns(self, model: str, seed: int | None) -> Rows:
        """Return all columns of a model; one that the user provided has those of no seed, or of the first."""
        seeds = [seed, *self.results.seeds[:1]]
        names = [str(self.models.index(model)) if each is None else model_name(each, model) for each in seeds]
        blocks = [Blocks(outcomes_file(self.path, name)) for name in names]
        return next((each for each in blocks if each.path.is_file()), blocks[0]).all()

    def settings(self, condition: str) -> str:
        """Return the settings of a condition; those of a worst case are its members'."""
        members = self.conditions[condition].get("members")
        return str([self.settings(each) for each in members] if members else self.conditions[condition]["settings"])

    def flags(self, model: str, condition: str) -> list[dict[str, str]]:
        """Return the flags of a cell; a worst case has those of its members."""
        places = [condition, *self.conditions[condition].get("members", ())]
        cells = (c for c in self.results.cells if c["regime"] == model and c["condition"] in places)
        return [flag for cell in cells for flag in cell.get("flags") or ()]


@dataclass(frozen=True)
class Change:
    """One accuracy before and after.

    Attributes:
        model: its name in the second run.
        condition: id of the condition.
        before: accuracy in the first run.
        after: accuracy in the second run.
        difference: after minus before, on the same images.
        p_holm: p-value of the difference, corrected for the number of changes in the comparison.
        flags: codes of the flags that either cell has: its accuracy should not be believed.
    """

    model: str
    condition: str
    before: Interval
    after: Interval
    difference: Interval
    p_holm: float
    flags: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """Return "better" or "worse" where the difference is significant, else "same"."""
        return "same" if self.p_holm >= LEVEL else "better" if self.difference.mean > 0 else "worse"


@dataclass(frozen=True)
class Comparison:
    """Every accuracy of two runs that both measured.

    Attributes:
        first: folder of the run before.
        second: folder of the run after.
        changes: by model and condition.
        left_out: conditions that only one run has, or that have other settings in each, with the reason.
    """

    first: Path
    second: Path
    changes: tuple[Change, ...]
    left_out: tuple[str, ...]

    def failures(self, *, below: float | None = None, if_worse: bool = False) -> list[Change]:
        """Return the changes that a gate refuses.

        Args:
            below: smallest allowed difference in percentage points, such as -1.
            if_worse: refuse every significant loss.
        """
        low = -np.inf if below is None else below
        return [
            each
            for each in self.changes
            if 100 * each.difference.mean < low - 1e-9 or (if_worse and each.verdict == "worse")
        ]

    def to_dict(self, failures: Collection[Change] = ()) -> dict[str, Any]:
        """Return the comparison in plain JSON types.

        Args:
            failures: changes that a gate refuses.
        """
        changes = [
            {**asdict(each), "flags": list(each.flags), "verdict": each.verdict, "refused": each in failures}
            for each in self.changes
        ]
        folders = {"first": self.first.as_posix(), "second": self.second.as_posix()}
        return {"schema": 1, **folders, "changes": changes, "left_out": list(self.left_out)}


def compare(
    first: str | Path, second: str | Path, *, models: Sequence[str] = (), conditions: Sequence[str] = ()
) -> Comparison:
    """Compare two runs of `evaluate` on the same images.

    Where both runs have the same number of trainings, these are paired as well; else each image's outcomes are averaged
    over trainings, and the intervals are over images alone. The p-values are corrected by Holm's method; the family is
    everything that is compared. Transferred samples are left out, since they depend on the run's base model, and so are
    minimum-norm attacks, whose result is a distance.

    Args:
        first: folder of the run before.
        second: folder of the run after; it may be the same, to compare two of its models.
        models: name of one model for both runs, or of one in each. By default all models that both runs have, or, where
            each has only one, these two.
        conditions: ids of conditions; by default all that both runs have with the same settings.

    Raises:
        ValueError: a folder without a finished run, runs on other images, or nothing that both runs have.

    Example:
        >>> compare("runs/before", "runs/after").failures(below=-1)  # doctest: +SKIP
        []
    """
    a, b = RunFolder(Path(first)), RunFolder(Path(second))
    pairs, (shared, left_out) = _paired_models(a, b, models), _shared_conditions(a, b, conditions)
    if json.dumps(a.data, sort_keys=True) != json.dumps(b.data, sort_keys=True):
        raise fail("second", f"a run on the images of {a.path}", f"{b.path}, which was run on others")
    for run in (a, b):
        if any(flag["code"] == "random_images" for flag in run.results.flags):
            raise fail("runs", "the same images in both", f"{run.path}, whose images differ with each reading")
    found = [(*names, condition, _tables(a, b, *names, condition)) for names in pairs for condition in shared]
    gains = [paired_difference(after, before) for *_, (before, after) in found]
    changes = []
    for (old, new, condition, tables), gain, p in zip(found, gains, holm(gains), strict=True):
        codes = {flag["code"] for flag in (*a.flags(old, condition), *b.flags(new, condition))}
        before, after = map(share_interval, tables)
        changes.append(Change(new, condition, before, after, gain, p, tuple(sorted(codes))))
    return Comparison(a.path, b.path, tuple(changes), tuple(left_out))


def _paired_models(a: RunFolder, b: RunFolder, models: Sequence[str]) -> list[tuple[str, str]]:
    if models:
        if len(models) > 2:
            raise fail("models", "one name for both runs, or two, one in each", f"{len(models)} names")
        for run, name in ((a, models[0]), (b, models[-1])):
            choice(f"models of {run.path}", name, run.models)
        return [(models[0], models[-1])]
    if len(a.models) == len(b.models) == 1:
        return [(a.models[0], b.models[0])]
    both = [(name, name) for name in a.models if name in b.models]
    if not both:
        raise fail("models", f"one of {', '.join(a.models)} and one of {', '.join(b.models)}", "no name that both have")
    return both


def _shared_conditions(a: RunFolder, b: RunFolder, wanted: Sequence[str]) -> tuple[list[str], list[str]]:
    for name in wanted:
        choice(f"conditions of {a.path}", name, list(a.conditions))
        choice(f"conditions of {b.path}", name, list(b.conditions))
    shared, left_out = [], []
    for name in wanted or dict.fromkeys((*a.conditions, *b.conditions)):
        missing = next((run for run in (a, b) if name not in run.conditions), None)
        if missing is not None:
            left_out.append(f"{name}: {missing.path} does not have it")
        elif a.settings(name) != b.settings(name):
            left_out.append(f"{name}: the settings differ ({a.settings(name)}; {b.settings(name)})")
        else:
            shared.append(name)
    if not shared:
        raise fail("conditions", "at least one that both runs have with the same settings", "; ".join(left_out))
    return shared, left_out


def _tables(a: RunFolder, b: RunFolder, old: str, new: str, condition: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return 1 where each run is correct, (seeds, n), on the images that both tested."""
    (places, labels, before), (others, other, after) = a.correct(old, condition), b.correct(new, condition)
    _, mine, theirs = np.intersect1d(places, others, assume_unique=True, return_indices=True)
    if not len(mine):
        raise fail("second", f"a run that tested some of the images of {a.path}", "none in common")
    if not np.array_equal(labels[mine], other[theirs]):
        raise fail("second", f"a run on the images of {a.path}", f"{b.path}, whose labels differ")
    before, after = before[:, mine], after[:, theirs]
    return (before, after) if len(before) == len(after) else (before.mean(0), after.mean(0))
