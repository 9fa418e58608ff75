"""What the golden numbers are of: every method on fixed images, and a small run of each kind, from seeds alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

TESTS = Path(__file__).resolve().parents[1]
for folder in ("", "engine", "engine/attributors"):  # make.py has no pytest to do it
    if str(TESTS / folder) not in sys.path:
        sys.path.append(str(TESTS / folder))

import cases  # noqa: E402
import metric_cases  # noqa: E402
import settings  # noqa: E402

from robustsigma import FGSM, GaussianNoise, Gradient, Identity, IntegratedGradients, Sigma, SigmaSample  # noqa: E402
from robustsigma.benchmarking import Benchmark  # noqa: E402
from robustsigma.benchmarking.run import BenchmarkRun  # noqa: E402
from robustsigma.data import Baggage  # noqa: E402
from robustsigma.engine.metrics import InsertionDeletion, Localization, SensitivityN  # noqa: E402
from robustsigma.evaluation import Checks, Evaluation, Retraining, Training  # noqa: E402
from robustsigma.evaluation.run import RobustnessRun as EvaluationRun  # noqa: E402
from robustsigma.models import Architecture  # noqa: E402

COUNT = 2
FILE = Path(__file__).with_name("golden.npz")
COMMAND = "python tests/golden/make.py"


class Engine:
    """Runs every method on the same images, networks and seeds.

    Args:
        dtype: of images and weights.
        device: of both.
        options: of the classifier, such as `gradient_dtype`.
    """

    def __init__(self, dtype: torch.dtype = torch.float64, device: str = "cpu", **options: object) -> None:
        self.dtype, self.device, self.options = dtype, device, options
        self.images = cases.images(COUNT, dtype=dtype).to(device)
        self.labels, self.seeds = cases.labels(COUNT), cases.seeds(COUNT)

    def classifier(self, net: str) -> cases.Classifier:
        return cases.classifier(settings.network(net).to(self.dtype), **self.options).to(self.device)

    def result(self, name: str) -> dict[str, Tensor]:
        """Return a method's numbers by what they are, in float64 on the CPU."""
        part, kind, place = name.split("/")
        found = getattr(self, f"_{part}")(METHODS[part][kind][int(place)])
        return {key: value.detach().to("cpu", torch.float64) for key, value in found.items()}

    def _attributor(self, method: cases.Attributor) -> dict[str, Tensor]:
        net = self.classifier(settings.smooth_net(type(method)))
        made = method(net, self.images, self.labels, seed=self.seeds)
        return {"values": made.values, "drop": made.drop, "steps": made.steps}

    def _perturbation(self, perturbation: cases.Perturbation) -> dict[str, Tensor]:
        made = perturbation(self.classifier("mlp"), self.images, self.labels, seed=self.seeds, return_info=True)
        return {"change": made.images - self.images, "steps": made.steps}

    def _metric(self, metric: metric_cases.AttributionMetric) -> dict[str, Tensor]:
        images, labels, masks = (part.to(self.device) for part in metric_cases.scene(4, dtype=self.dtype))
        net = cases.Classifier(metric_cases.Colors().to(self.dtype), **self.options).to(self.device)
        subject = metric_cases.MetricContext(
            net, images, labels, masks=masks, seed=torch.arange(4, device=self.device) + 100
        )
        walk = Sigma(alpha=0.05, beta=0.1, epsilon=0.05, objective="logit", paths=2, max_steps=6)
        return dict(metric(subject, walk(net, images, labels, seed=torch.full_like(labels, 3))).values)


METHODS = {
    "attributor": {kind.__name__: made for kind, made in settings.CHEAP_ATTRIBUTORS.items()},
    "perturbation": {kind.__name__: made for kind, made in cases.CHEAP.items()},
    "metric": {kind.__name__: made for kind, made in metric_cases.CHEAP.items()},
}
NAMES = [
    f"{part}/{kind}/{place}"
    for part, kinds in METHODS.items()
    for kind, made in kinds.items()
    for place in range(len(made))
]


def stored(results: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Return what is kept of a method's numbers: of images, the sum over channels and the norm of each."""
    kept = {}
    for key, value in results.items():
        if value.ndim == 4:
            kept[f"{key}, norm"] = value.flatten(1).norm(dim=1).numpy()
            value = value.sum(1)
        kept[key] = value.numpy()
    return kept


_SOURCE = Baggage(size=16, train=120, val=10, test=40)
_TINY = Architecture("small_cnn", {"width": 4})
_TRAINING = Training(epochs=5, batch_size=16, lr=0.02)
_WALK = Sigma(objective="logit", alpha=0.01, beta=0.1, paths=2, max_steps=3)
EVALUATION = Evaluation(
    dataset=_SOURCE,
    architecture=_TINY,
    training=_TRAINING,
    retraining=Retraining(retrain={"sigma": SigmaSample(_WALK)}, on_the_fly={"fgsm": FGSM(0.03)}, samples=20, epochs=1),
    conditions={"clean": Identity(), "gaussian": GaussianNoise(0.1), "fgsm": FGSM(0.03), "sigma": SigmaSample(_WALK)},
    test_images=24,
    checks=Checks(images=0),
)
BENCHMARK = Benchmark(
    _SOURCE,
    methods={"SIGMA": _WALK, "IG": IntegratedGradients(steps=3), "gradient": Gradient()},
    metrics=(InsertionDeletion(step=64), SensitivityN(fractions=(0.1, 0.5), subsets=5), Localization()),
    images=5,
    checked=2,
    batch_size=3,
    architecture=_TINY,
    training=_TRAINING,
)


@contextmanager
def double_precision() -> Iterator[None]:
    """Make new networks of double precision: rounding must not decide what a training ends with."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def evaluation(folder: Path) -> dict[str, np.ndarray]:
    """Return the accuracies, every image's confidence and the sums of the weights of a small evaluation."""
    with double_precision():
        run = EvaluationRun(EVALUATION, folder, Console(quiet=True))
        run.run()
    found = {}
    for regime in run.regimes:
        weights = load_file(run.store.model(0, regime.id))
        assert {value.dtype for value in weights.values() if value.is_floating_point()} == {torch.float64}
        found[f"{regime.id}: weights"] = np.array([float(weights[key].double().sum()) for key in sorted(weights)])
        for column in run.conditions:
            outcomes = run.outcomes(0, regime.id, column.id)
            found[f"{regime.id} under {column.id}: confidences"] = outcomes.confidences.astype(np.float64)
            found[f"{regime.id} under {column.id}: accuracy"] = np.array(outcomes.correct.mean())
    return found


def benchmark(folder: Path) -> dict[str, np.ndarray]:
    """Return every value of every image of a small benchmark, NaN where it has none."""
    with double_precision():
        run = BenchmarkRun(BENCHMARK, folder, Console(quiet=True))
        run.run()
    found = {}
    for model in run.models:
        for method in run.methods:
            arrays = run.arrays(model)[method]
            values = {key.removeprefix("value/"): arrays[key] for key in arrays if key.startswith("value/")}
            found |= {f"{method}: {name}": value for name, value in values.items() if name != "seconds"}
    return found


RUNS = {"evaluation": evaluation, "benchmark": benchmark}
