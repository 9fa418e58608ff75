"""The guide's pictures of `explain` are drawn again by their script."""

import importlib.util

import pytest
from PIL import Image
from scripts import EXPERIMENTS


@pytest.mark.slow
def test_it_draws_the_pictures_of_the_guide(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["robustsigma"])
    spec = importlib.util.spec_from_file_location("explained_scans", EXPERIMENTS / "explained_scans.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main(["--out", str(tmp_path)])
    for path in tmp_path.iterdir():
        with Image.open(path) as picture, Image.open(EXPERIMENTS.parent / "docs" / path.name) as kept:
            assert picture.size == kept.size
    assert len(list(tmp_path.iterdir())) == 3
