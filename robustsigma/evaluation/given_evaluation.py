"""One evaluation of models and data that came as they are: measured block by block, resumable, and reported."""

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
from robustsigma.engine.perturbations import Identity, Perturbation
from robustsigma.evaluation.attack_checks import AttackCheckResults, AttackChecks
from robustsigma.evaluation.cost import cost_lines
from robustsigma.evaluation.flags import given_flags, run_flags
from robustsigma.evaluation.given_images import GivenImages
from robustsigma.evaluation.given_models import GivenModels
from robustsigma.evaluation.illustrations import SHOWN, examples
from robustsigma.evaluation.matrix import Matrix
from robustsigma.evaluation.outcomes import (
    GIVEN_OUTCOMES,
    Advance,
    Outcomes,
    given_outcomes,
    given_places,
    measure_block,
)
from robustsigma.evaluation.plan import ADAPTIVE, GIVEN, TRANSFER, Regime, conditions
from robustsigma.evaluation.results import results_of
from robustsigma.evaluation.robustness_report import RobustnessReport
from robustsigma.evaluation.settings import Checks
from robustsigma.report import write_report
from robustsigma.runs.blocks import Blocks, Rows
from robustsigma.runs.directory import init_run_dir
from robustsigma.runs.files import read_arrays, write_arrays
from robustsigma.runs.fingerprint import code_of, describe, network
from robustsigma.runs.progress import RunProgress, Step
from robustsigma.runs.provenance import Provenance


