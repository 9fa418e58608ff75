"""The wheel holds every file of the package, and works outside the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", folder, ROOT], check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder / "site")
    return folder / "site"


@pytest.mark.slow
def test_the_wheel_holds_every_file(site):
    listed = subprocess.run(["git", "ls-files", "robustsigma"], cwd=ROOT, check=True, capture_output=True, text=True)
    files = {path for path in listed.stdout.split() if (ROOT / path).exists()}
    assert {path.relative_to(site).as_posix() for path in (site / "robustsigma").rglob("*") if path.is_file()} == files


@pytest.mark.slow
def test_the_wheel_makes_a_report_outside_the_checkout(site, tmp_path):
    code = (
        "import robustsigma, sys; from robustsigma.cli import main; print(robustsigma.__file__);"
        "sys.exit(main(sys.argv[1:]))"
    )
    presets = site / "robustsigma" / "evaluation" / "presets"
    options = ["--config", presets / "quick.yaml", "--architecture.weights", presets / "baggage.safetensors"]
    few = ["--test_images", "4", "--checks.images", "0", "--retraining", '{"retrain": {}, "on_the_fly": {}}']
    run = subprocess.run(
        [sys.executable, "-c", code, "evaluate", *options, *few, "--out", "report"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert str(site) in run.stdout
    assert (tmp_path / "report" / "report.html").stat().st_size > 10_000
