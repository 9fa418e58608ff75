"""`robustsigma doctor`: every hazard from names and versions alone, and what the command prints and returns."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from robustsigma.cli import doctor, main
from robustsigma.cli.installed_packages import Unmet, hazards, installed, release, unmet

SOUND = {
    "torch": "2.14.1+cu130",
    "torchvision": "0.29.1",
    "pytorch-lightning": "2.6.6",
    "requests": "2.32.3",
    "albumentations": "2.0.8",
    "opencv-python-headless": "5.0.0.93",
}
HAZARDS = {
    "malicious lightning": ({"pytorch-lightning": "2.6.2"}, [("danger", "pytorch-lightning")]),
    "the other one": ({"pytorch-lightning": "2.6.3+local"}, [("danger", "pytorch-lightning")]),
    "the other name": ({"lightning": "2.6.3"}, [("danger", "lightning"), ("warning", "lightning")]),
    "two copies of lightning": ({"lightning": "2.5.0"}, [("warning", "lightning")]),
    "torchvision of another torch": ({"torchvision": "0.28.0"}, [("warning", "torchvision")]),
    "torchattacks with its pin": (
        {"torchattacks": "3.5.1", "requests": "2.25.1"},
        [("warning", "requests"), ("note", "torchattacks")],
    ),
    "torchattacks without its pin": ({"torchattacks": "3.5.1"}, [("note", "requests"), ("note", "torchattacks")]),
    "torchattacks and the real robustbench": (
        {"torchattacks": "3.5.1", "robustbench": "1.1.1"},
        [("warning", "robustbench"), ("note", "requests")],
    ),
    "robustbench alone": ({"robustbench": "1.1.1"}, []),
    "albumentations of another license": ({"albumentations": "2.0.9"}, [("warning", "albumentations")]),
    "albumentationsx": ({"albumentationsx": "2.5.1"}, [("warning", "albumentationsx")]),
    "two opencvs": ({"opencv-contrib-python": "4.9"}, [("warning", "opencv-python-headless")]),
    "a version that is none": ({"torch": "unknown", "lightning-utilities": "?"}, []),
}


def test_a_sound_environment_has_no_hazard():
    assert hazards(SOUND) == []
    assert hazards({}) == []


@pytest.mark.parametrize("name", HAZARDS)
def test_every_hazard_is_found_and_nothing_else(name):
    added, expected = HAZARDS[name]
    found = hazards({**SOUND, **added})
    assert [(hazard.level, hazard.package) for hazard in found] == expected
    for hazard in found:
        assert hazard.what
        assert hazard.remedy


def test_requirements_of_the_core_and_of_extras():
    stated = [
        "a>=2",
        "B_b",
        "c==1; extra == 'more'",
        "d; python_version < '3'",
        "e; python_version<'3' or extra=='more'",
    ]
    assert unmet(stated, {"a": "2.1rc1", "b-b": "0"}) == []
    assert unmet(stated, {"a": "1.9"}) == [Unmet("a>=2", "1.9"), Unmet("b-b", None)]
    assert unmet(stated, {"c": "1.0"}, "more") == [Unmet("e", None)]
    assert unmet(stated, {}, "more") == [Unmet("c==1", None), Unmet("e", None)]
    assert unmet(stated, {}, "other") == []
    assert unmet(["a"], {"a": "no version"}) == [Unmet("a", "no version")]


def test_release():
    assert release("2.14.1+cu130") == (2, 14, 1)
    assert release("nonsense") == release(None) == ()


def test_what_is_installed_is_read_from_metadata():
    found = installed()
    assert {"torch", "pytorch-lightning", "robustsigma"} <= set(found)
    assert all(name == name.lower() and "_" not in name for name in found)


def _printed(capsys, *arguments):
    status = main(["doctor", *arguments])
    return status, capsys.readouterr()


def test_it_prints_every_part(capsys):
    status, said = _printed(capsys)
    assert status == 0
    titles = [line for line in said.out.splitlines() if not line.startswith(" ")]
    assert titles == ["versions", "devices", "threads", "requirements", "hazards"]
    for name in ("python", "torchmetrics", "used by default", "OMP_NUM_THREADS", "extra attacks"):
        assert f"\n  {name} " in said.out
    assert "extra all" not in said.out


def test_a_missing_extra_says_how_to_install_it(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "installed", lambda: {**SOUND, "torchmetrics": "0.1"})
    status, said = _printed(capsys)
    assert status == 0
    assert "torchattacks>=3.5.1 (missing): pip install 'robustsigma[attacks]'" in said.out
    assert re.search(r"robustsigma +torchmetrics\S+ \(0\.1\)", said.out)
    assert "extra augment      complete" in said.out
    assert "  none" in said.out


def test_something_dangerous_has_status_1(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "installed", lambda: {**SOUND, "pytorch-lightning": "2.6.3"})
    status, said = _printed(capsys)
    assert status == doctor.DANGER == 1
    assert "danger" in said.out
    assert "2.6.3 is a malicious upload" in said.out


def test_a_package_that_is_not_installed(monkeypatch, capsys):
    def raises(name):
        raise doctor.PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "metadata", raises)
    status, said = _printed(capsys)
    assert status == 0
    assert "its extras are unknown" in said.out


def test_unknown_options_are_refused(capsys):
    status, said = _printed(capsys, "--fix")
    assert status == 2
    assert "--fix" in said.err


def test_it_imports_nothing_heavy_and_works_without_the_extras():
    heavy = ("torchattacks", "albumentations", "matplotlib", "sklearn", "pytorch_lightning", "mlxtend", "captum", "cv2")
    script = (
        f"import sys\nfor name in {heavy}: sys.modules[name] = None\n"  # whatever imports one fails
        "from robustsigma.cli import main\nstatus = main(['doctor'])\n"
        "assert 'torchvision' not in sys.modules\nsys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "hazards" in done.stdout
