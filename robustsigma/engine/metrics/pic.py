"""Performance Information Curves: SIC and AIC (Kapishnikov et al., XRAI, 2019, section 4)."""

from __future__ import annotations

import io
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from robustsigma.engine import noise, validation
from robustsigma.engine.metrics.base import Curve, HeatmapMetric, MetricContext, MetricResult, MetricSpec, Skip
from robustsigma.engine.metrics.masked_interpolation import Interpolation, interpolate_masked
from robustsigma.engine.metrics.masked_scores import score_copies
from robustsigma.engine.metrics.ranking import TieBreak, ranks
from robustsigma.engine.scores import target_score

Array = np.ndarray[Any, Any]
Aggregation = Literal["median", "mean"]

_POINTS = 1001
_NAMES = ("sic", "aic")


class CurveEnds(NamedTuple):
    """What all curves of an image start from and end at. Scores are of SIC and AIC, float64 (B, 2)."""

    images: Array  # uint8 (B, H, W, C), or floats
    drawn: Array  # bool (B, H, W), revealed in the start
    information: Array  # int64 (B, 2) of the blurred and the original image
    blurred: Tensor
    original: Tensor
    target: Tensor  # int64 (B,), the class whose score it is


@dataclass(frozen=True)
class PerformanceInformation(HeatmapMetric):
    """How fast the network's score comes back while the most important pixels of a blurred image are revealed.

    The image starts with few random pixels revealed, the others interpolated between them. For each threshold the
    share of pixels that are largest in the heatmap is revealed as well. A point of the curve is x, how much of the
    image's information has come back, and y, how much of its score, both 0 for the start and 1 for the original and
    clipped to [0, 1]; information is the size of the lossless WebP. SIC's score is the target's softmax, AIC's is 1
    where the target is the predicted class and else 0. The value is the area under the curve.

    The images are rounded to 8 bits, and the network is shown the rounded ones. An image is skipped where its score is
    below `min_confidence`, or where the start holds no less information or has no lower score; SIC and AIC each use
    their own score. Sizes of WebP depend on the build of libwebp, so compare values of one build only.

    Args:
        thresholds: shares of pixels, increasing.
        mask_fraction: share of pixels that the start reveals, drawn from the image's seed; its corners are added.
        min_confidence: images with a lower score are skipped.
        monotone: y is the largest so far, in the order of thresholds.
        interpolation: see `interpolate_masked`; "exact" equals scipy.interpolate.griddata, as in the authors' code.
            "fast" moves sizes by about 0.2% and areas by less than 0.003, but by up to 0.02 where blurring costs the
            image next to none of its score, which the curve then magnifies.
        tie_break: "random" and "index" reveal, of equal pixels, only as many as a map without ties would, see
            `ranks`. "reference" reveals every pixel that is at least the map's quantile, as the authors' code does:
            a map that is zero on most pixels then reveals all of them.
        reduction: see `HeatmapMetric`.

    Raises:
        ValueError: a hyper-parameter outside what is stated here; at the call, images of other than 1 or 3 channels
            or smaller than 2 x 2 pixels.

    Example:
        >>> context = MetricContext(classifier, images, labels, masks=masks, seed=0)
        >>> PerformanceInformation()(context, IntegratedGradients()(classifier, images, labels)).values["sic"]
    """

    thresholds: tuple[float, ...] = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.07, 0.10, 0.13, 0.21, 0.34, 0.5, 0.75)
    mask_fraction: float = 0.01
    min_confidence: float = 0.8
    monotone: bool = True
    interpolation: Interpolation = "fast"
    tie_break: TieBreak = "random"

    def __post_init__(self) -> None:
        validation.shares("thresholds", self.thresholds, increasing=True)
        validation.number("mask_fraction", self.mask_fraction, 0, 1)
        validation.number("min_confidence", self.min_confidence, 0, 1)

    @property
    def quantities(self) -> tuple[MetricSpec, ...]:
        """SIC and AIC."""
        about = "area under the {} over the information that comes back while the largest pixels are revealed"
        return (
            MetricSpec("sic", "SIC", "higher", about.format("target's softmax")),
            MetricSpec("aic", "AIC", "higher", about.format("accuracy")),
        )

    def of_heatmaps(self, context: MetricContext, heatmaps: Tensor) -> MetricResult:
        """Compute both from the same network passes."""
        ends = self._ends(context)
        skips = self._skips(ends)
        masks = self._masks(context, heatmaps) | ends.drawn[:, None]
        count = len(self.thresholds)
        evaluated = (skips == 0).any(1)
        pending: dict[tuple[int, int], Future[int]] = {}

        def make(rows: Tensor, copies: Tensor) -> Tensor:
            made = []
            for row, copy in zip(rows.tolist(), copies.tolist(), strict=True):
                image = ends.images[row]
                if evaluated[row]:  # else no curve needs it
                    image = interpolate_masked(image, masks[row, copy], self.interpolation)
                    pending[row, copy] = pool.submit(_information, image)
                made.append(image)
            return _as_images(made, context.images)

        # Compression takes four times as long as interpolation, and releases Python's lock, which that hardly does.
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            scores = score_copies(context, count, make, _scores, ends.target)
            sizes = np.zeros((len(context), count), np.int64)
            for at, found in pending.items():
                sizes[at] = found.result()
        low, high = ends.information[:, :1], ends.information[:, 1:]
        x = np.clip((sizes - low) / np.where(high != low, high - low, 1), 0, 1)
        gain = (ends.original - ends.blurred)[:, None]
        y = ((scores - ends.blurred[:, None]) / gain.where(gain != 0, 1)).clamp(0, 1).cpu().numpy()
        if self.monotone:
            y = np.maximum.accumulate(y, axis=1)
        return _measured(x, y, skips, context.images.device)

    def _masks(self, context: MetricContext, heatmaps: Tensor) -> Array:
        """Return bool (B, T, H, W), the pixels that each threshold reveals."""
        size = heatmaps[0].numel()
        if self.tie_break == "reference":
            maps = heatmaps.cpu().numpy()
            quantiles = np.quantile(maps.reshape(len(maps), -1), [1 - t for t in self.thresholds], axis=1)
            return np.asarray(maps[:, None] >= quantiles.T[..., None, None])
        # As many pixels as lie at or above numpy's linear quantile of values that are all different.
        counts = torch.tensor([size - int(np.ceil((1 - t) * (size - 1))) for t in self.thresholds])
        places = ranks(heatmaps, context.seeds, self.tie_break).cpu().reshape(heatmaps.shape)
        return (places[:, None] < counts[:, None, None]).numpy()

    def _ends(self, context: MetricContext) -> CurveEnds:
        drawn = context.shared(("pic drawn", self.mask_fraction), lambda: _drawn(context, self.mask_fraction))
        key = ("pic ends", type(self), self.mask_fraction, self.interpolation)
        return context.shared(key, lambda: self._make_ends(context, drawn))

    def _make_ends(self, context: MetricContext, drawn: Array) -> CurveEnds:
        pixels = (context.images * 255).round().to(torch.uint8)
        return make_ends(context, pixels, drawn, self.interpolation)

    def _skips(self, ends: CurveEnds) -> Array:
        """Return int64 (B, 2), why an image has no SIC and no AIC; the first reason that applies."""
        original, blurred = ends.original.cpu().numpy(), ends.blurred.cpu().numpy()
        low, high = ends.information[:, :1], ends.information[:, 1:]
        reasons = [original < self.min_confidence, (low >= high).repeat(2, 1), blurred >= original]
        return np.select(reasons, [Skip.LOW_CONFIDENCE, Skip.NO_INFORMATION, Skip.BLUR_EXPLAINS], Skip.NO)


