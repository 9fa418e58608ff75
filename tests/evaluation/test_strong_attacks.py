"""AutoAttack and minimum-norm attacks in an evaluation: what they find, what they cost and what speaks against it."""

import dataclasses
import io

import broken_models
import cases
import numpy as np
import pytest
import torch
from broken_models import MEAN, STD
from given_case import IMAGES, LABELS
from given_case import MEAN as MEANS
from given_case import STD as STDS
from matrix_case import BASE, CLEAN, codes_of, matrix_of, outcomes_of, store, stored
from rich.console import Console

from robustsigma import (
    APGD,
    FAB,
    FGSM,
    FMN,
    PGD,
    AutoAttack,
    Classifier,
    Identity,
    Square,
    TorchAttack,
    evaluate,
)
from robustsigma.data import Baggage, Digits
from robustsigma.data.loading import load_batch
from robustsigma.evaluation import Checks, Evaluation, Training, run_study
from robustsigma.evaluation.block_evaluation import BlockEvaluation
from robustsigma.evaluation.card import robustness_card
from robustsigma.evaluation.comparison import compare
from robustsigma.evaluation.flags import cell_flags, run_flags
from robustsigma.evaluation.outcomes import Advance, measure
from robustsigma.evaluation.plan import Condition
from robustsigma.evaluation.threat_model import uses_eot
from robustsigma.models import Architecture
from robustsigma.report import page, robustness
from robustsigma.report.card import markdown

AUTO, NEAREST = AutoAttack(0.02, steps=3, queries=8), FMN("l2", steps=10)
ATTACKS = {"clean": Identity(), "AutoAttack": AUTO, "FMN": NEAREST}
OPTIONS = {"mean": MEANS, "std": STDS, "checks": None, "progress": False}
NAME = "AutoAttack/adaptive"


def _evaluate(batch_size=16, model=None, **options):
    return evaluate(model or cases.mlp(), (IMAGES, LABELS), ATTACKS, **{**OPTIONS, **options}, batch_size=batch_size)


@pytest.fixture(scope="module")
def report():
    return _evaluate()


def _cell(report, condition, model="model"):
    return next(c for c in report.results.cells if (c["regime"], c["condition"]) == (model, condition))


@pytest.mark.parametrize("batch_size", [16, 5])
def test_autoattack_finds_what_it_finds_without_an_evaluation(batch_size, report):
    found = report if batch_size == 16 else _evaluate(batch_size)
    made = AUTO(Classifier(cases.mlp(), mean=MEANS, std=STDS), IMAGES, LABELS, seed=0, return_info=True)
    outcomes = found.outcomes("model", "AutoAttack")
    assert outcomes.found_by.tolist() == made.found_by.tolist()
    assert len({*outcomes.found_by.tolist()}) >= 3, "clean errors, errors of an attack, and images that withstand"
    assert outcomes.passes.tolist() == (made.forwards + made.backwards).tolist()
    assert (outcomes.correct == 0).tolist() == made.success.tolist()
    cell = _cell(found, NAME)
    assert cell["attacks"] == AUTO.accuracies(made.found_by)
    assert cell["attacks"]["square"] == cell["accuracy"]["mean"]
    assert cell["passes"] == pytest.approx(float((made.forwards + made.backwards).mean()), rel=0.05)


def test_passes_of_every_condition_are_counted(report):
    assert [(c["condition"], c["passes"]) for c in report.results.cells if c["condition"] != NAME] == [
        ("clean", 0.0),
        ("FMN/adaptive", 20),
    ]
    assert report.outcomes("model", "clean").found_by is None


