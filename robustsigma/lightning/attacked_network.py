"""The network that images are perturbed against, and a check that it is the one that a step uses."""

from __future__ import annotations

import warnings
from collections.abc import Callable
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


class AttackedNetwork:
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
        training, expected = step == "training", None
        if not training:
            with classifier.frozen():
                expected, again = classifier.logits(images), classifier.logits(images)
            if not torch.allclose(expected, again):
                return
        tolerance = 0.01 if exact else 0.1
        normalizes = not bool((classifier.mean == 0).all() and (classifier.std == 1).all())

        def net_ran(_: nn.Module, given: tuple[Any, ...], output: Any) -> None:
            self._found.add("ran")
            if training:
                raw = normalizes and bool(given) and _same(given[0], images)
                self._found.add("raw" if raw else "correct")
            elif _near(getattr(output, "logits", output), expected, tolerance):
                self._found.add("correct")

        def forward_ran(_: nn.Module, given: tuple[Any, ...], output: Any) -> None:
            if not training and given and _same(given[0], images) and isinstance(output, Tensor):
                self._found.add("same" if _alike(output, expected, tolerance) else "other")

        try:
            self._hooks = [on_call(classifier.net, net_ran), on_call(module, forward_ran)]
        except Exception:  # a kind of network that takes no hooks
            self.remove_hooks()

    def remove_hooks(self) -> None:
        """Stop observing."""
        for hook in self._hooks:
            hook()
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


def _same(given: Any, images: Tensor) -> bool:
    return isinstance(given, Tensor) and given.shape == images.shape and torch.equal(given.to(images.dtype), images)


def _near(logits: Any, expected: Tensor | None, tolerance: float) -> bool:
    if expected is None or not isinstance(logits, Tensor) or logits.shape != expected.shape:
        return False
    return bool((logits.detach().to(expected.dtype) - expected).abs().max() <= tolerance * expected.abs().max())


def _alike(output: Tensor, expected: Tensor | None, tolerance: float) -> bool:
    """Return whether an output is the logits, their softmax, or a scaled or shifted version of them."""
    if expected is None or output.shape != expected.shape:
        return expected is not None and output.shape[:1] != expected.shape[:1]
    found = output.detach().to(expected.dtype)

    def standard(values: Tensor) -> Tensor:
        return (values - values.mean(1, keepdim=True)) / values.std(1, keepdim=True).clamp_min(1e-12)

    if _near(found, expected.softmax(1), tolerance):
        return True
    if expected.shape[1] == 2:  # whose standardized values are their order alone: one scale for the whole batch
        margins = [values[:, 0] - values[:, 1] for values in (found, expected)]
        found, expected = (values / values.std().clamp_min(1e-12) for values in margins)
        return _near(found, expected, tolerance)
    return _near(standard(found), standard(expected), tolerance)