def aggregate(curves: Tensor, how: Aggregation = "median") -> tuple[Tensor, float]:
    """Return the curve (K,) of many images, point by point, and the area under it.

    Args:
        curves: (N, K), over a grid from 0 to 1; rows of NaN are of images that were skipped and do not count.
        how: "median", as the authors report, or "mean".

    Raises:
        ValueError: another shape or aggregation, or no image that was not skipped.
    """
    validation.choice("how", how, get_args(Aggregation))
    if curves.ndim != 2:
        raise validation.fail("curves", "shape (N, K)", tuple(curves.shape))
    kept = curves.double().cpu().numpy()
    kept = kept[~np.isnan(kept).any(1)]
    if not len(kept):
        raise validation.fail("curves", "at least one image that was not skipped", f"none of {len(curves)}")
    curve = torch.from_numpy(np.median(kept, 0) if how == "median" else np.mean(kept, 0)).to(curves.device)
    return curve, float(torch.trapezoid(curve, _grid(len(curve)).to(curve.device)))


def _grid(points: int) -> Tensor:
    return torch.linspace(0, 1, points, dtype=torch.float64)


def _drawn(context: MetricContext, fraction: float) -> Array:
    """Return bool (B, H, W), the pixels that the start reveals; `interpolate_masked` adds the corners."""
    count, _, height, width = context.images.shape
    draws = noise.uniform(noise.fold(context.seeds, "pic"), (height * width,), torch.float64)
    chosen = draws.argsort(dim=1, stable=True)[:, : int(fraction * height * width)]
    mask = torch.zeros_like(draws, dtype=torch.bool).scatter_(1, chosen, True)
    return mask.reshape(count, height, width).cpu().numpy()


