"""Fingerprints of networks, datasets and code: a run directory belongs to one of each."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from robustsigma.engine.global_rng import temporary_seed
from robustsigma.engine.network_state import evaluating, logits_of
from robustsigma.engine.validation import fail

# Of larger datasets, so many items or files are read, evenly spaced and with both ends.
_MOST = 256
_TWICE = 16  # of these items are read twice: random transforms show
_ARRAYS = ("data", "images", "labels", "masks", "targets", "tensors", "indices")
_INNER = ("inner", "dataset", "datasets")
_INSTALLED = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def network(net: nn.Module, shape: Sequence[int]) -> dict[str, Any]:
    """Return the fingerprint of a network, in plain JSON types.

    Args:
        net: in any mode, which is changed here and changed back.
        shape: (C, H, W) of its images.

    Returns:
        `weights`: a hash of all parameters and buffers, also of those that no state dict has; `modules`: one of what
        the network prints; `logits`: some of two fixed images, which tell a changed `forward` or attribute, or None
        where they are random, not finite or not to be had.
    """
    return {
        "weights": state(_tensors(net)),
        "modules": _sha256([stable_repr(net)]),
        "logits": _logits(net, shape),
    }


def _tensors(net: nn.Module) -> dict[str, Tensor]:
    return {**dict(net.named_parameters()), **dict(net.named_buffers())}


def state(tensors: Mapping[str, Tensor]) -> str:
    """Return a hash of tensors by name, in any order."""
    return _sha256(part for name in sorted(tensors) for part in (name, tensors[name]))


def _logits(net: nn.Module, shape: Sequence[int]) -> list[float] | None:
    tensor = next((each for each in net.parameters() if each.is_floating_point()), torch.empty(0))
    images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)).to(tensor.device, tensor.dtype)
    try:
        with evaluating(list(net.modules()), ()), torch.no_grad(), temporary_seed(0):
            found = [logits_of(net(images))[:, :16].flatten().double().cpu() for _ in range(2)]
    except Exception:  # whatever this network asks for beside such images
        return None
    steady = torch.equal(*found) and bool(found[0].isfinite().all())
    return [float(f"{value:.5g}") for value in found[0].tolist()] if steady else None


def items(dataset: Any) -> dict[str, Any]:
    """Return the fingerprint of a dataset with a length and items (image, label) by index, in plain JSON types.

    Read are all items of up to 256, of a larger dataset 256, evenly spaced from the first to the last; and whole the
    tensors, arrays and lists of numbers that it and the datasets in it hold in memory under the names that torch and
    torchvision use (`data`, `images`, `labels`, `masks`, `targets`, `tensors`, `indices`). A change elsewhere in a
    large dataset that is read from disk shows in its labels at most.

    Returns:
        `count`, and hashes: `labels` and `images` of the items that were read, with masks where there are any, and
        `arrays`. Images that differ from one reading to the next, as random transforms make them, have none.
    """
    if isinstance(dataset, IterableDataset):
        raise fail("dataset", "images with a length and by index, for a run that can resume", "a stream")
    count = len(dataset)
    places = _spaced(count)
    labels, images = hashlib.sha256(), hashlib.sha256()
    steady = True
    with temporary_seed(0):
        first = [_item(dataset, place) for place in places[:_TWICE]]
    with temporary_seed(0):
        for number, place in enumerate(places):
            image, label = _item(dataset, place)
            steady = steady and (number >= len(first) or image == first[number][0])
            labels.update(label)
            images.update(image)
    return {
        "count": count,
        "labels": labels.hexdigest(),
        "images": images.hexdigest() if steady else None,
        "arrays": _sha256(_arrays(dataset)),
    }


def _item(dataset: Any, index: int) -> tuple[bytes, bytes]:
    """Return hashes of an image with its mask, and of its labels."""
    image, label = dataset[index]
    mask, correct_labels = (getattr(dataset, name, None) for name in ("mask", "correct_labels"))
    shown = [image, mask(index)] if callable(mask) else [image]
    labels = [label, correct_labels(index)] if callable(correct_labels) else [label]
    return _sha256(shown).encode(), _sha256(labels).encode()


def _arrays(dataset: Any) -> Iterator[Any]:
    """Yield what a dataset and those in it hold in memory, an entry an image."""
    for name in _ARRAYS:
        value = getattr(dataset, name, None)
        for each in value if isinstance(value, tuple) else (value,):
            numbers = isinstance(each, (list, range)) and len(each) > 0 and isinstance(each[0], (int, float))
            if (isinstance(each, (Tensor, np.ndarray)) or numbers) and len(each) == len(dataset):
                yield from (name, torch.tensor(each) if numbers else each)
    for name in _INNER:
        value = getattr(dataset, name, None)
        for each in value if isinstance(value, (list, tuple)) else (value,):
            if hasattr(each, "__len__") and hasattr(each, "__getitem__"):
                yield from _arrays(each)


def files(paths: Sequence[Path], root: Path | None = None) -> dict[str, Any]:
    """Return the fingerprint of files, below a folder where one is named, in plain JSON types.

    It knows the path and the size of each file, and the content of all files of up to 256, else of 256, evenly spaced
    in the order of their paths. The time of a change does not count, so that a copy of the folder is the same.
    """
    found = sorted(paths)
    names = _sha256(f"{(path.relative_to(root) if root else path).as_posix()} {_size(path)}" for path in found)
    content = _sha256(_content(found[place]) for place in _spaced(len(found)))
    return {"count": len(found), "names": names, "content": content}


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None  # a missing one is for the reader to report


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def code(value: Any) -> dict[str, str]:
    """Return hashes of the source of classes and functions in some settings, by their dotted path.

    Those of this package, of Python and of installed packages are left out. Of a class it is that of the class and of
    its base classes, with the constants and functions of their own modules that their code names.
    """
    found: dict[str, str] = {}
    for kind in _kinds(value):
        module = sys.modules.get(kind.__module__)
        path = getattr(module, "__file__", None) or ""
        known = kind.__module__.split(".")[0] in ("robustsigma", *sys.builtin_module_names)
        if not known and not path.startswith(_INSTALLED):
            found[f"{kind.__module__}.{kind.__qualname__}"] = _source(kind)
    return found


def code_of(allow: Sequence[str], settings: Any = None) -> dict[str, dict[str, str]]:
    """Return the SHA-256 of the source of allowed modules, as a setting `code` that binds a folder to it.

    Args:
        allow: dotted paths of modules, classes or functions. What has no file, such as a built-in module, is left out.
        settings: whose own classes and functions count too, see `code`.

    Returns:
        {"code": by dotted path}, or nothing where no path has a file.
    """
    found = {name: _module_digest(spec) for name in sorted({*allow}) if (spec := _spec(name)) is not None}
    found |= code(settings)
    digests = {name: digest for name, digest in found.items() if digest is not None}
    return {"code": digests} if digests else {}


def _spec(name: str) -> ModuleSpec | None:
    """Return where the module of a dotted path is, which may name a class or a function in it; or None."""
    while name:
        try:
            spec = find_spec(name)
        except (ImportError, ValueError, AttributeError):  # its parent is no package; or a module without a spec
            spec = None
        if spec is not None:
            return spec
        name = name.rpartition(".")[0]
    return None


def _module_digest(spec: ModuleSpec) -> str | None:
    """Return the digest of a module's file, or of all Python files of a package."""
    if spec.submodule_search_locations is None:
        path = Path(spec.origin) if spec.has_location and spec.origin else None
        return hashlib.sha256(path.read_bytes()).hexdigest() if path and path.is_file() else None
    digest, roots = hashlib.sha256(), [Path(root) for root in spec.submodule_search_locations]
    files = sorted((path.relative_to(root).as_posix(), path) for root in roots for path in root.rglob("*.py"))
    for name, path in files:
        digest.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest() if files else None


