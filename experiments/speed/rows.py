"""The rows: attributors, perturbations and metrics, with the passes that their formulas need, and peers."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch

import robustsigma as rs
from experiments.speed import peers
from experiments.speed.networks import Case, Cost, Limit, Passes, counted, seconds
from experiments.speed.peers import Peer
from robustsigma.engine import metrics, noise

EPS = 8 / 255


@dataclass(frozen=True)
class Row:
    """A call that is timed.

    Args:
        settings: settings of the call, for people.
        images: number of images of the call.
        call: the call.
        needed: (forward, backward) passes of an image that the formula needs, as a function of the result; None takes
            those that are made.
        peers: other libraries' calls of the same.
    """

    settings: str
    images: int
    call: Callable[[], Any]
    needed: Callable[[Any], tuple[float, float]] | None = None
    peers: tuple[Peer, ...] = ()


def summary(values: Iterable[float]) -> dict[str, float]:
    """Return the median and the extremes of repeats."""
    found = list(values)
    return {"median": statistics.median(found), "low": min(found), "high": max(found)}


def measure(row: Row, case: Case, limit: Limit, repeats: int) -> dict[str, Any]:
    """Return the row's passes, its efficiency and its peers' times in turns, and how far their results differ."""
    with counted(case.classifier) as made:
        result = row.call()
    needed = made if row.needed is None else Passes(*(row.images * each for each in row.needed(result)))
    deviations = [float(peer.deviation(result, _quiet(peer))) for peer in row.peers]
    efficiency: list[float] = []
    ratios: list[list[float]] = [[] for _ in row.peers]
    for _ in range(repeats):
        before = limit.sample()
        time = seconds(row.call, limit.least)
        cost = Cost(*map(statistics.fmean, zip(before, limit.sample(), strict=True)))
        efficiency.append(cost.of(needed) / time)
        for peer, found in zip(row.peers, ratios, strict=True):
            found.append(seconds(lambda peer=peer: _quiet(peer)) / peer.images / (time / row.images))
    return {
        "settings": row.settings,
        "images": row.images,
        "passes": needed.per(row.images),
        "counted": made.per(row.images),
        "efficiency": summary(efficiency),
        "peers": [
            {"name": peer.name, "images": peer.images, "times_ours": summary(ratio), "per": "image",
             "deviation": deviation, "tolerance": peer.tolerance, "agrees": deviation <= peer.tolerance}
            for peer, ratio, deviation in zip(row.peers, ratios, deviations, strict=True)
        ],
    }  # fmt: skip


def _quiet(peer: Peer) -> Any:
    """Call a peer without its own warnings; the global generators are restored."""
    devices = range(torch.cuda.device_count())
    with warnings.catch_warnings(), torch.random.fork_rng(devices):
        warnings.simplefilter("ignore")
        return peer.call()


def _attribution(case: Case, method: rs.Attributor, *others: Peer, needed: tuple[float, float] | None = None) -> Row:
    def call() -> rs.Attribution:
        return method(case.classifier, case.images, case.target, seed=case.seeds)

    return Row(repr(method), len(case.images), call, None if needed is None else lambda _: needed, others)


def _walk(case: Case, paths: int = 7) -> rs.Sigma:
    """Return SIGMA's walk with a fixed number of steps: its epsilon is out of reach."""
    fixed = {"epsilon": 1e-30, "patience": 1000, "paths": paths, "max_steps": case.scale.walk}
    return rs.Sigma(alpha=0.01, beta=0.1, objective="logit", **fixed)


def _sigma(case: Case) -> Row:
    rule = _walk(case)

    def needed(result: rs.Attribution) -> tuple[float, float]:  # a step: two probes, the new point and its gradient
        steps = float(result.steps.sum()) / len(case.images)
        return 3 * steps + 1, steps

    return replace(_attribution(case, rule, peers.sigma_one_by_one(case, rule)), needed=needed)


def _straight(case: Case, kind: Callable[[int], rs.Attributor], between: int = 0, *others: Peer) -> Row:
    """A gradient per point; the scores of both ends, and `between` scores between the points."""
    steps = case.scale.steps
    return _attribution(case, kind(steps), *others, needed=(steps + 2 + between, steps))


def _guided_ig(case: Case) -> Row:
    steps = case.scale.steps // 2
    # From black, pooling layers would see ties between pixels that did not move yet, which rounding decides.
    key = noise.fold(torch.zeros(1, dtype=torch.int64), "start")
    start = noise.uniform(key, tuple(case.images.shape[1:]), torch.float32)
    rule = rs.GuidedIntegratedGradients(steps, fraction=0.25, max_dist=0.02, baseline=start.to(case.images))
    return _attribution(case, rule, peers.pair_guided_ig(case, rule, start[0]), needed=(steps + 1, steps))


def _perturbed(case: Case, perturbation: rs.Perturbation, forwards: float, backwards: float = 0, *others: Peer) -> Row:
    def call() -> Any:
        return perturbation(case.classifier, case.images, case.target, seed=case.seeds, return_info="search")

    return Row(repr(perturbation), len(case.images), call, lambda _: (forwards, backwards), others)


def _counted(case: Case, attack: rs.Perturbation) -> Row:
    """Return the row of an attack that images leave when they are misled: the passes are those that it counts."""
    needed = lambda info: (float(info.forwards.mean()), float(info.backwards.mean()))  # noqa: E731
    return replace(_perturbed(case, attack, 0), needed=needed)


