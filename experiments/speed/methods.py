"""The rows: every attributor, perturbation and metric of the public lists, with the passes that its formula needs.

Rows named after a dtype round gradient passes, as `Classifier(gradient_dtype=...)` asks. Forward passes alone stay in
full precision, and so do SIGMA's differences of scores. Their peers compute in full precision.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

import robustsigma as rs
from experiments.speed import peers
from experiments.speed.cases import Case
from experiments.speed.limit import Passes
from experiments.speed.rows import Peer, Row
from robustsigma.engine import metrics, noise
from robustsigma.engine.metrics.masked_interpolation import interpolate_masked
from robustsigma.engine.metrics.ranking import spearman

Needed = Callable[[Any], Passes]
TINY = 1e-7
EPS = 8 / 255
GPU_ONLY = ("IG-tf32", "SIGMA-tf32")
# Attributors.


def reported(result: rs.Attribution) -> Passes:
    """Return the passes that a result reports."""
    return Passes(int(result.forwards.sum()), int(result.backwards.sum()))


def _attribution(case: Case, method: rs.Attributor, needed: Needed, *others: Peer) -> Row:
    def call() -> rs.Attribution:
        return method(case.classifier, case.images, case.target, seed=case.seeds)

    return Row(repr(method), len(case.images), call, needed, reported, others)


def _passes(case: Case, forwards: float, backwards: float = 0) -> Needed:
    """Return the passes of `forwards` and `backwards` passes per image."""
    return lambda _: Passes(len(case.images) * forwards, len(case.images) * backwards)


def walk(case: Case) -> rs.Sigma:
    """Return SIGMA's walk with a fixed number of steps: its epsilon is out of reach."""
    fixed = {"epsilon": 1e-30, "patience": 1000, "paths": case.scale.paths, "max_steps": case.scale.walk}
    return rs.Sigma(alpha=0.01, beta=0.1, objective="logit", **fixed)


def _sigma(case: Case) -> Row:
    def needed(result: rs.Attribution) -> Passes:  # per step two probes, the new point and its gradient; the image
        steps = int(result.steps.sum())
        return Passes(3 * steps + len(case.images), steps)

    rule = walk(case)
    return _attribution(case, rule, needed, peers.sigma_one_by_one(case, rule))


def _straight(case: Case, kind: type[rs.Attributor], between: int = 0) -> Row:
    """A gradient per point; the scores of both ends, and `between` scores between the points."""
    few, steps = case.fewer, case.scale.steps
    return _attribution(few, kind(steps), _passes(few, steps + 2 + between, steps))


def _ig(case: Case) -> Row:
    few, steps = case.fewer, case.scale.steps
    others = (peers.captum_ig(few, rs.IntegratedGradients(steps)), peers.pair_ig(few, steps))
    return _attribution(few, rs.IntegratedGradients(steps), _passes(few, steps + 2, steps), *others)


