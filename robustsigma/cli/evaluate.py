"""`quickstart` and `evaluate`: from settings to the report."""

from __future__ import annotations

import shlex

from rich.console import Console

from robustsigma.cli.launch import shared
from robustsigma.engine.validation import choice, integer
from robustsigma.evaluation import evaluate
from robustsigma.evaluation.parsing import PRESETS
from robustsigma.models.architecture import constructor
from robustsigma.parser import PROCESSES, Asked, new_parser
from robustsigma.runs.directory import output_folder
from robustsigma.runs.processes import is_main_process

_QUICKSTART = (
    "Train a small network on an embedded dataset, retrain it on Gaussian, FGSM and SIGMA samples and on their "
    "mixture, test all models under all conditions, explain some images, and write one HTML report."
)
_EVALUATE = "Train and test every regime under every condition, and write the report. Started again, it goes on."


def run(verb: str, arguments: list[str]) -> int | None:
    """Parse the arguments and evaluate."""
    asked = (_quickstart if verb == "quickstart" else _evaluate)(arguments)
    status = shared(asked.processes, verb, arguments)
    if status is None:
        console = Console()
        constructor(asked.settings.architecture.name)  # before the folder is bound to a name of nothing
        report = evaluate(
            asked.settings, output_folder(asked.out), console=console, command=asked.command, allow=asked.allow
        )
        if is_main_process():
            console.print(f"\nThe report: [bold]{report}[/bold]", soft_wrap=True)
    return status


def _quickstart(arguments: list[str]) -> Asked:
    parser = new_parser("robustsigma quickstart", _QUICKSTART)
    parser.add_argument("--dataset", type=str, default="baggage", help=f"one of {', '.join(PRESETS.names)}")
    parser.add_argument("--out", type=str, default=None, help="folder of the report; quickstart-DATASET if not given")
    parser.add_argument("--seeds", type=int, default=1, help="how often every model is trained")
    parser.add_argument("--processes", type=int, default=1, help=PROCESSES)
    found = parser.parse_args(arguments)
    integer("seeds", found.seeds, 1)
    choice("dataset", found.dataset, PRESETS.names)
    settings = PRESETS.load(found.dataset, ["--seeds", str(found.seeds)])
    out = found.out or f"quickstart-{found.dataset}"
    command = f"robustsigma quickstart --dataset {found.dataset} --seeds {found.seeds} --out {shlex.quote(out)}"
    return Asked(settings, out, command, found.processes)


def _evaluate(arguments: list[str]) -> Asked:
    return PRESETS.ask("evaluate", _EVALUATE, "runs/evaluation", arguments)
