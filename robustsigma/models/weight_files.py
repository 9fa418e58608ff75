"""State dicts from files of any origin: read without running code in them, and loaded into a network."""

from __future__ import annotations

import re
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from robustsigma.engine.validation import fail

SUFFIX = ".safetensors"
SUFFIXES = (SUFFIX, ".pt", ".pth", ".ckpt", ".bin", ".tar")

State = dict[str, Tensor]
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "state_dict_ema", "model_ema")
_PREFIXES = ("module.", "_orig_mod.", "classifier.net.", "model.", "net.")
_AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")  # heads of Inception and GoogLeNet for training
_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")  # as torchvision's oldest files have it

# The attribute of wrappers, as it appears in the names of what they wrap.
_WRAPPED = re.compile(r"(?<![^.])(?:_orig_mod|module)\.")

_CODE = re.compile(r"Unsupported global: GLOBAL (\S{1,100})")
_COLORS = re.compile(r"\x1b\[[0-9;]*m")


@contextmanager
def quiet_unpickling() -> Iterator[None]:
    """Suppress torch's warning about a file's pickle protocol: the file can be read, or an error says why not."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Detected pickle protocol")
        yield


def read_state(path: str | Path, name: str = "weights") -> State:
    """Return the tensors of a safetensors file, or of a state dict that `torch.save` wrote, also one in a checkpoint.

    Code in the file is not run. ValueError, naming the argument `name`: no such file, or one that holds other things.
    """
    path = Path(path)
    if not path.is_file():
        raise fail(name, "an existing file of weights", str(path))
    try:
        with quiet_unpickling():
            tensors = path.suffix == SUFFIX
            found: Any = load_file(path) if tensors else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler may raise anything for a file that is no pickle
        raise not_readable(name, path, error) from error
    while isinstance(found, Mapping) and not any(isinstance(value, Tensor) for value in found.values()):
        inner = next((found[key] for key in _WRAPPERS if isinstance(found.get(key), Mapping)), None)
        if inner is None:
            break
        found = inner
    if not isinstance(found, Mapping) or not found:
        raise fail(name, "a state dict", f"{type(found).__name__} in {path}")
    odd = [key for key, value in found.items() if not isinstance(key, str) or not isinstance(value, Tensor)]
    if odd:
        raise fail(name, f"tensors by name in {path}", f"{type(found[odd[0]]).__name__} as {str(odd[0])[:60]!r}")
    unusual = [key for key, value in found.items() if not _usual(value)]
    if unusual:
        raise fail(name, f"real, dense tensors in {path}", f"another in {unusual[0][:60]!r}")
    return dict(found)


def not_readable(name: str, path: str | Path, error: Exception) -> ValueError:
    """Return the error for a file of weights that cannot be read."""
    expected = "a safetensors file, or a state dict that torch.load reads with weights_only=True"
    return fail(name, expected, f"{path} ({_reason(error)})")


def _reason(error: Exception) -> str:
    """Return in one line why a file could not be read, without torch's colors and its advice to run its code."""
    code = _CODE.search(str(error))
    if code is not None:
        return f"it holds {code[1]}, which is code and is not run; of a network save net.state_dict()"
    told = _COLORS.sub("", str(error)).splitlines()
    return told[0].partition(". ")[0][:160] if told else type(error).__name__


def _usual(value: Tensor) -> bool:
    dense = value.layout == torch.strided and not value.is_meta and not value.is_quantized
    return dense and not value.is_complex()


def _is_finite(value: Any) -> bool:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return True
    known = value.float() if value.element_size() == 1 else value  # isfinite does not support formats of one byte
    return bool(known.isfinite().all())


def _wrapper_attribute(module: nn.Module) -> str | None:
    """Return the attribute that holds the module that this one compiles, averages or runs in parallel, or None."""
    if "_orig_mod" in module._modules:
        return "_orig_mod"
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
    return "module" if isinstance(module, parallel) else None


def unwrapped(net: nn.Module) -> nn.Module:
    """Return a network without the wrappers of `torch.compile`, averaged weights and data parallelism."""
    while (name := _wrapper_attribute(net)) is not None:
        net = getattr(net, name)
    return net


