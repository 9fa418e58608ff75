"""Files of weights, cut, changed and made by others, through everything that reads one."""

from __future__ import annotations

import io
import json
import pickle
import tempfile
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from outcome import settled
from safetensors.torch import save
from torch import nn

from robustsigma.lightning import AtomicCheckpointIO
from robustsigma.models import Architecture, load_model
from robustsigma.models.weight_files import fit_state, read_state

SHAPE = (1, 8, 8)
ODD = (
    None, True, -1, 0, 1, 2, 4, 3.5, 10**6, 10**30, 1e308, float("nan"), float("inf"), "", "x", "small_cnn",
    "os.system", "torchvision:resnet18", "torchvision:nothing", "torch.nn.Identity", [], [0], [1, 8, 8],
    [-1, 8, 8], ["a"], ["a", "b", "c"], {}, {"width": -1}, {"size": 8}, [[[]]], "\0",
)  # fmt: skip
ARGUMENTS = ("width", "classes", "channels", "strides", "dropout", "depth", "weights", "pretrained", "self", "")


@lru_cache(maxsize=1)
def _net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return Architecture("small_cnn", {"width": 2}).build(1, 3).eval()


def _card() -> dict[str, Any]:
    architecture = {"name": "small_cnn", "arguments": {"width": 2}, "padding": None}
    return {"architecture": architecture, "classes": ["a", "b", "c"], "shape": list(SHAPE), "mean": [0.5], "std": [0.5]}


def _changed_tensors(draw: Any) -> dict[str, Any]:
    state = {key: value.clone() for key, value in _net().state_dict().items()}
    for key in draw(st.lists(st.sampled_from(sorted(state)), max_size=2, unique=True)):
        tensor = state[key]
        how = draw(st.sampled_from(["nan", "inf", "gone", "shape", "int", "half", "double", "complex", "bool", "empty",
                                    "fp8", "sparse", "meta", "huge", "list", "renamed"]))  # fmt: skip
        if how in ("nan", "inf") and tensor.is_floating_point():
            state[key] = torch.full_like(tensor, float(how))
        elif how == "gone":
            del state[key]
        elif how == "renamed":
            state[f"module.{key}"] = state.pop(key)
        else:
            state[key] = {
                "shape": lambda t: torch.zeros(*t.shape, 2), "int": lambda t: t.long(), "half": lambda t: t.half(),
                "double": lambda t: t.double(), "complex": lambda t: t.to(torch.complex64), "bool": lambda t: t.bool(),
                "empty": lambda t: torch.zeros(0), "fp8": lambda t: t.to(torch.float8_e4m3fn),
                "sparse": lambda t: t.float().to_sparse(), "meta": lambda t: t.to("meta"),
                "huge": lambda t: torch.full_like(t, 1e30, dtype=torch.float64), "list": lambda t: t.tolist(),
            }.get(how, lambda t: t)(tensor)  # fmt: skip
    return state


def _safetensors(draw: Any) -> bytes:
    card: Any = _card()
    for key in draw(st.lists(st.sampled_from([*card, "geometry", "more"]), max_size=2)):
        card[key] = deepcopy(draw(st.sampled_from(ODD)))
    if isinstance(card["architecture"], dict) and draw(st.booleans()):
        part = draw(st.sampled_from(["name", "arguments", "padding", "inner"]))
        if part == "inner":
            card["architecture"]["arguments"] = {
                "width": 2,
                draw(st.sampled_from(ARGUMENTS)): draw(st.sampled_from(ODD)),
            }
        else:
            card["architecture"][part] = deepcopy(draw(st.sampled_from(ODD)))
    text = draw(
        st.one_of(st.just(json.dumps(card)), st.just(json.dumps(card)), st.just(json.dumps(card)), st.text(max_size=9))
    )
    state = {key: value for key, value in _changed_tensors(draw).items()
             if isinstance(value, torch.Tensor) and not value.is_sparse and value.device.type == "cpu"}  # fmt: skip
    return save(state, metadata=draw(st.sampled_from([{"robustsigma": text}, {"robustsigma": text}, None])))


def _pickled(draw: Any) -> bytes:
    state: Any = _changed_tensors(draw)
    wrapped = draw(st.sampled_from(["plain", "state_dict", "model", "deep", "list", "text", "module", "loop", "keys"]))
    state = {
        "plain": state, "state_dict": {"state_dict": state, "epoch": 3}, "model": {"model": state}, "list": [state],
        "deep": {"state_dict": {"model": {"net": state}}}, "text": "x", "module": _net(), "loop": {"state_dict": {}},
        "keys": {1: torch.zeros(1)},
    }[wrapped]  # fmt: skip
    if draw(st.integers(0, 3)) == 0 and isinstance(state, dict):
        state = {"pytorch-lightning_version": "2.6.4", **state}
    buffer = io.BytesIO()
    torch.save(state, buffer, _use_new_zipfile_serialization=draw(st.booleans()))
    return draw(st.sampled_from([buffer.getvalue(), buffer.getvalue(), pickle.dumps({"a": 1})]))


@st.composite
def files(draw: Any) -> dict[str, Any]:
    """Return a file of weights."""
    content = draw(st.sampled_from([_safetensors, _safetensors, _pickled]))(draw)
    damage = draw(st.sampled_from(["none", "none", "none", "cut", "flip", "header", "garbage"]))
    place = draw(st.floats(0, 1, exclude_max=True))
    if damage == "cut":
        content = content[: int(len(content) * place)]
    elif damage == "flip":
        changed = bytearray(content)
        for where in draw(st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=6)):
            changed[int(len(changed) * where)] = draw(st.integers(0, 255))
        content = bytes(changed)
    elif damage == "header":
        content = draw(st.sampled_from([b"\xff" * 8, (10**6).to_bytes(8, "little"), b"\0" * 8])) + content[8:]
    elif damage == "garbage":
        content = draw(st.binary(max_size=60))
    return {"content": content, "suffix": draw(st.sampled_from([".safetensors", ".pth"]))}


def read(drawn: dict[str, Any]) -> None:
    """Read it in every way; a network that is made of it gives numbers."""
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        path = Path(folder) / f"w{drawn['suffix']}"
        path.write_bytes(drawn["content"])
        made = settled(lambda: load_model(path))
        if made is not None:
            classifier, card = made
            with classifier.frozen():
                logits = classifier.logits(torch.full((2, *card.shape), 0.5))
            assert logits.shape == (2, len(card.classes))
            assert torch.isfinite(logits).all() or float(logits.abs().nan_to_num(1e30).max()) > 1e20
        settled(lambda: AtomicCheckpointIO().load_checkpoint(path))
        state = settled(lambda: read_state(path))
        if state is not None:
            fresh = Architecture("small_cnn", {"width": 2}).build(1, 3)
            settled(lambda: fit_state(fresh, state, str(path)))
            assert all(bool(value.isfinite().all()) for value in fresh.state_dict().values())


TARGETS = {"files of weights": (files(), read)}
