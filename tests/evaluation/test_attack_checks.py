"""The further attacks that tell whether to believe the matrix, on linear models whose answers are known."""

import dataclasses

import cases
import numpy as np
import pytest
import torch
from matrix_case import ATTACK, BASE, CLEAN, MOVED, PGD_COLUMN, WALK, codes_of, matrix_of, outcomes_of

from robustsigma import FAB, FGSM, FMN, PGD, AutoAttack, GaussianNoise, Identity, SigmaSample, Square, TorchAttack
from robustsigma.engine import noise
from robustsigma.engine.checks import Soundness
from robustsigma.evaluation.attack_checks import AttackCheckResults, AttackChecks, AttackCurve, radii
from robustsigma.evaluation.flags import cell_flags
from robustsigma.evaluation.results import checks, curve_entries, networks
from robustsigma.evaluation.settings import Checks
from robustsigma.evaluation.threat_model import ball, parameters, threat_model, uses_gradients

ROWS = np.arange(0, 200, 2)
SOUND = Soundness(100, False, False, 0)
COLUMNS = [CLEAN, ATTACK, PGD_COLUMN, WALK, MOVED]
GRADIENT, EVERY = (ATTACK, PGD_COLUMN), (ATTACK, PGD_COLUMN, WALK)


def _right(count, n=100):
    return np.arange(n) < count


def _checked(soundness=SOUND, right=None, curves=None, rights=(180, 80, 80, 20, 80)):
    """Return a matrix of one regime: `rights` of 200 images are right, half of those in the diagnosis."""
    matrix = matrix_of([rights], COLUMNS)
    matrix.attack_checks["base"] = [AttackCheckResults(ROWS, soundness, right or {}, curves or {}, 3)]
    return matrix


def _flagged(matrix):
    found = {column.id: codes_of(cell_flags(matrix, BASE, column)) for column in COLUMNS}
    return {name: codes for name, codes in found.items() if codes}


def test_a_sound_diagnosis_flags_nothing():
    right = {("double_steps", "pgd/adaptive"): _right(40), ("noise", "fgsm/adaptive"): _right(85)}
    right["search", "fgsm/adaptive"] = _right(60)
    curve = AttackCurve(np.array([0, 0.1, 0.2]), np.stack([_right(90), _right(40), _right(0)]), 1.0)
    assert _flagged(_checked(right=right, curves={"pgd/adaptive": curve})) == {}


@pytest.mark.parametrize(
    ("soundness", "code", "concerned"),
    [
        (Soundness(100, True, False, 0), "probabilities", EVERY),
        (Soundness(100, False, True, 0), "not_evaluated", EVERY),
        (Soundness(100, False, False, 0, True), "batch_dependent", COLUMNS),
        (Soundness(100, False, False, 11), "zero_gradient", GRADIENT),
    ],
)
def test_what_is_wrong_with_a_network_stands_in_the_cells_of_its_attacks(soundness, code, concerned):
    rest = {c.id: ["random_outputs"] for c in COLUMNS if c not in EVERY} if code == "not_evaluated" else {}
    assert _flagged(_checked(soundness)) == {**rest, **{column.id: [code] for column in concerned}}
    (entry,) = networks(_checked(soundness))
    assert entry["dead"] == soundness.dead / 100


def test_soundness_is_summed_over_seeds():
    matrix = matrix_of([[180] * 5], COLUMNS, seeds=(0, 1))
    each = [Soundness(100, False, random, dead) for random, dead in ((False, 30), (True, 10))]
    matrix.attack_checks["base"] = [AttackCheckResults(ROWS, sound, {}, {}, 3) for sound in each]
    (entry,) = networks(matrix)
    assert (entry["images"], entry["dead"], entry["random_outputs"]) == (200, 0.2, True)


@pytest.mark.parametrize(("longer", "flagged"), [(40, False), (39, False), (30, True), (45, False)])
def test_an_attack_that_twice_the_steps_significantly_improve_is_unsettled(longer, flagged):
    matrix = _checked(right={("double_steps", "pgd/adaptive"): _right(longer)})
    assert _flagged(matrix) == ({"pgd/adaptive": ["unsettled"]} if flagged else {})
    entry = next(e for e in checks(matrix) if e["condition"] == "pgd/adaptive")
    assert entry["accuracy"] == pytest.approx(0.4)
    assert entry["double_steps"]["accuracy"] == pytest.approx(longer / 100)
    assert entry["double_steps"]["difference"]["mean"] == pytest.approx((40 - longer) / 100)


