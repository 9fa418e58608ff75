"""SIC and AIC: the authors' recorded numbers, closed forms, skips, and what the defaults are for."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import cases
import numpy as np
import pytest
import torch
from numpy.lib.npyio import NpzFile
from recorded import problem
from torch import Tensor, nn

from robustsigma import Classifier
from robustsigma.engine.metrics.base import MetricContext, MetricResult, Skip
from robustsigma.engine.metrics.masked_interpolation import interpolate_masked
from robustsigma.engine.metrics.pic import PerformanceInformation, aggregate, information
from robustsigma.engine.metrics.published import IDGRepositoryPerformanceInformation

RECORDED = 4  # images
AUTHORS = PerformanceInformation(tie_break="reference", interpolation="exact")
REASONS = {"score on the original": Skip.LOW_CONFIDENCE, "entropy": Skip.NO_INFORMATION, "blurred": Skip.BLUR_EXPLAINS}


@pytest.fixture(scope="module")
def stored(vectors: Path) -> NpzFile:
    return np.load(vectors / "metrics.npz")


@pytest.fixture(scope="module")
def recorded(vectors: Path, stored: NpzFile) -> MetricContext:
    """Return the images of the recorded runs with their random masks; skip where libwebp gives other sizes."""
    found = problem(vectors, "f32")
    images = found.images[:RECORDED]
    bytes_ = np.round(images.numpy() * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    if [information(image) for image in bytes_] != [int(stored[f"pic_{i}_entropy_orig"]) for i in range(RECORDED)]:
        pytest.skip("this build of libwebp gives other sizes than that of the recorded runs")
    subject = MetricContext(found.classifier, images, found.targets[:RECORDED])
    masks = np.stack([stored[f"pic_{i}_random_mask"] for i in range(RECORDED)])
    return with_masks(subject, masks)


def with_masks(subject: MetricContext, masks: np.ndarray, fraction: float = 0.01) -> MetricContext:
    """Give the subject random masks made elsewhere."""
    subject.shared(("pic drawn", fraction), lambda: masks)
    return subject


@pytest.mark.parametrize("heatmap", ["ig", "idg", "gig", "sigma", "random"])
@pytest.mark.parametrize("monotone", [True, False])
def test_equals_the_authors_runs(recorded, stored, heatmap, monotone):
    metric = PerformanceInformation(tie_break="reference", interpolation="exact", monotone=monotone)
    found = metric(recorded, torch.tensor(stored[f"map_{heatmap}"][:RECORDED]))
    compared = 0
    for i in range(RECORDED):
        for name in ("sic", "aic"):
            key = f"pic_{i}_{heatmap}_{name}" + ("" if monotone else "_nonmono")
            value, why = float(found.values[name][i]), int(found.skips[name][i])
            if f"{key}_error" in stored:
                assert np.isnan(value)
                assert found.curves[name].y[i].isnan().all()
                said = str(stored[f"{key}_error"])
                assert why == next(reason for start, reason in REASONS.items() if start in said)
                continue
            assert why == Skip.NO
            np.testing.assert_allclose(found.curves[name].y[i], stored[f"{key}_curve_y"], atol=1e-6)
            assert value == pytest.approx(float(stored[f"{key}_auc"]), abs=1e-6)
            compared += 1
    assert compared == 3


@pytest.mark.parametrize("heatmap", ["ig", "idg", "gig", "sigma", "random"])
def test_equals_the_runs_of_idgs_copy(recorded, stored, heatmap):
    """Images that PAIR's code skips have an area there; so do they in the variant, and it is the same one."""
    metric = IDGRepositoryPerformanceInformation(tie_break="reference", interpolation="exact")
    found = metric(recorded, torch.tensor(stored[f"map_{heatmap}"][:RECORDED]))
    ends = metric._ends(recorded)
    for name in ("sic", "aic"):
        assert (found.skips[name] == Skip.NO).all()
        for i in range(RECORDED):
            key = f"idgpic_{i}_{heatmap}_{name}"
            # Single precision over the span of the scores, which is next to nothing where both ends are near 1.
            tolerance = max(1e-6, 2e-7 / abs(float(ends.original[i, 0] - ends.blurred[i, 0])))
            assert tolerance < 2e-3
            np.testing.assert_allclose(found.curves[name].y[i], stored[f"{key}_curve_y"], atol=tolerance)
            assert found.values[name][i].item() == pytest.approx(float(stored[f"{key}_auc"]), abs=tolerance)