def common_name(name: str) -> str:
    """Return a tensor's name without the attributes of wrappers, to find it in a network with other wrappers."""
    return _WRAPPED.sub("", name)


def plain_names(net: nn.Module, names: Iterable[str] | None = None) -> dict[str, str]:
    """Return names of a network's tensors, by default of its state dict, with their names without wrapped parts."""
    plain = {name: name for name in (net.state_dict() if names is None else names)}
    parts = [(path, _wrapper_attribute(part)) for path, part in net.named_modules(remove_duplicate=False)]
    for path, inner in reversed(parts):  # inner parts first, while the outer names still fit
        prefix = f"{path}.{inner}."
        for name, other in plain.items() if inner else ():
            if other.startswith(prefix):
                plain[name] = f"{path}.{other.removeprefix(prefix)}"
    return plain


def first_infinite(state: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor that holds NaN or infinity, or None; refuse the meta device."""
    if any(isinstance(tensor, Tensor) and tensor.is_meta for tensor in state.values()):
        raise fail("net", "weights with numbers", "the meta device: call to_empty and load weights first")
    return next((name for name, tensor in state.items() if not _is_finite(tensor)), None)


def fit_state(net: nn.Module, state: State, origin: str, *, classes: int | None = None) -> None:
    """Load weights into a network, in its precision, without a prefix that all names share; `origin` is for errors.

    With `classes`, the number of logits of a network that will be trained further, a last layer of another number keeps
    its fresh weights. ValueError: weights of another network, or that are not finite.
    """
    net = unwrapped(net)
    names = {plain: name for name, plain in plain_names(net).items()}
    given = net.state_dict()
    own = {plain: given[name] for plain, name in names.items()}
    state = {_DENSENET.sub(r"\1\2", key): value for key, value in without_prefix(state, own).items()}
    state = {key: value for key, value in state.items() if key in own or not key.startswith(_AUXILIARY)}
    counted = {key for key in own if key.endswith("num_batches_tracked")}
    missing, unknown = sorted(own.keys() - state.keys() - counted), sorted(state.keys() - own.keys())
    other = [key for key, value in state.items() if key in own and value.shape != own[key].shape]
    if classes is not None:
        fresh = [key for key in other if len(own[key]) == classes and own[key].shape[1:] == state[key].shape[1:]]
        other = [key for key in other if key not in fresh]
        state = {key: value for key, value in state.items() if key not in fresh}
    wrong = {"missing": missing, "unknown": unknown, "of another shape": other}
    if any(wrong.values()):
        shown = "; ".join(f"{len(keys)} {how} such as {keys[0]}" for how, keys in wrong.items() if keys)
        raise fail("weights", f"those of this {type(net).__name__}", f"{origin} ({shown})")
    infinite = first_infinite(state)
    if infinite:
        raise fail("weights", "finite numbers", f"others in {infinite} of {origin}")
    net.load_state_dict(with_versions(net, {names[key]: value for key, value in state.items()}), strict=False)


def with_versions(net: nn.Module, state: Mapping[Any, Tensor]) -> State:
    """Return a state dict with the versions of a network's modules, which some ask for, as torchvision's MNASNet does.

    Safetensors files and state dicts with other names have none.
    """
    found = OrderedDict(state)
    found._metadata = getattr(net.state_dict(), "_metadata", None)  # type: ignore[attr-defined]
    return found


def without_prefix(state: State, own: Mapping[str, Any]) -> State:
    """Return the weights by their names in the network, without a shared prefix and what does not have it."""
    state = {key.replace("_orig_mod.", ""): value for key, value in state.items()}
    while not own.keys() & state.keys():
        prefix = next((each for each in _PREFIXES if any(key.startswith(each) for key in state)), None)
        if prefix is None:
            break
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return state


def stored_statistics(state: State, net: nn.Module | None = None) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return mean and std of the `Classifier` whose state dict this is, or None; tensors of `net` itself are none."""
    own = {} if net is None else net.state_dict()
    for name in (key for key in state if key.rpartition(".")[2] == "mean" and key not in own):
        prefix = name.removesuffix("mean")
        std = state.get(f"{prefix}std")
        if std is not None and any(key.startswith(f"{prefix}net.") for key in state):
            return tuple(state[name].flatten().tolist()), tuple(std.flatten().tolist())
    return None
