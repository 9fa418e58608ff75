"""Published protocols: what they fix, a run under all of them, and the orders that hold."""

from __future__ import annotations

import dataclasses
import io
import json

import metric_cases
import numpy as np
import pytest
import torch
from rich.console import Console

from robustsigma import Gradient, IntegratedGradients
from robustsigma.benchmarking import PROTOCOLS, Benchmark, protocol, run_benchmark
from robustsigma.benchmarking.rankings import protocol_entries, ranking_findings, rankings, step_findings
from robustsigma.benchmarking.table import MetricColumn, ScoreTable
from robustsigma.cli.benchmark import PRESETS
from robustsigma.data import Datasets
from robustsigma.data.dataset_spec import ArrayDataset
from robustsigma.data.resize_crop import ResizeCrop
from robustsigma.engine.metrics import InsertionDeletion, MetricSpec
from robustsigma.models import Pretrained
from robustsigma.report import print_table

every = pytest.mark.parametrize("name", list(PROTOCOLS))


@every
def test_a_protocol_gives_its_quantities_under_its_name(name):
    listed, subject = PROTOCOLS[name], metric_cases.subject()
    found = {}
    for metric in protocol(name):
        result = metric(subject, Gradient()(subject.classifier, subject.images, subject.target))
        assert set(result.values) == {quantity.name for quantity in metric.quantities}
        found.update(result.values)
    assert {listed.quantity(each) for each in (*listed.ranks_by, *listed.also)} == set(found)
    assert all(each.endswith(f" ({name})") for each in found)
    assert listed.source
    assert listed.differences


@every
def test_a_named_quantity_has_the_metrics_values(name):
    subject = metric_cases.subject()
    maps = torch.rand(
        4, metric_cases.SIDE, metric_cases.SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    for named, plain in zip(protocol(name), PROTOCOLS[name].metrics, strict=True):
        expected = plain(subject, maps)
        for key, value in named(subject, maps).values.items():
            torch.testing.assert_close(value, expected.values[key.removesuffix(f" ({name})")], equal_nan=True)
        assert (named.needs_masks, named.group) == (plain.needs_masks, plain.group)


@every
def test_a_step_changes_curves_and_nothing_else(name):
    seen = {}
    for metric, own in zip(protocol(name, step=7), protocol(name), strict=True):
        fields = {each.name: getattr(metric.metric, each.name) for each in dataclasses.fields(metric.metric)}
        changed = {key for key, value in fields.items() if value != getattr(own.metric, key)}
        assert changed == ({"step"} if "step" in fields else set())
        assert metric.reported == own.reported
        seen |= fields
    assert seen.get("step", 7) == 7
    with pytest.raises(ValueError, match="step: expected"):
        protocol(name, step=0)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("all", tuple(PROTOCOLS)),
        (["all"], tuple(PROTOCOLS)),
        ("RISE, PIC", ("RISE", "PIC")),
        (("PIC",), ("PIC",)),
        ((), ()),
        ("", ()),
    ],
)
def test_names(given, names):
    assert Benchmark(metrics=(InsertionDeletion(),), protocols=given).protocols == names


@pytest.mark.parametrize("given", ["rise", "RISE,RISE", ["all", "PIC"], ["RISE,PIC"]])
def test_bad_names(given):
    with pytest.raises(ValueError, match=r"^protocols: expected"):
        Benchmark(protocols=given)


def test_the_command_line():
    arguments = ["--protocols", "RISE,LeRF/MoRF", "--metrics", "[]"]
    settings = PRESETS.parse("benchmark", "", "runs", arguments).settings
    assert settings.protocols == ("RISE", "LeRF/MoRF")
    assert settings.metrics == ()
    with pytest.raises(ValueError, match=r"protocols: expected one of .*'IDG-2024'"):
        PRESETS.parse("benchmark", "", "runs", ["--protocols", "IDG-2023"])
    with pytest.raises(ValueError, match=r"^protocol: expected one of"):
        protocol("mine")