def test_an_interrupted_autoattack_resumes_by_blocks(report, tmp_path, monkeypatch):
    measure, done = BlockEvaluation._measure, []

    def watched(self, group, block, advance):
        done.append(len(block.labels))
        if stops and len(done) == 3:
            raise KeyboardInterrupt
        measure(self, group, block, advance)

    monkeypatch.setattr(BlockEvaluation, "_measure", watched)
    stops = [True]
    with pytest.raises(KeyboardInterrupt):
        _evaluate(8, out=tmp_path)
    done.clear()
    stops.clear()
    again = _evaluate(8, out=tmp_path)
    assert done == [8, 8, 5]
    assert again.outcomes("model", NAME).found_by.tolist() == report.outcomes("model", NAME).found_by.tolist()
    assert _cell(again, "FMN/adaptive") == _cell(report, "FMN/adaptive")


def test_progress_moves_within_a_block():
    told = []
    advance = Advance(lambda done, total: told.append((done, total)), 2)
    for perturbation in (Identity(), AUTO):
        measure(Classifier(cases.mlp()), perturbation, IMAGES, LABELS, 0, advance)
        advance()
    done = [each for each, _ in told]
    assert done == sorted(done)
    assert {1, 2} < {*done}
    assert len([each for each in done if 1 < each < 2]) > 10
    assert {total for _, total in told} == {2}


@pytest.mark.parametrize("attack", [AUTO, APGD(0.05, steps=2), FGSM(0.05)])
def test_the_cost_is_said_before_the_run(attack, capsys):
    options = {**OPTIONS, "progress": True, "max_images": 6}
    evaluate(cases.mlp(), (IMAGES, LABELS), {"my attack": attack}, **options)
    said = " ".join(capsys.readouterr().err.split())
    if not attack.in_parts:
        assert "at most" not in said
        return
    forward, backward = attack.cost(3)
    line = f"my attack: at most {forward} forward and {backward} backward passes per image"
    assert said.startswith(line)
    assert "for 6 images." in said


# What speaks against them

SMALL = AutoAttack(0.1, steps=5, queries=60)


def _broken(model, attack, classes=10):
    images, labels = load_batch(Digits().split("test"), range(300))
    few = labels < classes
    data = images[few][:100], labels[few][:100]
    found = evaluate(getattr(broken_models, model)(classes), data, {"attack": attack}, mean=(MEAN,), std=(STD,),
                     checks=Checks(images=100, queries=0), progress=False)  # fmt: skip
    return {flag["code"] for flag in found.flags if flag.get("condition") == "attack/adaptive"}


@pytest.mark.parametrize(
    ("model", "attack", "classes", "code"),
    [
        ("Randomized", SMALL, 10, "not_evaluated"),
        ("Randomized", PGD(0.1, steps=2), 10, "not_evaluated"),
        ("Randomized", Square(0.1, 5), 10, "not_evaluated"),
        ("Randomized", AutoAttack(0.1, version="rand", steps=2), 10, None),
        ("Randomized", PGD(0.1, steps=2, eot=2), 10, None),
        ("Probabilities", SMALL, 10, "probabilities"),
        ("Plain", SMALL, 9, "few_classes"),
        ("Thresholded", SMALL, 10, "zero_gradient"),
        ("Shattered", SMALL, 10, "search_is_better"),
        ("Shattered", FMN(steps=10), 10, "unconverged"),
        ("Plain", FMN(steps=50), 10, None),
        ("Plain", SMALL, 10, None),
    ],
)
def test_the_checks_of_the_reference_are_flags(model, attack, classes, code):
    found = _broken(model, attack, classes)
    checked = {"not_evaluated", "probabilities", "few_classes", "zero_gradient", "search_is_better", "unconverged"}
    if model == "Thresholded":  # no gradient at all: only the search finds anything
        assert "search_is_better" in found
        found -= {"search_is_better"}
    assert found & checked == ({code} if code else set())


@pytest.mark.parametrize(
    ("attack", "expected"),
    [
        (lambda: FGSM(0.1, eot=3), True),
        (lambda: APGD(0.1), False),
        (lambda: AutoAttack(0.1, version="plus"), False),
        (lambda: TorchAttack("EOTPGD"), True),
        (lambda: TorchAttack("PGD"), False),
    ],
)
def test_which_attacks_average(attack, expected):
    pytest.importorskip("torchattacks")
    assert uses_eot(attack()) is expected


