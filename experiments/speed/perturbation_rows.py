"""Every perturbation, with the passes that it needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from experiments.speed import peers
from experiments.speed.attributor_rows import walk
from experiments.speed.nets import Case
from experiments.speed.passes import Passes
from experiments.speed.rows import Row
from robustsigma import (
    FGSM,
    NFGSM,
    PGD,
    Corruption,
    GaussianNoise,
    Identity,
    Mixture,
    PathEnd,
    Perturbation,
    Share,
    SigmaSample,
    SquareSearch,
    TorchAttack,
)
from robustsigma.engine.perturbations import Perturbed

EPS = 8 / 255
_NONE = Passes()


def _row(case: Case, perturbation: Perturbation, needed: Passes | None, *others: peers.Peer) -> Row:
    def call() -> Perturbed:
        return perturbation.apply(case.classifier, case.images, case.target, seed=case.seeds)

    passes = None if needed is None else lambda _: needed
    return Row(repr(perturbation), len(case.images), call, passes, None, others)


def _steps(case: Case) -> int:
    return max(2, case.scale.steps // 4)


def fgsm(case: Case) -> Row:
    """One gradient."""
    count = len(case.images)
    same = FGSM(EPS)
    return _row(case, same, Passes(count, count), peers.attack(case, same, "FGSM", eps=EPS))


def n_fgsm(case: Case) -> Row:
    """One gradient."""
    return _row(case, NFGSM(EPS), Passes(len(case.images), len(case.images)))


def pgd(case: Case) -> Row:
    """A gradient a step."""
    steps = _steps(case)
    count = len(case.images) * steps
    same = PGD(EPS, EPS / 2, steps, random_start=False)
    other = peers.attack(case, same, "PGD", eps=EPS, alpha=EPS / 2, steps=steps, random_start=False)
    return _row(case, same, Passes(count, count), other)


def square_search(case: Case) -> Row:
    """A forward pass a query."""
    queries = _steps(case)
    return _row(case, SquareSearch(EPS, queries), Passes(len(case.images) * queries, 0))


def sigma_sample(case: Case) -> Row:
    """Three forward passes a step, and one at the start."""
    sample = SigmaSample(replace(walk(case), paths=1))
    count = len(case.images)
    return _row(case, sample, Passes(count * (1 + 3 * case.scale.walk), 0), peers.spsa(case, EPS))


def path_end(case: Case) -> Row:
    """Those of its attributor: of SIGMA with one path."""
    count, steps = len(case.images), case.scale.walk
    return _row(case, PathEnd(replace(walk(case), paths=1)), Passes(count * (1 + 3 * steps), count * steps))


def mixture(case: Case) -> Row:
    """Those of its parts, each for its share."""
    parts = (GaussianNoise(0.1), FGSM(EPS), SigmaSample(replace(walk(case), paths=1)))
    return _row(case, Mixture(tuple(Share(part, 0.25) for part in parts)), None)


def adapted(case: Case) -> Row:
    """Torchattacks' PGD through the adapter, and torchattacks' PGD itself."""
    steps = _steps(case)
    arguments = {"eps": EPS, "alpha": EPS / 2, "steps": steps, "random_start": False}
    count = len(case.images) * steps
    same = TorchAttack("PGD", arguments)
    return _row(case, same, Passes(count, count), peers.attack(case, same, "PGD", **arguments))


ROWS: dict[str, Callable[[Case], Row]] = {
    "FGSM": fgsm,
    "N-FGSM": n_fgsm,
    "PGD": pgd,
    "SquareSearch": square_search,
    "SigmaSample": sigma_sample,
    "PathEnd": path_end,
    "Mixture": mixture,
    "TorchAttack": adapted,
    "Identity": lambda case: _row(case, Identity(), _NONE),
    "GaussianNoise": lambda case: _row(case, GaussianNoise(0.1), _NONE),
    "Corruption": lambda case: _row(case, Corruption("gaussian_blur", 3), _NONE),
}
