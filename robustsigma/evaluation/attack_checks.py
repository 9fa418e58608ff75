"""Further attacks on one model, which show how far the attacks of the matrix can be believed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from robustsigma.engine.checks import Soundness, inspect_classifier
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.perturbations import FGSM, PGD, GaussianNoise, Perturbation, Square
from robustsigma.evaluation.outcomes import Outcomes
from robustsigma.evaluation.settings import Checks
from robustsigma.evaluation.threat_model import LINF, ball, minimum_norm, step_size
from robustsigma.runs.files import read_arrays, write_arrays
from robustsigma.runs.fingerprint import describe

Mask = NDArray[np.bool_]
DOUBLE_STEPS, NOISE, SEARCH = "double_steps", "noise", "search"
_NETWORK_IMAGES = 32  # at most, on which the network is looked at where attacks are not checked
_FRACTIONS = (0.25, 0.5)  # of an attack's eps, at which its curve begins


@dataclass(frozen=True)
class AttackCurve:
    """Correct predictions under one attack over its radius.

    Attributes:
        eps: (E,) increasing; the first is 0, clean images.
        correct: (E, n).
        max_eps: radius of a ball that includes every image.
    """

    eps: NDArray[np.float64]
    correct: Mask
    max_eps: float


@dataclass(frozen=True)
class AttackCheckResults:
    """Results of the checks of one model.

    Attributes:
        rows: (n,) which rows of the outcomes the images are.
        soundness: soundness of the network.
        correct: (n,) correct predictions by the kind of check (`DOUBLE_STEPS`, `NOISE` or `SEARCH`) and the id of the
            condition.
        curves: by the id of the condition.
        classes: number of classes.
        of_attacks: whether attacks were checked, and not the network alone.
    """

    rows: NDArray[np.int64]
    soundness: Soundness
    correct: Mapping[tuple[str, str], Mask]
    curves: Mapping[str, AttackCurve]
    classes: int
    of_attacks: bool = True

    def write(self, path: Path, checks: Checks) -> None:
        """Write an .npz file in one step."""
        arrays: dict[str, NDArray[np.generic]] = {"rows": self.rows}
        arrays |= {f"correct|{kind}|{name}": correct for (kind, name), correct in self.correct.items()}
        for name, curve in self.curves.items():
            most = np.array(curve.max_eps)
            arrays |= {f"eps|{name}": curve.eps, f"max_eps|{name}": most, f"curve|{name}": curve.correct}
        info = {"checks": describe(checks), "soundness": dataclasses.asdict(self.soundness), "classes": self.classes}
        write_arrays(path, {"info": np.array(json.dumps(info)), **arrays})

    @staticmethod
    def read(path: Path, checks: Checks) -> AttackCheckResults | None:
        """Read an .npz file, or return None if it does not exist or was made with other checks."""
        if not path.is_file():
            return None
        found = read_arrays(path)
        info = json.loads(str(found.pop("info")))
        if info["checks"] != describe(checks):
            return None
        correct, curves = {}, {}
        for key, values in found.items():
            kind, _, name = key.partition("|")
            if kind == "correct":
                what, _, condition = name.partition("|")
                correct[what, condition] = values
            elif kind == "curve":
                curves[name] = AttackCurve(found[f"eps|{name}"], values, float(found[f"max_eps|{name}"]))
        soundness, asked = Soundness(**info["soundness"]), bool(checks.images)
        return AttackCheckResults(found["rows"], soundness, correct, curves, info["classes"], asked)


@dataclass(frozen=True)
class AttackChecks:
    """One model and the images that its attacks are checked on.

    Args:
        classifier: the model.
        images: (n, C, H, W), on its device.
        labels: (n,).
        seed: the seed of a condition, by its id: an attack starts from the same random point as in the matrix.
        rows: (n,) places in the outcomes.
        attacks: conditions made against the model, by their ids.
        outcomes: outcomes of the model, by the ids of the conditions.
        clean: id of the condition of clean images.
        classes: number of classes.
    """

    classifier: Classifier
    images: Tensor
    labels: Tensor
    seed: Callable[[str], int | Tensor]
    rows: NDArray[np.int64]
    attacks: Mapping[str, Perturbation]
    outcomes: Mapping[str, Outcomes]
    clean: str
    classes: int

    def run(self, checks: Checks, step: Callable[[int, int], None]) -> AttackCheckResults:
        """Look at the network, run every check that the settings ask for, and report to `step` how many are done."""
        correct: dict[tuple[str, str], Mask] = {}
        curves: dict[str, AttackCurve] = {}
        single = list(self._attacks(checks)) if checks.images else []
        curves_asked = checks.images and checks.curves
        curved = [(name, p) for name, p in self.attacks.items() if curves_asked and isinstance(p, (FGSM, PGD))]
        total = 1 + len(single) + len(curved)
        soundness = inspect_classifier(self.classifier, self.images, self.labels)
        step(1, total)
        for done, (kind, name, perturbation) in enumerate(single, 2):
            correct[kind, name] = self._correct(perturbation, name)
            step(done, total)
        for done, (name, attack) in enumerate(curved, 2 + len(single)):
            curves[name] = self._curve(name, attack)
            step(done, total)
        return AttackCheckResults(self.rows, soundness, correct, curves, self.classes, bool(checks.images))

    def _attacks(self, checks: Checks) -> Iterator[tuple[str, str, Perturbation]]:
        searched: dict[float, str] = {}
        for name, attack in self.attacks.items():
            if checks.convergence and isinstance(attack, PGD) and attack.eps > 0:
                # With the same step size and start, its first half is the attack of the matrix.
                longer = dataclasses.replace(attack, steps=2 * attack.steps, step_size=step_size(attack))
                yield DOUBLE_STEPS, name, longer
            size = float(self.outcomes[name].rmse.mean())
            if checks.noise and size > 0 and minimum_norm(attack) is None:
                yield NOISE, name, GaussianNoise(size)
            bounded = ball(attack)
            if checks.queries and bounded and bounded[0] == LINF and searched.setdefault(bounded[1], name) == name:
                yield SEARCH, name, Square(bounded[1], checks.queries)

    def _correct(self, perturbation: Perturbation, name: str) -> Mask:
        made = perturbation(self.classifier, self.images, self.labels, seed=self.seed(name))
        with self.classifier.frozen():
            found: Mask = (self.classifier.logits(made).argmax(1) == self.labels).cpu().numpy()
        return found

    def _curve(self, name: str, attack: FGSM | PGD) -> AttackCurve:
        clean, own = (self.outcomes[key].correct[self.rows] > 0 for key in (self.clean, name))
        found = {0.0: clean, attack.eps: own}
        for fraction in _FRACTIONS:
            found[fraction * attack.eps] = self._correct(_scaled(attack, fraction), name)
        bounded = ball(attack)
        most = 1.0 if bounded is None or bounded[0] == LINF else float(self.images[0].numel()) ** 0.5
        for eps in radii(attack.eps, most):
            if max(found) < eps:
                if found[max(found)].mean() <= 1 / self.classes:
                    break
                found[eps] = self._correct(_scaled(attack, eps / attack.eps), name)
        order = sorted(found)
        return AttackCurve(np.array(order), np.stack([found[eps] for eps in order]), most)


def checked_images(checks: Checks, batch_size: int) -> int:
    """Return on how many images at most a model is checked; its network is looked at in any case."""
    return checks.images or min(_NETWORK_IMAGES, batch_size)


def radii(eps: float, most: float) -> list[float]:
    """Return eps and its doubles; the last one is cut to `most`."""
    found = [min(eps, most)]
    while 0 < found[-1] < most:
        found.append(min(2 * found[-1], most))
    return found


def _scaled(attack: FGSM | PGD, by: float) -> FGSM | PGD:
    if isinstance(attack, PGD) and attack.step_size is not None:
        return dataclasses.replace(attack, eps=by * attack.eps, step_size=by * attack.step_size)
    return dataclasses.replace(attack, eps=by * attack.eps)