def test_a_worst_case_of_attacks_that_evaluate_nothing_is_flagged():
    images, labels = load_batch(Digits().split("test"), range(40))
    net, attacks = broken_models.Randomized(10), {"FGSM": FGSM(0.1), "PGD": PGD(0.1, steps=2)}
    for last, flagged in ((PGD(0.1, steps=2), True), (PGD(0.1, steps=2, eot=2), False)):
        found = evaluate(net, (images, labels), {**attacks, "PGD": last}, mean=(MEAN,), std=(STD,), progress=False,
                         checks=Checks(images=40, queries=0))  # fmt: skip
        worst = next(c for c in found.results.cells if c["condition"].startswith("worst/"))
        assert codes_of(worst["flags"]) == ["not_evaluated"] * flagged


def test_a_note_on_attacks_is_not_repeated_for_their_worst_case():
    images, labels = cases.images(6), torch.arange(6) % cases.CLASSES
    attacks = {str(eps): AutoAttack(eps, steps=1, queries=1) for eps in (0.1, 0.2)}
    found = evaluate(cases.mlp(), (images, labels), attacks, checks=None, progress=False)
    noted = [flag["condition"] for flag in found.flags if flag["code"] == "few_classes"]
    assert noted == ["0.1/adaptive", "0.2/adaptive"]


@pytest.mark.parametrize("attack", [PGD(0.1), APGD(0.1), AutoAttack(0.1), FAB(0.1)])
def test_fgsm_beside_an_attack_of_many_steps_is_not_alone(attack):
    fgsm, other = (Condition(n, n, "adaptive", p) for n, p in (("fgsm", FGSM(0.1)), ("other", attack)))
    assert "single_step" in codes_of(run_flags(matrix_of([[180, 90]], [CLEAN, fgsm])))
    assert "single_step" not in codes_of(run_flags(matrix_of([[180, 90, 80]], [CLEAN, fgsm, other])))


# Minimum-norm attacks


def test_distances_are_those_of_the_attack(report):
    made = NEAREST(Classifier(cases.mlp(), mean=MEANS, std=STDS), IMAGES, LABELS, seed=0, return_info=True)
    (entry,) = report.results.distances
    assert entry["norm"] == "L2"
    assert entry["median"]["mean"] == pytest.approx(made.median_distance())
    assert entry["median"]["low"] <= entry["median"]["mean"] <= entry["median"]["high"]
    assert entry["area"]["mean"] == pytest.approx(made.area(entry["radii"][-1]))
    np.testing.assert_allclose(entry["mean"], made.accuracy(entry["radii"]), atol=1 / len(IMAGES))
    assert entry["mean"][0] == _cell(report, "clean")["accuracy"]["mean"]
    assert entry["mean"] == sorted(entry["mean"], reverse=True)


def test_a_minimum_norm_attack_has_no_accuracy_in_any_comparison():
    models = {"a": cases.mlp(), "b": cases.linear()}
    found = evaluate(models, (IMAGES, LABELS), {**ATTACKS, "PGD": PGD(0.05, steps=2)}, **OPTIONS)
    (worst,) = (each for each in found.results.conditions if each["attack_setting"] == "worst")
    assert worst["members"] == ["AutoAttack/adaptive", "PGD/adaptive"]
    assert not [each for each in found.results.differences if "FMN" in each["condition"]]
    assert "FMN/transfer" not in [each["id"] for each in found.results.conditions]
    assert {each["regime"] for each in found.results.distances} == {"a", "b"}
    assert "% under FMN" not in " ".join(found.findings)
    assert "FMN misleads it in half of the images by a change of at most" in found.findings[0]


def _far(distances, right, attack=None):
    attack = attack or PGD(0.1, norm="l2")
    columns = [CLEAN, Condition("p", "p", "adaptive", attack), Condition("f", "f", "adaptive", FMN("l2"))]
    nearest = dataclasses.replace(outcomes_of(0), distance=np.asarray(distances, np.float32))
    return codes_of(cell_flags(matrix_of([[200, right, nearest]], columns), BASE, columns[2]))


