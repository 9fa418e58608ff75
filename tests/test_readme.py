"""The README's Python runs as it stands there, on a small network and small images; its quotations are true."""

from __future__ import annotations

import re
from pathlib import Path

import cases
import judged
import pytest

from robustsigma.evaluation.lightning import quiet

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.third_party_rng  # a new network draws its weights, and a loader its order
@pytest.mark.parametrize("place", range(len(BLOCKS)))
def test_runs(place, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images, labels, masks = judged.scene(4)
    before = {"net": judged.Colours(), "images": images, "labels": labels, "masks": masks}
    if place:
        before["classifier"] = cases.Classifier(judged.Colours())
    code = BLOCKS[place].replace("Baggage()", "Baggage(16, 16, 4, 4)")
    code = code.replace("max_epochs=20", "max_epochs=1, devices=1, logger=False, enable_checkpointing=False")
    with quiet():
        exec(compile(code, f"README.md block {place}", "exec"), before)
    if "for method in" in BLOCKS[place]:
        lines = [line for line in BLOCKS[place].splitlines() if line.strip()]
        assert len(lines) < 15
        printed = capsys.readouterr().out.splitlines()
        assert len(printed) == 3 * 7
        assert any("pointing_game" in line for line in printed)


def test_there_is_python_in_it():
    assert len(BLOCKS) == 3


def test_what_is_said_of_retraining_is_what_the_study_says():
    section = README.split("### Does retraining with SIGMA samples help?")[1].split("\n### ")[0]
    said = [line for line in section.splitlines() if line.startswith(("- ", "|"))]
    assert len(said) > 10
    page = (ROOT / "results" / "does_it_help.md").read_text(encoding="utf-8").splitlines()
    assert [line for line in said if line not in page] == []
