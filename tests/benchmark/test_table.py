"""Comparisons between methods, on columns made up so that the answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from robustsigma.benchmarking.findings import findings, verdict
from robustsigma.benchmarking.flags import cell_flags, run_flags
from robustsigma.benchmarking.results import curve_line, sanity_entries
from robustsigma.benchmarking.table import MetricColumn, ScoreTable
from robustsigma.engine.metrics import MetricSpec, Skip

N = 60
UP = MetricColumn(MetricSpec("difference", "Insertion \u2212 deletion", "higher", "x"), "faithfulness", "")
DOWN = MetricColumn(MetricSpec("deletion", "Deletion", "lower", "x"), "faithfulness", "")
COST = [MetricColumn(MetricSpec(name, name, "lower", "x"), "cost", "") for name in ("forwards", "backwards")]


def arrays(level: float, *, spread: float = 0.01, seed: int = 0, passes: float = 10.0, **notes: float) -> dict:
    values = level + spread * np.random.default_rng(seed).standard_normal(N)
    found = {"value/difference": values, "value/deletion": -values}
    found |= {f"skip/{name.removeprefix('value/')}": np.zeros(N, dtype=np.int64) for name in list(found)}
    found |= {f"value/{column.metric.name}": np.full(N, passes) for column in COST}
    for note, default in (("converged", 1.0), ("ties", 0.0), ("constant", 0.0)):
        found[f"note/{note}"] = np.full(N, notes.get(note, default))
    return found


def table(**methods: dict) -> ScoreTable:
    rows = {"random": arrays(0.0, seed=9), "gradient": arrays(0.1, seed=8), **methods}
    return ScoreTable([UP, DOWN, *COST], rows, frozenset(("random", "gradient")), "random")


@pytest.mark.parametrize("column", [UP, DOWN])
def test_the_best_is_clear_only_beyond_the_interval(column):
    apart = table(a=arrays(0.5, seed=1), b=arrays(0.4, seed=2))
    assert apart.ranked(column) == ["a", "b"]
    assert apart.is_clear(column)
    close = table(a=arrays(0.5, seed=1, spread=0.2), b=arrays(0.501, seed=2, spread=0.2))
    assert not close.is_clear(column)
    assert not table(a=arrays(0.5)).is_clear(column)


def test_advantages_are_paired_and_positive_is_better():
    noisy = np.random.default_rng(5).standard_normal(N)
    a, b = arrays(0.5), arrays(0.4)
    for part, shift in ((a, 0.03), (b, 0.0)):  # the same noise: only pairing sees the difference
        part["value/difference"], part["value/deletion"] = noisy + shift, -noisy - shift
    found = table(a=a, b=b)
    for column in (UP, DOWN):
        gain = found.advantage("a", "b", column)
        assert gain is not None
        assert gain.low == pytest.approx(0.03)
        assert found.advantage("b", "a", column).high == pytest.approx(-0.03)


def test_only_images_with_both_values_are_compared():
    a, b = arrays(0.5), arrays(0.4)
    a["value/difference"][:50], b["value/difference"][55:] = np.nan, np.nan
    found = table(a=a, b=b)
    assert found.advantage("a", "b", UP).n == 5
    a["value/difference"][:] = np.nan
    a["skip/difference"][:] = Skip.LOW_CONFIDENCE
    found = table(a=a, b=b)
    assert found.interval("a", "difference") is None
    assert found.advantage("a", "b", UP) is None
    assert found.against_random("a", UP) is None
    assert found.ranked(UP) == ["b"]
    assert found.skipped("a", "difference") == {"the network's confidence is too low": N}
    assert [flag["code"] for flag in cell_flags(found, "a", UP)] == ["all_skipped"]


def test_against_random():
    found = table(good=arrays(0.5), bad=arrays(-0.5), same=arrays(0.0, seed=3, spread=0.2))
    assert [found.against_random(m, UP)[1] for m in ("good", "bad", "same")] == ["better", "worse", "same"]
    assert found.against_random("random", UP) is None
    assert found.against_random("good", COST[0]) is None
    assert found.is_informative(UP)
    assert not table(bad=arrays(-0.5)).is_informative(UP)


def test_flags_name_what_should_not_be_believed():
    lost = arrays(-0.5, converged=0.5, ties=0.5, constant=0.25)
    lost["value/randomization"] = np.full(N, 0.95)
    codes = {flag["code"] for flag in run_flags({"base": table(lost=lost)})}
    assert codes == {
        "metric_tells_nothing",
        "worse_than_random",
        "same_map_without_weights",
        "not_converged",
        "ties",
        "constant_maps",
    }
    assert run_flags({"base": table(good=arrays(0.5))}) == []
    random = table(good=arrays(0.5))
    random.arrays["random"]["value/randomization"] = np.ones(N)  # as it should be
    assert run_flags({"base": random}) == []
    assert "of model two" in run_flags({"one": table(good=arrays(0.5)), "two": table(lost=lost)})[0]["message"]


@pytest.mark.parametrize(("left", "codes"), [(40, []), (30, []), (29, ["few_images"])])
def test_few_images_are_fewer_than_half(left, codes):
    few = arrays(0.5)
    few["value/difference"][left:] = np.nan
    assert [flag["code"] for flag in cell_flags(table(few=few), "few", UP)] == codes


def test_a_map_that_stays_without_weights_has_not_changed():
    found = table(same=arrays(0.5), other=arrays(0.4))
    for method, similarity in (("same", 0.95), ("other", 0.2)):
        found.arrays[method]["value/randomization"] = np.full(N, similarity)
    assert {entry["method"]: entry["changed"] for entry in sanity_entries("base", found)} == {
        "same": False,
        "other": True,
    }


@pytest.mark.parametrize(
    ("name", "center", "middle"),
    [("sic", "median", 0.1), ("aic", "median", 0.1), ("insertion", "mean", 1 / 3), ("deletion", "mean", 1 / 3)],
)
def test_curves_of_pic_are_medians_and_others_means(name, center, middle):
    line = curve_line(name, np.array([0, 0.5, 1]), np.array([[0, 0.0, 1], [0, 0.1, 1], [0, 0.9, 1]]))
    assert line["center"] == center
    assert line["mean"] == pytest.approx([0, middle, 1])
    assert line["auc"] == pytest.approx((middle + 0.5) / 2)


def test_the_area_under_a_curve_is_that_over_its_own_grid():
    """Shares of pixels with a short last step, and Sensitivity-N's shares, which are not evenly spaced."""
    short = curve_line("deletion", np.array([0, 0.4, 0.8, 1]), np.array([[1, 1, 0.0, 0.0]]))
    assert short["auc"] == pytest.approx(0.4 + 0.2)
    uneven = curve_line("sensitivity_n", np.array([0.1, 0.2, 0.9]), np.array([[1.0, 0.0, 0.0]]))
    assert uneven["auc"] == pytest.approx(0.05 / 0.8)
    assert curve_line("sensitivity_n", np.array([0.1]), np.array([[0.3], [0.5]]))["auc"] == pytest.approx(0.4)


