"""What every public metric of attributions promises, tested over the public list with the cheap settings."""

from __future__ import annotations

import dataclasses
import pickle
from dataclasses import dataclass
from typing import Any

import cases
import metric_cases
import pytest
import torch
from jsonargparse import ArgumentParser
from test_validation import BAD_IMAGES, BAD_SEEDS, BAD_TARGETS

import robustsigma
from robustsigma import Classifier, Gradient, IntegratedGradients, RandomAttribution, Sigma
from robustsigma.engine import noise
from robustsigma.engine.metrics import AttributionMetric, MetricContext, MetricResult, paired_difference
from robustsigma.engine.metrics.base import HeatmapMetric, MetricSpec, Skip
from robustsigma.engine.metrics.published import CumulativeMonotonicity, SaliencyBenchLocalization

METRICS = [
    pytest.param(metric, id=f"{kind.__name__}{place}")
    for kind in metric_cases.every_kind()
    for place, metric in enumerate(metric_cases.CHEAP.get(kind, ()))
]
every = pytest.mark.parametrize("metric", METRICS)
of_maps = pytest.mark.parametrize(
    "metric", [m for m in METRICS if not isinstance(m.values[0], metric_cases.OF_RESULTS)]
)
CONTEXTS = {
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}
WALK = Sigma(alpha=0.05, beta=0.1, epsilon=0.05, objective="logit", paths=2, max_steps=6)


def explained(subject: MetricContext, seed: int = 3):
    return WALK(subject.classifier, subject.images, subject.target, seed=seed)


def same(got: MetricResult, expected: MetricResult, **tolerance: float) -> None:
    tolerance = tolerance or {"rtol": 0, "atol": 0}
    assert set(got.values) == set(expected.values)
    for name, value in expected.values.items():
        torch.testing.assert_close(got.values[name], value, equal_nan=True, **tolerance)
        assert torch.equal(got.skipped(name), expected.skipped(name))
    for name, curve in expected.curves.items():
        torch.testing.assert_close(got.curves[name].y, curve.y, equal_nan=True, **tolerance)
        assert torch.equal(got.curves[name].x, curve.x)


def test_every_concrete_metric_is_public_and_has_cheap_settings():
    assert cases.concrete(AttributionMetric) == set(metric_cases.every_kind()) == set(metric_cases.CHEAP)


@every
def test_is_a_frozen_dataclass_that_survives_pickle_repr_and_yaml(metric, tmp_path):
    assert dataclasses.is_dataclass(metric)
    with pytest.raises(dataclasses.FrozenInstanceError):
        metric.reduction = "sum"
    assert pickle.loads(pickle.dumps(metric)) == metric
    assert hash(pickle.loads(pickle.dumps(metric))) == hash(metric)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--metric", type=AttributionMetric)
    given = {f.name: getattr(metric, f.name) for f in dataclasses.fields(metric)}
    path = f"{type(metric).__module__}.{type(metric).__name__}"
    parsed = parser.parse_object({"metric": {"class_path": path, "init_args": given}})
    again = parser.parse_string(parser.dump(parsed))
    assert parser.instantiate(again).metric == metric


@every
def test_gives_what_it_declares(metric):
    subject = metric_cases.subject()
    found = metric(subject, explained(subject))
    assert set(found.values) == {quantity.name for quantity in metric.quantities}
    for quantity in metric.quantities:
        values, skips = found.values[quantity.name], found.skipped(quantity.name)
        assert values.shape == skips.shape == (4,)
        assert values.dtype == torch.float64
        assert torch.equal(values.isnan(), skips != 0)
        assert quantity.better in ("higher", "lower")
        assert quantity.title
        assert quantity.about
    for curve in found.curves.values():
        assert curve.y.shape == (4, len(curve.x))
        assert (curve.x.diff() > 0).all()
    assert set(found.curves) <= set(found.values)


@every
def test_the_same_seed_gives_the_same_bits_and_a_batch_equals_singles(metric):
    subject = metric_cases.subject(dtype=torch.float64)
    result = explained(subject)
    whole = metric(subject, result)
    same(metric(metric_cases.subject(dtype=torch.float64), result), whole)
    for row in range(4):
        images, labels, masks = (part[row : row + 1] for part in metric_cases.scene(4, dtype=torch.float64))
        single = MetricContext(subject.classifier, images, labels, masks=masks, seed=subject.seeds[row : row + 1])
        alone = metric(single, explained(single))
        for name, value in whole.values.items():
            torch.testing.assert_close(alone.values[name], value[row : row + 1], equal_nan=True, rtol=1e-6, atol=1e-9)


