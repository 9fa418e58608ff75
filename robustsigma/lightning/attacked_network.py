"""The network that images are perturbed against, and a check that it is the one that a step uses."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from robustsigma.engine.classifier import Classifier
from robustsigma.engine.validation import fail
from robustsigma.lightning.module_outputs import on_call


def classifier_of(module: pl.LightningModule) -> Classifier:
    """Return a module's attribute `classifier`.

    Raises:
        ValueError: it has none.
    """
    classifier = getattr(module, "classifier", None)
    if not isinstance(classifier, Classifier):
        raise fail("model.classifier", "a robustsigma.Classifier", type(classifier).__name__)
    return classifier


class AttackedNetworkCheck:
    """Observes one step after an attack, through hooks that are removed afterwards, and warns once.

    In an evaluation step it checks that the classifier's network runs and gives the logits that the attack saw, and
    that the module's own `forward`, if the step calls it, gives these logits, a scaled version or their softmax. In a
    training step, where dropout and batch statistics change the logits, it checks that the network runs and that it is
    not given the images without the classifier's normalization.
    """

    def __init__(self) -> None:
        self._warned = False
        self._hooks: list[Callable[[], None]] = []  # what removes them
        self._observed = ("", 0)  # the last step that was observed, and its epoch
        self._found: set[str] = set()

    def observe(
        self, module: nn.Module, classifier: Classifier, images: Tensor, step: str, epoch: int, *, exact: bool
    ) -> None:
        """Observe the next step, unless one of the same kind and epoch was observed.

        Args:
            module: the LightningModule.
            classifier: what the images were perturbed against.
            images: float (B, C, H, W), perturbed.
            step: "training", "validation" or "test".
            epoch: epoch of the step.
            exact: whether the step computes in full precision.
        """
        inlined = any(getattr(each, "_compiled_call_impl", None) for each in (module, classifier))
        if (step, epoch) == self._observed or self._warned or inlined:  # where the network is not called by itself
            return
        self._observed, self._found = (step, epoch), set()
        training, tolerance = step == "training", 0.01 if exact else 0.1
        with classifier.frozen():
            expected = images if training else classifier.logits(images)
            if not training and not torch.allclose(expected, classifier.logits(images)):
                return  # a network with random outputs
        normalizes = not bool((classifier.mean == 0).all() and (classifier.std == 1).all())

        def net_ran(_: nn.Module, given: tuple[Any, ...], output: Any) -> None:
            raw = training and normalizes and bool(given) and _near(given[0], images, 0)
            correct = not raw if training else _near(getattr(output, "logits", output), expected, tolerance)
            self._found |= {"ran", "correct"} if correct else {"ran"}

        def forward_ran(_: nn.Module, given: tuple[Any, ...], output: Any) -> None:
            if not training and given and isinstance(output, Tensor) and _near(given[0], images, 0):
                self._found.add("same" if _alike(output.detach(), expected, tolerance) else "other")

        with suppress(Exception):  # of a kind of network that takes no hooks
            self._hooks = [on_call(classifier.net, net_ran), on_call(module, forward_ran)]

    def remove_hooks(self) -> None:
        """Stop observing."""
        for remove in self._hooks:
            remove()
        self._hooks = []

    def finish(self) -> None:
        """Warn if the observed step used another network."""
        if not self._hooks:
            return
        self.remove_hooks()
        step, _ = self._observed
        if "ran" not in self._found:
            what = "did not run it"
        elif "correct" not in self._found:
            given = "images without its normalization" if step == "training" else "other inputs or weights"
            what = f"ran it with {given}"
        elif "other" in self._found and "same" not in self._found:
            what = "uses the logits of the module's forward, which are different"
        else:
            return
        self._warned = True
        warnings.warn(
            f"classifier: batches are perturbed against the module's attribute `classifier`, but its {step} step "
            f"{what}. The numbers are of one network under an attack on another. Let `classifier` be a Classifier of "
            "the network that the step uses, and call it on the images in [0, 1].",
            stacklevel=2,
        )


def _near(found: Any, expected: Tensor, tolerance: float) -> bool:
    if not isinstance(found, Tensor) or found.shape != expected.shape:
        return False
    return bool((found.detach().to(expected.dtype) - expected).abs().max() <= tolerance * expected.abs().max())


def _alike(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Return whether an output is the logits, their softmax, or a scaled or shifted version of them."""
    if found.shape != expected.shape:
        return found.shape[:1] != expected.shape[:1]  # of a loss or features nothing can be said
    # Differences of each image's logits from their mean, on a scale of the whole batch.
    ours, theirs = (each.float() - each.float().mean(1, keepdim=True) for each in (expected, found))
    scaled = theirs * (ours.norm() / theirs.norm().clamp_min(1e-12))
    return _near(found, expected.softmax(1), tolerance) or _near(scaled, ours, tolerance)
