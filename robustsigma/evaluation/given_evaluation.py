"""One evaluation of a user's models and data: measured block by block, resumable, and reported."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from robustsigma.engine import validation
from robustsigma.engine.global_rng import temporary_seed
from robustsigma.engine.perturbations import Perturbation
from robustsigma.evaluation.attack_checks import checked_images
from robustsigma.evaluation.block_evaluation import BlockEvaluation
from robustsigma.evaluation.flags import given_flags, run_flags
from robustsigma.evaluation.given_images import GivenImages
from robustsigma.evaluation.given_models import GivenModels, about
from robustsigma.evaluation.illustrations import SHOWN, Pictures, examples
from robustsigma.evaluation.matrix import Matrix
from robustsigma.evaluation.outcomes import Outcomes
from robustsigma.evaluation.plan import GIVEN, Regime, conditions
from robustsigma.evaluation.results import results_of
from robustsigma.evaluation.robustness_report import RobustnessReport
from robustsigma.evaluation.settings import Checks
from robustsigma.evaluation.unwrapped_data import Pair, PixelBatches
from robustsigma.report import text
from robustsigma.report.base import publish
from robustsigma.runs.directory import init_run_dir
from robustsigma.runs.fingerprint import code_of, describe, network
from robustsigma.runs.progress import RunProgress, Step
from robustsigma.runs.provenance import Provenance
from robustsigma.runs.ranks import WHOLE, Ranks
from robustsigma.runs.results import RobustnessResults

_READ_TWICE = 16  # images, to see whether they change


class GivenEvaluation:
    """One evaluation in one folder.

    Args:
        models: the models.
        images: the images.
        perturbations: conditions by name, an `Identity` among them.
        settings: `seed`, and whatever else the folder is bound to.
        checks: further attacks that show how far the others can be believed.
        folder: folder of the run; an earlier call with the same arguments may have begun it.
        keeps: whether the folder stays, and gets the report.
        ranks: processes that share the blocks.
    """

    def __init__(
        self,
        models: GivenModels,
        images: GivenImages,
        perturbations: Mapping[str, Perturbation],
        settings: Mapping[str, Any],
        checks: Checks,
        folder: Path,
        keeps: bool,
        ranks: Ranks,
    ) -> None:
        self._given, self.models = models, models.classifiers
        self.images, self.checks, self.folder, self.keeps = images, checks, folder, keeps
        self.regimes = [Regime(name, name, GIVEN, None) for name in self.models]
        self.conditions = conditions(perturbations, transfer=len(self.models) > 1)
        validation.distinct("conditions", [each.id for each in self.conditions])
        self.settings = describe({**settings, "conditions": dict(perturbations), "checks": checks})
        self._keys = {str(place): name for place, name in enumerate(self.models)}  # which name their files
        self.seed: int = settings["seed"]
        ranks.main_first(lambda: self._bind(settings, perturbations))
        self.evaluation = BlockEvaluation(
            folder,
            [list(self._keys)],
            lambda key: self.models[self._keys[key]],
            self.conditions,
            lambda condition, indices: self.seed,
            images,
            self.classes,
        )

    def _bind(self, settings: Mapping[str, Any], perturbations: Mapping[str, Perturbation]) -> None:
        """Bind the folder to the models, the data and the settings."""
        if self.keeps:
            own = {name: {"mean": c.mean.flatten().tolist(), "std": c.std.flatten().tolist()}
                   for name, c in self.models.items()}  # fmt: skip
            networks = {name: network(c.net, self.shape) for name, c in self.models.items()}
            bound = {key: value for key, value in self.settings.items() if key != "checks"}
            code = code_of((), [*perturbations.values(), settings])
            bound |= {"models": own, "network": networks, "data": self.images.fingerprint(), **code}
            init_run_dir(self.folder, bound)

    @cached_property
    def first(self) -> torch.Tensor:
        """The first two images."""
        return self.images.load([0, 1] if self.images.count != 1 else [0])[0]

    @cached_property
    def changes(self) -> bool:
        """Whether some images of a user's dataset differ from one reading to the next."""
        rows = range(min(_READ_TWICE, self.images.count or 0))
        if not rows or isinstance(self.images.source, (Pair, PixelBatches)):  # these never do
            return False
        readings = []
        for seed in range(2):
            with temporary_seed(seed):
                readings.append(self.images.load(rows)[0])
        return not torch.equal(*readings)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of the images."""
        return tuple(self.first.shape[1:])

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, as many as each model has logits."""
        return self._given.classes(self.first, self.images.classes)

    @property
    def classes(self) -> int:
        """Number of logits, the same for every model."""
        return len(self.class_names)

    def report(self, console: Console, provenance: Provenance, ranks: Ranks) -> RobustnessReport:
        """Finish what is missing, and return the report."""
        with RunProgress(1 + len(self.models) + 1, console) as progress:
            models, conditions = text.count(len(self.models), "model"), text.count(len(self.conditions), "condition")
            with progress.job(f"{models} under {conditions}") as step:
                self.evaluation.run(ranks, progress, step)
                self.evaluation.finish(ranks, WHOLE.remedy)
            cells = {(name, each.id): self.evaluation.outcomes(key, each.id)
                     for key, name in self._keys.items() for each in self.conditions}  # fmt: skip
            once = {key: [each] for key, each in cells.items()}
            matrix = Matrix(self.regimes, self.conditions, once, (), self.classes)
            most = checked_images(self.checks, self.images.batch_size)
            rows = self._rows(len(next(iter(cells.values())).labels), most)
            self.evaluation.check_attacks(self._keys, rows, self.checks, ranks, progress)
            checks = {name: self.evaluation.checks(key, self.checks) for key, name in self._keys.items()}
            matrix.attack_checks |= {name: [found] for name, found in checks.items() if found is not None}
            results = self._results(matrix, provenance)
            if self.keeps and ranks.is_main:
                results.write(self.folder / "results.json")  # the pictures may take long
            with progress.job("example images") as step:
                sections, arrays = self._examples(cells, step)
        results, path = dataclasses.replace(results, run=provenance.record(), **sections), None
        if self.keeps:
            path = self.folder / "report.html"
            if ranks.is_main:
                publish(results, arrays, self.folder)
            ranks.barrier()
        return RobustnessReport(results, path, cells, arrays)

    def _results(self, matrix: Matrix, provenance: Provenance) -> RobustnessResults:
        """Return the results without pictures."""
        count = len(next(iter(matrix.cells.values()))[0].labels)
        known = {name: card.classes for name, card in self._given.cards.items()}
        repeats = self.evaluation.repeats(next(iter(self._keys)))
        flags = [*run_flags(matrix)]
        flags += given_flags(matrix, self.images.classes, known, changes=self.changes, repeats=repeats)
        return dataclasses.replace(
            results_of(matrix, flags=flags),
            settings=self.settings,
            dataset={
                "name": self.images.name,
                "classes": list(self.class_names),
                "shape": list(self.shape),
                "test": count,
            },
            regimes=[
                {"id": name, "name": name, "protocol": GIVEN, "settings": about(each)}
                for name, each in self.models.items()
            ],
            run=provenance.record(),
        )

    def _rows(self, count: int, most: int) -> list[int]:
        """Return some rows, at random where the data can be asked for any image."""
        generator = np.random.default_rng(self.seed % 2**32)
        if self.images.count is None or most >= count:
            return list(range(min(count, most)))
        return sorted(generator.choice(count, most, replace=False).tolist())

    def _examples(self, cells: Mapping[tuple[str, str], Outcomes], step: Step) -> Pictures:
        """Return the first image of each class, of a few classes, under every condition."""
        base, classifier = next(iter(self.models.items()))
        labels = cells[base, self.conditions[0].id].labels
        near = labels if self.images.count is not None else labels[: self.images.batch_size]
        rows = sorted(np.unique(near, return_index=True)[1].tolist()[:SHOWN])
        device = classifier.mean.device
        shown, at = (part.to(device) for part in self.images.load(rows))
        return examples(classifier, shown, at, self.conditions, lambda condition: self.seed, step)