@pytest.mark.slow
def test_a_run_under_all_protocols_says_which_orders_hold(tmp_path):
    images, labels, masks = metric_cases.scene(30)
    dataset = Datasets(
        test=ArrayDataset((255 * images).round().byte(), labels, masks), classes=("red", "green", "blue")
    )
    model = Pretrained("metric_cases.Colors", classes=3, mean=[0.0], std=[1.0], geometry=ResizeCrop(16))
    settings = Benchmark(
        dataset,
        models={"colors": model},
        allow=("metric_cases",),
        methods={"IG": IntegratedGradients(steps=4), "IG coarse": IntegratedGradients(steps=1), "grad": Gradient()},
        protocols="all",
        images=20,
        checked=0,
    )
    console = Console(file=io.StringIO(), width=200)
    report = run_benchmark(settings, tmp_path, console=console)
    results = report.results.to_json()
    pairs = {(entry["first"], entry["second"]): entry for entry in results["rankings"]}
    assert len(pairs) == 6, "three methods and random maps"
    assert [entry["id"] for entry in results["protocols"]] == list(PROTOCOLS)
    for method in ("IG", "IG coarse", "grad"):
        entry = pairs[method, "random"]
        assert entry["verdict"] in ("every", "some")
        assert entry["protocols"]["RISE"] == entry["protocols"]["MAS-2024"] == "for"
    assert results["findings"][0].startswith("Of 6 pairs of methods, controls among them, ")
    page = report.path.read_text()
    assert page.index("Which orders hold under every protocol?") < page.index("<h2>Scores")
    assert "Insertion (RISE)" in page
    assert "cleanig/metric/diffid.py" in page
    printed = io.StringIO()
    print_table(results, Console(file=printed, width=250))
    for line in ("Under every protocol", "Under some protocols only", "Contradicted"):
        assert line in printed.getvalue()
    assert json.loads((tmp_path / "results.json").read_text())["rankings"] == results["rankings"]


N = 40


def table(**methods: tuple[float, float, float]) -> ScoreTable:
    """Return a table of made-up means of RISE's insertion and deletion and of PIC's SIC, with little noise."""
    names = (("insertion (RISE)", "higher"), ("deletion (RISE)", "lower"), ("sic (PIC)", "higher"))
    columns = [MetricColumn(MetricSpec(name, name, better, "x"), "faithfulness", "") for name, better in names]
    noise, methods = np.random.default_rng(0), {**methods, "random": (0.1, 0.9, 0.1)}
    arrays = {
        method: {
            f"value/{name}": mean + 0.01 * noise.standard_normal(N)
            for (name, _), mean in zip(names, means, strict=True)
        }
        for method, means in methods.items()
    }
    return ScoreTable(columns, arrays, frozenset(("random",)), "random")


def entries(found: ScoreTable) -> list[dict]:
    """Return the entries of pairs without the random maps."""
    return [entry for entry in rankings("net", found) if "random" not in (entry["first"], entry["second"])]


def only(found: ScoreTable) -> dict:
    (entry,) = entries(found)
    return entry


def test_verdicts():
    found = table(a=(0.4, 0.3, 0.5), b=(0.3, 0.4, 0.4))
    assert {e["verdict"] for e in rankings("net", found)} == {"every"}, "also over random maps"
    entry = only(table(b=(0.2, 0.5, 0.3), a=(0.4, 0.3, 0.5)))
    assert (entry["first"], entry["second"], entry["verdict"]) == ("a", "b", "every")
    assert entry["protocols"] == {"RISE": "for", "PIC": "for"}
    assert entry["for"] == ["insertion (RISE)", "deletion (RISE)", "sic (PIC)"]
    entry = only(table(a=(0.4, 0.3, 0.5), b=(0.4, 0.5, 0.5)))
    assert (entry["first"], entry["verdict"], entry["for"]) == ("a", "some", ["deletion (RISE)"])
    assert entry["protocols"] == {"RISE": "for", "PIC": "undecided"}
    entry = only(table(a=(0.4, 0.3, 0.3), b=(0.3, 0.4, 0.5)))
    assert (entry["first"], entry["verdict"], entry["against"]) == ("a", "contradicted", ["sic (PIC)"])
    entry = only(table(a=(0.4, 0.4, 0.5), b=(0.3, 0.3, 0.5)))
    assert (entry["verdict"], entry["protocols"]["RISE"]) == ("contradicted", "both")
    entry = only(table(a=(0.4, 0.4, 0.5), b=(0.4, 0.4, 0.5)))
    assert (entry["verdict"], entry["for"], entry["against"]) == ("undecided", [], [])


