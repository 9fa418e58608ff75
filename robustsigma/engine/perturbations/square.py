"""Square, an attack without gradients: where it finds errors that gradient attacks miss, gradients are masked."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustsigma.engine import noise, validation
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.perturbations.attack_state import AttackState, keep
from robustsigma.engine.perturbations.ball import Ball, check_radius
from robustsigma.engine.perturbations.in_parts import AttackCost, AttackInParts
from robustsigma.engine.perturbations.losses import margin
from robustsigma.engine.perturbations.projections import Norm, lengths

_HALVED_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries: the area of a square
_DRAWN_AT_ONCE = 32  # queries
_TINY = 1e-12


@dataclass
class _Search:
    """The images that are left, a row each."""

    at: Tensor  # places in the whole batch
    clean: Tensor
    labels: Tensor
    eps: Tensor  # (n, 1, 1, 1)
    keys: Tensor
    best: Tensor
    lowest: Tensor  # margins of `best`
    drawn: Tensor  # (n, queries, numbers) uniform draws of the next queries


@dataclass(frozen=True)
class Square(AttackInParts):
    """Random search over squares (Andriushchenko et al., 2020; in the L1 norm Croce and Hein, 2021).

    "linf" starts at vertical stripes of +eps and -eps and sets a square at a random place to one of the two in each
    channel. "l2" and "l1" start at tiles of peaks, and move the change of one window to a peak in another one. An image
    keeps what lowers the margin, the logit of the label minus the highest other logit, and leaves as soon as it
    misleads the network. Misclassified images are returned as they are.

    Args:
        eps: radius in pixel units of [0, 1].
        queries: number of forward passes.
        norm: "linf", "l2" or "l1".
        area: fraction of the image that the first squares cover; it halves 9 times.
        rescale: whether all sizes fit into the queries. Otherwise the sizes are those of 10,000 queries, as in the
            `AutoAttack` of 5,000.

    Example:
        >>> adversarial = Square(8 / 255, queries=1000)(classifier, images, labels, seed=0)
    """

    eps: float = 8 / 255
    queries: int = 100
    norm: Norm = "linf"
    area: float = 0.8
    rescale: bool = True

    def __post_init__(self) -> None:
        check_radius(self.eps, self.norm)
        validation.integer("queries", self.queries, 1)
        validation.number("area", self.area, 0, 1, open_low=True)

    def parts(self, classes: int) -> int:
        """Return 1."""
        return 1

    def cost(self, classes: int) -> AttackCost:
        """Return the most passes for an image."""
        return AttackCost(1 + self.queries, 0)

    def run(self, part: int, classifier: Classifier, state: AttackState) -> None:
        """Run the search."""
        rows = state.left()
        clean, eps, keys = state.images[rows], state.eps[rows], noise.fold(state.seeds[rows], "square", part)
        start = self._stripes(clean, eps, keys, classifier) if self.norm == "linf" else self._tiles(clean, keys)
        ball = Ball(clean, eps, self.norm, classifier.bounds)
        best = start if self.norm == "linf" else self._into(ball, start)
        none = clean.new_zeros(len(rows), 0)
        search = _Search(rows, clean, state.labels[rows], eps, keys, best, none.sum(1) + torch.inf, none[:, None])
        search, left = self._ask(classifier, state, search, best)
        numbers = 2 + clean.shape[1] + 3 * (self.norm != "linf")
        move = self._square if self.norm == "linf" else self._window
        for query in state.steps(self.queries - 1, every=_DRAWN_AT_ONCE):
            if not left:
                break
            place = query % _DRAWN_AT_ONCE
            if place == 0:
                block = noise.fold(search.keys, "queries", query)
                search.drawn = noise.uniform(block, (_DRAWN_AT_ONCE, numbers), clean.dtype)
            tried = move(search, search.drawn[:, place], self._side(query, clean), classifier)
            search, left = self._ask(classifier, state, search, tried)
        if left:
            state.offer(search.at, search.best, -search.lowest, "margin")

    def _ask(self, classifier: Classifier, state: AttackState, search: _Search, tried: Tensor) -> tuple[_Search, int]:
        """Query the network, keep what lowers the margin, and return the search of the images that are left."""
        logits = classifier.logits(tried)
        self.check(logits)
        state.count(search.at, 1)
        found = margin(logits, search.labels)
        wrong, better = logits.argmax(1) != search.labels, found < search.lowest
        search.best = torch.where(better.view(-1, 1, 1, 1), tried, search.best)
        search.lowest = torch.where(better, found, search.lowest)
        if bool(wrong.any()):
            state.mislead(search.at[wrong], tried[wrong])
            search = keep(search, (~wrong).nonzero()[:, 0])
        return search, len(search.at)

    def _side(self, query: int, images: Tensor) -> int:
        """Return the side of a square, in pixels; windows of peaks have an odd one of at least 3."""
        height, width = images.shape[2:]
        done = int(query / self.queries * 10_000) if self.rescale else query
        area = self.area / 2 ** sum(done > at for at in _HALVED_AT)
        side = max(round((area * height * width) ** 0.5), 1)
        if self.norm != "linf":
            side = max(side, 3) | 1
        return min(side, height, width)

    def _stripes(self, clean: Tensor, eps: Tensor, keys: Tensor, classifier: Classifier) -> Tensor:
        shape = (clean.shape[1], 1, clean.shape[3])
        signs = _signs(noise.uniform(noise.fold(keys, "stripes"), shape, clean.dtype))
        return (clean + eps * signs).clamp(*classifier.bounds)

    def _square(self, search: _Search, drawn: Tensor, side: int, classifier: Classifier) -> Tensor:
        """Return the best images with a square of each at another corner of the ball."""
        inside = _mask(drawn[:, 0], side, search.clean, 2) & _mask(drawn[:, 1], side, search.clean, 3)
        moved = (search.clean + search.eps * _signs(drawn[:, 2:, None, None])).clamp_(*classifier.bounds)
        return torch.where(inside, moved, search.best)

    def _tiles(self, clean: Tensor, keys: Tensor) -> Tensor:
        """Return peaks of random signs and directions side by side: a change of any length."""
        _, channels, height, width = clean.shape
        side = max(height // 5, 1)
        margin_ = max((height - 5 * side) // 2, 0)
        rows, columns = (max((size - margin_) // side, 1) for size in (height, width))
        drawn = noise.uniform(noise.fold(keys, "tiles"), (channels + 1, rows, columns), clean.dtype)
        peak = self._peak(side, clean)
        turned = (drawn[:, :1] > 0.5)[..., None, None]
        tiles = torch.where(turned, peak.T, peak) * _signs(drawn[:, 1:])[..., None, None]
        whole = tiles.permute(0, 1, 2, 4, 3, 5).reshape(len(clean), channels, rows * side, columns * side)
        change = torch.zeros_like(clean)
        height, width = min(height - margin_, rows * side), min(width - margin_, columns * side)
        change[:, :, margin_ : margin_ + height, margin_ : margin_ + width] = whole[:, :, :height, :width]
        return change

    def _window(self, search: _Search, drawn: Tensor, side: int, classifier: Classifier) -> Tensor:
        """Return the best images with the change of two windows of each gathered in the first, in another form."""
        change, count = search.best - search.clean, drawn.shape[1] - 5
        masks = [_mask(drawn[:, at], side, change, 2) & _mask(drawn[:, at + 1], side, change, 3) for at in (0, 2)]
        channels = change.shape[1]
        rows, columns = (_span(drawn[:, at], side, change.shape[2 + at]) for at in (0, 1))
        place = (rows[:, :, None] * change.shape[3] + columns[:, None, :]).flatten(1)
        place = place[:, None].expand(-1, channels, -1)
        inside = change.flatten(2).gather(2, place)
        peak = self._peak(side, change)
        peaks = torch.where((drawn[:, 4] > 0.5)[:, None], peak.T.flatten(), peak.flatten())[:, None]
        shape = peaks * _signs(drawn[:, 5:])[:, :count, None]
        shape = shape + inside / (self._size(inside) + _TINY)
        gathered = self._size((change * (masks[0] | masks[1])).flatten(2))
        whole = lengths(change, self.norm).view(-1, 1, 1)
        if self.norm == "l2":
            unused = (search.eps[..., 0] ** 2 - whole**2).clamp(min=0) / channels
            size = (unused + gathered**2).sqrt()
        else:
            size = (search.eps[..., 0] - whole).clamp(min=0) + gathered * channels
        new = shape / (self._size(shape) + _TINY) * size
        change = torch.where(masks[1], 0.0, change).flatten(2).scatter(2, place, new).view_as(change)
        return self._into(Ball(search.clean, search.eps, self.norm, classifier.bounds), change)

    def _into(self, ball: Ball, change: Tensor) -> Tensor:
        """Return images at the surface of the ball, or in the L1 norm at its nearest points, within bounds."""
        if self.norm == "l1":
            return ball.project(ball.center + change)
        change = change / (lengths(change, self.norm).view(-1, 1, 1, 1) + _TINY)
        return (ball.center + ball.eps * change).clamp(*ball.bounds)

    def _size(self, values: Tensor) -> Tensor:
        return torch.linalg.vector_norm(values, 2 if self.norm == "l2" else 1, dim=2, keepdim=True)

    def _peak(self, side: int, like: Tensor) -> Tensor:
        """Return two peaks of opposite signs, one above the other, of length 1: (side, side)."""
        order = 2 if self.norm == "l2" else 1

        def one(height: int) -> Tensor:
            # Nested boxes around the middle, the k-th of height k^-2 or k^-4: each pixel sums those that hold it.
            count = max(height, side) // 2 + 1
            heights = torch.arange(1, count + 1, dtype=torch.float64) ** (-4 if order == 1 else -2)
            sums = heights.flip(0).cumsum(0).flip(0)
            away = [(torch.arange(size) - size // 2).abs() for size in (height, side)]
            part = sums[torch.maximum(away[0][:, None], away[1][None])]
            return part / torch.linalg.vector_norm(part, order)

        peak = torch.cat([sign * one(height) for sign, height in ((1, side // 2), (-1, side - side // 2)) if height])
        return (peak / torch.linalg.vector_norm(peak, order)).to(like)


def _signs(drawn: Tensor) -> Tensor:
    return 1 - 2 * (drawn < 0.5).to(drawn.dtype)


def _span(drawn: Tensor, side: int, size: int) -> Tensor:
    """Return the places of a window of each image, int64 (n, side)."""
    start = (drawn * (size - side + 1)).long().clamp(max=size - side)
    return start[:, None] + torch.arange(side, device=drawn.device)


def _mask(drawn: Tensor, side: int, images: Tensor, axis: int) -> Tensor:
    """Return where a window of each image lies along an axis, bool (n, 1, H, 1) or (n, 1, 1, W)."""
    span = _span(drawn, side, images.shape[axis])
    places = torch.arange(images.shape[axis], device=drawn.device)
    inside = (places >= span[:, :1]) & (places <= span[:, -1:])
    return inside[:, None, :, None] if axis == 2 else inside[:, None, None, :]
