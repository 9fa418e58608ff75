"""Errors under corruptions: of what is embedded, of stored arrays and folders, and relative to another network's."""

import numpy as np
import pytest
import torch
from PIL import Image
from scripts import results, script, untrained

from robustsigma.data import Baggage
from robustsigma.data.loading import load_batch
from robustsigma.models import load_model


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("net"))


def _run(net, tmp_path, *options):
    places = ["--work", str(tmp_path / "work"), "--out", str(tmp_path)]
    script("corruption_error").main(["--fast", "--model", net, *places, *map(str, options)])
    return results(tmp_path, "corruption_error")


def test_of_what_is_embedded(net, tmp_path, capsys):
    pytest.importorskip("albumentations")
    found = _run(net, tmp_path, "--images", 20, "--only", "gaussian_noise", "contrast")
    assert list(found["errors"]) == ["gaussian_noise", "contrast"]
    assert all(len(row) == 5 and row[0]["n"] == 20 for row in found["errors"].values())
    means = [each["mean"] for row in found["errors"].values() for each in row]
    assert found["mean_error"] == pytest.approx(np.mean(means))
    assert "corruption_errors" not in found
    assert "| gaussian_noise | " in capsys.readouterr().out
    (tmp_path / "corruption_error.json").rename(tmp_path / "other.json")
    again = _run(net, tmp_path, "--images", 20, "--only", "gaussian_noise", "contrast", "--reference",
                 tmp_path / "other.json")  # fmt: skip
    assert again["errors"] == found["errors"]
    assert again["corruption_errors"] == {"gaussian_noise": 1, "contrast": 1}
    assert again["mean_corruption_error"] == 1


def test_of_stored_arrays_and_folders(net, tmp_path, capsys):
    x, y = load_batch(Baggage(size=16, train=5, val=5, test=10).split("test"), range(10))
    pixels = (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    (tmp_path / "arrays").mkdir()
    # The fifth severity is black, the others are the images as they are.
    levels = [pixels] * 4 + [np.zeros_like(pixels)]
    np.save(tmp_path / "arrays" / "fog.npy", np.concatenate(levels))
    np.save(tmp_path / "arrays" / "labels.npy", np.tile(y.numpy(), 5))
    for severity, images in enumerate(levels, 1):
        for place, image in enumerate(images):
            folder = tmp_path / "folders" / "fog" / str(severity) / Baggage().classes[int(y[place])]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{place}.png")
    classifier, _ = load_model(net)
    with classifier.frozen():
        wrong = [(classifier.logits(at).argmax(1) != y).double().mean().item() for at in (x, torch.zeros_like(x))]
    for layout in ("arrays", "folders"):
        found = _run(net, tmp_path, "--stored", tmp_path / layout)
        assert found["clean"] is None
        (row,) = found["errors"].values()
        assert [each["mean"] for each in row] == pytest.approx([wrong[0]] * 4 + [wrong[1]])
        assert found["mean_error"] == pytest.approx((4 * wrong[0] + wrong[1]) / 5)
    with pytest.raises(SystemExit, match="--stored: expected corruptions"):
        _run(net, tmp_path, "--stored", tmp_path / "arrays", "--only", "rain")