def _kinds(value: Any) -> Iterator[Any]:
    """Yield the classes and functions in some settings, however deep."""
    if isinstance(value, (type, Tensor, np.ndarray)) or hasattr(value, "fingerprint"):  # which says more
        return
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for each in value:
            yield from _kinds(each)
        return
    if isinstance(value, functools.partial):
        yield from _kinds([value.func, *value.args, *value.keywords.values()])
        return
    if inspect.isroutine(value):
        if hasattr(value, "__qualname__") and hasattr(value, "__module__") and value.__module__ is not None:
            yield value
        return
    yield from type(value).__mro__
    if dataclasses.is_dataclass(value):
        yield from _kinds([getattr(value, field.name) for field in dataclasses.fields(value)])


def _source(kind: Any) -> str:
    """Return a hash of a function's source, or of a class's methods and constants, and of what these use."""
    if not isinstance(kind, type):
        return _sha256([_text(kind), *_used(kind, {kind})])
    parts: list[Any] = []
    for name, value in vars(kind).items():
        made = getattr(value, "__func__", getattr(value, "fget", value))  # of class and static methods, and properties
        if inspect.isfunction(made):
            generated = name.startswith("__") and made.__code__.co_filename == "<string>"  # by dataclass
            parts += [] if generated else [name, _text(made), *_used(made, {made})]
        elif isinstance(value, (bool, int, float, str, tuple)) and not name.startswith("__"):
            parts += [name, value]
    return _sha256(parts)