def test_start_and_steps_equal_the_authors_runs(recorded, stored):
    heatmaps, ends = torch.tensor(stored["map_ig"][:RECORDED]), AUTHORS._ends(recorded)
    masks = AUTHORS._masks(recorded, heatmaps) | ends.drawn[:, None]
    compared = 0
    for i in range(RECORDED):
        start = interpolate_masked(ends.images[i], ends.drawn[i], "exact")
        np.testing.assert_array_equal(start, stored[f"pic_{i}_blurred"])
        assert ends.information[i].tolist() == [stored[f"pic_{i}_entropy_{end}"] for end in ("blurred", "orig")]
        key = f"pic_{i}_ig_sic"
        if f"{key}_error" in stored:
            continue
        steps = [start, *(interpolate_masked(ends.images[i], mask, "exact") for mask in masks[i]), ends.images[i]]
        np.testing.assert_array_equal(np.stack(steps), stored[f"{key}_blurred_images"])
        assert [information(step) for step in steps] == stored[f"{key}_entropies"].tolist()
        images = torch.tensor(np.stack(steps)).permute(0, 3, 1, 2) / 255
        with recorded.classifier.frozen():
            score = recorded.classifier.score(images, recorded.target[i].expand(len(steps)))
        np.testing.assert_allclose(score, stored[f"{key}_pred"], atol=1e-6)
        compared += 1
    assert compared == 2


class Checkers(nn.Module):
    """Two classes: the first is as likely as a checkerboard in the object is strong."""

    def __init__(self, channels: int, mask: Tensor, gain: float = 6.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(gain * checkers(*mask.shape) * mask / mask.sum() / channels)

    def forward(self, x: Tensor) -> Tensor:
        found = (x * self.weight).sum((1, 2, 3))
        return torch.stack([found, 1 - found], 1)


def checkers(height: int, width: int) -> Tensor:
    return (torch.arange(height)[:, None] + torch.arange(width)) % 2 * 2.0 - 1


def object_mask(height: int = 24, width: int = 20) -> Tensor:
    mask = torch.zeros(height, width)
    mask[8:14, 6:12] = 1
    return mask


def subject(
    count: int = 2,
    *,
    channels: int = 3,
    dtype: torch.dtype = torch.float32,
    seed: int | Tensor = 3,
    target: int | None = None,
    chunk_size: int | None = None,
) -> MetricContext:
    """Return images of noise, in which a checkerboard is the object that decides the class."""
    mask = object_mask()
    noise = torch.rand(count, channels, *mask.shape, generator=cases.generator(0), dtype=torch.float64)
    images = torch.where(mask == 1, 0.5 + 0.45 * checkers(*mask.shape).double(), 0.3 + 0.4 * noise).to(dtype)
    net = Classifier(Checkers(channels, mask).to(dtype), chunk_size=chunk_size)
    return MetricContext(net, images, target, seed=seed)


def random_maps(context: MetricContext, seed: int = 5) -> Tensor:
    count, _, height, width = context.images.shape
    return torch.rand(count, height, width, generator=cases.generator(seed), dtype=torch.float64)


def same(first: MetricResult, second: MetricResult, tolerance: float = 0.0) -> None:
    assert first.values.keys() == second.values.keys()
    for name, values in first.values.items():
        torch.testing.assert_close(values, second.values[name], rtol=0, atol=tolerance, equal_nan=True)
        torch.testing.assert_close(first.curves[name].y, second.curves[name].y, rtol=0, atol=tolerance, equal_nan=True)
        assert torch.equal(first.skipped(name), second.skipped(name))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_object_beats_a_random_map(channels, dtype):
    context = subject(4, channels=channels, dtype=dtype, seed=cases.seeds())
    best = PerformanceInformation()(context, object_mask().expand(4, -1, -1).contiguous())
    chance = PerformanceInformation()(context, random_maps(context))
    for name in ("sic", "aic"):
        assert (best.skips[name] == Skip.NO).all()
        assert (best.values[name] > chance.values[name] + 0.05).all()
        assert best.values[name].dtype == torch.float64


def test_curves_are_what_the_values_are_the_area_of():
    found = PerformanceInformation()(context := subject(), random_maps(context))
    for name in ("sic", "aic"):
        curve = found.curves[name]
        assert curve.y.shape == (2, 1001)
        assert (curve.x[0], curve.x[-1]) == (0, 1)
        assert (curve.y[:, 0] == 0).all()
        assert (curve.y[:, -1] == 1).all()
        assert ((curve.y >= 0) & (curve.y <= 1)).all()
        torch.testing.assert_close(torch.trapezoid(curve.y, curve.x), found.values[name])
        curve_of_all, area = aggregate(curve.y, "mean")
        torch.testing.assert_close(curve_of_all, curve.y.mean(0))
        assert area == pytest.approx(float(found.values[name].mean()))


@pytest.mark.parametrize("tie_break", ["random", "index"])
def test_reveals_what_the_reference_does_where_no_pixels_are_equal(tie_break):
    heatmaps = random_maps(context := subject())
    expected = PerformanceInformation(tie_break="reference")
    metric = PerformanceInformation(tie_break=tie_break)
    assert (metric._masks(context, heatmaps) == expected._masks(context, heatmaps)).all()
    same(metric(context, heatmaps), expected(context, heatmaps))


def test_a_constant_map_is_revealed_no_faster_than_a_random_one():
    constant, metric = torch.zeros(2, 24, 20), PerformanceInformation()
    revealed = metric._masks(context := subject(seed=torch.tensor([1, 2])), constant)
    expected = metric._masks(context, random_maps(context))
    assert (revealed.sum((2, 3)) == expected.sum((2, 3))).all()
    assert (revealed[0] != revealed[1]).any()
    assert PerformanceInformation(tie_break="reference")._masks(context, constant).all()  # what this guards against


def test_a_batch_equals_its_images_alone():
    context = subject(3, seed=cases.seeds(3))
    heatmaps = random_maps(context)
    heatmaps[1] = 0  # ties are broken by the image's own seed
    together = PerformanceInformation()(context, heatmaps)
    for i in range(3):
        alone = MetricContext(
            context.classifier, context.images[i : i + 1], context.target[i : i + 1], seed=context.seeds[i : i + 1]
        )
        found = PerformanceInformation()(alone, heatmaps[i : i + 1])
        for name in ("sic", "aic"):
            torch.testing.assert_close(found.values[name], together.values[name][i : i + 1], rtol=0, atol=1e-6)


def test_chunks_do_not_matter():
    heatmaps = random_maps(whole := subject())
    same(PerformanceInformation()(whole, heatmaps), PerformanceInformation()(subject(chunk_size=3), heatmaps), 1e-6)


def test_each_image_draws_its_own_start():
    starts = PerformanceInformation(mask_fraction=0.1)._ends(subject(3, seed=torch.tensor([1, 2, 1]))).drawn
    assert (starts.sum((1, 2)) == 48).all()
    assert (starts[0] == starts[2]).all()
    assert (starts[0] != starts[1]).any()


def test_what_no_attribution_changes_is_computed_once():
    seen = []
    context = subject()
    context.classifier.net.register_forward_pre_hook(lambda module, x: seen.append(len(x[0])))
    heatmaps = random_maps(context)
    first = PerformanceInformation()(context, heatmaps)
    assert sum(seen) == 2 * (2 + 13)
    second = PerformanceInformation(monotone=False)(context, heatmaps)
    assert sum(seen) == 2 * (2 + 13 + 13)
    assert (second.values["sic"] <= first.values["sic"]).all()


def test_the_network_is_shown_eight_bits():
    seen = []
    context = subject()
    context.classifier.net.register_forward_pre_hook(lambda module, x: seen.append(x[0].clone()))
    PerformanceInformation()(context, random_maps(context))
    levels = torch.cat(seen) * 255
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)


