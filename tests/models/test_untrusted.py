"""Files of weights are data: whatever reads one refuses code, and what no network can have."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from safetensors.torch import save_file
from test_pretrained import Runs

from robustsigma.cli import main
from robustsigma.lightning import AtomicCheckpointIO
from robustsigma.models import Architecture, ModelCard, load_model, model, save_model
from robustsigma.models.weight_files import read_state

ARCHITECTURE = Architecture("small_cnn", {"width": 2})
FIT = ["--model.net=robustsigma.models.SmallCNN", "--model.net.channels=3", "--model.net.classes=5",
       "--model.net.width=2", "--data.dataset=robustsigma.data.Baggage", "--data.dataset.size=16",
       "--data.dataset.train=10", "--data.dataset.val=5", "--data.dataset.test=5", "--data.num_workers=0",
       "--trainer.accelerator=cpu", "--trainer.logger=false", "--trainer.enable_progress_bar=false",
       "--trainer.enable_model_summary=false"]  # fmt: skip


def net(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return ARCHITECTURE.build(3, 5)


def written(form, path, bomb):
    content = {"state_dict": net().state_dict(), "x": bomb}
    if form == "torch":
        torch.save(content, path)
    elif form == "old torch":
        torch.save(content, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps(bomb))
    return path


READERS = {
    "load_model": load_model,
    "a model's weights": lambda path: model("torchvision:squeezenet1_1", weights=str(path)),
    "read_state": read_state,
    "weights to train from": lambda path: Architecture("small_cnn", weights=str(path)).build(3, 5),
    "a checkpoint": lambda path: AtomicCheckpointIO().load_checkpoint(path),
}


@pytest.mark.parametrize("form", ["torch", "old torch", "pickle"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".ckpt"])
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.third_party_rng  # fresh weights
def test_a_pickle_with_code_is_refused_and_does_not_run(form, suffix, reader, tmp_path):
    marker = tmp_path / "marker"
    path = written(form, tmp_path / f"bomb{suffix}", Runs(marker))
    with pytest.raises(ValueError, match=rf"^[\w.]+: expected .*bomb{suffix}"):
        READERS[reader](path)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Runs(marker)))  # it would have
    assert marker.exists()


@pytest.mark.parametrize(
    ("verb", "form"),
    [
        *(("test", form) for form in ("torch", "pickle", "garbage", "empty", "another", "NaN", "no state", "list")),
        *(pytest.param(v, form, marks=pytest.mark.slow) for v in ("fit", "validate") for form in ("torch", "another")),
    ],
)
@pytest.mark.third_party_rng  # `fit` seeds everything
def test_a_checkpoint_on_the_command_line_is_data(verb, form, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["robustsigma"])
    monkeypatch.chdir(tmp_path)
    marker, path = tmp_path / "marker", tmp_path / "x.ckpt"
    head = {"pytorch-lightning_version": "2.6.6", "epoch": 0, "global_step": 0, "loops": {}}
    state = {f"classifier.net.{key}": value for key, value in net().state_dict().items()}
    state |= {"classifier.mean": torch.zeros(1, 1, 1), "classifier.std": torch.ones(1, 1, 1)}
    first = next(iter(state))
    contents = {
        "another": {**head, "state_dict": {**state, first: torch.zeros(3)}},
        "NaN": {**head, "state_dict": {**state, first: torch.full_like(state[first], torch.nan)}},
        "no state": head,
        "list": [1],
    }
    if form in contents:
        torch.save(contents[form], path)
    elif form in ("garbage", "empty"):
        path.write_bytes(b"garbage" * (form == "garbage"))
    else:
        written(form, path, Runs(marker))
    epochs = ["--trainer.max_epochs=1"] if verb == "fit" else []
    assert main([verb, *FIT, *epochs, f"--ckpt_path={path}"]) == 2
    assert not marker.exists()
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("robustsigma")]
    assert "ckpt_path: expected" in line


def _card(**changes):
    said = {"architecture": {"name": "small_cnn", "arguments": {"width": 2}}, "classes": list("abcde"),
            "shape": [3, 16, 16], "mean": [0.5], "std": [0.25]}  # fmt: skip
    return json.dumps({**said, **changes})


def _asks(**arguments):
    return _card(architecture={"name": "small_cnn", "arguments": {"width": 2, **arguments}})


CARDS = {
    "no JSON": "small_cnn",
    "deep": "[" * 100_000,
    "a list": "[]",
    "null": "null",
    "text": '"x"',
    "no classes": _card(classes=[]),
    "one class": _card(classes=["a"]),
    "more classes": _asks(classes=6),
    "fewer names": _card(classes=list("abcd")),
    "text as classes": _card(classes=3),
    "two sides": _card(shape=[3, 16]),
    "no side": _card(shape=[3, 0, 16]),
    "negative": _card(shape=[3, -16, -16]),
    "endless": _card(shape=[3, 1e999, 16]).replace("Infinity", "1e999"),
    "huge": _card(shape=[3, 10**9, 10**9]),
    "huge network": _asks(width=10**7),
    "huge width": _asks(width=10**30),
    "text as width": _asks(width="2"),
    "no stride": _asks(strides=[0, 0, 0, 0]),
    "odd dropout": _asks(dropout=7),
    "unknown argument": _asks(depth=1),
    "NaN mean": _card(mean=[float("nan")]),
    "two means": _card(mean=[0.5, 0.5]),
    "std of zero": _card(std=[0.0]),
    "endless std": _card(std=[float("inf")]),
    "wrong crop": _card(geometry={"size": 8, "resize": None, "interpolation": "bilinear"}),
    "odd geometry": _card(geometry={"size": 16, "resize": 2}),
    "unknown geometry": _card(geometry={"side": 16}),
    "architecture as text": _card(architecture="small_cnn"),
    "odd padding": _card(architecture={"name": "small_cnn", "arguments": {}, "padding": "valid"}),
}


@pytest.mark.parametrize("card", CARDS)
def test_a_card_that_no_network_can_have_is_refused(card, tmp_path):
    path = tmp_path / "m.safetensors"
    save_file(net().state_dict(), path, metadata={"robustsigma": CARDS[card]})
    with pytest.raises(ValueError, match=r"^[\w.]+: expected "):
        load_model(path)


@pytest.mark.third_party_rng  # `test` seeds everything
def test_a_checkpoint_cannot_name_classes(tmp_path, monkeypatch, capsys):
    """Lightning takes settings from the checkpoint's hyper-parameters: a class path among them would be imported."""
    monkeypatch.setattr("sys.argv", ["robustsigma"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "stranger_of_a_checkpoint.py").write_text("open('marker', 'w').close()\nclass Net: pass\n")
    named = {"class_path": "stranger_of_a_checkpoint.Net"}
    torch.save({"state_dict": {}, "hyper_parameters": {"net": named}}, tmp_path / "x.ckpt")
    assert main(["test", *FIT, f"--ckpt_path={tmp_path}/x.ckpt"]) == 2
    assert not (tmp_path / "marker").exists()
    assert "ckpt_path: expected" in capsys.readouterr().err


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(value, tmp_path):
    damaged = net()
    damaged.head[-1].weight.data[0, 0] = value
    path = save_model(tmp_path / "m.safetensors", damaged, ModelCard(ARCHITECTURE, tuple("abcde"), (3, 16, 16)))
    with pytest.raises(ValueError, match=r"^model: expected finite weights, got others in head.*m\.safetensors"):
        load_model(path)


def test_a_card_cannot_have_other_files_read(tmp_path, monkeypatch):
    """timm and torchvision take arguments that name files and addresses of weights."""
    asked, built = [], net()
    monkeypatch.setattr("robustsigma.models.model_files.Architecture.build",
                        lambda self, *_: asked.append(dict(self.arguments)) or built)  # fmt: skip
    evil = {"width": 2, "checkpoint_path": "evil.pth", "weights": "DEFAULT", "pretrained": True, "pretrained_cfg": {}}
    path = tmp_path / "m.safetensors"
    save_file(built.state_dict(), path, metadata={"robustsigma": _asks(**evil)})
    load_model(path)
    assert asked
    assert all(arguments == {"width": 2} for arguments in asked)
