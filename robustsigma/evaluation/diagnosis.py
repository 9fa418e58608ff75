"""Further attacks on one model, whose answers tell whether to believe the cells of the matrix."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from robustsigma.engine import noise
from robustsigma.engine.checks import Soundness, inspect_classifier
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.perturbations import FGSM, PGD, GaussianNoise, Perturbation, Square
from robustsigma.evaluation.outcomes import Outcomes
from robustsigma.evaluation.settings import Checks, describe
from robustsigma.evaluation.threat import LINF, ball, step_size
from robustsigma.files import read_arrays, write_atomically

Right = NDArray[np.bool_]
TWICE, NOISE, SEARCH = "twice", "noise", "search"
_BELOW = (0.25, 0.5)


@dataclass(frozen=True)
class Curve:
    """Right answers of one attack over its radius.

    Attributes:
        eps: (E,) increasing; the first is 0, untouched images.
        right: (E, n).
        most: radius of a ball that holds every image.
    """

    eps: NDArray[np.float64]
    right: Right
    most: float


@dataclass(frozen=True)
class AttackCheckResults:
    """What was found on one model.

    Attributes:
        rows: (n,) which images of the outcomes these are.
        soundness: of the network.
        right: (n,) answers by what was done: `TWICE`, `NOISE` or `SEARCH`, and the id of a condition.
        curves: by the id of a condition.
        classes: how many there are.
    """

    rows: NDArray[np.int64]
    soundness: Soundness
    right: Mapping[tuple[str, str], Right]
    curves: Mapping[str, Curve]
    classes: int

    def write(self, path: Path, checks: Checks) -> None:
        """Write an .npz file in one step."""
        arrays: dict[str, NDArray[np.generic]] = {"rows": self.rows}
        arrays |= {f"right|{kind}|{name}": right for (kind, name), right in self.right.items()}
        for name, curve in self.curves.items():
            most = np.array(curve.most)
            arrays |= {f"eps|{name}": curve.eps, f"most|{name}": most, f"curve|{name}": curve.right}
        said = {"checks": describe(checks), "soundness": dataclasses.asdict(self.soundness), "classes": self.classes}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, said=np.array(json.dumps(said)), **arrays)  # type: ignore[arg-type]
        write_atomically(path, buffer.getvalue())

    @staticmethod
    def read(path: Path, checks: Checks) -> AttackCheckResults | None:
        """Read what `write` wrote, or return None if that is not there or was of other checks."""
        if not path.is_file():
            return None
        found = read_arrays(path)
        said = json.loads(str(found.pop("said")))
        if said["checks"] != describe(checks):
            return None
        right, curves = {}, {}
        for key, values in found.items():
            kind, _, name = key.partition("|")
            if kind == "right":
                what, _, condition = name.partition("|")
                right[what, condition] = values
            elif kind == "curve":
                curves[name] = Curve(found[f"eps|{name}"], values, float(found[f"most|{name}"]))
        return AttackCheckResults(found["rows"], Soundness(**said["soundness"]), right, curves, said["classes"])


@dataclass(frozen=True)
class AttackChecks:
    """One model and the images that it is examined on.

    Args:
        classifier: the model.
        images: (n, C, H, W), on its device.
        labels: (n,).
        indices: (n,) places in the test split: an attack starts from the same random point as in the matrix.
        rows: (n,) places in the outcomes.
        attacks: conditions made against the model, by their ids.
        outcomes: of the model, by the ids of the conditions.
        clean: id of the condition of untouched images.
        classes: how many there are.
    """

    classifier: Classifier
    images: Tensor
    labels: Tensor
    indices: Tensor
    rows: NDArray[np.int64]
    attacks: Mapping[str, Perturbation]
    outcomes: Mapping[str, Outcomes]
    clean: str
    classes: int

    def run(self, checks: Checks, step: Callable[[int, int], None]) -> AttackCheckResults:
        """Make every check that is asked for, and tell how many of them are done."""
        right: dict[tuple[str, str], Right] = {}
        curves: dict[str, Curve] = {}
        single = list(self._single(checks))
        curved = [(name, p) for name, p in self.attacks.items() if isinstance(p, (FGSM, PGD))] if checks.curves else []
        total = 1 + len(single) + len(curved)
        soundness = inspect_classifier(self.classifier, self.images, self.labels)
        step(1, total)
        for done, (kind, name, perturbation) in enumerate(single, 2):
            right[kind, name] = self._right(perturbation, name)
            step(done, total)
        for done, (name, attack) in enumerate(curved, 2 + len(single)):
            curves[name] = self._curve(name, attack)
            step(done, total)
        return AttackCheckResults(self.rows, soundness, right, curves, self.classes)

    def _single(self, checks: Checks) -> Iterator[tuple[str, str, Perturbation]]:
        searched: dict[float, str] = {}
        for name, attack in self.attacks.items():
            if checks.convergence and isinstance(attack, PGD) and attack.eps > 0:
                # The same step size and start: the first half of the way is the way of the matrix.
                longer = dataclasses.replace(attack, steps=2 * attack.steps, step_size=step_size(attack))
                yield TWICE, name, longer
            size = float(self.outcomes[name].rmse.mean())
            if checks.noise and size > 0:
                yield NOISE, name, GaussianNoise(size)
            bounded = ball(attack)
            if checks.queries and bounded and bounded[0] == LINF and searched.setdefault(bounded[1], name) == name:
                yield SEARCH, name, Square(bounded[1], checks.queries)

    def _right(self, perturbation: Perturbation, name: str) -> Right:
        seeds = noise.image_seeds(0, "test", name, 0, self.indices)
        made = perturbation(self.classifier, self.images, self.labels, seed=seeds)
        with self.classifier.frozen():
            found: Right = (self.classifier.logits(made).argmax(1) == self.labels).cpu().numpy()
        return found

    def _known(self, name: str) -> Right:
        return self.outcomes[name].correct[self.rows] > 0

    def _curve(self, name: str, attack: FGSM | PGD) -> Curve:
        found = {0.0: self._known(self.clean), attack.eps: self._known(name)}
        for share in _BELOW:
            found[share * attack.eps] = self._right(_scaled(attack, share), name)
        most = self._all(attack)
        for eps in radii(attack.eps, most):
            if max(found) < eps:
                if found[max(found)].mean() <= 1 / self.classes:
                    break
                found[eps] = self._right(_scaled(attack, eps / attack.eps), name)
        order = sorted(found)
        return Curve(np.array(order), np.stack([found[eps] for eps in order]), most)

    def _all(self, attack: FGSM | PGD) -> float:
        """Return the radius of a ball that holds every image."""
        bounded = ball(attack)
        return 1.0 if bounded is None or bounded[0] == LINF else float(self.images[0].numel()) ** 0.5


def radii(eps: float, most: float) -> list[float]:
    """Return eps and its doubles, the last of them cut to `most`."""
    found = [min(eps, most)]
    while 0 < found[-1] < most:
        found.append(min(2 * found[-1], most))
    return found


def _scaled(attack: FGSM | PGD, by: float) -> FGSM | PGD:
    if isinstance(attack, PGD) and attack.step_size is not None:
        return dataclasses.replace(attack, eps=by * attack.eps, step_size=by * attack.step_size)
    return dataclasses.replace(attack, eps=by * attack.eps)
