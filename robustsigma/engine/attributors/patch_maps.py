"""Base class of methods that give a value to each patch of a vision transformer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from robustsigma.engine import validation
from robustsigma.engine.attributors.attention import SelfAttention
from robustsigma.engine.attributors.attention_hooks import watched
from robustsigma.engine.attributors.base import Attribution, Attributor, single_point_result
from robustsigma.engine.attributors.layer_maps import find_patches, prefix_tokens, spread
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
        values = spread(self._patches(tokens.to(images.dtype), classifier.net, images), images)
        return single_point_result(values, target, images, target_score(logits, target, self.score), passes=(2, 1))

    @abstractmethod
    def tokens(self, classifier: Classifier, images: Tensor, target: Tensor) -> Tensor:
        """Return a value for each of the N tokens, (B, N), for one chunk; the classifier is frozen."""

    def _patches(self, tokens: Tensor, net: nn.Module, images: Tensor) -> Tensor:
        """Return the values of the patches, (B, 1, h, w), from those of all tokens, (B, N)."""
        given = prefix_tokens(net)
        if given is not None:
            validation.integer("net.num_prefix_tokens", given, int(self.needs_class_token))
        height, width = images.shape[2:]
        found = find_patches(tokens.shape[1], (height, width), _PREFIXES if given is None else (given,))
        if found is None:
            count = tokens.shape[1] - (given or _PREFIXES[0])
            raise fail("net", f"a class token and a grid of patches over {height}x{width}", f"{count} patches")
        prefix, sides = found
        return tokens[:, None, prefix:].unflatten(2, sides)


@contextmanager
def seen_blocks(
    net: nn.Module, images: Tensor, keep: Callable[[SelfAttention], Any] = lambda seen: seen, *, detach: bool = False
) -> Iterator[list[Any]]:
    """Yield the list to which `keep` of every attention block of a pass in the body is added; `detach` as of `watched`.

    Raises:
        ValueError: no block ran, or not all of them work on the same tokens of each of the images.
    """
    blocks: list[Any] = []
    tokens: list[int] = []

    def visit(seen: SelfAttention) -> None:
        shape = tuple(seen.queries.shape)
        tokens.append(shape[2])
        if shape[0] != len(images) or shape[2] != tokens[0] or seen.keys.shape != seen.queries.shape:
            got = f"queries {shape} and keys {tuple(seen.keys.shape)}"
            raise fail("net", f"attention over the {tokens[0]} tokens of each of {len(images)} images", got)
        blocks.append(keep(seen))

    with watched(net, visit, detach=detach):
        yield blocks
    if not blocks:
        got = "none that ran and called its layers for queries, keys and values"
        hint = "other kinds, such as timm's BEiT, which use the weights of these layers alone, are not supported"
        raise fail("net", "attention blocks that take part in the forward pass", f"{got}; {hint}")
