"""`benchmark`: attributors against metrics, from settings to the report."""

from __future__ import annotations

from rich.console import Console

from robustsigma.benchmark import benchmark
from robustsigma.benchmark.parsing import PRESETS
from robustsigma.cli.launch import shared
from robustsigma.models.pretrained import is_saved
from robustsigma.runs.directory import output_folder
from robustsigma.runs.processes import is_main_process
from robustsigma.trust import check_model

_DESCRIPTION = (
    "Judge every attribution method by every metric on one or more models, beside random maps and the plain gradient, "
    "and write one HTML report. Started again, it goes on."
)


def run(verb: str, arguments: list[str]) -> int | None:
    """Parse the arguments and judge."""
    asked, console = PRESETS.ask(verb, _DESCRIPTION, "runs/benchmark", arguments), Console()
    for name, description in asked.settings.models.items():
        if isinstance(description, str) and not is_saved(description):
            check_model(f"models.{name}", description, asked.settings.allow)
    status = shared(asked.processes, verb, arguments)
    if status is None:
        report = benchmark(asked.settings, output_folder(asked.out), console=console, command=asked.command)
        if is_main_process():
            console.print(f"\nThe report: [bold]{report}[/bold]", soft_wrap=True)
    return status
