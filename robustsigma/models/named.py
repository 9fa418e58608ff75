"""The one way to a model that command lines and settings name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robustsigma.engine.classifier import Classifier
from robustsigma.engine.validation import fail
from robustsigma.models.pretrained import Pretrained
from robustsigma.models.saved import ModelCard, load_model
from robustsigma.models.weights import SUFFIX


def model(name: str | Path | Pretrained, *, allow: Sequence[str] = (), **options: Any) -> tuple[Classifier, ModelCard]:
    """Return a classifier in eval mode, and its card.

    Args:
        name: a `.safetensors` file that was saved here; or a network that was trained elsewhere, described or by its
            name, such as "torchvision:resnet50".
        allow: dotted paths that a file saved here may name as its network, beside this package's and torchvision's.
        options: of `Pretrained`, beside the name: `weights`, `arguments`, `classes`, `geometry`, `mean`, `std`,
            `channels` and `padding`. Those that are None are not given.

    Raises:
        ValueError: an unknown name, or a file that cannot be used.
    """
    given = {key: value for key, value in options.items() if value is not None}
    if isinstance(name, Pretrained):
        if given:
            raise fail(next(iter(given)), "no option beside the description of the model", given)
        return name.load()
    if is_saved(name):
        if given:
            told = f"no option beside {name}, which says itself how to use it"
            raise fail(next(iter(given)), told, next(iter(given.values())))
        return load_model(name, allow=allow)
    return Pretrained(str(name), **given).load()


def is_saved(name: str | Path) -> bool:
    """Return whether this names a file rather than a network."""
    return isinstance(name, Path) or name.endswith(SUFFIX) or Path(name).is_file()