class GivenEvaluation:
    """One evaluation, in a folder if there is one.

    Args:
        models: the models.
        images: the images.
        perturbations: conditions by name, an `Identity` among them.
        settings: `seed`, and whatever else the folder is bound to.
        checks: of how far the attacks can be believed.
        folder: that an earlier call with the same arguments may have begun, or None.
    """

    def __init__(
        self,
        models: GivenModels,
        images: GivenImages,
        perturbations: Mapping[str, Perturbation],
        settings: Mapping[str, Any],
        checks: Checks,
        folder: Path | None,
    ) -> None:
        self._given, self.models = models, models.classifiers
        self.images, self.checks, self.folder = images, checks, folder
        self.seed: int = settings["seed"]
        self.regimes = [Regime(name, name, GIVEN, None) for name in self.models]
        self.conditions = conditions(perturbations, transfer=len(self.models) > 1)
        validation.distinct("conditions", [each.id for each in self.conditions])
        self.settings = describe({**settings, "conditions": dict(perturbations), "checks": checks})
        if folder is not None:
            own = {name: {"mean": c.mean.flatten().tolist(), "std": c.std.flatten().tolist()}
                   for name, c in self.models.items()}  # fmt: skip
            networks = {name: network(c.net, self.shape) for name, c in self.models.items()}
            bound = {key: value for key, value in self.settings.items() if key != "checks"}
            code = code_of((), [*perturbations.values(), settings])
            init_run_dir(folder, {**bound, "models": own, "network": networks, "data": images.fingerprint(), **code})

    @cached_property
    def first(self) -> torch.Tensor:
        """The first two images."""
        return self.images.load([0, 1] if self.images.count != 1 else [0])[0]

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

    def report(self, console: Console, provenance: Provenance) -> RobustnessReport:
        """Finish what is missing, and return the report."""
        with RunProgress(1 + bool(self.checks.images) * len(self.models) + 1, console) as progress:
            title = f"{len(self.models)} models" if len(self.models) > 1 else "1 model"
            with progress.job(f"{title} under {len(self.conditions)} conditions") as step:
                cells = self._outcomes(step, progress)
            matrix = Matrix(self.regimes, self.conditions, {key: [each] for key, each in cells.items()}, ())
            for name in self.models if self.checks.images else ():
                with progress.job(f"{name}: checks of the attacks") as step:
                    matrix.attack_checks[name] = [self._attack_checks(name, cells, step)]
            with progress.job("example images"):
                sections, arrays = self._examples(cells)
        flags = [*run_flags(matrix), *given_flags(matrix, self.classes, self.images.classes)]
        count, classes = len(next(iter(cells.values())).labels), list(self.class_names)
        results = dataclasses.replace(
            results_of(matrix, self.classes, flags=flags),
            settings=self.settings,
            dataset={"name": self.images.name, "classes": classes, "shape": list(self.shape), "test": count},
            regimes=[self._regime(name) for name in self.models],
            run=provenance.record(),
            **sections,
        )
        path = None
        if self.folder is not None:
            results.write(self.folder / "results.json")
            write_arrays(self.folder / "arrays.npz", arrays)
            path = write_report(results.to_json(), arrays, self.folder)
        return RobustnessReport(results, path, cells, arrays)

    def _regime(self, name: str) -> dict[str, Any]:
        net = self.models[name].net
        parameters = sum(each.numel() for each in net.parameters())
        return {
            "id": name,
            "name": name,
            "protocol": GIVEN,
            "settings": f"{type(net).__name__}, {parameters:,} parameters",
        }

    def _outcomes(self, step: Step, progress: RunProgress) -> dict[tuple[str, str], Outcomes]:
        """Return the outcomes of every cell, which are measured block by block, for all cells at once."""
        path = None if self.folder is None else self.folder / GIVEN_OUTCOMES
        blocks = Blocks(None if path is None else path.with_suffix(".parts"), self.images.count or 0)
        if path is not None and path.is_file():
            rows = read_arrays(path)
            blocks.remove()  # of a run that was killed before it could
        else:
            self._measure(blocks, step, progress)
            rows = blocks.all()
            if path is not None:
                write_arrays(path, rows)
                blocks.remove()
        return given_outcomes(rows, self.models, [each.id for each in self.conditions])

    def _measure(self, blocks: Blocks, step: Step, progress: RunProgress) -> None:
        places = given_places(self.models, [each.id for each in self.conditions])
        start = len(blocks)
        left = None if self.images.count is None else self.images.count - start
        advance = Advance(step, None if left is None else -(-left // self.images.batch_size) * len(places))
        told = progress.console.quiet
        try:
            for block in self.images.blocks(start):
                low, high = validation.extent(block.labels)
                validation.target_range((low, high), self.classes, "labels")
                if not told:
                    told = True
                    for line in cost_lines(self.conditions, self.models.values(), block.images, left, self.classes):
                        progress.say(line)
                found = measure_block(self.models, block.images, block.labels, self.conditions, self.seed, advance)
                rows: Rows = {"indices": block.indices.numpy(), "labels": block.labels.cpu().numpy()}
                for key, columns in found.items():
                    rows |= {f"{places[key]}.{name}": values for name, values in columns.items()}
                blocks.add(rows)
        finally:
            blocks.flush()  # an interrupt loses no finished block

    def _attack_checks(self, name: str, cells: Mapping[tuple[str, str], Outcomes], step: Step) -> AttackCheckResults:
        path = None if self.folder is None else self.folder / "checks" / f"{[*self.models].index(name)}.npz"
        found = None if path is None else AttackCheckResults.read(path, self.checks)
        if found is not None:
            return found
        live = [each for each in self.conditions if each.attack_setting != TRANSFER]
        rows = self._rows(len(cells[name, live[0].id].labels), self.checks.images)
        images, labels = self.images.load(rows)
        classifier = self.models[name]
        device = classifier.mean.device
        found = AttackChecks(
            classifier,
            images.to(device),
            labels.to(device),
            lambda condition: self.seed,
            np.array(rows, np.int64),
            {each.id: each.perturbation for each in live if each.attack_setting == ADAPTIVE},
            {each.id: cells[name, each.id] for each in live},
            next(each.id for each in live if isinstance(each.perturbation, Identity)),
            self.classes,
        ).run(self.checks, step)
        if path is not None:
            found.write(path, self.checks)
        return found

    def _rows(self, count: int, most: int) -> list[int]:
        """Return some rows, at random where the data can be asked for any image."""
        generator = np.random.default_rng(self.seed % 2**32)
        if self.images.count is None or most >= count:
            return list(range(min(count, most)))
        return sorted(generator.choice(count, most, replace=False).tolist())

    def _examples(self, cells: Mapping[tuple[str, str], Outcomes]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Return the first image of each class, of a few classes, under every condition."""
        base, classifier = next(iter(self.models.items()))
        labels = cells[base, self.conditions[0].id].labels
        near = labels if self.images.count is not None else labels[: self.images.batch_size]
        rows = sorted(np.unique(near, return_index=True)[1].tolist()[:SHOWN])
        device = classifier.mean.device
        shown, at = (part.to(device) for part in self.images.load(rows))
        return examples(classifier, shown, at, self.conditions, lambda condition: self.seed)
