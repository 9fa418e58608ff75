"""`sweep`: the Gaussian noise that is best to train on, which `evaluate` then finds decided."""

from __future__ import annotations

from rich.console import Console

from robustsigma.cli.launch import shared
from robustsigma.engine.validation import fail
from robustsigma.evaluation.noise_sweep import sweep_noise
from robustsigma.evaluation.parsing import PRESETS
from robustsigma.models.architecture import constructor
from robustsigma.report import print_sweep
from robustsigma.runs.directory import output_folder
from robustsigma.runs.processes import Processes

_DESCRIPTION = (
    "Train on Gaussian noise of every std in --sweep.stds, judge each model on images held out of test, and print the "
    "table. Started again, it goes on; `evaluate` with the same settings and folder goes on from there."
)


def run(verb: str, arguments: list[str]) -> int | None:
    """Parse the arguments and sweep."""
    asked, console = PRESETS.ask(verb, _DESCRIPTION, "runs/evaluation", arguments), Console()
    if asked.settings.sweep is None:
        raise fail("sweep", "standard deviations to try, as in --sweep.stds '[0.05, 0.1, 0.2]'", "none")
    status = shared(asked.processes, verb, arguments)
    if status is None:
        constructor(asked.settings.architecture.name)  # before the folder is bound to a name of nothing
        processes = Processes.join()
        found = sweep_noise(asked.settings, output_folder(asked.out), console, processes, allow=asked.allow)
        if processes.is_main:
            print_sweep({"sweep": found.entries}, console)
            console.print(f"\nThe table: [bold]{found.table}[/bold]", soft_wrap=True)
        processes.barrier("end")
    return status