def flat(context: MetricContext) -> MetricContext:
    return MetricContext(context.classifier, torch.full_like(context.images, 0.5), 0)


def indifferent(context: MetricContext) -> MetricContext:
    context.classifier.net.weight.data.zero_()
    return MetricContext(context.classifier, context.images, 1)


@pytest.mark.parametrize(
    ("make", "min_confidence", "sic", "aic"),
    [
        (partial(subject, target=0), 1.0, Skip.LOW_CONFIDENCE, Skip.NO),
        (partial(subject, target=1), 0.0, Skip.BLUR_EXPLAINS, Skip.BLUR_EXPLAINS),
        (partial(subject, target=1), 0.8, Skip.LOW_CONFIDENCE, Skip.LOW_CONFIDENCE),
        (lambda: flat(subject()), 0.0, Skip.NO_INFORMATION, Skip.NO_INFORMATION),
        (lambda: indifferent(subject()), 0.5, Skip.BLUR_EXPLAINS, Skip.BLUR_EXPLAINS),
    ],
    ids=["unsure", "other-class", "unsure-first", "flat", "indifferent"],
)
def test_skipped_images_say_why_and_are_nan(make, min_confidence, sic, aic):
    context = make()
    found = PerformanceInformation(min_confidence=min_confidence)(context, random_maps(context))
    for name, why in (("sic", sic), ("aic", aic)):
        assert (found.skipped(name) == why).all()
        assert (found.values[name].isnan() == (why != Skip.NO)).all()
        assert (found.curves[name].y.isnan().all(1) == (why != Skip.NO)).all()


