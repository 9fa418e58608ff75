"""The README's Python runs as it stands there, on a small network and small images."""

from __future__ import annotations

import re
from pathlib import Path

import cases
import judged
import pytest

BLOCKS = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[1] / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("place", range(len(BLOCKS)))
def test_runs(place, capsys):
    images, labels, masks = judged.scene(4)
    before = {"net": judged.Colours(), "images": images, "labels": labels, "masks": masks}
    if place:
        before["classifier"] = cases.Classifier(judged.Colours())
    exec(compile(BLOCKS[place], f"README.md block {place}", "exec"), before)
    if "for method in" in BLOCKS[place]:
        lines = [line for line in BLOCKS[place].splitlines() if line.strip()]
        assert len(lines) < 15
        printed = capsys.readouterr().out.splitlines()
        assert len(printed) == 3 * 7
        assert any("pointing_game" in line for line in printed)


def test_there_is_python_in_it():
    assert len(BLOCKS) == 2
