"""`benchmark`: evaluate attribution methods and write the report."""

from __future__ import annotations

from robustsigma.benchmarking.settings import Benchmark
from robustsigma.cli.parsing import check_model
from robustsigma.cli.presets import Presets
from robustsigma.models.pretrained import is_saved
from robustsigma.runs.ranks import Phases

PRESETS = Presets(Benchmark, "robustsigma.benchmarking")
_DESCRIPTION = (
    "Evaluate every attribution method by every metric on one or more models, with random maps and the plain gradient "
    "as references, and write one HTML report. Run the same command again to resume."
)


def run(verb: str, arguments: list[str], *, reduce: bool = False) -> int | None:
    """Parse the arguments and run the benchmark; or only write the report of what is finished."""
    parsed = PRESETS.parse(verb, _DESCRIPTION, "runs/benchmark", arguments)
    for name, description in parsed.settings.models.items():
        if isinstance(description, str) and not is_saved(description):
            check_model(f"models.{name}", description, parsed.settings.allow)
    status = None if reduce else parsed.launch(verb, arguments)
    if status is not None:
        return status

    # Imported here: help and errors should not wait for Lightning.
    from rich.console import Console

    from robustsigma.benchmarking import run_benchmark
    from robustsigma.runs.ranks import is_main_process

    console, phases = Console(), Phases.of_report(parsed.command) if reduce else parsed.phases
    report = run_benchmark(parsed.settings, parsed.out, console=console, command=parsed.command, phases=phases)
    if report is None:
        print(parsed.next_step)
    elif is_main_process():
        console.print(f"\nThe report: [bold]{report.path}[/bold]", soft_wrap=True)
    return None