def make_ends(
    context: MetricContext, pixels: Tensor, drawn: Array, interpolation: Interpolation, *, predicted: bool = False
) -> CurveEnds:
    """Return the ends of all curves for pixels (B, C, H, W), uint8 or float; the class is the target or `predicted`."""
    shape = tuple(context.images.shape[1:])
    if shape[0] not in (1, 3) or min(shape[1:]) < 2:
        raise validation.fail("images", "1 or 3 channels of at least 2 x 2 pixels", f"(C, H, W) = {shape}")
    images = pixels.permute(0, 2, 3, 1).cpu().contiguous().numpy()
    blurred = [interpolate_masked(image, mask, interpolation) for image, mask in zip(images, drawn, strict=True)]
    sizes = np.array([[_information(start), _information(end)] for start, end in zip(blurred, images, strict=True)])
    starts, originals = (_as_images(part, context.images) for part in (blurred, images))
    logits = context.classifier.logits(torch.cat([starts, originals]))
    target = logits[len(images) :].argmax(1) if predicted else context.target
    start, end = _scores(logits, target.repeat(2)).chunk(2)
    return CurveEnds(images, drawn, sizes, start, end, target)


def information(image: Array) -> int:
    """Return the information in an image: its size in bytes as lossless WebP (Kapishnikov et al., XRAI, 2019, sec. 4).

    The number depends on the build of libwebp: compare only values of one build
    (`PIL.features.version("webp")`).

    Args:
        image: uint8 (H, W, 3), (H, W, 1) or (H, W).

    Raises:
        ValueError: another dtype or shape.
    """
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise validation.fail("image", "uint8 (H, W, 3), (H, W, 1) or (H, W)", f"{image.dtype} {image.shape}")
    buffer = io.BytesIO()
    # Without loss, quality means effort; with less of it the size says less about the image.
    Image.fromarray(image).save(buffer, format="webp", lossless=True, quality=100)
    return buffer.getbuffer().nbytes


def _information(image: Array) -> int:
    """Return the information in an image, of which floats in [0, 1] are cut, not rounded, to bytes."""
    return information(image if image.dtype == np.uint8 else (image * 255).astype(np.uint8))


def _as_images(images: Iterable[Array], like: Tensor) -> Tensor:
    """Return images (H, W, C), uint8 or floats in [0, 1], as floats (n, C, H, W) in [0, 1]."""
    stacked = torch.from_numpy(np.stack(list(images))).to(like.device)
    floats = stacked.permute(0, 3, 1, 2).contiguous().to(like.dtype)
    return floats if stacked.is_floating_point() else floats / 255


def _scores(logits: Tensor, target: Tensor) -> Tensor:
    """Return float64 (n, 2): the target's softmax, and whether it is the predicted class."""
    return torch.stack([target_score(logits, target, "prob").double(), (logits.argmax(1) == target).double()], 1)


def _measured(x: Array, y: Array, skips: Array, device: torch.device) -> MetricResult:
    """Return the curves and their areas from points x (B, T) and y (B, T, 2), in the order of thresholds."""
    grid = _grid(_POINTS)
    drawn = torch.full((len(_NAMES), len(x), _POINTS), torch.nan, dtype=torch.float64)
    for kind, row in np.argwhere(skips.T == 0):
        # The ends come last: of points at x = 0 the curve leaves from (0, 0), whatever the others' y.
        at, height = np.append(x[row], [0.0, 1.0]), np.append(y[row, :, kind], [0.0, 1.0])
        order = np.argsort(at, kind="stable")
        drawn[kind, row] = torch.from_numpy(np.interp(grid.numpy(), at[order], height[order]))
        drawn[kind, row, -1] = 1
    areas, grid = torch.trapezoid(drawn, grid).to(device), grid.to(device)
    titles = ("softmax that came back", "accuracy that came back")
    return MetricResult(
        dict(zip(_NAMES, areas, strict=True)),
        dict(zip(_NAMES, torch.from_numpy(skips.T.astype(np.int64)).to(device), strict=True)),
        {
            name: Curve(grid, curve, "information that came back", title)
            for name, curve, title in zip(_NAMES, drawn.to(device), titles, strict=True)
        },
    )
