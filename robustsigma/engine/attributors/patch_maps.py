"""Base class of methods that give a value to each patch of a vision transformer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from robustsigma.engine import validation
from robustsigma.engine.attributors.attention import SelfAttention
from robustsigma.engine.attributors.attention_hooks import watched
from robustsigma.engine.attributors.base import Attribution, Attributor, single_point_result
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.scores import Score, target_score
from robustsigma.engine.validation import fail

# Tokens in front of the patches where the network has no `num_prefix_tokens`: the class token, and with it one for
# distillation, or four registers.
_PREFIXES = (1, 2, 5)


class PatchAttributor(Attributor):
    """Base class of methods with a value a patch, which is interpolated bilinearly to the image.

    A map is spread evenly over channels, so that `heatmap("sum")` is the map. There is no completeness: `drop` is 0, so
    that `gap()` is the |sum of values|.
    """

    score: Score = "logit"
    needs_class_token = True

    def attribute(
        self, classifier: Classifier, images: Tensor, target: Tensor, logits: Tensor, seeds: Tensor
    ) -> Attribution:
        """Return the map: one more forward pass and a backward pass."""
        tokens = classifier.chunked(lambda chunk, at: self.tokens(classifier, chunk, at), images, target)
        heat = self._on_image(tokens.to(images.dtype), classifier.net, images.shape[2], images.shape[3])
        values = (heat / images.shape[1]).expand_as(images).clone()
        return single_point_result(values, target, images, target_score(logits, target, self.score), passes=(2, 1))

    @abstractmethod
    def tokens(self, classifier: Classifier, images: Tensor, target: Tensor) -> Tensor:
        """Return a value for each of the N tokens, (B, N), for one chunk; the classifier is frozen."""

    def _on_image(self, tokens: Tensor, net: nn.Module, height: int, width: int) -> Tensor:
        """Return (B, 1, H, W) from values of tokens (B, N); the grid of square patches has the image's proportions."""
        named: list[Any] = [getattr(module, "num_prefix_tokens", None) for module in net.modules()]
        given = next((count for count in named if count is not None), None)
        if given is not None:
            validation.integer("net.num_prefix_tokens", given, int(self.needs_class_token))
        for prefix in _PREFIXES if given is None else (given,):
            count = tokens.shape[1] - prefix
            rows, columns = (round((max(count, 0) * ratio) ** 0.5) for ratio in (height / width, width / height))
            if count > 0 and rows * columns == count:
                grid = tokens[:, prefix:].reshape(-1, 1, rows, columns)
                return F.interpolate(grid, (height, width), mode="bilinear", align_corners=False)
        count = tokens.shape[1] - (given or _PREFIXES[0])
        raise fail("net", f"a class token and a grid of patches over {height}x{width}", f"{count} patches")


def check_tokens(seen: SelfAttention, first: SelfAttention | None, images: Tensor) -> None:
    """Raise unless a block works on the same tokens as the first one, of each of the images."""
    expected = (seen if first is None else first).queries.shape[2]
    shape = tuple(seen.queries.shape)
    if shape[0] != len(images) or shape[2] != expected or seen.keys.shape != seen.queries.shape:
        got = f"queries {shape} and keys {tuple(seen.keys.shape)}"
        raise fail("net", f"attention over the {expected} tokens of each of {len(images)} images", got)


def no_blocks() -> ValueError:
    """Return the error for a network whose attention blocks did not run."""
    return fail("net", "attention blocks that take part in the forward pass", "none that ran")


@contextmanager
def seen_blocks(net: nn.Module, images: Tensor) -> Iterator[list[SelfAttention]]:
    """Yield the list to which every attention block of a pass in the body is added; raise where none ran."""
    blocks: list[SelfAttention] = []

    def visit(seen: SelfAttention) -> None:
        check_tokens(seen, blocks[0] if blocks else None, images)
        blocks.append(seen)

    with watched(net, visit):
        yield blocks
    if not blocks:
        raise no_blocks()
