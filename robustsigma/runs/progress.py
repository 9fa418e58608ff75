"""Progress of a long run: bars on a terminal, else one line per finished job."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Step = Callable[[float, int | None], None]  # finished steps, and steps in all


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
        bars = (console.is_terminal or console.is_jupyter) and not console.quiet
        self.bars = Progress(*columns, console=console, transient=True) if bars else None
        self.overall: TaskID | None = None

    def __enter__(self) -> RunProgress:
        if self.bars:
            self.bars.start()
            self.overall = self.bars.add_task("all jobs", total=self.jobs)
        return self

    def __exit__(self, *_: object) -> None:
        if self.bars:
            self.bars.stop()

    @contextmanager
    def job(self, name: str) -> Iterator[Step]:
        """Show a job while it runs; the body calls the yielded function with (steps done, steps in all)."""
        start = time.perf_counter()
        task = self.bars.add_task(name, total=None) if self.bars else None

        def step(done: float, total: int | None) -> None:
            if self.bars and task is not None:
                self.bars.update(task, completed=done, total=total)

        try:
            yield step
            self.finish(f"{name}  [dim]{time.perf_counter() - start:.1f} s[/dim]")
        finally:
            if self.bars and task is not None:
                self.bars.remove_task(task)

    def say(self, line: str) -> None:
        """Print a line."""
        (self.bars.console if self.bars else self.console).print(line)

    def finish(self, line: str) -> None:
        """Count a job as done and print a line."""
        self.done += 1
        width = len(str(self.jobs))
        self.say(f"[dim]{self.done:{width}}/{self.jobs}[/dim]  {line}")
        if self.bars and self.overall is not None:
            self.bars.update(self.overall, completed=self.done)
