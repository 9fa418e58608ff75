"""The images of a batch as pixels, whatever the type of the batch and however it is normalized."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustsigma.engine import validation
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.network_state import at_least_single
from robustsigma.engine.validation import fail

Getter = Callable[[Any], Any]
Place = int | str | Getter | tuple[Getter, Callable[[Any, Any], Any]]
# What leaves [0, 1] although mean and std are right.
OVERSHOOT = (
    "a bicubic resize of floats and the noise of RandomErasing leave [0, 1] too: clamp after the resize, and erase "
    "with a constant (in timm, re_mode='const')"
)
# An example of a place inside another one.
PAIR = "(lambda b: b['inputs']['image'], lambda b, x: {**b, 'inputs': {**b['inputs'], 'image': x}})"


@dataclass(frozen=True)
class BatchField:
    """A part of a batch.

    Args:
        name: name of the argument that tells the place, for errors.
        place: index, key or attribute; or a pair of functions `(get, put)`, where `get(batch)` returns the part and
            `put(batch, value)` returns the batch with another one, or None if it changes the batch in place; or `get`
            alone, for a part that is only read.
    """

    name: str
    place: Place

    def __post_init__(self) -> None:
        pair = isinstance(self.place, tuple) and len(self.place) == 2 and all(map(callable, self.place))
        simple = isinstance(self.place, (int, str)) and not isinstance(self.place, bool)
        if not (pair or simple or callable(self.place)):
            expected = "an index, a key, an attribute or a pair of functions (get, put)"
            raise fail(self.name, expected, f"{repr(self.place)[:80]}; a pair is, for example, {PAIR}")

    @property
    def writable(self) -> bool:
        """Whether `put` works."""
        return not callable(self.place)

    def get(self, batch: Any) -> Any:
        """Return the part.

        Raises:
            ValueError: the batch has no such part.
        """
        if isinstance(self.place, tuple):
            return self.place[0](batch)
        if callable(self.place):
            return self.place(batch)
        try:
            return batch[self.place] if self._is_item(batch) else getattr(batch, str(self.place))
        except (LookupError, AttributeError, TypeError):
            has = f" with {[*batch]}: say which, as {self.name}=KEY" if isinstance(batch, Mapping) else ""
            inside = (
                f"a pair (get, put): {PAIR}" if self.name == "images" else "a function, lambda b: b['inputs']['label']"
            )
            got = (
                f"{self.place!r}, and a batch of type {type(batch).__name__}{has}; for a place inside another, {inside}"
            )
            raise fail(self.name, f"the place of the {self.name} in a batch", got) from None

    def put(self, batch: Any, value: Any) -> Any:
        """Return a shallow copy of the batch with another part, of the same type."""
        if isinstance(self.place, tuple):
            changed = self.place[1](batch, value)
            return batch if changed is None else changed
        place: Any = self.place
        if isinstance(batch, tuple):
            if isinstance(place, str):
                return batch._replace(**{place: value})  # type: ignore[attr-defined]
            parts = [*batch]
            parts[place] = value
            return batch._make(parts) if hasattr(batch, "_make") else type(batch)(parts)
        changed = copy.copy(batch)
        if self._is_item(batch):
            changed[place] = value
        else:
            object.__setattr__(changed, place, value)  # also in a frozen dataclass
        return changed

    def _is_item(self, batch: Any) -> bool:
        return isinstance(self.place, int) or isinstance(batch, Mapping) or not hasattr(batch, str(self.place))


class Images(NamedTuple):
    """Images of a batch (B, C, H, W): as they are in it, as pixels in [0, 1], and their class indices (B,)."""

    given: Tensor
    pixels: Tensor
    labels: Tensor


def tensor_in(batch: Any, images: BatchField) -> Tensor:
    """Return the images of a batch as they are in it; raise ValueError unless they are a tensor (B, C, H, W)."""
    given = images.get(batch)
    if not isinstance(given, Tensor) or given.ndim != 4:
        got = f"shape {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
        raise fail("images", f"a tensor (B, C, H, W) at {images.place!r} of a batch", got)
    return given


def read(batch: Any, images: BatchField, labels: BatchField, classifier: Classifier) -> Images:
    """Return the images of a batch and their labels, of which probabilities (B, K) become the most probable class.

    Integers are pixels in 0..255, other images are normalized as the classifier's network takes them.

    Raises:
        ValueError: the batch has no images (B, C, H, W) or no labels in these places.
    """
    given, target = tensor_in(batch, images), labels.get(batch)
    floating = given.is_floating_point()
    pixels = at_least_single(given) * classifier.std + classifier.mean if floating else given / 255
    return Images(given, pixels, class_indices(torch.as_tensor(target, device=given.device)))


def class_indices(labels: Tensor) -> Tensor:
    """Return labels (B,) as they are, those of (B, 1) without its last dimension, and the largest of (B, K).

    Raises:
        ValueError: rows (B, K) that are no probabilities, such as several labels of one image.
    """
    if labels.ndim != 2:
        return labels
    if labels.shape[1] == 1:
        return labels[:, 0]
    shares = labels.float()
    low, high = validation.extent(shares.sum(1))
    if not (shares.min() >= 0 and low > 0.99 and high < 1.01):
        got = f"shape {tuple(labels.shape)} with rows that sum to {low:g} up to {high:g}"
        raise validation.fail("labels", "one class for each image: (B,), or (B, K) that sum to 1", got)
    return shares.argmax(1)


def write(batch: Any, images: BatchField, found: Images, made: Tensor, classifier: Classifier) -> Any:
    """Return the batch with new pixels in place of those that differ; the other images keep every bit."""
    changed = (made != found.pixels.clamp(0, 1)).flatten(1).any(1)[:, None, None, None]
    floating = found.given.is_floating_point()
    written = (made - classifier.mean) / classifier.std if floating else (made * 255).round()
    return images.put(batch, torch.where(changed, written.to(found.given.dtype), found.given))


def check_range(found: Images, classifier: Classifier) -> str | None:
    """Return what to warn of where pixels look as if they had not been normalized.

    Raises:
        ValueError: pixels outside [0, 1].
    """
    (low, high), slack = validation.extent(found.pixels), 1e-3 if found.given.dtype.itemsize > 2 else 0.02
    mean, std = (
        tuple(round(value, 4) for value in each.flatten().tolist()) for each in (classifier.mean, classifier.std)
    )
    if not (low >= -slack and high <= 1 + slack):
        hint = "pass the mean and std of your own Normalize transform, for images in [0, 1]"
        got = f"[{low:.3g}, {high:.3g}] with mean={mean}, std={std}; {hint}; {OVERSHOOT}"
        raise fail("images", "pixels in [0, 1] after un-normalization (images * std + mean)", got)
    low, high = validation.extent(found.given)
    normalizes = bool((classifier.mean != 0).any() or (classifier.std != 1).any())
    if not (found.given.is_floating_point() and normalizes and low >= 0 and high <= 1 and len(found.given) > 1):
        return None
    told = f"images: they are in [{low:.3g}, {high:.3g}] before un-normalization with mean={mean}, std={std}"
    return f"{told}. If they are not normalized, leave mean and std out."
