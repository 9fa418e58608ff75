"""`augment` resumes in a folder of the same model and images, and refuses one of others."""

import pytest
import torch
from PIL import Image

from robustsigma.cli import main
from robustsigma.models import Architecture, ModelCard, save_model

ARCHITECTURE = Architecture("small_cnn", {"width": 4, "channels": 3, "classes": 2})


def _saved(path, seed):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        net = ARCHITECTURE.make(ARCHITECTURE.arguments)
    save_model(path, net, ModelCard(ARCHITECTURE, ("a", "b"), (3, 16, 16), (0.5,), (0.25,)))


@pytest.mark.third_party_rng  # rich draws a number when it is imported
def test_a_folder_of_samples_is_of_its_model_and_images(tmp_path, capsys):
    _saved(tmp_path / "net.safetensors", 0)
    image = tmp_path / "image.png"
    Image.new("RGB", (16, 16), (90, 0, 0)).save(image)
    command = ["augment", str(image), "--model", str(tmp_path / "net.safetensors"), "--perturbation", "FGSM"]
    command += ["--out", str(tmp_path / "out")]
    for _ in range(2):
        assert main(command) == 0
    Image.new("RGB", (16, 16), (0, 90, 0)).save(image)
    assert main(command) == 2
    assert "the data (images and labels) of the run" in " ".join(capsys.readouterr().err.split())
    Image.new("RGB", (16, 16), (90, 0, 0)).save(image)
    _saved(tmp_path / "net.safetensors", 1)
    assert main(command) == 2
    assert "the network weights of the run" in " ".join(capsys.readouterr().err.split())
