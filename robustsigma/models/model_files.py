"""Models on disk: safetensors files that hold weights and a `ModelCard`, which says how to use them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from robustsigma.data.resize_crop import ResizeCrop
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.network_state import evaluating
from robustsigma.engine.validation import fail
from robustsigma.models.architecture import Architecture, count_logits
from robustsigma.models.hugging_face import HF
from robustsigma.models.weight_files import SUFFIX, first_infinite, plain_names, unwrapped, with_versions
from robustsigma.runs.files import write_atomically

_KEY = "robustsigma"
_LARGEST = 4096  # channels, or pixels of a side
# Arguments by which builders of torchvision and timm read or download weights.
_WEIGHT_ARGUMENTS = ("weights", "weights_backbone", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay",
                     "checkpoint_path", "cache_dir")  # fmt: skip


@dataclass(frozen=True)
class ModelCard:
    """Description of a model, which a file of weights holds beside them.

    Attributes:
        architecture: how to build the network, or None if unknown.
        classes: names by label.
        shape: (C, H, W) of the images it was trained on.
        mean: mean of the normalization per channel.
        std: standard deviation of the normalization per channel.
        geometry: how photographs are resized and cropped for it, or None if unknown.

    Example:
        >>> ModelCard(Architecture("small_cnn"), ("ant", "bee"), (3, 64, 64), mean=(0.5,), std=(0.5,))
    """

    architecture: Architecture | None
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    geometry: ResizeCrop | None = None


def save_model(path: str | Path, net: nn.Module, card: ModelCard, state: Mapping[str, Any] | None = None) -> Path:
    """Write weights and card as one safetensors file, atomically, and return its path.

    Tensors that share memory are each written. The prefixes of `torch.compile` and `nn.DataParallel` are dropped from
    names. Weights that hooks compute (parametrizations, pruning) are written as computed if the card's network has no
    such hooks.

    Args:
        path: file to write; its folder is created.
        net: network whose weights and buffers are written.
        card: what `load_model` needs to build the network again.
        state: state dict to write, such as of a network whose parameters are sharded; None is the network's own.

    Raises:
        ValueError: weights that a safetensors file cannot hold, or a card that JSON cannot hold.
    """
    net = unwrapped(net)
    state = net.state_dict() if state is None else state
    computed = _computed(net, state)
    if computed and card.architecture is not None:
        with torch.random.fork_rng(devices=[]):
            wanted = card.architecture.build(card.shape[0], len(card.classes)).state_dict()
        state = state if wanted.keys() == set(plain_names(net).values()) else computed
    for name, value in state.items():
        if not isinstance(value, Tensor) or value.is_meta:
            got = "the meta device" if isinstance(value, Tensor) else type(value).__name__
            raise fail("net", "weights that are tensors with numbers", f"{got} for {name}")
    try:
        tensors = {plain: state[name].detach().cpu().clone(memory_format=torch.contiguous_format)
                   for name, plain in plain_names(net, state).items()}  # fmt: skip
        content = save(tensors, metadata={_KEY: json.dumps(asdict(card))})
    except (TypeError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        told = f"{type(net).__name__} ({' '.join(str(error).split())[:200]})"
        raise fail("net", "weights and a description that a safetensors file can hold", told) from error
    return write_atomically(Path(path), content)


def _computed(net: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state dict with what hooks compute in eval mode in place of its parts; empty without hooks."""
    made: dict[str, Tensor] = {}
    sources: list[str] = []
    with evaluating([*net.modules()], ()), torch.no_grad():
        for path, module in net.named_modules():
            prefix = f"{path}." if path else ""
            for name in module.parametrizations if parametrize.is_parametrized(module) else ():
                made[prefix + name] = getattr(module, name)
                sources.append(f"{prefix}parametrizations.{name}.")
            for hook in module._forward_pre_hooks.values():
                if isinstance(hook, (WeightNorm, SpectralNorm, BasePruningMethod)):
                    hook(module, None)
                    name = hook._tensor_name if isinstance(hook, BasePruningMethod) else hook.name
                    made[prefix + name] = getattr(module, name)
                    sources += [f"{prefix}{name}_{end}" for end in ("g", "v", "u", "orig", "mask")]
    kept = {key: value for key, value in state.items() if not key.startswith(tuple(sources))}
    return {**kept, **made} if made else {}


