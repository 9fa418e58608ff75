"""`quickstart` and `evaluate`: train and test models, and write the robustness report."""

from __future__ import annotations

import shlex

from robustsigma.cli.parsing import new_parser
from robustsigma.cli.presets import PROCESSES_HELP, ParsedCommand, Presets
from robustsigma.engine.validation import choice, integer
from robustsigma.evaluation.settings import Evaluation
from robustsigma.models.architecture import constructor

PRESETS = Presets(Evaluation, "robustsigma.evaluation")
_QUICKSTART = (
    "Train a small network on a built-in dataset, retrain it on Gaussian, FGSM and SIGMA samples and on their mixture, "
    "test all models under all conditions, explain some images, and write one HTML report."
)
_EVALUATE = (
    "Train and test every regime under every condition, and write the report. Run the same command again to resume."
)


def run(verb: str, arguments: list[str]) -> int | None:
    """Parse the arguments and evaluate."""
    parsed = (_quickstart if verb == "quickstart" else _evaluate)(arguments)
    constructor(parsed.settings.architecture.name)  # raises before the folder is bound to an unknown name

    # Imported here: help and errors should not wait for Lightning.
    from rich.console import Console

    from robustsigma.cli.launch import run_in_processes
    from robustsigma.evaluation import run_study
    from robustsigma.runs.directory import output_folder
    from robustsigma.runs.processes import is_main_process

    status = run_in_processes(parsed.processes, verb, arguments)
    if status is None:
        console = Console()
        report = run_study(
            parsed.settings, output_folder(parsed.out), console=console, command=parsed.command, allow=parsed.allow
        )
        if is_main_process():
            console.print(f"\nThe report: [bold]{report.path}[/bold]", soft_wrap=True)
    return status


def _quickstart(arguments: list[str]) -> ParsedCommand:
    parser = new_parser("robustsigma quickstart", _QUICKSTART)
    parser.add_argument("--dataset", type=str, default="baggage", help=f"one of {', '.join(PRESETS.names)}")
    parser.add_argument("--out", type=str, default=None, help="folder of the report; quickstart-DATASET if not given")
    parser.add_argument("--seeds", type=int, default=1, help="number of times that every model is trained")
    parser.add_argument("--processes", type=int, default=1, help=PROCESSES_HELP)
    found = parser.parse_args(arguments)
    integer("seeds", found.seeds, 1)
    choice("dataset", found.dataset, PRESETS.names)
    settings = PRESETS.load(found.dataset, ["--seeds", str(found.seeds)])
    out = found.out or f"quickstart-{found.dataset}"
    command = f"robustsigma quickstart --dataset {found.dataset} --seeds {found.seeds} --out {shlex.quote(out)}"
    return ParsedCommand(settings, out, command, found.processes)


def _evaluate(arguments: list[str]) -> ParsedCommand:
    return PRESETS.parse("evaluate", _EVALUATE, "runs/evaluation", arguments)
