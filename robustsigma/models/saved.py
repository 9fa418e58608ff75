"""Trained networks on disk: weights in safetensors, and beside them in the same file all that is needed to use them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from robustsigma.engine.classifier import Classifier
from robustsigma.engine.validation import fail
from robustsigma.files import write_atomically
from robustsigma.geometry import Geometry
from robustsigma.models.architecture import Architecture

_KEY = "robustsigma"


@dataclass(frozen=True)
class ModelCard:
    """What a file of weights says about itself.

    Attributes:
        architecture: how to build the network, or None where nobody said.
        classes: names by label.
        shape: (C, H, W) of the images it was trained on.
        mean: of the normalisation.
        std: of the normalisation.
        geometry: how photographs are resized and cropped for it, or None where nobody said.
    """

    architecture: Architecture | None
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    geometry: Geometry | None = None


def save_model(path: str | Path, net: nn.Module, card: ModelCard) -> Path:
    """Write weights and card as one safetensors file, in one step."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    return write_atomically(Path(path), save(tensors, metadata={_KEY: json.dumps(asdict(card))}))


def load_model(
    path: str | Path, *, net: nn.Module | None = None, allow: Sequence[str] = ()
) -> tuple[Classifier, ModelCard]:
    """Return the classifier in eval mode, and its card.

    A file may name any class as its network. To open one must not run what it likes: only networks of this package,
    of torchvision and of timm are built, and those that are allowed.

    Args:
        path: a file that `save_model` wrote.
        net: takes the weights, where the file does not say how to build a network.
        allow: dotted paths of modules, classes or functions of yours that the file may name.

    Raises:
        ValueError: no such file, not such a file, a network that is not allowed, or weights that do not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise fail("model", "an existing .safetensors file", str(path))
    try:
        with safe_open(path, "pt") as file:
            card = _card((file.metadata() or {}).get(_KEY), path)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise fail("model", "a safetensors file", f"{path} ({error})") from error
    if net is None:
        if card.architecture is None:
            raise fail("net", f"the network that {path} is the weights of, since the file does not say", "None")
        card.architecture.check_origin(allow)
        with torch.random.fork_rng(devices=[]):  # initial weights are drawn from the global generator and overwritten
            net = card.architecture.build(card.shape[0], len(card.classes))
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        raise fail(
            "model", f"weights that fit {type(net).__name__}", f"{path} ({str(error).splitlines()[-1].strip()})"
        ) from error
    return Classifier(net, mean=card.mean, std=card.std).eval(), card


def _card(text: str | None, path: Path) -> ModelCard:
    if text is None:
        raise fail("model", "a file saved by robustsigma", str(path))
    try:
        found = json.loads(text)
        kind, geometry = found["architecture"], found.get("geometry")
        return ModelCard(
            None
            if kind is None
            else Architecture(str(kind["name"]), dict(kind["arguments"]), padding=kind.get("padding")),
            tuple(map(str, found["classes"])),
            tuple(map(int, found["shape"])),  # type: ignore[arg-type]
            tuple(map(float, found["mean"])),
            tuple(map(float, found["std"])),
            None if geometry is None else Geometry(**geometry),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise fail("model", "a file saved by robustsigma", f"{path} ({error!r})") from error