def load_model(
    path: str | Path, *, net: nn.Module | None = None, allow: Sequence[str] = ()
) -> tuple[Classifier, ModelCard]:
    """Return the classifier of a file that `save_model` wrote, in eval mode, and its card.

    A file can name any class as its network, so that building it could run any code. Only networks of this package, of
    torchvision and of timm are built, and those that are allowed.

    Args:
        path: the file.
        net: network that takes the weights, needed if the file does not say how to build one.
        allow: dotted paths of your modules, classes or functions that the file may name.

    Raises:
        ValueError: no such file, another kind of file, a network that is not allowed, or weights that do not fit or
            are not finite.
    """
    with _opened(path, "model") as file:
        card = _parse_card(file, path, "model")
        tensors = {name.replace("_orig_mod.", ""): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    infinite = first_infinite(tensors)
    if infinite:
        raise fail("model", "finite weights", f"others in {infinite} of {path}")
    if net is None:
        if card.architecture is None:
            raise fail("net", f"the network that {path} is the weights of, since the file does not say", "None")
        card.architecture.check_origin(allow)
        net = build_described(card.architecture, tensors, path, (card.shape[0], len(card.classes)))
    own = unwrapped(net)
    names = {plain: name for name, plain in plain_names(own).items()}
    try:
        own.load_state_dict(with_versions(own, {names.get(name, name): tensor for name, tensor in tensors.items()}))
    except RuntimeError as error:
        raise fail(
            "model", f"weights that fit {type(net).__name__}", f"{path} ({str(error).splitlines()[-1].strip()})"
        ) from error
    classifier = Classifier(net, mean=card.mean, std=card.std).eval()
    found = count_logits(classifier, card.shape, "model")
    if found != len(card.classes):
        raise fail("model", f"names of {found} classes, as many as there are logits", f"{len(card.classes)} in {path}")
    return classifier, card


def read_card(path: str | Path, name: str = "model") -> ModelCard | None:
    """Return the card of a file of weights, or None for one that `save_model` did not write. Weights are not read."""
    if Path(path).is_file() and Path(path).suffix != SUFFIX:
        return None
    with _opened(path, name) as file:
        return _parse_card(file, path, name) if _KEY in (file.metadata() or {}) else None


@contextmanager
def _opened(path: str | Path, name: str) -> Iterator[Any]:
    other = Path(path).suffix != SUFFIX
    if not Path(path).is_file():
        raise fail(name, f"an existing {'file of weights' if other else '.safetensors file'}", str(path))
    try:
        with safe_open(path, "pt") as file:
            yield file
    except SafetensorError as error:
        hint = f"; for a state dict or checkpoint give --model NAME --weights {path}" if other else ""
        raise fail(name, "a safetensors file", f"{path} ({error}){hint}") from error


def build_described(
    architecture: Architecture, tensors: Mapping[str, Tensor], where: object, size: tuple[int, int] | None = None
) -> nn.Module:
    """Return the network that a file describes, of (channels, classes) if given, with weights to be overwritten.

    A file may describe a larger network than it holds, so it is first built without memory and compared.
    """
    # The weights are in this file, so that the builder must neither read nor download others.
    given = {key: value for key, value in architecture.arguments.items() if key not in _WEIGHT_ARGUMENTS}
    if architecture.name.startswith(HF) and "config" not in given:
        raise fail("architecture.arguments", f"a config, so that {where} needs no download", architecture.name)
    architecture = dataclasses.replace(architecture, arguments=given)

    def build() -> nn.Module:
        return architecture.make(given) if size is None else architecture.build(*size)

    try:
        with torch.random.fork_rng(devices=[]):  # initial weights are drawn from the global generator
            _compare(build, tensors, where)
            return build()
    except Exception as error:  # a constructor may raise anything for unchecked arguments
        if isinstance(error, ImportError) or str(error).startswith(("architecture.", "model: ")):
            raise
        expected = f"arguments that {architecture.name} takes, in {where}"
        raise fail("architecture.arguments", expected, f"{type(error).__name__} ({str(error)[:160]})") from error


def _compare(build: Callable[[], nn.Module], tensors: Mapping[str, Tensor], where: object) -> None:
    """Raise ValueError if the network does not fit the weights, without allocating memory for it."""
    try:
        with torch.device("meta"):
            net = build()
    except NotImplementedError:  # its constructor reads the values of tensors
        return
    wanted, found = ({name: tuple(t.shape) for name, t in each.items()} for each in (net.state_dict(), tensors))
    other = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
    if other:
        first = f"{other[0]} is {found.get(other[0], 'missing')} instead of {wanted.get(other[0], 'none')}"
        raise fail("model", f"weights that fit {type(net).__name__}", f"{where} ({len(other)} others: {first})")


def _parse_card(file: Any, path: str | Path, name: str) -> ModelCard:
    text = (file.metadata() or {}).get(_KEY)
    if text is None:
        raise fail(name, "a file saved by robustsigma", str(path))
    try:
        found = json.loads(text)
        kind, geometry = found["architecture"], found.get("geometry")
        card = ModelCard(
            None
            if kind is None
            else Architecture(str(kind["name"]), dict(kind["arguments"]), padding=kind.get("padding")),
            tuple(map(str, found["classes"])),
            tuple(map(int, found["shape"])),  # type: ignore[arg-type]
            tuple(map(float, found["mean"])),
            tuple(map(float, found["std"])),
            None if geometry is None else ResizeCrop(**geometry),
        )
        _check(card)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise fail(name, "a file saved by robustsigma", f"{path} ({type(error).__name__}: {error})") from error
    return card


def _check(card: ModelCard) -> None:
    """Raise ValueError for an invalid card."""
    if len(card.shape) != 3 or not all(1 <= side <= _LARGEST for side in card.shape):
        raise fail("shape", f"three numbers from 1 to {_LARGEST}", card.shape)
    if len(card.classes) < 2:
        raise fail("classes", "at least two", len(card.classes))
    if card.geometry is not None and card.geometry.size != card.shape[1]:
        raise fail("geometry", f"a crop of {card.shape[1]} pixels", card.geometry)
    for name in ("mean", "std"):
        values = getattr(card, name)
        if len(values) not in (1, card.shape[0]) or not all(map(math.isfinite, values)):
            raise fail(name, f"1 or {card.shape[0]} finite numbers", values)
    if min(card.std) <= 0:
        raise fail("std", "positive numbers", card.std)