@pytest.mark.parametrize(("images", "flagged"), [(8, True), (29, True), (30, False)])
def test_few_evaluated_images_are_flagged(images, flagged):
    found = table(good=arrays(0.5))
    for values in found.arrays.values():
        values.update({name: value[:images] for name, value in values.items()})
    flags = run_flags({"base": found})
    assert [flag["code"] for flag in flags] == ["few_images_in_all"] * flagged
    assert all(f"Only {images} images" in flag["message"] for flag in flags)


def test_findings_are_no_stronger_than_the_intervals():
    said = " ".join(findings({"base": table(a=arrays(0.5, passes=1000), b=arrays(0.3, seed=1))}))
    assert "a is best, 0.50" in said
    assert "significantly ahead of b" in said
    assert "Every method is significantly ahead of the plain gradient" in said
    shared = {"spread": 0.3}
    said = " ".join(
        findings({"base": table(a=arrays(0.5, passes=1000, **shared), b=arrays(0.499, seed=1, passes=5, **shared))})
    )
    assert "not significantly better than b (60 images)" in said
    assert ", significantly" not in said
    assert "with 10 passes per image instead of 2,000" in said
    assert findings({"base": table(bad=arrays(-0.5))}) == [
        "No method is significantly ahead of the plain gradient in Insertion \u2212 deletion."
    ]


def test_without_a_method_nothing_is_said_of_methods():
    found = {"base": table()}
    assert findings(found) == []
    assert verdict(found, []) == ["No method was compared: only the plain gradient and random maps were measured."]
    (flag,) = run_flags(found, left_out=[{"model": "base", "method": "rollout", "reason": "net: expected attention"}])
    assert flag == {"code": "left_out", "message": "rollout was not measured: net: expected attention."}


def test_the_verdict_has_no_intervals_and_names_what_says_nothing():
    good = table(a=arrays(0.5), b=arrays(0.3, seed=1))
    for values in good.arrays.values():
        values["value/deletion"] = np.random.default_rng(4).standard_normal(N)
    told = verdict({"base": good}, [])
    assert told == [
        "a has the best score in Insertion \u2212 deletion, significantly ahead of all others.",
        "Deletion cannot distinguish any method from random maps here: ignore its ranking.",
        "Every method is significantly ahead of the plain gradient in Insertion \u2212 deletion.",
    ]
    assert verdict({"base": good}, ["Of 6 pairs 2 agree."])[:2] == ["Of 6 pairs 2 agree.", told[0]]
    shared = table(a=arrays(0.5, spread=0.3), b=arrays(0.499, seed=1, spread=0.3))
    assert verdict({"base": shared}, [])[0].endswith(", but b is not significantly behind.")
    bad = table(bad=arrays(-0.5))
    assert verdict({"base": bad}, [])[0] == "No metric distinguishes any method from random maps on these images."
    costs = ScoreTable(COST, bad.arrays, bad.controls, "random")
    assert verdict({"base": costs}, [])[0] == "No metric that compares methods was measured."
    several = verdict(dict.fromkeys(("one", "two", "three", "four"), good), [])
    assert several == [*(f"{model}: {told[0]}" for model in ("one", "two")), "The tables show the other 2 models."]
    same = table(a={**arrays(0.5), "value/randomization": np.full(N, 0.95)}, b=arrays(0.3, seed=1))
    assert verdict({"base": same}, [])[1] == "The maps of a hardly depend on what the network learned."
    for values in same.arrays.values():
        values.update({name: value[:20] for name, value in values.items()})
    assert verdict({"base": same}, [])[2] == "Only 20 images evaluated: too few for reliable comparisons."
