"""`evaluate` and `robust_accuracy`: the robustness of models that a user has, on data that a user has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from robustsigma.engine import validation
from robustsigma.engine.global_rng import temporary_seed
from robustsigma.engine.metrics import Interval
from robustsigma.engine.network_state import deterministic
from robustsigma.engine.perturbations import FGSM, PGD, GaussianNoise, Identity, Perturbation
from robustsigma.engine.validation import fail
from robustsigma.evaluation.flags import NETWORK
from robustsigma.evaluation.given_evaluation import GivenEvaluation
from robustsigma.evaluation.given_images import given_images
from robustsigma.evaluation.given_models import Normalized, given_models, on_device
from robustsigma.evaluation.robustness_report import RobustnessReport
from robustsigma.evaluation.settings import Checks
from robustsigma.lightning.batch_images import Place
from robustsigma.runs.provenance import Provenance
from robustsigma.runs.ranks import Ranks

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
    num_workers: int | None = None,
    seed: int = 0,
    checks: Checks | None = _CHECKS,
    out: str | Path | None = None,
    device: str | torch.device | None = None,
    distributed: bool = True,
    progress: bool = True,
) -> RobustnessReport:
    """Measure the accuracy of models under every condition, and how far the attacks can be believed.

    Models are used in eval mode and come back as they were: modes, flags, hooks, gradients and device. Global random
    generators come back too. Each image has a seed of its own, from `seed` and its pixels, so the result does not
    depend on batch size or order: it is that of `condition(classifier, images, labels, seed=seed)`.

    Args:
        model: an `nn.Module` from normalized images to logits, a `Classifier`, a LightningModule (its `forward`), the
            pair that `robustsigma.models.load_model` returns, a name or file that `robustsigma.models.model` takes,
            such as "hf:google/vit-base-patch16-224"; or a mapping from names to any of them. Of several models the
            first is the base model: attacks are then made against each model (adaptive), and against the
            base model and shown to all (transfer). Minimum-norm attacks such as `FMN` are not transferred.
        data: a `Dataset` of (image, label) or a `DataLoader`; a pair of tensors (images, labels); a
            LightningDataModule (its test images, or else its validation images); a `DatasetSpec` (likewise, with
            classes and crop of the model's card); or any other collection of batches. Images are in [0, 1] or uint8.
        conditions: perturbations by name. Clean images are added if no condition is `Identity()`. None is clean,
            Gaussian noise of std 0.1, FGSM and PGD with eps 8/255.
        mean: mean per channel with which the network's images are normalized; None if the network takes pixels in
            [0, 1], or is a `Classifier`.
        std: likewise.
        normalized: whether the images of the data are normalized; if so, they are un-normalized and attacked as pixels.
            A pair of functions `(to_pixels, to_network)` replaces mean and std; the second one has to be
            differentiable.
        images: where a batch holds its images: an index, a key, an attribute, or a function of the batch.
        labels: likewise; class indices (B,), or probabilities (B, K), of which the largest counts.
        max_images: largest number of images. They are drawn by `seed`; of data without a length, or in an order that a
            sampler decides, they are the first ones.
        batch_size: images shown to every model and condition at once; None is that of the loader, or 128.
        num_workers: number of loading processes of a `Dataset`; None is 0, or, for 512 and more image files, the number
            of cores, at most 8.
        seed: seed of the choice of images and of every perturbation.
        checks: further attacks on a few images that show whether the others can be believed; they become flags. None
            skips them; the network's outputs and gradients are inspected in any case.
        out: folder of `report.html`, `results.json` and the outcome of every image, or None to write nothing. The
            folder is bound to the weights, the data (of a stream, its first images) and the conditions: the same call
            resumes an interrupted one.
        device: where to compute; None is where each model is.
        distributed: whether the processes that a launcher such as torchrun has started share the images, if there are
            several. All of them have to make the same call, and all get the report. False computes everything here.
        progress: whether to show a bar with the time left, and beforehand what AutoAttack and other attacks in parts
            cost, on standard error.

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
    validation.boolean("distributed", distributed)
    provenance, models = Provenance(None), given_models(model, mean, std, normalized)
    ranks = Ranks.join(distributed)
    with ranks.folder(out) as folder, temporary_seed(seed % 2**32), on_device(models.classifiers, device):
        found = given_images(data, models, (images, labels), max_images, batch_size, num_workers, seed)
        found.check_ranks(ranks)
        settings = {"images": max_images, "seed": seed, "normalized": normalized, "places": [images, labels]}
        keeps, asked = out is not None, checks or Checks(images=0)
        run = GivenEvaluation(models, found, _checked(conditions), settings, asked, folder, keeps, ranks)
        return run.report(Console(stderr=True, quiet=not (progress and ranks.is_main)), provenance, ranks)


class RobustAccuracy(float):
    """The accuracy of a model under an attack, a float in [0, 1].

    Attributes:
        interval: the accuracy with its 95% interval and the number of images.
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
        model: one model, as for `evaluate`.
        data: as of `evaluate`.
        attack: any perturbation.
        checks: as of `evaluate`. A network whose outputs or gradients mislead the attack is warned about in any case.
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
    for flag in flags:
        if flag["code"] in NETWORK:
            validation.warn(f"model: {flag['message']}")
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
        raise fail("conditions", "an Identity() among them, or no other condition named 'clean'", "neither")
    return {"clean": Identity(), **conditions}