def test_an_attack_that_finds_more_within_its_radius_shows_that_distances_are_too_large():
    half = np.where(np.arange(200) < 100, 0.2, 0.05)
    assert _far(half, 100) == []
    assert _far(half, 60) == ["masked"]
    assert _far(half, 60, PGD(0.1)) == [], "in another norm"
    assert _far(half, 60, PGD(0.3, norm="l2")) == [], "it finds fewer at 0.3"


def test_the_report_shows_each_attack_and_the_distances(report):
    results = report.to_dict()
    pytest.importorskip("matplotlib")
    text = page.robustness_page(results, page.draw_robustness(results, dict(report.arrays)))
    for title in ("AutoAttack, attack by attack", "Distance to the nearest error", "after fab-t", "Median distance"):
        assert title in text
    assert "Accuracy over the radius for each minimum-norm attack" in text
    table = robustness.accuracy_table(results)
    cell = table.cells["model", "FMN/adaptive"]
    assert (cell.text.startswith("L2 "), cell.fill) == (True, None)
    assert [group.key for group in table.columns] == ["none", "adaptive", "distance"]
    threats = robustness.sections(results)["threats"][0].tables[0]
    assert [cell.text for key, cell in threats.cells.items() if key[1] == "6"][0::2] == ["0", "20"]
    results["distances"][0]["median"] = {"mean": None, "low": 0.3, "high": None}
    assert robustness.accuracy_table(results).cells["model", "FMN/adaptive"].text == "no median"


def test_a_card_tells_distances_and_a_comparison_leaves_them_out(tmp_path):
    pytest.importorskip("matplotlib")
    report = _evaluate(out=tmp_path)
    card = robustness_card(tmp_path)
    (entry,) = card["distances"]
    assert entry["median"] == report.results.distances[0]["median"]
    assert [claim["condition"] for claim in card["claims"] + card["withdrawn"]] == ["clean", NAME]
    assert {c["condition"]: c["passes"] for c in card["withdrawn"]} == {NAME: _cell(report, NAME)["passes"]}
    assert "- FMN (attack = FMN, norm = l2, steps = 10" in markdown(card)
    assert [change.condition for change in compare(tmp_path, tmp_path).changes] == ["clean", NAME]


def test_what_was_not_measured_is_none(tmp_path):
    new = dataclasses.replace(outcomes_of(150), passes=np.full(200, 7, np.float32))
    for found in (outcomes_of(150), new):
        store(tmp_path, 0, "base", {"clean": found})
        again = stored(tmp_path, 0, "base", "clean")
        assert (again.passes is None) == (found.passes is None)
        assert again.found_by is None
    assert again.passes.tolist() == [7] * 200


def test_a_study_runs_them_too(tmp_path):
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    settings = Evaluation(
        dataset=Baggage(size=16, train=20, val=4, test=20),
        architecture=Architecture("small_cnn", {"width": 4}),
        training=Training(epochs=1, batch_size=10),
        conditions={**ATTACKS, "FGSM": FGSM(0.05)},
        test_images=12,
        eval_batch_size=8,
        seeds=[0, 1],
        checks=Checks(images=8, queries=3),
    )
    file = io.StringIO()
    report = run_study(settings, tmp_path, console=Console(file=file, width=200))
    assert file.getvalue().count("AutoAttack: at most") == 1
    seeds = [stored(tmp_path, seed, "base", NAME) for seed in (0, 1)]
    found = torch.from_numpy(np.concatenate([each.found_by for each in seeds]))
    assert len(found) == 24
    assert _cell(report, NAME, "base")["attacks"] == AUTO.accuracies(found)
    assert report.results.distances[0]["n"] == 12
    assert "AutoAttack, attack by attack" in (tmp_path / "report.html").read_text("utf-8")
