"""Localization: cases worked out by hand, degenerate maps and masks, and Saliency-Bench's definitions."""

from __future__ import annotations

import cases
import numpy as np
import pytest
import torch

from robustsigma.engine.metrics import Localization, MetricContext, Skip
from robustsigma.engine.metrics.published import SaliencyBenchLocalization

MAPS = ("ig", "idg", "gig", "sigma", "random")


def subject(masks: torch.Tensor) -> MetricContext:
    return MetricContext(cases.classifier(), cases.images(len(masks)), masks=masks)


def padded(rows: list[list[float]]) -> torch.Tensor:
    """Return a map (1, 8, 8) whose first entries are given and whose others are 0."""
    flat = torch.zeros(64)
    values = torch.tensor(rows).flatten()
    flat[: len(values)] = values
    return flat.reshape(1, 8, 8)


def test_worked_out_by_hand():
    mask = padded([[1.0, 1, 1, 0]])
    found = Localization()(subject(mask), padded([[0.9, 0.1, 0.6, 1.0]])).values
    assert found["iou"].item() == 2 / 4  # highest three: 3, 0, 2
    assert found["iou_fixed"].item() == 2 / 4  # at or above .5: 0, 2, 3
    assert found["iou_best"].item() == 3 / 4  # highest four
    assert found["pointing_game"].item() == 0
    found = Localization(threshold=0.05)(subject(mask), padded([[1.0, 0.1, 0.6, 0.9]])).values
    assert found["iou_fixed"].item() == 3 / 4
    assert found["pointing_game"].item() == 1


def test_negative_values_have_no_special_meaning_but_order():
    mask = padded([[1.0, 1, 0, 0]])
    found = Localization(reduction="sum")(subject(mask), padded([[3.0, 2, 1]]) - 10).values
    assert found["iou"].item() == found["iou_best"].item() == found["pointing_game"].item() == 1


def test_equally_high_pixels_share_the_point_and_a_constant_map_points_nowhere():
    mask = padded([[1.0, 1, 0, 0]])
    found = Localization()(subject(mask), padded([[1.0, 0, 1, 1]])).values
    assert found["pointing_game"].item() == pytest.approx(1 / 3)
    for value in (0.0, 5.0):
        for got in Localization()(subject(mask), torch.full((1, 8, 8), value)).values.values():
            assert got.item() == 0


def test_empty_masks_are_skipped_and_soft_ones_cut():
    masks = torch.zeros(2, 8, 8)
    masks[1, 0, :3] = torch.tensor([0.4, 0.5, 0.6])
    maps = torch.zeros(2, 8, 8)
    maps[:, 0, 1:3] = 1
    found = Localization()(subject(masks), maps)
    for name, values in found.values.items():
        assert values[0].isnan()
        assert found.skipped(name).tolist() == [Skip.EMPTY_MASK, Skip.NO]
    assert found.values["iou"][1].item() == 1
    assert Localization(marked=0.6)(subject(masks), maps).values["iou_fixed"][1].item() == 0.5


def test_full_masks():
    found = Localization()(subject(torch.ones(1, 8, 8)), torch.rand(1, 8, 8, generator=cases.generator(0)))
    assert found.values["iou"].item() == found.values["pointing_game"].item() == 1


def saliency_bench(maps: np.ndarray, masks: np.ndarray) -> dict[str, list[float]]:
    """Return each image's values by the published definitions, image by image, for images that somebody marked."""
    found: dict[str, list[float]] = {"iou": [], "pointing_game": [], "precision": [], "recall": []}
    for heat, soft in zip(maps, masks, strict=True):
        if soft.sum() == 0:
            continue
        hard, positive = soft.astype(int) != 0, heat > 0
        found["iou"].append((hard & positive).sum() / (hard | positive).sum() if (hard | positive).any() else np.nan)
        found["precision"].append((hard & positive).sum() / positive.sum() if positive.any() else np.nan)
        found["recall"].append((hard & (heat > 0.5)).sum() / hard.sum() if hard.any() else 0.0)
        found["pointing_game"].append(float((soft[heat == heat.max()] > 0).any()))
    return found


@pytest.mark.parametrize("masks", ["xai_gt", "xai_gt_soft"])
@pytest.mark.parametrize("of", MAPS)
def test_saliency_bench(vectors, of, masks):
    """The recorded means are over eight images of which four are here: the other three that count lie in [0, 1]."""
    stored = np.load(vectors / "metrics.npz")
    marked, raw = stored[masks], stored[f"map_{of}"]
    highest = raw.max((1, 2), keepdims=True)
    top = np.where(raw >= np.quantile(raw, 0.8, axis=(1, 2), keepdims=True), raw, 0)
    variants = {
        "raw": raw,
        "max": raw / np.where(highest > 0, highest, 1),
        "top20": top,
        "signed": raw - np.median(raw, axis=(1, 2), keepdims=True),
    }
    case = MetricContext(cases.classifier(cases.mlp(size=32)), cases.images(4, size=32), masks=torch.tensor(marked))
    for name, maps in variants.items():
        found = SaliencyBenchLocalization(reduction="sum")(case, torch.tensor(maps))
        for quantity, values in saliency_bench(maps, marked).items():
            np.testing.assert_allclose(found.values[quantity].numpy(), values, atol=1e-12)
            key = {"pointing_game": "hit"}.get(quantity, quantity)
            mean = float(stored[f"xai_{key}_{of}_{name}{'_softgt' if masks.endswith('soft') else ''}"])
            if not np.isnan(mean):
                rest = 7 * mean - np.nansum(values)
                assert -1e-9 <= rest <= 3 + 1e-9, (quantity, name)


@pytest.mark.parametrize(("name", "value"), [("threshold", 0), ("threshold", 1.1), ("marked", 0), ("reduction", "x")])
def test_bad_arguments(name, value):
    with pytest.raises(ValueError, match=rf"^{name}: expected"):
        Localization(**{name: value})


@pytest.mark.parametrize("seed", range(4))
def test_the_best_threshold_takes_equal_pixels_together(seed):
    """Of eight equally high pixels four are the object: no threshold tells them apart, whatever their drawn order."""
    mask = padded([[1.0] * 4 + [0.0] * 4])
    context = MetricContext(cases.classifier(), cases.images(1), masks=mask, seed=seed)
    assert Localization()(context, padded([[1.0] * 8])).values["iou_best"].item() == 0.5
    assert Localization()(context, padded([[1.0] * 8, [0.4, 0.3, 0.2, 0.1] * 2])).values["iou_best"].item() == 0.5
