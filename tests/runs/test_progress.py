"""Progress without a terminal: a line for each finished job, and for each interval of a long one."""

import io

import pytest
from rich.console import Console

from robustsigma.runs import progress


@pytest.mark.parametrize(("interval", "total", "lines"), [(0.0, 4, 4), (60.0, 4, 1), (0.0, None, 1)])
def test_a_long_job_says_how_far_it_is(monkeypatch, interval, total, lines):
    monkeypatch.setattr(progress, "_INTERVAL", interval)
    shown = io.StringIO()
    with progress.RunProgress(1, Console(file=shown, width=80)) as run, run.job("an attack") as step:
        for done in range(1, 5):
            step(done, total)
    found = shown.getvalue().splitlines()
    assert len(found) == lines
    assert found[-1].startswith("1/1  an attack")
    assert found[0].startswith("an attack: 25%, about 0 min left" if lines > 1 else "1/1")
