"""`benchmark`: evaluate attribution methods and write the report."""

from __future__ import annotations

from robustsigma.benchmarking.settings import Benchmark
from robustsigma.cli.parsing import check_model
from robustsigma.cli.presets import Presets
from robustsigma.models.pretrained import is_saved

PRESETS = Presets(Benchmark, "robustsigma.benchmarking")
_DESCRIPTION = (
    "Evaluate every attribution method by every metric on one or more models, with random maps and the plain gradient "
    "as references, and write one HTML report. Run the same command again to resume."
)


def run(verb: str, arguments: list[str]) -> int | None:
    """Parse the arguments and run the benchmark."""
    parsed = PRESETS.parse(verb, _DESCRIPTION, "runs/benchmark", arguments)
    for name, description in parsed.settings.models.items():
        if isinstance(description, str) and not is_saved(description):
            check_model(f"models.{name}", description, parsed.settings.allow)

    # Imported here: help and errors should not wait for Lightning.
    from rich.console import Console

    from robustsigma.benchmarking import run_benchmark
    from robustsigma.cli.launch import run_in_processes
    from robustsigma.runs.directory import output_folder
    from robustsigma.runs.processes import is_main_process

    status = run_in_processes(parsed.processes, verb, arguments)
    if status is None:
        console = Console()
        report = run_benchmark(parsed.settings, output_folder(parsed.out), console=console, command=parsed.command)
        if is_main_process():
            console.print(f"\nThe report: [bold]{report.path}[/bold]", soft_wrap=True)
    return status
