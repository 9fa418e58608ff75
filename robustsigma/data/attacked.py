"""Check that the network that a step trains or evaluates is the one that its images were made against."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from robustsigma.engine.classifier import Classifier


class AttackedNetwork:
    """Watches one step after an attack, through hooks that are removed afterwards, and warns once.

    Of an evaluation step it sees whether the classifier's network runs with the logits that the attack saw, and whether
    the module's own `forward`, where the step calls it, gives these logits too, or a scaled version or softmax of them.
    Of a training step, whose dropout and statistics change the logits, it sees whether the network runs at all, and
    whether it is given the images without the classifier's normalization.
    """

    def __init__(self) -> None:
        self.warned = False
        self._hooks: list[RemovableHandle] = []
        self._step = ""
        self._found: set[str] = set()

    def watch(self, module: nn.Module, classifier: Classifier, images: Tensor, step: str, *, exact: bool) -> None:
        """Watch the next step.

        Args:
            module: the LightningModule.
            classifier: what the images were made against.
            images: float (B, C, H, W), perturbed.
            step: its name, "training", "validation" or "test".
            exact: whether the step computes in full precision.
        """
        compiled = any(getattr(each, "_compiled_call_impl", None) for each in (module, classifier, classifier.net))
        if self.warned or compiled:  # compiled code passes by new hooks
            return
        self._step, self._found = step, set()
        training, expected = step == "training", None
        if not training:
            with classifier.frozen():
                expected, again = classifier.logits(images), classifier.logits(images)
            if not torch.allclose(expected, again):
                return
        tolerance = 0.01 if exact else 0.1
        raw = not bool((classifier.mean == 0).all() and (classifier.std == 1).all())

        def net_ran(_: nn.Module, given: tuple[Any, ...], output: Any) -> None:
            logits, self._found = getattr(output, "logits", output), self._found | {"ran"}
            if training:
                same = raw and bool(given) and _same(given[0], images)
                self._found.add("raw" if same else "right")
            elif _near(logits, expected, tolerance):
                self._found.add("right")

        def forward_ran(_: nn.Module, given: tuple[Any, ...], output: Any) -> None:
            if not training and given and _same(given[0], images) and isinstance(output, Tensor):
                self._found.add("own" if _alike(output, expected, tolerance) else "other")

        try:
            self._hooks = [classifier.net.register_forward_hook(net_ran), module.register_forward_hook(forward_ran)]
        except Exception:  # a kind of network that takes no hooks
            self.forget()

    def forget(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def finish(self) -> None:
        """Warn if the step that was watched used another network."""
        if not self._hooks:
            return
        self.forget()
        if "ran" not in self._found:
            what = "did not run it"
        elif "right" not in self._found:
            seen = "images without its normalization" if self._step == "training" else "other inputs or weights"
            what = f"ran it with {seen}"
        elif "other" in self._found and "own" not in self._found:
            what = "takes the logits of the module's forward, which are others"
        else:
            return
        self.warned = True
        warnings.warn(
            f"classifier: batches are perturbed against the module's attribute `classifier`, but its {self._step} step "
            f"{what}. The numbers are of one network under an attack on another. Let `classifier` be a Classifier of "
            "the network that the step uses, and call it on the images in [0, 1].",
            stacklevel=2,
        )


def _same(given: Any, images: Tensor) -> bool:
    return isinstance(given, Tensor) and given.shape == images.shape and torch.equal(given.to(images.dtype), images)


def _near(logits: Any, expected: Tensor | None, tolerance: float) -> bool:
    if expected is None or not isinstance(logits, Tensor) or logits.shape != expected.shape:
        return False
    found = logits.detach().to(expected.dtype)
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def _alike(output: Tensor, expected: Tensor | None, tolerance: float) -> bool:
    """Return whether an output orders the classes as the logits do, being them, their softmax, or scaled or shifted."""
    if expected is None or output.shape != expected.shape:
        return expected is not None and output.shape[:1] != expected.shape[:1]
    found = output.detach().to(expected.dtype)

    def standard(values: Tensor) -> Tensor:
        return (values - values.mean(1, keepdim=True)) / values.std(1, keepdim=True).clamp_min(1e-12)

    return _near(found, expected.softmax(1), tolerance) or _near(standard(found), standard(expected), tolerance)