def _guided_ig(case: Case) -> Row:
    steps = max(2, case.scale.steps // 2)
    # From black, pooling layers would see ties between pixels that did not move yet, which rounding decides.
    key = noise.fold(torch.zeros(1, dtype=torch.int64), "start")
    start = noise.uniform(key, tuple(case.images.shape[1:]), torch.float32)
    rule = rs.GuidedIntegratedGradients(steps, fraction=0.25, max_dist=0.02, baseline=start.to(case.images))
    return _attribution(case, rule, _passes(case, steps + 1, steps), peers.pair_guided_ig(case, rule, start[0]))


def _two_gradients(case: Case, method: rs.Attributor, shared: int) -> Row:
    """Two gradients of one forward pass per point; a forward pass per walk and image, and `shared` (references)."""

    def needed(result: rs.Attribution) -> Passes:
        steps, walks = int(result.steps.sum()), int((~result.confidence[..., 0].isnan()).sum())
        return Passes(steps + walks + len(case.images) + shared, 2 * steps)

    return _attribution(case, method, needed)


def _credible_path(case: Case) -> Row:
    quarter = max(1, case.scale.steps // 4)
    return _attribution(case.fewer, rs.CrediblePath(steps=3 * quarter, max_search=quarter), reported)


# Attributors whose gradient passes round.


def ranks_apart(ours: rs.Attribution, theirs: rs.Attribution) -> float:
    """Return 1 - Spearman's rank correlation of two sets of heatmaps, averaged over images."""
    return 1 - float(spearman(ours.heatmap(), theirs.heatmap()).mean())


def _rounded(row: Row, case: Case, to: Any, most: float, *others: Peer) -> Row:
    """Return a row with rounded gradient passes, beside the same in full precision."""

    def call() -> rs.Attribution:
        case.classifier.gradient_dtype = to
        try:
            return row.call()
        finally:
            case.classifier.gradient_dtype = None

    full = Peer("full precision", row.call, row.images, ranks_apart, most)
    settings = f"{row.settings}, {str(to).removeprefix('torch.')}"
    return replace(row, settings=settings, call=call, peers=(full, *(others or row.peers[:1])))


# Perturbations.


def _perturbed(case: Case, perturbation: rs.Perturbation, needed: Needed | None, *others: Peer) -> Row:
    def call() -> Any:
        return perturbation(case.classifier, case.images, case.target, seed=case.seeds, return_info="search")

    return Row(repr(perturbation), len(case.images), call, needed, None, others)


def _steps(case: Case) -> int:
    return max(2, case.scale.steps // 4)


def _pgd(case: Case, *, adapted: bool = False) -> Row:
    arguments = {"eps": EPS, "alpha": EPS / 2, "steps": _steps(case), "random_start": False}
    ours = rs.TorchAttack("PGD", arguments) if adapted else rs.PGD(EPS, EPS / 2, _steps(case), random_start=False)
    steps = _steps(case)
    return _perturbed(case, ours, _passes(case, steps, steps), peers.attack(case, ours, "PGD", **arguments))


def _fgsm(case: Case) -> Row:
    return _perturbed(case, rs.FGSM(EPS), _passes(case, 1, 1), peers.attack(case, rs.FGSM(EPS), "FGSM", eps=EPS))


def _one_path(case: Case) -> rs.Sigma:
    return replace(walk(case), paths=1)


def _mixture(case: Case) -> Row:
    parts = (rs.GaussianNoise(0.1), rs.FGSM(EPS), rs.SigmaSample(_one_path(case)))
    return _perturbed(case, rs.Mixture(tuple(rs.MixtureComponent(part, 0.25) for part in parts)), None)


# Metrics: an attribution is given, and its own passes do not count.

_RANDOM = rs.IntegratedGradients(2, baseline="gaussian")


def _explained(case: Case) -> rs.Attribution:
    return _RANDOM(case.classifier, case.images, case.target, seed=case.seeds)


def _with_subject(case: Case, evaluate: Callable[[metrics.MetricContext], Any]) -> Callable[[], Any]:
    """Return a call that makes a subject, with a pass of each image, and evaluates on it."""
    masks = torch.zeros(len(case.images), *case.images.shape[2:], device=case.device)
    masks[:, : masks.shape[1] // 2] = 1

    def call() -> Any:
        return evaluate(metrics.MetricContext(case.classifier, case.images, case.target, masks=masks, seed=case.seeds))

    return call


def _metric(case: Case, metric: metrics.AttributionMetric, forwards: int = 0) -> Row:
    """Return the row of a metric that needs `forwards` forward passes per image beside that of the image itself."""
    few, attribution = case.fewer, _explained(case.fewer)
    call = _with_subject(few, lambda subject: metric(subject, attribution))
    return Row(repr(metric), len(few.images), call, _passes(few, forwards + 1))


def _insertion_deletion(case: Case) -> Row:
    pixels = case.scale.size**2
    step = -(-pixels // 14)
    return _metric(case, metrics.InsertionDeletion(step=step), 2 * (-(-pixels // step) + 1))


def _pic(case: Case) -> Row:
    metric = metrics.PerformanceInformation(min_confidence=0.0)
    case = _losing(case, metric)
    row = _metric(case, metric, len(metric.thresholds) + 2)
    heatmaps = _explained(case.fewer).heatmap().double()
    return replace(row, peers=(peers.pair_pic(case.fewer, metric, heatmaps),))


def _losing(case: Case, metric: metrics.PerformanceInformation) -> Case:
    """Return the case with the classes that lose most by the blur: all skip an image whose class gains."""
    ends = metric._ends(metrics.MetricContext(case.classifier, case.images, case.target, seed=case.seeds))
    pairs = zip(ends.images, ends.drawn, strict=True)
    blurred = np.stack([interpolate_masked(image, drawn, metric.interpolation) for image, drawn in pairs])
    starts = torch.as_tensor(blurred).permute(0, 3, 1, 2).to(case.images) / 255
    with torch.inference_mode():
        lost = case.plain(case.images).softmax(1) - case.plain(starts).softmax(1)
    return replace(case, target=lost.argmax(1).clone())


def _sensitivity_n(case: Case) -> Row:
    metric = metrics.SensitivityN(subsets=3)
    return _metric(case, metric, 3 * len(metric.fractions))


def _infidelity(case: Case) -> Row:
    metric = metrics.Infidelity(samples=8)
    other = peers.captum_infidelity(case.fewer, metric, _explained(case.fewer).values)
    return replace(_metric(case, metric, 8), peers=(other,))


def _stability(case: Case) -> Row:
    few, attribution = case.fewer, _explained(case.fewer)
    call = _with_subject(few, lambda subject: metrics.stability(subject, _RANDOM, attribution))
    return Row(f"stability({_RANDOM!r})", len(few.images), call)


def _randomization(case: Case) -> Row:
    """The passes are those of a copy of the classifier, so that they are not counted."""
    few, attribution = case.fewer, _explained(case.fewer)
    shuffled = metrics.shuffle_parameters(few.classifier, 0)

    def evaluate(subject: metrics.MetricContext) -> Any:
        return metrics.randomization(subject, shuffled, _RANDOM, attribution, seed=few.seeds)

    return Row(f"randomization({_RANDOM!r})", len(few.images), _with_subject(few, evaluate), _passes(few, 5, 2))


def _rounded_ig(case: Case, to: Any) -> Row:
    captum = peers.in_tf32(peers.captum_ig(case.fewer, rs.IntegratedGradients(case.scale.steps)))
    others = (captum,) if to == "tf32" else ()
    return _rounded(_ig(case), case.fewer, to, 0.05 if to == "tf32" else 0.3, *others)


ROWS: dict[str, Callable[[Case], Row]] = {
    "SIGMA": _sigma,
    "IG": _ig,
    "Left-IG": lambda c: _straight(c, rs.LeftIntegratedGradients),
    "IDG": lambda c: _straight(c, rs.IDG, c.scale.steps - 1),
    "EG": lambda c: _attribution(c.fewer, rs.ExpectedGradients(2 * c.scale.steps), reported),
    "Guided-IG": _guided_ig,
    "IG2": lambda c: _two_gradients(c.fewer, rs.IG2(steps=_steps(c)), 4),
    "AGI": lambda c: _two_gradients(c.fewer, rs.AGI(steps=_steps(c), classes=4), 0),
    "CrediblePath": _credible_path,
    "AttentionRollout": lambda c: _attribution(c, rs.AttentionRollout(), _passes(c, 1)),
    "Gradient": lambda c: _attribution(c, rs.Gradient(), _passes(c, 1, 1)),  # ours also checks the logits with a pass
    "Random": lambda c: _attribution(c, rs.RandomAttribution(), _passes(c, 0)),  # likewise
    "IG-tf32": lambda c: _rounded_ig(c, "tf32"),
    "SIGMA-tf32": lambda c: _rounded(_sigma(c), c, "tf32", 0.5),
    "Guided-IG-bfloat16": lambda c: _rounded(_guided_ig(c), c, torch.bfloat16, 0.9),
    "IG-bfloat16": lambda c: _rounded_ig(c, torch.bfloat16),
    "SIGMA-bfloat16": lambda c: _rounded(_sigma(c), c, torch.bfloat16, 0.5),
    "FGSM": _fgsm,
    "N-FGSM": lambda c: _perturbed(c, rs.NFGSM(EPS), _passes(c, 1, 1)),
    "PGD": _pgd,
    # Within a radius that misleads no network: images that are misled leave these attacks.
    "Square": lambda c: _perturbed(c, rs.Square(TINY, _steps(c)), _passes(c, 1 + _steps(c))),
    "APGD": lambda c: _perturbed(c, rs.APGD(TINY, steps=_steps(c)), _passes(c, 2 + _steps(c), _steps(c))),
    "FAB": lambda c: _perturbed(c, rs.FAB(TINY, steps=_steps(c), targets=1), _passes(c, 1 + 2 * _steps(c), _steps(c))),
    "FMN": lambda c: _perturbed(c, rs.FMN(steps=_steps(c)), _passes(c, _steps(c), _steps(c))),
    "SigmaSample": lambda c: _perturbed(
        c, rs.SigmaSample(_one_path(c)), _passes(c, 1 + 3 * c.scale.walk), peers.spsa(c, EPS)
    ),
    "PathEnd": lambda c: _perturbed(c, rs.PathEnd(_one_path(c)), _passes(c, 1 + 3 * c.scale.walk, c.scale.walk)),
    "Mixture": _mixture,
    "TorchAttack": lambda c: _pgd(c, adapted=True),
    "Identity": lambda c: _perturbed(c, rs.Identity(), _passes(c, 0)),
    "GaussianNoise": lambda c: _perturbed(c, rs.GaussianNoise(0.1), _passes(c, 0)),
    "Corruption": lambda c: _perturbed(c, rs.Corruption("gaussian_blur", 3), _passes(c, 0)),
    "InsertionDeletion": _insertion_deletion,
    "SIC-AIC": _pic,
    "SensitivityN": _sensitivity_n,
    "Infidelity": _infidelity,
    "Stability": _stability,
    "Randomization": _randomization,
    "Localization": lambda c: _metric(c, metrics.Localization()),
    "CompletenessGap": lambda c: _metric(c, metrics.CompletenessGap()),
    "RelativeStderr": lambda c: _metric(c, metrics.RelativeStandardError()),
    "Cost": lambda c: _metric(c, metrics.Cost()),
}