def test_a_skipped_image_leaves_the_others_alone():
    images = (context := subject()).images.clone()
    images[0] = 0.5
    mixed = MetricContext(context.classifier, images, context.target, seed=context.seeds)
    found, expected = (PerformanceInformation()(s, random_maps(context)) for s in (mixed, context))
    assert found.values["sic"].isnan().tolist() == [True, False]
    torch.testing.assert_close(found.values["sic"][1], expected.values["sic"][1], rtol=0, atol=1e-6)


def test_fast_interpolation_gives_nearly_the_same_areas():
    heatmaps = random_maps(context := subject(4, seed=cases.seeds()))
    fast, exact = (PerformanceInformation(interpolation=way)(context, heatmaps) for way in ("fast", "exact"))
    assert (fast.values["sic"] - exact.values["sic"]).abs().max() < 0.03
    assert len([key for key in context._shared if key[0] == "pic ends"]) == 2  # each from a start of its own


def test_aggregate_leaves_skipped_images_out():
    x = torch.linspace(0, 1, 5, dtype=torch.float64)
    curves = torch.stack([x, torch.full_like(x, torch.nan), x**2, x * 0, x**3])
    curve, area = aggregate(curves)
    torch.testing.assert_close(curve, (x**2 + x**3) / 2)  # between the two middle ones of four
    assert area == pytest.approx(float(torch.trapezoid(curve, x)))
    torch.testing.assert_close(aggregate(curves, "mean")[0], (x + x**2 + x**3) / 4)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: PerformanceInformation(thresholds=()), "thresholds"),
        (lambda: PerformanceInformation(thresholds=(0.2, 0.1)), "thresholds"),
        (lambda: PerformanceInformation(thresholds=(0.2, 1.1)), "thresholds"),
        (lambda: PerformanceInformation(mask_fraction=1.5), "mask_fraction"),
        (lambda: PerformanceInformation(min_confidence=-1), "min_confidence"),
        (lambda: PerformanceInformation(interpolation="cubic"), "interpolation"),
        (lambda: PerformanceInformation(tie_break="last"), "tie_break"),
        (lambda: PerformanceInformation()(context := subject(channels=2), random_maps(context)), "images"),
        (lambda: aggregate(torch.full((2, 3), torch.nan)), "curves"),
        (lambda: aggregate(torch.zeros(3)), "curves"),
        (lambda: aggregate(torch.zeros(2, 3), "max"), "how"),
    ],
)
def test_errors_name_the_argument(call, name):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        call()


@pytest.mark.reference
@pytest.mark.parametrize("monotone", [True, False])
def test_equals_pair(monotone, monkeypatch):
    """PAIR's own package on fresh images, maps and masks, with ties."""
    monkeypatch.setattr(np, "trapz", np.trapezoid, raising=False)  # numpy 2.4 took it away
    pair = pytest.importorskip("saliency.metrics.pic")
    context = subject(3, seed=cases.seeds(3))
    heatmaps = (random_maps(context) * 40).round()
    metric = PerformanceInformation(
        tie_break="reference", interpolation="exact", monotone=monotone, mask_fraction=0.02, min_confidence=0.5
    )
    found, ends = metric(context, heatmaps), metric._ends(context)

    def score(name: str, images: np.ndarray) -> np.ndarray:
        x = torch.tensor(images).permute(0, 3, 1, 2) / 255
        with context.classifier.frozen():
            logits = context.classifier.logits(x)
        return (logits.softmax(1)[:, 0] if name == "sic" else (logits.argmax(1) == 0)).double().numpy()

    for name in ("sic", "aic"):
        results = [
            pair.compute_pic_metric(
                ends.images[i],
                heatmaps[i].numpy(),
                ends.drawn[i],
                partial(score, name),
                metric.thresholds,
                0.5,
                monotone,
            )
            for i in range(3)
        ]
        np.testing.assert_allclose(found.curves[name].y, [r.curve_y for r in results], atol=1e-5)
        np.testing.assert_allclose(found.values[name], [r.auc for r in results], atol=1e-5)
        for how in ("mean", "median"):
            expected = pair.aggregate_individual_pic_results(results, how)
            curve, area = aggregate(found.curves[name].y, how)
            np.testing.assert_allclose(curve, expected.curve_y, atol=1e-5)
            assert area == pytest.approx(expected.auc, abs=1e-5)