@every
def test_chunks_do_not_matter(metric):
    whole = metric_cases.subject(dtype=torch.float64)
    parts = metric_cases.subject(dtype=torch.float64, chunk_size=3)
    result = explained(whole)
    same(metric(parts, result), metric(whole, result), rtol=1e-7, atol=1e-9)


@every
def test_any_context(metric):
    expected = metric(metric_cases.subject(), explained(metric_cases.subject()))
    images, labels, masks = metric_cases.scene(4)
    classifier, seeds = cases.Classifier(metric_cases.Colors()), torch.arange(4) + 100
    for context in CONTEXTS.values():
        with context():
            subject = MetricContext(classifier, images, labels, masks=masks, seed=seeds)
            found = metric(subject, explained(subject))
        same(found, expected, rtol=1e-5, atol=1e-6)


@every
def test_leaves_everything_as_it_was(metric):
    net = cases.cnn_bn_dropout()
    classifier, images = cases.classifier(net), cases.images(2)
    before, pixels = cases.state_of(classifier), images.clone()
    subject = MetricContext(classifier, images, masks=torch.ones(2, 8, 8), seed=1)
    result = IntegratedGradients(steps=2)(classifier, images, subject.target)
    values = result.values.clone()
    metric(subject, result)
    assert cases.state_of(classifier) == before
    assert torch.equal(images, pixels)
    assert torch.equal(result.values, values)


@of_maps
def test_leaves_everything_as_it_was_when_the_network_raises(metric):
    inner = cases.cnn_bn_dropout()
    counter = cases.PassCounter(inner)
    subject = MetricContext(cases.classifier(counter), cases.images(2), cases.labels(2), masks=torch.ones(2, 8, 8))
    counter.reset()
    metric(subject, torch.rand(2, 8, 8, generator=cases.generator(0)))
    if not counter.calls:
        pytest.skip("it does not call the network")
    net = cases.Raising(inner, after=1)
    classifier = cases.classifier(net)
    subject = MetricContext(classifier, cases.images(2), cases.labels(2), masks=torch.ones(2, 8, 8))
    before = cases.state_of(classifier)
    with pytest.raises(RuntimeError, match="midway"):
        metric(subject, torch.rand(2, 8, 8, generator=cases.generator(0)))
    assert cases.state_of(classifier) == before


@of_maps
def test_takes_plain_maps(metric):
    subject = metric_cases.subject()
    values = explained(subject).values
    whole = metric(subject, values)
    same(metric(subject, explained(subject)), whole)
    if getattr(metric, "features", "pixels") == "values":
        return  # channels count
    reduced = robustsigma.engine.attributors.base.reduce_channels(values.double(), metric.reduction)
    same(metric(subject, reduced), whole)


@every
def test_bad_attributions(metric):
    subject = metric_cases.subject()
    good = explained(subject)
    for bad in (good.values[:3], good.values[..., :5], good.values[0], good.values.long(), None, "map"):
        with pytest.raises(ValueError, match=r"^attribution: expected"):
            metric(subject, bad)
    with pytest.raises(ValueError, match="finite"):
        metric(subject, good.values * torch.nan)
    other = WALK(subject.classifier, subject.images, (subject.target + 1) % 3)
    with pytest.raises(ValueError, match="target classes"):
        metric(subject, other)
    if metric.needs_masks:
        bare = MetricContext(subject.classifier, subject.images, subject.target)
        with pytest.raises(ValueError, match=r"^masks: expected the context's masks"):
            metric(bare, good)
    if isinstance(metric, metric_cases.OF_RESULTS):
        with pytest.raises(ValueError, match="an Attribution, for"):
            metric(subject, good.values)


@pytest.mark.parametrize("images", BAD_IMAGES)
def test_bad_images(images):
    with pytest.raises(ValueError, match=r"^images: expected"):
        MetricContext(cases.classifier(), images)


@pytest.mark.parametrize("target", BAD_TARGETS)
def test_bad_targets(target):
    with pytest.raises(ValueError, match=r"^target: expected"):
        MetricContext(cases.classifier(), cases.images(), target)


@pytest.mark.parametrize("seed", BAD_SEEDS)
def test_bad_seeds(seed):
    with pytest.raises(ValueError, match=r"^seed: expected"):
        MetricContext(cases.classifier(), cases.images(), seed=seed)


@pytest.mark.parametrize("masks", [torch.ones(4, 8), torch.ones(3, 8, 8), torch.full((4, 8, 8), 2.0), [1], "mask"])
def test_bad_masks(masks):
    with pytest.raises(ValueError, match=r"^masks: expected"):
        MetricContext(cases.classifier(), cases.images(), masks=masks)
    with pytest.raises(ValueError, match=r"^masks: expected"):
        MetricContext(cases.classifier(), cases.images(), masks=torch.full((4, 8, 8), torch.nan))


