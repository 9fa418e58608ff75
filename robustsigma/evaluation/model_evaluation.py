"""`evaluate` and `robust_accuracy`: the robustness of models that a user has, on data that a user has."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from robustsigma.engine import validation
from robustsigma.engine.global_rng import temporary_seed
from robustsigma.engine.metrics import Interval
from robustsigma.engine.perturbations import FGSM, PGD, GaussianNoise, Identity, Perturbation
from robustsigma.engine.precision import deterministic
from robustsigma.engine.validation import fail
from robustsigma.evaluation.attack_checks import AttackCheckResults, AttackChecks
from robustsigma.evaluation.flags import given_flags, run_flags
from robustsigma.evaluation.given_images import GivenImages, given_images
from robustsigma.evaluation.given_models import GivenModels, Normalized, given_models, on_device
from robustsigma.evaluation.illustrations import SHOWN, examples
from robustsigma.evaluation.matrix import Matrix
from robustsigma.evaluation.outcomes import GIVEN_OUTCOMES, Outcomes, given_places, measure_block
from robustsigma.evaluation.plan import ADAPTIVE, GIVEN, TRANSFER, Regime
from robustsigma.evaluation.plan import conditions as conditions_of
from robustsigma.evaluation.results import results_of
from robustsigma.evaluation.robustness_report import RobustnessReport
from robustsigma.evaluation.settings import Checks
from robustsigma.lightning.batch_images import Place
from robustsigma.report import write_report
from robustsigma.runs.blocks import Blocks, Rows
from robustsigma.runs.directory import init_run_dir, output_folder
from robustsigma.runs.files import read_arrays, write_arrays
from robustsigma.runs.fingerprint import code_of, describe, network
from robustsigma.runs.progress import RunProgress, Step
from robustsigma.runs.provenance import Provenance

_CHECKS = Checks()


def default_conditions() -> dict[str, Perturbation]:
    """Return the conditions of `evaluate` where none are named: clean, Gaussian noise, FGSM and PGD at 8/255."""
    return {
        "clean": Identity(),
        "Gaussian noise": GaussianNoise(0.1),
        "FGSM": FGSM(8 / 255),
        "PGD": PGD(8 / 255),
    }


@deterministic()
def evaluate(
    model: Any,
    data: Any,
    conditions: Mapping[str, Perturbation] | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    normalized: Normalized = False,
    images: Place = 0,
    labels: Place = 1,
    max_images: int | None = None,
    batch_size: int | None = None,
    num_workers: int = 0,
    seed: int = 0,
    checks: Checks | None = _CHECKS,
    out: str | Path | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> RobustnessReport:
    """Measure the accuracy of models under every condition, and how far the attacks can be believed.

    Models are used in eval mode and come back as they were: modes, flags, hooks, gradients and device. Global random
    generators come back too. Each image has a seed of its own, from `seed` and its pixels, so the result does not
    depend on batch size or order: it is that of `condition(classifier, images, labels, seed=seed)`.

    Args:
        model: an `nn.Module` from normalized images to logits, a `Classifier`, a LightningModule (its `forward`), the
            pair that `robustsigma.models.load_model` returns; or a mapping from names to any of them. Of several
            models the first is the base model: attacks are then made against each model (adaptive), and against the
            base model and shown to all (transfer).
        data: a `Dataset` of (image, label) or a `DataLoader`; a pair of tensors (images, labels); a
            LightningDataModule (its test images, or else its validation images); a `DatasetSpec` (likewise, with
            classes and crop of the model's card); or any other collection of batches. Images are in [0, 1] or uint8.
        conditions: perturbations by name. Clean images are added if no condition is `Identity()`. None is clean,
            Gaussian noise of std 0.1, FGSM and PGD with eps 8/255.
        mean: that the network's images are normalized with, a number per channel; None if the network takes pixels in
            [0, 1], or is a `Classifier`.
        std: likewise.
        normalized: whether the images of the data are normalized already: they are un-normalized, and attacked as
            pixels. A pair of functions `(to_pixels, to_network)` replaces mean and std; the second one has to be
            differentiable.
        images: where a batch holds its images: an index, a key, an attribute, or a function of the batch.
        labels: likewise; class indices (B,), or probabilities (B, K), of which the largest counts.
        max_images: images at most. They are drawn by `seed`; of data without a length, or in an order that a sampler
            decides, they are the first ones.
        batch_size: images shown to every model and condition at once; None is that of the loader, or 128.
        num_workers: loading processes of a `Dataset`.
        seed: seed of the choice of images and of every perturbation.
        checks: further attacks on a few images that show whether the others can be believed, whose results are flags;
            None leaves them out.
        out: folder of `report.html`, `results.json` and the outcome of every image, or None to write nothing. The
            folder is bound to the weights, the data and the conditions: the same call resumes an interrupted one.
        device: where to compute; None is where each model is.
        progress: whether to show a bar with the time left, on standard error.

    Raises:
        ValueError: an argument that cannot be used, images outside their range, labels that are no index of a logit,
            or a folder of another evaluation.

    Example:
        >>> report = robustsigma.evaluate(net, test_set, {"PGD": PGD(8 / 255)}, mean=(0.5,), std=(0.25,))
        >>> print(report)
        >>> report.accuracy("model", "PGD").mean
    """
    validation.optional("checks", checks, Checks)
    for name, value, low in (("max_images", max_images, 1), ("batch_size", batch_size, 1)):
        if value is not None:
            validation.integer(name, value, low)
    validation.integer("seed", seed, -(2**63), 2**63 - 1)
    provenance, models = Provenance(None), given_models(model, mean, std, normalized)
    folder = None if out is None else output_folder(out)
    with temporary_seed(seed % 2**32), on_device(models.classifiers, device):
        found = given_images(data, models, (images, labels), max_images, batch_size, num_workers, seed)
        settings = {"images": max_images, "seed": seed, "normalized": normalized, "places": [images, labels]}
        run = _Evaluation(models, found, _checked(conditions), settings, checks or Checks(images=0), folder)
        return run.report(Console(stderr=True, quiet=not progress), provenance)


class RobustAccuracy(float):
    """The accuracy of a model under an attack, a float in [0, 1].

    Attributes:
        interval: with its 95% interval and the number of images.
        flags: reasons to doubt it.

    Example:
        >>> found = RobustAccuracy(Interval(0.5, 0.4, 0.6, 100))
        >>> found < 0.6, found.interval.low
        (True, 0.4)
    """

    interval: Interval
    flags: list[dict[str, str]]

    def __new__(cls, interval: Interval, flags: Sequence[dict[str, str]] = ()) -> RobustAccuracy:
        """Return the mean of an interval with the rest as its attributes."""
        found = super().__new__(cls, interval.mean)
        found.interval, found.flags = interval, list(flags)
        return found

    def __getnewargs__(self) -> tuple[Any, ...]:
        return self.interval, self.flags

    def __repr__(self) -> str:
        it = self.interval
        return f"{it.mean:.4f} (95% interval {it.low:.4f} to {it.high:.4f}, {it.n} images)"


def robust_accuracy(
    model: Any, data: Any, attack: Perturbation, *, checks: Checks | None = None, **options: Any
) -> RobustAccuracy:
    """Return the accuracy of one model under one attack, with its interval.

    Args:
        model: as of `evaluate`, but one.
        data: as of `evaluate`.
        attack: any perturbation.
        checks: as of `evaluate`; without them there are few flags.
        options: further arguments of `evaluate`.

    Raises:
        ValueError: as `evaluate`.

    Example:
        >>> found = robust_accuracy(net, test_set, PGD(8 / 255), mean=(0.5,), std=(0.25,), max_images=500)
        >>> print(f"{found:.1%}", found.interval.low)
    """
    if isinstance(model, Mapping):
        raise fail("model", "one model; evaluate(…) takes several", f"a mapping of {len(model)}")
    report = evaluate(model, data, {"clean": Identity(), "attack": attack}, checks=checks, **options)
    (name,) = (entry["id"] for entry in report.results.regimes)
    flags = [flag for flag in report.flags if flag.get("condition") != "clean"]
    return RobustAccuracy(report.accuracy(name, "attack"), flags)


def _checked(conditions: Mapping[str, Perturbation] | None) -> dict[str, Perturbation]:
    if conditions is None:
        return default_conditions()
    validation.mapping("conditions", conditions)
    for name, perturbation in conditions.items():
        validation.instance(f"conditions[{name!r}]", perturbation, Perturbation)
    if any(isinstance(each, Identity) for each in conditions.values()):
        return dict(conditions)
    if "clean" in conditions:
        raise fail("conditions", "an Identity() among them, or the name 'clean' free for it", "neither")
    return {"clean": Identity(), **conditions}


class _Evaluation:
    """One evaluation, in a folder if there is one."""

    def __init__(
        self,
        models: GivenModels,
        images: GivenImages,
        perturbations: Mapping[str, Perturbation],
        settings: Mapping[str, Any],
        checks: Checks,
        folder: Path | None,
    ) -> None:
        self.models, self.images, self.checks, self.folder = models.classifiers, images, checks, folder
        self.seed: int = settings["seed"]
        self.regimes = [Regime(name, name, GIVEN, None) for name in self.models]
        self.conditions = conditions_of(perturbations, transfer=len(self.models) > 1)
        validation.distinct("conditions", [each.id for each in self.conditions])
        self.settings = describe({**settings, "conditions": dict(perturbations), "checks": checks})
        if folder is not None:
            own = {name: {"mean": c.mean.flatten().tolist(), "std": c.std.flatten().tolist()}
                   for name, c in self.models.items()}  # fmt: skip
            networks = {name: network(c.net, self.shape) for name, c in self.models.items()}
            bound = {key: value for key, value in self.settings.items() if key != "checks"}
            code = code_of((), [*perturbations.values(), settings["normalized"]])
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
    def classes(self) -> int:
        """Number of logits, the same for every model."""
        found = {}
        for name, classifier in self.models.items():
            with classifier.frozen():
                images = classifier.prepare_input(self.first.to(classifier.mean.device))
                found[name] = classifier.logits(images).shape[1]
        if len({*found.values()}) > 1:
            raise fail("model", "networks of the same classes", ", ".join(f"{k}: {v}" for k, v in found.items()))
        return next(iter(found.values()))

    def report(self, console: Console, provenance: Provenance) -> RobustnessReport:
        """Finish what is missing, and return the report."""
        with RunProgress(1 + bool(self.checks.images) * len(self.models) + 1, console) as progress:
            title = f"{len(self.models)} models" if len(self.models) > 1 else "1 model"
            with progress.job(f"{title} under {len(self.conditions)} conditions") as step:
                cells = self._outcomes(step)
            matrix = Matrix(self.regimes, self.conditions, {key: [each] for key, each in cells.items()}, ())
            for name in self.models if self.checks.images else ():
                with progress.job(f"{name}: checks of the attacks") as step:
                    matrix.attack_checks[name] = [self._attack_checks(name, cells, step)]
            with progress.job("example images"):
                sections, arrays = self._examples(cells)
        names = self.images.classes
        flags = [*run_flags(matrix), *given_flags(matrix, self.classes, names)]
        shown = names if names is not None and len(names) == self.classes else map(str, range(self.classes))
        count = len(next(iter(cells.values())).labels)
        results = dataclasses.replace(
            results_of(matrix, self.classes, flags=flags),
            settings=self.settings,
            dataset={"name": self.images.name, "classes": list(shown), "shape": list(self.shape), "test": count},
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

    def _outcomes(self, step: Step) -> dict[tuple[str, str], Outcomes]:
        """Return the outcomes of every cell, which are measured block by block, for all cells at once."""
        path = None if self.folder is None else self.folder / GIVEN_OUTCOMES
        blocks = Blocks(None if path is None else path.with_suffix(".parts"), self.images.count or 0)
        if path is not None and path.is_file():
            rows = read_arrays(path)
            blocks.remove()  # of a run that was killed before it could
        else:
            self._measure(blocks, step)
            rows = blocks.all()
            if path is not None:
                write_arrays(path, rows)
                blocks.remove()
        places = self._places()
        shared = {key: rows[key] for key in ("indices", "labels")}
        fields = [each.name for each in dataclasses.fields(Outcomes) if each.name not in shared]
        return {key: Outcomes(**shared, **{f: rows[f"{at}.{f}"] for f in fields}) for key, at in places.items()}

    def _places(self) -> dict[tuple[str, str], str]:
        return given_places(self.models, [condition.id for condition in self.conditions])

    def _measure(self, blocks: Blocks, step: Step) -> None:
        places, start, done = self._places(), len(blocks), 0
        count = self.images.count
        total = None if count is None else -(-(count - start) // self.images.batch_size) * len(places)

        def advance() -> None:
            nonlocal done
            done += 1
            step(done, total)

        try:
            for block in self.images.blocks(start):
                low, high = validation.extent(block.labels)
                validation.target_range((low, high), self.classes, "labels")
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