def _used(function: Any, seen: set[Any]) -> Iterator[str]:
    """Yield the constants and functions of its own module that a function's code names, and what these use."""
    namespace, codes, names = getattr(function, "__globals__", {}), [getattr(function, "__code__", None)], set[str]()
    while codes:
        current = codes.pop()
        if current is not None:
            names.update(current.co_names)
            codes += [each for each in current.co_consts if inspect.iscode(each)]
    for name in sorted(names & set(namespace)):
        value = namespace[name]
        if isinstance(value, (bool, int, float, str, tuple)):
            yield f"{name} = {value!r}"
        elif inspect.isfunction(value) and value.__module__ == function.__module__ and value not in seen:
            seen.add(value)
            yield _text(value)
            yield from _used(value, seen)


def _text(function: Any) -> str:
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):  # it was typed in, or made by exec
        made = getattr(function, "__code__", None)
        constants = [each for each in getattr(made, "co_consts", ()) if not inspect.iscode(each)]
        return repr((getattr(made, "co_code", None), getattr(made, "co_names", None), constants))


def describe(value: Any) -> Any:
    """Return settings as plain JSON types, each dataclass with its class name.

    Of a tensor, an array, a network, a function or any other object, the contents count, not its address.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        shown = {field.name: describe(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"class": type(value).__name__, **shown}
    if isinstance(value, Mapping):
        return {str(key): describe(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe(part) for part in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, value))
    if isinstance(value, np.ndarray) and value.dtype.kind not in "biufc":
        return describe(value.tolist())
    if isinstance(value, (Tensor, np.ndarray)):
        # Its repr leaves out the middle.
        tensor = torch.as_tensor(value)
        return {"shape": list(tensor.shape), "dtype": str(tensor.dtype), "sha256": _digest(tensor)}
    if isinstance(value, nn.Module):
        return {"class": type(value).__name__, "sha256": state(_tensors(value))}
    if getattr(type(value), "__repr__", None) is object.__repr__ and not hasattr(value, "fingerprint"):
        return {"class": type(value).__name__, **describe(vars(value) if hasattr(value, "__dict__") else {})}
    return stable_repr(value)


def stable_repr(value: Any) -> str:
    """Return the text of a value without addresses in memory, such as that of a function."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def _digest(tensor: Tensor) -> str:
    if tensor.is_meta:  # it has no numbers
        return "meta"
    dense = tensor.detach().to_dense() if tensor.layout != torch.strided else tensor.detach()
    content = dense.cpu().contiguous().flatten().view(torch.uint8).numpy()
    return hashlib.sha256(content.data).hexdigest()


def _sha256(parts: Iterable[Any]) -> str:
    """Return a hash of tensors, arrays, images, bytes, numbers and text."""
    found = hashlib.sha256()
    for part in parts:
        value = np.asarray(part) if isinstance(part, Image.Image) else part
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            value = torch.as_tensor(value)
        if isinstance(value, Tensor):
            value = f"{value.dtype} {tuple(value.shape)} {_digest(value)}"
        found.update(
            hashlib.sha256(value if isinstance(value, bytes) else str(value).encode(errors="surrogatepass")).digest()
        )
    return found.hexdigest()


def _spaced(count: int) -> list[int]:
    return list(range(count)) if count <= _MOST else np.linspace(0, count - 1, _MOST).round().astype(int).tolist()
