"""Blocks of images shown to models under conditions: each block is read once, for all models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robustsigma.engine import noise, validation
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.global_rng import temporary_seed
from robustsigma.engine.perturbations import AttackInParts, Identity
from robustsigma.engine.validation import extent, target_range
from robustsigma.evaluation.attack_checks import AttackCheckResults, AttackChecks
from robustsigma.evaluation.given_images import Block, GivenImages
from robustsigma.evaluation.outcomes import Advance, Outcomes, measure, predict, to_rows
from robustsigma.evaluation.plan import ADAPTIVE, NO_ATTACK, TRANSFER, Condition
from robustsigma.evaluation.settings import Checks
from robustsigma.report import text
from robustsigma.runs.blocks import BlockFiles, Blocks, Rows
from robustsigma.runs.progress import RunProgress, Step
from robustsigma.runs.ranks import Ranks, Shard


def outcomes_file(folder: Path, name: str) -> Path:
    """Return the file of a model's outcomes in a run's folder."""
    return folder / "outcomes" / f"{name}.npz"


def outcomes_of(rows: Rows, condition: str) -> Outcomes:
    """Return the outcomes under a condition, by its id, of all columns of a model."""
    own = {field.name: _column(condition, field.name) for field in fields(Outcomes)}
    found = {name: rows[column] for name, column in own.items() if column in rows}
    return Outcomes(**{"indices": rows["indices"], "labels": rows["labels"], **found})


def _column(condition: str, field: str) -> str:
    return f"{condition}|{field}"


class BlockEvaluation:
    """Every image's outcomes, in a file for each model.

    Args:
        folder: folder of the run.
        groups: names of the models. Of each group the first one is the base model, whose samples all of them see.
        load: returns a model by its name, on its device; called once for each.
        conditions: conditions of the matrix; those of transferred samples come after the adaptive ones.
        seeds: returns the seeds of a condition, by its id, for the indices (B,) of images.
        images: the images.
        classes: number of classes.
    """

    def __init__(
        self,
        folder: Path,
        groups: Sequence[Sequence[str]],
        load: Callable[[str], Classifier],
        conditions: Sequence[Condition],
        seeds: Callable[[str, Tensor], int | Tensor],
        images: GivenImages,
        classes: int,
    ) -> None:
        self.groups, self.load, self.conditions, self.seeds = groups, cache(load), conditions, seeds
        self.images, self.classes = images, classes
        paths = {name: outcomes_file(folder, name) for group in groups for name in group}
        self.blocks = BlockFiles(paths, images.count, images.batch_size)
        self._folder, self._rows = folder, dict[str, Rows]()
        self._moved = {each.name for each in conditions if each.attack_setting == TRANSFER}

    def run(self, ranks: Ranks, progress: RunProgress, step: Step, shard: Shard | None = None) -> None:
        """Measure the blocks that are missing, of which each rank makes its share, and wait for the others."""
        spans, dealt = [], None  # of a stream, every rank takes its turns
        if self.images.count is not None:
            spans = ranks.broadcast(self.blocks.missing(shard))
            dealt = ranks.deal([(start, stop) for start, stop in spans])
        elif all(each.path.is_file() for each in self.blocks.values()):
            dealt = []
        cells = len(self.conditions) * len(self.blocks)
        advance, announced = Advance(step, None if dealt is None else len(dealt) * cells), progress.console.quiet
        for place, block in enumerate(self.images.blocks(dealt)):
            low, high = extent(block.labels)
            target_range((low, high), self.classes, "labels")
            if not announced:
                announced = True
                self._announce(block, None if dealt is None else sum(stop - start for start, stop in dealt), progress)
            if dealt is not None or place % ranks.world_size == ranks.rank:
                for group in self.groups:
                    self._measure(group, block, advance)
            spans += [] if dealt is not None else [(block.start, block.start + len(block.labels))]
        ranks.barrier()
        for blocks in self.blocks.values():
            blocks.note(spans)

    def finish(self, ranks: Ranks, remedy: str) -> None:
        """Make one file of each model's blocks, see `BlockFiles.finish`."""
        self.load.cache_clear()
        self.blocks.finish(ranks, remedy)

    def _announce(self, block: Block, count: int | None, progress: RunProgress) -> None:
        """Say what each attack in parts, such as AutoAttack, takes at most: passes are timed on a block."""
        count = count or len(block.images)
        for condition in self.conditions:
            attack = condition.perturbation
            if condition.attack_setting != ADAPTIVE or not isinstance(attack, AttackInParts):
                continue
            cost, models = attack.cost(self.classes), [self.load(name) for name in self.blocks]
            with temporary_seed(0):  # timing leaves the random numbers of the run as they are
                minutes = sum(cost.minutes(each, block.images.to(each.mean.device), count) for each in models)
            what = text.count(count, "image") + f" and {len(models)} models" * (len(models) > 1)
            progress.say(
                f"{condition.name}: at most {cost.forwards:,} forward and {cost.backwards:,} backward passes per "
                f"image, which take at most {text.duration(60 * minutes)} for {what}."
            )

    def _measure(self, group: Sequence[str], block: Block, advance: Advance) -> None:
        """Show a block to the models of a group that have not seen it."""
        stop = block.start + len(block.labels)
        missing = [name for name in group if not self.blocks[name].has(block.start, stop)]
        of_base: dict[str, tuple[Tensor, dict[str, Tensor]]] = {}  # samples by the name of their condition
        for name in dict.fromkeys([group[0], *missing]) if missing else ():
            is_base, classifier = name == group[0], self.load(name)
            clean, labels = (each.to(classifier.mean.device) for each in (block.images, block.labels))
            rows: Rows = {"indices": block.indices.numpy(), "labels": block.labels.cpu().numpy()}
            if is_base:  # the others see the same images
                rows["pixels"] = noise.pixel_hash(clean).cpu().numpy()
            for condition in self.conditions:
                shared = condition.attack_setting == NO_ATTACK or condition.name in self._moved
                if is_base and not shared and name not in missing:
                    continue
                if condition.attack_setting == ADAPTIVE or (condition.attack_setting == NO_ATTACK and is_base):
                    seeds = self.seeds(condition.id, block.indices.to(clean.device))
                    made, numbers = measure(classifier, condition.perturbation, clean, labels, seeds, advance)
                    if is_base and shared:
                        of_base[condition.name] = made, numbers
                else:
                    made, numbers = of_base[condition.name]
                    if not is_base:  # which has seen its own samples
                        numbers = {**numbers, **predict(classifier, made.to(clean.device), labels)}
                rows |= {_column(condition.id, field): values for field, values in to_rows(numbers).items()}
                advance()
            if name in missing:
                self.blocks[name].add(block.start, rows)

    def outcomes(self, name: str, condition: str) -> Outcomes:
        """Return a finished model's outcomes under a condition, by its id."""
        if name not in self._rows:
            self._rows[name] = Blocks(outcomes_file(self._folder, name)).all()
        return outcomes_of(self._rows[name], condition)

    def repeats(self, name: str) -> int:
        """Return how many of the images that a finished base model saw equal an earlier one."""
        self.outcomes(name, self.conditions[0].id)
        pixels = self._rows[name].get("pixels", np.empty(0))  # which runs of earlier versions lack
        return len(pixels) - len(np.unique(pixels))

    def checks(self, name: str, checks: Checks) -> AttackCheckResults | None:
        """Return the checks of a model and its attacks, or None if there are none with these settings."""
        return AttackCheckResults.read(self._checks_file(name), checks)

    def _checks_file(self, name: str) -> Path:
        return self._folder / "checks" / f"{name}.npz"

    def check_attacks(
        self, titles: Mapping[str, str], rows: Sequence[int], checks: Checks, ranks: Ranks, progress: RunProgress
    ) -> None:
        """Check finished models and the attacks on them, which ranks share, unless that was done.

        Args:
            titles: what the progress calls each model, by its name.
            rows: places of some images in the outcomes.
            checks: what is checked.
            ranks: processes that share the models.
            progress: where the models are counted.
        """
        missing = ranks.broadcast([name for name in titles if self.checks(name, checks) is None])
        for name in [name for name in titles if name not in missing]:
            progress.finish(f"{titles[name]}: was checked before")
        if not missing:
            return
        images, labels = self.images.load(rows)
        checked = "attacks" if checks.images else "network"
        for name in ranks.deal(missing):
            with progress.job(f"{titles[name]}: checks of the {checked}") as step:
                self._check(name, rows, images, labels, checks, step).write(self._checks_file(name), checks)
        ranks.barrier()
        ranks.wait_until_visible(lambda: all(self.checks(name, checks) is not None for name in missing))

    def _check(
        self, name: str, rows: Sequence[int], images: Tensor, labels: Tensor, checks: Checks, step: Step
    ) -> AttackCheckResults:
        classifier, live = self.load(name), [each for each in self.conditions if each.attack_setting != TRANSFER]
        outcomes, device = {each.id: self.outcomes(name, each.id) for each in live}, classifier.mean.device
        clean = next(each.id for each in live if isinstance(each.perturbation, Identity))
        indices = torch.from_numpy(outcomes[clean].indices[rows]).to(device)
        if not np.array_equal(outcomes[clean].labels[rows], labels.numpy()):
            hint = "pass a dataset, or a loader whose sampler draws from torch's seed"
            raise validation.fail("data", "the same images in every pass", f"other labels in the second; {hint}")
        return AttackChecks(
            classifier,
            images.to(device),
            labels.to(device),
            lambda condition: self.seeds(condition, indices),
            np.array(rows, np.int64),
            {each.id: each.perturbation for each in live if each.attack_setting == ADAPTIVE},
            outcomes,
            clean,
            self.classes,
        ).run(checks, step)