@dataclass(frozen=True)
class Given(HeatmapMetric):
    """Gives what a test says."""

    values: Any = None

    @property
    def quantities(self):
        return (MetricSpec("one", "One", "higher", "the first number"),)

    def of_heatmaps(self, subject, heatmaps):
        return MetricResult(self.values)


def test_no_value_is_lost_without_a_reason():
    values = torch.tensor([1.0, torch.nan, torch.inf, 0.0], dtype=torch.float64)
    subject = MetricContext(cases.classifier(), cases.images())
    found = Given({"one": values})(subject, torch.ones(4, 8, 8))
    assert found.skipped("one").tolist() == [0, Skip.NOT_FINITE, Skip.NOT_FINITE, 0]
    assert found.values["one"].isnan().tolist() == [False, True, True, False]


def test_values_of_other_names_name_the_metric():
    subject = MetricContext(cases.classifier(), cases.images())
    with pytest.raises(ValueError, match=r"^Given\.measure: expected values one, got other, two$"):
        Given({"two": torch.ones(4), "other": torch.ones(4)})(subject, torch.ones(4, 8, 8))


def test_a_subject_without_finite_logits():
    net = cases.linear()
    net[1].bias.data[0] = torch.nan
    with pytest.raises(ValueError, match=r"^net: expected finite logits"):
        MetricContext(Classifier(net), cases.images())


def _signed(metric: AttributionMetric, subject: MetricContext, attribution) -> dict[str, torch.Tensor]:
    """Return values whose sign is such that higher is better."""
    found = metric(subject, attribution)
    return {q.name: found.values[q.name] * (1 if q.better == "higher" else -1) for q in metric.quantities}


@pytest.fixture(scope="module")
def many() -> MetricContext:
    return metric_cases.subject(60)


@of_maps
def test_a_perfect_map_beats_a_random_one_and_a_constant_one_is_never_rewarded(metric, many):
    published = (SaliencyBenchLocalization, CumulativeMonotonicity)
    if isinstance(metric, published) or getattr(metric, "tie_break", "random") != "random":
        pytest.skip("these reward constant, dense or random maps: that is why they are not the default")
    if not getattr(metric, "normalize", True):
        pytest.skip("maps of other units than the score are wrong as predictions of it")
    assert many.masks is not None
    random = RandomAttribution()(many.classifier, many.images, many.target, seed=noise.fold(many.seeds, "random"))
    scores = {
        name: _signed(metric, many, attribution)
        for name, attribution in {
            "perfect": many.masks,
            "random": random,
            "constant": torch.ones_like(many.masks),
            "zero": torch.zeros_like(many.masks),
        }.items()
    }
    for quantity in metric.quantities:
        perfect, chance = scores["perfect"][quantity.name], scores["random"][quantity.name]
        both = ~(perfect.isnan() | chance.isnan())
        assert both.sum() >= 30
        assert paired_difference(perfect[both], chance[both]).low > 0, quantity.name
        for name in ("constant", "zero"):
            flat = scores[name][quantity.name]
            both = ~(flat.isnan() | chance.isnan())
            if both.any():  # else it has no value at all
                gain = paired_difference(flat[both], chance[both])
                width = gain.high - gain.low
                # Chance makes one interval in forty lie above zero by a hair.
                assert gain.low <= width / 4, quantity.name


def test_a_subject_computes_what_attributions_share_once():
    counter = cases.PassCounter(metric_cases.Colors())
    images, labels, masks = metric_cases.scene(3)
    subject = MetricContext(cases.Classifier(counter), images, labels, masks=masks)
    for metric in (
        metric_cases.CHEAP[kind][0]
        for kind in metric_cases.every_kind()
        if kind.__name__ in ("SensitivityN", "Infidelity")
    ):
        counter.reset()
        metric(subject, masks.float())
        assert counter.forwards == 3 * (12 * len(metric.fractions) if hasattr(metric, "fractions") else 12)
        metric(subject, 1 - masks.float())
        assert counter.forwards == 3 * (12 * len(metric.fractions) if hasattr(metric, "fractions") else 12)


def test_gradient_has_no_completeness_and_one_path():
    subject = metric_cases.subject()
    result = Gradient()(subject.classifier, subject.images, subject.target)
    for kind in metric_cases.OF_RESULTS:
        found = metric_cases.CHEAP[kind][0](subject, result)
        skipped = {name for name in found.values if (found.skipped(name) != 0).all()}
        assert skipped == (set(found.values) if kind.__name__ != "Cost" else set())