@pytest.mark.parametrize(("noise", "flagged"), [(40, False), (39, False), (20, True)])
def test_noise_that_does_more_harm_than_an_attack_is_masking(noise, flagged):
    matrix = _checked(right={("noise", "sigma/adaptive"): _right(0), ("noise", "fgsm/adaptive"): _right(noise)})
    found = _flagged(matrix)
    assert found.pop("sigma/adaptive") == ["masked"]
    assert found == ({"fgsm/adaptive": ["masked"]} if flagged else {})


def test_a_search_must_beat_all_attacks_of_its_ball_together():
    search = {("search", "fgsm/adaptive"): _right(30)}
    both = {"fgsm/adaptive": ["masked"], "pgd/adaptive": ["masked"]}
    assert _flagged(_checked(right=search)) == both
    # PGD finds what FGSM does not: one step alone is no reason to speak of masking.
    assert _flagged(_checked(right=search, rights=(180, 80, 50, 20, 80))) == {}


def test_a_curve_that_rises_is_flagged():
    eps = np.array([0, 0.1, 0.2])
    rising = AttackCurve(eps, np.stack([_right(90), _right(40), _right(60)]), 1.0)
    even = AttackCurve(eps, np.stack([_right(90), _right(40), _right(41)]), 1.0)
    assert _flagged(_checked(curves={"fgsm/adaptive": rising})) == {"fgsm/adaptive": ["not_rising"]}
    assert _flagged(_checked(curves={"fgsm/adaptive": even})) == {}


@pytest.mark.parametrize(("eps", "last", "flagged"), [(1.0, 60, True), (0.5, 60, False), (1.0, 33, False)])
def test_an_unbounded_attack_must_reach_chance(eps, last, flagged):
    curve = AttackCurve(np.array([0, eps]), np.stack([_right(90), _right(last)]), 1.0)
    assert _flagged(_checked(curves={"pgd/adaptive": curve})) == ({"pgd/adaptive": ["masked"]} if flagged else {})
    assert _flagged(_checked(curves={"fgsm/adaptive": curve})) == {}  # one step of size 1 says nothing


def test_curves_of_seeds_are_joined_at_the_radii_of_all():
    matrix = matrix_of([[180] * 5], COLUMNS, seeds=(0, 1))
    short = AttackCurve(np.array([0, 0.1]), np.stack([_right(90), _right(20)]), 1.0)
    long = AttackCurve(np.array([0, 0.1, 0.2]), np.stack([_right(80), _right(60), _right(10)]), 1.0)
    curves = [{"pgd/adaptive": short}, {"pgd/adaptive": long}]
    matrix.attack_checks["base"] = [AttackCheckResults(ROWS, SOUND, {}, curve, 3) for curve in curves]
    found = matrix.curves("base", "pgd/adaptive")
    assert found.eps.tolist() == [0, 0.1]
    (entry,) = curve_entries(matrix)
    assert entry["mean"] == pytest.approx([0.85, 0.4])
    assert (entry["chance"], entry["reached"], entry["n"]) == (1 / 3, False, 100)
    assert matrix.curves("base", "fgsm/adaptive") is None
    matrix.attack_checks["base"][1] = AttackCheckResults(ROWS, SOUND, {}, {}, 3)
    assert matrix.curves("base", "pgd/adaptive") is None  # a seed has none


def test_a_curve_that_ends_at_chance_itself_has_reached_it():
    curve = AttackCurve(np.array([0, 0.1]), np.stack([_right(90), _right(50)]), 1.0)
    matrix = matrix_of([[180] * 5], COLUMNS)
    matrix.attack_checks["base"] = [AttackCheckResults(ROWS, SOUND, {}, {"pgd/adaptive": curve}, 2)]
    (entry,) = curve_entries(matrix)
    assert entry["reached"]