def test_all_comparisons_are_one_family():
    """A difference that is significant alone is not among those of many methods."""
    draw = np.random.default_rng(3)
    z = draw.standard_normal(N)
    difference = (z - z.mean()) / z.std() / N**0.5 + 2.7 / N  # 2.7 standard errors above zero

    def made(count: int) -> ScoreTable:
        found = table(**{f"m{place}": (0.4, 0.4, 0.5) for place in range(count)})
        for place, arrays in enumerate(found.arrays.values()):
            arrays["value/sic (PIC)"] = 1e-6 * draw.standard_normal(N) + (difference if place == 0 else 0)
        found.arrays["random"]["value/sic (PIC)"] -= 1
        return found

    two, many = made(2), made(9)
    assert only(two)["verdict"] == "some"
    assert not any("sic (PIC)" in entry["for"] for entry in entries(many))


def test_a_protocol_without_values_does_not_count():
    found = table(a=(0.4, 0.3, 0.5), b=(0.3, 0.4, 0.5))
    found.arrays["a"]["value/sic (PIC)"][:] = np.nan
    entry = only(found)
    assert entry["protocols"] == {"RISE": "for"}
    assert entry["verdict"] == "every"


def test_a_quantity_that_knows_no_method_from_random_maps_has_no_say():
    found = table(a=(0.1, 0.3, 0.5), b=(0.1, 0.4, 0.4))
    found.arrays["b"]["value/insertion (RISE)"] -= 0.05  # worse than random, and than a
    assert only(found)["for"] == ["deletion (RISE)", "sic (PIC)"]
    for method in "ab":
        found.arrays[method]["value/deletion (RISE)"] += 0.6
    entry = only(ScoreTable(found.columns, found.arrays, found.controls, "random"))
    assert (entry["verdict"], entry["protocols"]) == ("some", {"RISE": "undecided", "PIC": "for"})


@pytest.mark.parametrize(("step", "differs"), [(None, False), (16, False), (8, True), (1600, True)])
def test_another_step_is_said_of_the_curves_that_have_it(step, differs):
    found = table()
    said = f"Curves of RISE replaced {step or 0:,} pixels at a time, not one row of 16."
    assert step_findings(found, step, 16) == [said] * differs
    notes = ["Not as the protocol" in entry["differences"] for entry in protocol_entries(found, step, 16)]
    assert notes == [differs, False]  # of RISE and of PIC
    found = ScoreTable(found.columns[2:], found.arrays, found.controls, "random")  # only PIC
    assert step_findings(found, step, 16) == []
    assert step_findings(ScoreTable([], found.arrays, found.controls, "random"), step, 16) == []


def test_findings_count_the_verdicts():
    made = entries(table(a=(0.4, 0.3, 0.5), b=(0.3, 0.4, 0.4), c=(0.3, 0.4, 0.6)))
    assert [entry["verdict"] for entry in made] == ["every", "contradicted", "some"]
    assert ranking_findings(made) == [
        "Of 3 pairs of methods, controls among them, 1 has the same order under all 2 protocols, 1 under some while "
        "the others are undecided; protocols contradict each other on 1, and 0 are undecided."
    ]
    assert ranking_findings([]) == []