def _steps(case: Case) -> int:
    return max(2, case.scale.steps // 4)


def _pgd(case: Case, *, adapted: bool = False) -> Row:
    arguments = {"eps": EPS, "alpha": EPS / 2, "steps": _steps(case), "random_start": False}
    ours = rs.TorchAttack("PGD", arguments) if adapted else rs.PGD(EPS, EPS / 2, _steps(case), random_start=False)
    return _perturbed(case, ours, _steps(case), _steps(case), peers.attack(case, ours, "PGD", **arguments))


def _metric(case: Case, metric: metrics.AttributionMetric, forwards: int) -> Row:
    """Return the row of a metric that needs `forwards` forward passes per image; the attribution's do not count."""
    values = rs.IntegratedGradients(2)(case.classifier, case.images, case.target)

    def call() -> Any:
        return metric(metrics.MetricContext(case.classifier, case.images, case.target, seed=case.seeds), values)

    return Row(repr(metric), len(case.images), call, lambda _: (forwards, 0))


def _removal(case: Case, kind: Callable[..., metrics.AttributionMetric]) -> Row:
    """Return the row of a metric of two curves with 15 points each."""
    return _metric(case, kind(step=-(-(case.scale.size**2) // 14)), 31)


def _pic(case: Case) -> Row:
    metric = metrics.PerformanceInformation(min_confidence=0.0)
    return _metric(case, metric, len(metric.thresholds) + 3)


ROWS: dict[str, Callable[[Case], Row]] = {
    "SIGMA": _sigma,
    "IG": lambda c: _straight(c.fewer, rs.IntegratedGradients, 0, peers.captum_ig(c.fewer, c.scale.steps)),
    "Left-IG": lambda c: _straight(c.fewer, rs.LeftIntegratedGradients),
    "IDG": lambda c: _straight(c.fewer, rs.IDG, c.scale.steps - 1),
    "EG": lambda c: _attribution(c.fewer, rs.ExpectedGradients(2 * c.scale.steps)),
    "Guided-IG": _guided_ig,
    "IG2": lambda c: _attribution(c.fewer, rs.IG2(steps=_steps(c))),
    "AGI": lambda c: _attribution(c.fewer, rs.AGI(steps=_steps(c), classes=4)),
    "CrediblePath": lambda c: _attribution(c.fewer, rs.CrediblePath(steps=3 * _steps(c), max_search=_steps(c))),
    "AttentionRollout": lambda c: _attribution(c, rs.AttentionRollout()),  # of a ViT alone
    "Gradient": lambda c: _attribution(c, rs.Gradient(), needed=(1, 1)),  # ours also checks the logits with a pass
    "InputXGradient": lambda c: _attribution(c, rs.InputXGradient(), needed=(1, 1)),
    "SmoothGrad": lambda c: _attribution(c.fewer, rs.SmoothGrad(samples=c.scale.steps), needed=(c.scale.steps,) * 2),
    "BlurIG": lambda c: _straight(c.fewer, rs.BlurIG),
    "SIG": lambda c: _straight(c.fewer, rs.SIG),
    "IDGI": lambda c: _straight(c.fewer, lambda steps: rs.IDGI(rs.IntegratedGradients(steps))),
    "AttentionAttribution": lambda c: _attribution(c, rs.AttentionAttribution(), needed=(1, 1)),  # of a ViT alone
    "LeGrad": lambda c: _attribution(c, rs.LeGrad(), needed=(1, 1)),  # of a ViT alone
    "AttributionMasked": lambda c: _perturbed(c, rs.AttributionMasked(rs.FGSM(EPS)), 2, 2),
    "FGSM": lambda c: _perturbed(c, rs.FGSM(EPS), 1, 1, peers.attack(c, rs.FGSM(EPS), "FGSM", eps=EPS)),
    "N-FGSM": lambda c: _perturbed(c, rs.NFGSM(EPS), 1, 1),
    "PGD": _pgd,
    "Square": lambda c: _perturbed(c, rs.Square(EPS, _steps(c)), _steps(c)),
    "APGD": lambda c: _counted(c, rs.APGD(EPS, steps=_steps(c))),
    "FAB": lambda c: _counted(c, rs.FAB(EPS, steps=_steps(c), targets=1)),
    "FMN": lambda c: _counted(c, rs.FMN(steps=_steps(c))),
    "AutoAttack": lambda c: _counted(c, rs.AutoAttack(EPS, steps=_steps(c), queries=_steps(c))),
    "SigmaSample": lambda c: _perturbed(c, rs.SigmaSample(_walk(c, 1)), 1 + 3 * c.scale.walk),
    "PathEnd": lambda c: _perturbed(c, rs.PathEnd(_walk(c, 1)), 1 + 3 * c.scale.walk, c.scale.walk),
    "TorchAttack": lambda c: _pgd(c, adapted=True),
    "InsertionDeletion": lambda c: _removal(c.fewer, metrics.InsertionDeletion),
    "LeRF-MoRF": lambda c: _removal(c.fewer, metrics.LerfMorf),
    "MAS": lambda c: _removal(c.fewer, metrics.MagnitudeAlignedScore),
    "DiffID": lambda c: _metric(c.fewer, metrics.DiffID(), 19),
    "Monotonicity": lambda c: _metric(c.fewer, metrics.Monotonicity(groups=16), 17),
    "SIC-AIC": lambda c: _pic(c.fewer),
    "SensitivityN": lambda c: _metric(c.fewer, metrics.SensitivityN((0.1, 0.5), subsets=8), 17),
    "Infidelity": lambda c: _metric(c.fewer, metrics.Infidelity(samples=8), 9),
}