def _checks(attacks, n=6):
    clf, images = cases.classifier(cases.mlp()), cases.images(n)
    with clf.frozen():
        labels = clf.logits(images).argmax(1)
    outcomes = {"clean": outcomes_of(n, n)}
    for name, attack in attacks.items():
        seeds = torch.arange(n)
        made = attack(clf, images, labels, seed=seeds)
        rmse = (made - images).square().flatten(1).mean(1).sqrt().numpy()
        with clf.frozen():
            right = (clf.logits(made).argmax(1) == labels).numpy()
        known = outcomes_of(n, n)
        wrong = np.where(right, known.labels, known.labels + 1)
        outcomes[name] = dataclasses.replace(known, rmse=rmse, predictions=wrong)

    def seed(name):
        return noise.image_seeds(0, "test", name, 0, torch.arange(n))

    return AttackChecks(clf, images, labels, seed, np.arange(n), attacks, outcomes, "clean", 3)


def test_an_examination_makes_what_is_asked_for(tmp_path):
    attacks = {"fgsm/adaptive": FGSM(0.1), "pgd/adaptive": PGD(0.1, steps=2), "small/adaptive": PGD(0.05, steps=1)}
    told = []
    attack_checks = _checks(attacks)
    found = attack_checks.run(Checks(images=6, queries=3), lambda done, total: told.append((done, total)))
    assert set(found.correct) == {
        *(("noise", name) for name in attacks), ("double_steps", "pgd/adaptive"), ("double_steps", "small/adaptive"),
        ("search", "fgsm/adaptive"), ("search", "small/adaptive"),
    }  # fmt: skip
    assert set(found.curves) == set(attacks)
    assert told == [(k, 11) for k in range(1, 12)]
    curve = found.curves["pgd/adaptive"]
    assert curve.eps[:4] == pytest.approx([0, 0.025, 0.05, 0.1])
    assert curve.correct[0].all()
    np.testing.assert_array_equal(curve.correct[3], attack_checks.outcomes["pgd/adaptive"].correct > 0)
    means = curve.correct.mean(1)
    assert (means[3:-1] > 1 / 3).all(), "the curve goes on only while more than chance is right"
    assert means[-1] <= 1 / 3 or curve.eps[-1] == 1
    found.write(tmp_path / "a.npz", Checks(images=6))
    read = AttackCheckResults.read(tmp_path / "a.npz", Checks(images=6))
    assert (read.soundness, read.classes) == (found.soundness, 3)
    assert set(read.correct) == set(found.correct)
    for key, right in found.correct.items():
        np.testing.assert_array_equal(read.correct[key], right)
    for key, value in found.curves.items():
        np.testing.assert_array_equal(read.curves[key].correct, value.correct)
        np.testing.assert_array_equal(read.curves[key].eps, value.eps)
        assert read.curves[key].max_eps == value.max_eps
    assert AttackCheckResults.read(tmp_path / "a.npz", Checks(images=7)) is None
    assert AttackCheckResults.read(tmp_path / "b.npz", Checks()) is None


def test_twice_the_steps_go_on_from_where_the_matrix_stopped(monkeypatch):
    """The longer attack is that of the same step size and seeds."""
    made = []
    monkeypatch.setattr(AttackChecks, "_correct", lambda self, p, name: made.append((p, name)) or np.ones(6, bool))
    checks = Checks(noise=False, queries=0, curves=False)
    _checks({"pgd/adaptive": PGD(0.1, steps=5), "fixed/adaptive": PGD(0.1, step_size=0.03, steps=4)}).run(
        checks, lambda *_: None
    )
    assert made == [
        (PGD(0.1, step_size=0.05, steps=10), "pgd/adaptive"), (PGD(0.1, step_size=0.03, steps=8), "fixed/adaptive")
    ]  # fmt: skip


def test_scaled_attacks_keep_the_ratio_of_step_and_radius(monkeypatch):
    made = []
    monkeypatch.setattr(AttackChecks, "_correct", lambda self, p, name: made.append(p) or np.zeros(6, bool))
    attack_checks = _checks({"pgd/adaptive": PGD(0.1, step_size=0.03, steps=4)})
    attack_checks.run(Checks(noise=False, queries=0, convergence=False), lambda *_: None)
    assert made[0] == PGD(0.025, step_size=0.0075, steps=4)
    assert all(attack.step_size / attack.eps == pytest.approx(0.3) for attack in made)


