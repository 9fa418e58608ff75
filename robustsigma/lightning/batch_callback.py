"""Base class of callbacks that read the batches and networks of any Lightning project."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from robustsigma.engine import validation
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.validation import fail
from robustsigma.lightning.batch_images import BatchField, Images, Place, check_range, read
from robustsigma.lightning.loader_subset import LoaderSubset, batch_counts
from robustsigma.models.lightning_checkpoint import part

# A Trainer takes a callback outside of a list only if it is an instance of its own package's class.
# A folder that is called `lightning` is no such package: it has no origin.
_SPECS = {name: find_spec(name) for name in ("pytorch_lightning", "lightning")}
_PACKAGES = [importlib.import_module(name) for name, spec in _SPECS.items() if spec is not None and spec.origin]
_Callback: Any = type("_Callback", tuple(package.Callback for package in _PACKAGES), {})

Network = str | Callable[[Any], nn.Module] | None


class BatchCallback(_Callback):
    """A callback of either Lightning package that finds images and labels in a batch, and networks in a module."""

    def __init__(
        self,
        *,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        images: Place,
        labels: Place,
        every_n_epochs: int,
        max_images: int,
        seed: int,
    ) -> None:
        Classifier(nn.Identity(), mean=mean, std=std)  # checks the statistics
        self.mean, self.std = mean, std
        self.images, self.labels = BatchField("images", images), BatchField("labels", labels)
        self.every_n_epochs = validation.integer("every_n_epochs", every_n_epochs, 1)
        self.max_images = validation.integer("max_images", max_images, 1)
        self.seed = validation.integer("seed", seed, -(2**63), 2**63 - 1)
        self._warned: set[str] = set()
        self._reset()

    def _reset(self) -> None:
        self._classifiers: dict[str, Classifier] = {}
        self._checked: set[str] = set()  # stages whose images were looked at

    def _is_due(self, trainer: Any) -> bool:
        """Return whether the validation or test that starts is to be measured."""
        if trainer.sanity_checking:
            return False
        if trainer.state.fn != "fit" or self.every_n_epochs == 1:
            return True
        # A function of the progress of the training alone, so that a resumed training measures in the same epochs.
        done, gap, batches = trainer.current_epoch + 1, self._epochs_between(trainer), trainer.num_training_batches
        passed = done // self.every_n_epochs > (done - gap) // self.every_n_epochs  # a due epoch since the last one
        endless = done == 1 and math.isinf(batches)  # the first epoch of a stream may be the only one
        last = 0 < trainer.max_epochs < done + gap or 0 < trainer.max_steps < trainer.global_step * (done + gap) / done
        return passed or last or endless

    def _epochs_between(self, trainer: Any) -> int:
        """Return the largest number of epochs from a validation to the next, or n where it is not known."""
        steps, gap = trainer.val_check_batch, trainer.check_val_every_n_epoch
        if steps is not None and gap is None and math.isfinite(trainer.num_training_batches):
            return max(1, math.ceil(steps / trainer.num_training_batches))  # validates every so many batches
        return self.every_n_epochs if steps is None or gap is None else int(gap)  # None: validates by the clock

    def _check_monitors(self, trainer: Any, *prefixes: str) -> None:
        """Warn of callbacks, such as EarlyStopping, that look at a logged value also where it is not measured."""
        n, gap = self.every_n_epochs, trainer.check_val_every_n_epoch
        for each in trainer.callbacks if n > 1 and (gap is None or gap % n) else ():
            key, epochs = getattr(each, "monitor", None), getattr(each, "_every_n_epochs", 0)  # of a ModelCheckpoint
            if isinstance(key, str) and key.startswith(prefixes) and (epochs == 0 or epochs % n):
                told = f"every_n_epochs={n}: {type(each).__name__} monitors {key!r} after the epochs in between as well"
                told += ", where it finds an earlier value, or none, which Lightning refuses"
                self._warn("monitor", f"{told}. Pass every_n_epochs=1, or Trainer(check_val_every_n_epoch={n}).")

    def _spread(self, trainer: Any, rank: int = 0, world: int = 1) -> list[LoaderSubset]:
        """Return what draws the images of each loader of the validation or test that starts."""
        return [LoaderSubset(self.max_images, self.seed, count, rank, world) for count in batch_counts(trainer)]

    def _classifier(self, module: Any, argument: str, network: Network) -> Classifier:
        """Return the classifier of a network, outside the module, so that the module's state stays as it is."""
        net = network(module) if callable(network) else part(module, network, argument)
        found = self._classifiers.get(argument)
        if found is None or found.net is not net:
            found = self._classifiers[argument] = Classifier(net, mean=self.mean, std=self.std)
        found.mean, found.std = found.mean.to(module.device), found.std.to(module.device)
        return found

    @contextmanager
    def _passes(self, module: Any, argument: str, classifier: Classifier) -> Iterator[None]:
        """Run passes of a network in the body; where the first of all fails, say how to name another network."""
        try:
            yield
        except RuntimeError as error:
            if classifier.forwards or isinstance(error, torch.OutOfMemoryError):
                raise
            children = ", ".join(repr(name) for name, _ in module.named_children())
            expected = f"the network that takes images, by its name in the module, one of {children} or of their parts"
            got = f"{getattr(self, argument)!r}, and {type(classifier.net).__name__} raised: {error}"
            raise fail(argument, expected, got) from error

    def _read(self, batch: Any, classifier: Classifier, stage: str) -> Images:
        found = read(batch, self.images, self.labels, classifier)
        if stage not in self._checked:
            self._checked.add(stage)
            told = check_range(found, classifier)
            if told is not None:
                self._warn("range", told)
        return found

    def _warn(self, key: str, message: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            validation.warn(f"{type(self).__name__}: {message}")


def check_network(name: str, value: Any) -> Network:
    """Return what names a network in a module; raise ValueError for anything else."""
    if not (value is None or isinstance(value, str) or callable(value)) or isinstance(value, nn.Module):
        raise fail(name, "an attribute's name or a function of the module", repr(value)[:80])
    found: Network = value
    return found
