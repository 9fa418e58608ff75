"""A deliberately broken model is flagged in the cells that its fault concerns, and a plain one is not."""

import io
import json

import pytest
from rich.console import Console

from robustsigma import FGSM, PGD, GaussianNoise, Identity, Sigma, SigmaSample
from robustsigma.data import Digits
from robustsigma.evaluation import Checks, Evaluation, Training, run_study
from robustsigma.models import Architecture

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

GRADIENT = ("fgsm/adaptive", "pgd/adaptive")
EVERY = (*GRADIENT, "sigma/adaptive")
WORST = ("worst/all", "worst/L\u221e 0.1")
PLAIN = ("clean", "noise")
WALK = SigmaSample(Sigma(objective="logit", alpha=0.3, beta=0.3, epsilon=0.2, paths=1, max_steps=100))


CONDITIONS = {
    "clean": Identity(),
    "noise": GaussianNoise(0.1),
    "fgsm": FGSM(0.1),
    "pgd": PGD(0.1, steps=10),
    "sigma": WALK,
}


def _run(model, out):
    """Return the results, the codes of each cell, and the report, as one text, of an evaluation."""
    settings = Evaluation(
        dataset=Digits(),
        architecture=Architecture(f"broken_models.{model}"),
        training=Training(epochs=1, batch_size=2000, lr=1e-9, weight_decay=0),  # the means are as good as they get
        conditions=CONDITIONS,
        test_images=100,
        checks=Checks(images=100, queries=60),
    )
    run_study(settings, out, console=Console(file=io.StringIO()))
    results = json.loads((out / "results.json").read_text("utf-8"))
    codes = {cell["condition"]: {flag["code"] for flag in cell["flags"]} for cell in results["cells"]}
    return results, codes, (out / "report.html").read_text("utf-8")


@pytest.mark.slow
def test_a_plain_model_has_no_flag(tmp_path):
    results, codes, page = _run("Plain", tmp_path)
    assert codes == {name: set() for name in codes}
    assert 'class="notes"' not in page
    accuracy = {cell["condition"]: cell["accuracy"]["mean"] for cell in results["cells"]}
    assert accuracy["clean"] > 0.85
    assert accuracy["pgd/adaptive"] < 0.75
    (network,) = results["networks"]
    assert (network["dead"], network["random_outputs"], network["probabilities"]) == (0, False, False)
    assert all(curve["reached"] for curve in results["curves"] if curve["condition"] == "pgd/adaptive")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "code", "concerned", "reason"),
    [
        ("Thresholded", "zero_gradient", GRADIENT, "loss gradients are zero or not finite"),
        ("Saturated", "zero_gradient", GRADIENT, "loss gradients are zero or not finite"),
        ("Shattered", "masked", GRADIENT, "A search without gradients finds significantly more errors"),
        ("Randomized", "random_outputs", PLAIN, "Two equal passes give different logits"),
        ("BatchStatistics", "batch_dependent", (*PLAIN, *EVERY), "depend on the other images of its batch"),
        ("Probabilities", "probabilities", EVERY, "returns probabilities, not logits"),
    ],
)
def test_a_broken_model_is_flagged_for_its_own_reason(tmp_path, model, code, concerned, reason):
    _, codes, page = _run(model, tmp_path)
    worst = WORST if {*concerned} & {*EVERY} else ()  # a worst case has the flags of its attacks
    assert {name for name, found in codes.items() if code in found} == {*concerned, *worst}
    others = {"zero_gradient", "random_outputs", "probabilities", "batch_dependent"} - {code}
    assert not any(found & others for found in codes.values())
    not_evaluated = {name for name, found in codes.items() if "not_evaluated" in found}
    assert not_evaluated == ({*EVERY, *WORST} if model == "Randomized" else set())
    assert f"<b>{code}</b>" in page
    assert reason in page