def test_further_attacks_draw_as_those_of_the_matrix():
    """By the condition and the image's place in the test split."""
    drawn = []

    class Spy(PGD):
        def perturb(self, classifier, images, labels, seeds):
            drawn.append(seeds)
            return super().perturb(classifier, images, labels, seeds)

    indices = torch.arange(10, 16)

    def seed(name):
        return noise.image_seeds(0, "test", name, 0, indices)

    attack_checks = dataclasses.replace(_checks({"pgd/adaptive": Spy(0.1, steps=1)}), seed=seed)
    drawn.clear()
    attack_checks.run(Checks(noise=False, queries=0, curves=False), lambda *_: None)
    assert torch.equal(drawn[0], noise.image_seeds(0, "test", "pgd/adaptive", 0, indices))


CURVES_ALONE = Checks(convergence=False, noise=False, queries=0)


def test_a_curve_takes_the_outcomes_of_the_examined_images():
    attack_checks = _checks({"fgsm/adaptive": FGSM(0.1)})
    outcomes = dict.fromkeys(attack_checks.outcomes, outcomes_of(3, 12))
    attack_checks = dataclasses.replace(attack_checks, rows=np.arange(0, 12, 2), outcomes=outcomes)
    (curve,) = attack_checks.run(CURVES_ALONE, lambda *_: None).curves.values()
    for known in (0, 0.1):
        (right,) = curve.correct[curve.eps == known]
        assert right.tolist() == [True, True, False, False, False, False]


def test_a_curve_ends_where_no_more_than_chance_is_right(monkeypatch):
    monkeypatch.setattr(AttackChecks, "_correct", lambda self, p, name: np.arange(6) < 2)  # of three classes
    attack_checks = _checks({"fgsm/adaptive": FGSM(0.1)})
    outcomes = dict.fromkeys(attack_checks.outcomes, outcomes_of(6, 6))
    (curve,) = dataclasses.replace(attack_checks, outcomes=outcomes).run(CURVES_ALONE, lambda *_: None).curves.values()
    assert curve.eps == pytest.approx([0, 0.025, 0.05, 0.1, 0.2])


@pytest.mark.parametrize(("norm", "most"), [("linf", 1), ("l2", (3 * 8 * 8) ** 0.5)])
def test_the_last_ball_of_a_curve_holds_every_image(norm, most):
    attack_checks = _checks({"pgd/adaptive": PGD(0.5, steps=1, norm=norm)})
    (curve,) = attack_checks.run(CURVES_ALONE, lambda *_: None).curves.values()
    assert curve.max_eps == pytest.approx(most)


def test_radii_double_up_to_the_whole():
    assert radii(0.3, 1.0) == pytest.approx([0.3, 0.6, 1.0])
    assert radii(1.0, 1.0) == [1.0]
    assert radii(0.0, 1.0) == [0.0]


def test_a_zero_radius_is_no_error():
    attack_checks = _checks({"fgsm/adaptive": FGSM(0.0), "pgd/adaptive": PGD(0.0)})
    found = attack_checks.run(Checks(queries=2), lambda *_: None)
    assert found.curves["pgd/adaptive"].eps.tolist() == [0]
    assert set(found.correct) == {("search", "fgsm/adaptive")}


def test_the_search_finds_what_a_corner_of_the_ball_holds():
    """On a linear model the best corner is known: the search lowers the margin towards it and stays in the ball."""
    clf, x = cases.classifier(cases.linear()), cases.images()
    with clf.frozen():
        y = clf.logits(x).argmax(1)

    def margin(images):
        with clf.frozen():
            z = clf.logits(images)
        own = z.gather(1, y[:, None])[:, 0]
        return own - z.scatter(1, y[:, None], -torch.inf).amax(1)

    few, many = (Square(0.1, queries)(clf, x, y, seed=0) for queries in (1, 150))
    assert (many - x).abs().max() <= 0.1 + 1e-6
    assert (margin(many) < margin(few)).all()
    best = FGSM(0.1)(clf, x, y, seed=0)
    noise = (x + 0.1 * torch.randn(x.shape, generator=cases.generator(0)).sign()).clamp(0, 1)
    assert (margin(many) < margin(noise)).all()
    assert (margin(many) > margin(best) - 0.2 * (margin(x) - margin(best)).abs()).all()
    alone = Square(0.1, 150)(clf, x[2:3], y[2:3], seed=0)
    torch.testing.assert_close(alone[0], many[2])  # no image depends on its batch


