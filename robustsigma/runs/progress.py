"""Progress of a long run: bars on a terminal, else a line for each finished job and for each minute of a long one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Step = Callable[[float, int | None], None]  # finished steps, and steps in all
_INTERVAL = 60.0  # seconds between two lines about a job, where no bar is shown


class RunProgress:
    """Counts jobs, and steps within the current job.

    Args:
        jobs: number of all jobs.
        console: where to show them.
    """

    def __init__(self, jobs: int, console: Console) -> None:
        self.jobs, self.done, self.console = jobs, 0, console
        columns = (TextColumn("{task.description}"), BarColumn(30), MofNCompleteColumn(), TimeElapsedColumn(),
                   TextColumn("left:"), TimeRemainingColumn())  # fmt: skip
        shown = (console.is_terminal or console.is_jupyter) and not console.quiet
        self._bars = Progress(*columns, console=console, transient=True, disable=not shown)
        self._overall = self._bars.add_task("all jobs", total=jobs)

    def __enter__(self) -> RunProgress:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._bars.disable:  # else some versions print an empty line
            self._bars.stop()

    @contextmanager
    def job(self, name: str) -> Iterator[Step]:
        """Show a job while it runs; the body calls the yielded function with (steps done, steps in all)."""
        start, task = time.perf_counter(), self._bars.add_task(name, total=None)
        said = start

        def step(done: float, total: int | None) -> None:
            nonlocal said
            self._bars.update(task, completed=done, total=total)
            now = time.perf_counter()
            if self._bars.disable and total and 0 < done < total and now - said >= _INTERVAL:
                said, minutes = now, (now - start) * (total - done) / done / 60
                self.say(f"[dim]{name}: {done / total:.0%}, about {minutes:.0f} min left[/dim]")

        try:
            yield step
            self.finish(f"{name}  [dim]{time.perf_counter() - start:.1f} s[/dim]")
        finally:
            self._bars.remove_task(task)

    def say(self, line: str) -> None:
        """Print a line."""
        self.console.print(line)

    def finish(self, line: str) -> None:
        """Count a job as done and print a line."""
        self.done += 1
        width = len(str(self.jobs))
        self.say(f"[dim]{self.done:{width}}/{self.jobs}[/dim]  {line}")
        self._bars.update(self._overall, completed=self.done)