@pytest.mark.parametrize(
    ("perturbation", "attack_setting", "expected"),
    [
        (Identity(), "none", (None, None, "none", "none: the image itself")),
        (GaussianNoise(0.1), "none", (None, None, "none", "none: not aimed at a model")),
        (PGD(0.1), "transfer", ("L\u221e", 0.1, "weights of the base model alone", "any wrong class")),
        (PGD(0.5, norm="l2"), "adaptive", ("L2", 0.5, "weights of the model under test", "any wrong class")),
        (
            PGD(0.1, targeted="second"),
            "adaptive",
            ("L\u221e", 0.1, "weights of the model under test", "a wrong class, chosen: second"),
        ),
        (
            PGD(0.1, targeted=0),
            "adaptive",
            ("L\u221e", 0.1, "weights of the model under test", "a wrong class, chosen: 0"),
        ),
        (AutoAttack(1.0, "l2"), "adaptive", ("L2", 1.0, "weights of the model under test", "any wrong class")),
        (FAB(3.0, "l1"), "adaptive", ("L1", 3.0, "weights of the model under test", "any wrong class")),
        (
            FMN("l2"),
            "adaptive",
            ("L2", None, "weights of the model under test", "any wrong class, by the smallest change"),
        ),
        (
            Square(3.0, norm="l1"),
            "adaptive",
            ("L1", 3.0, "outputs of the model under test, no gradients", "any wrong class"),
        ),
        (
            SigmaSample(),
            "adaptive",
            (
                "unbounded",
                None,
                "outputs of the model under test, no gradients",
                "confidence in the label of at most 0.01",
            ),
        ),
    ],
)
def test_threat_models(perturbation, attack_setting, expected):
    found = threat_model(perturbation, attack_setting)
    assert (found.norm, found.eps, found.knowledge, found.goal) == expected


def test_threats_of_torchattacks():
    pytest.importorskip("torchattacks")
    square = TorchAttack("Square", eps=0.1, norm="linf")
    assert ball(square) == ball(FGSM(0.1)) == ("L\u221e", 0.1)
    assert not uses_gradients(square)
    assert uses_gradients(TorchAttack("APGD", eps=0.1))
    assert threat_model(square, "adaptive").knowledge == "outputs of the model under test, no gradients"


@pytest.mark.parametrize(
    "attack",
    [
        lambda: TorchAttack("AutoAttack", steps=100, eps=8 / 255),
        lambda: TorchAttack("AutoAttack", {"eps": 8 / 255}),
        lambda: TorchAttack("PGD"),  # the attack's own default
        lambda: Square(8 / 255),
        lambda: FGSM(0.0313725),
        lambda: PGD(0.0314),
    ],
)
def test_radii_are_known_however_they_are_given(attack):
    pytest.importorskip("torchattacks")
    assert ball(attack()) == ball(PGD(8 / 255)) == ("L\u221e", 8 / 255)


def test_balls_of_other_norms_and_of_none():
    pytest.importorskip("torchattacks")
    assert ball(TorchAttack("PGDL2", eps=0.5)) == ball(TorchAttack("Square", eps=0.5, norm="L2")) == ("L2", 0.5)
    assert ball(TorchAttack("CW")) is None
    assert ball(TorchAttack("CW", eps=0.5)) == ("L2", 0.5)
    assert ball(PGD(0.1)) == ("L\u221e", 0.1)  # no number of 255ths
    assert ball(SigmaSample()) is ball(GaussianNoise(0.1)) is None


def test_a_square_search_asks_for_outputs_alone():
    assert not uses_gradients(Square(0.1))
    assert threat_model(Square(0.1), "adaptive").knowledge == "outputs of the model under test, no gradients"


def test_parameters_are_complete():
    found = parameters(PGD(0.1, steps=5))
    assert found.pop("attack") == "PGD"
    assert set(found) == {field.name for field in dataclasses.fields(PGD)}
    assert found["step_size"] == 0.05
