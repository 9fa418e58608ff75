"""`quickstart` and `evaluate`: from settings to the report."""

from __future__ import annotations

import shlex
from pathlib import Path

from rich.console import Console

from robustsigma.engine.validation import choice, integer
from robustsigma.evaluation import evaluate
from robustsigma.evaluation.parsing import PRESETS
from robustsigma.evaluation.settings import Evaluation
from robustsigma.parser import new_parser

_QUICKSTART = (
    "Train a small network on an embedded dataset, retrain it on Gaussian, FGSM and SIGMA samples and on their "
    "mixture, test all models under all conditions, explain some images, and write one HTML report."
)
_EVALUATE = "Train and test every regime under every condition, and write the report. Started again, it goes on."


def run(verb: str, arguments: list[str]) -> None:
    """Parse the arguments and evaluate."""
    (_quickstart if verb == "quickstart" else _evaluate)(arguments)


def _quickstart(arguments: list[str]) -> None:
    parser = new_parser("robustsigma quickstart", _QUICKSTART)
    parser.add_argument("--dataset", type=str, default="baggage", help=f"one of {', '.join(PRESETS.names)}")
    parser.add_argument("--out", type=str, default=None, help="folder of the report; quickstart-DATASET if not given")
    parser.add_argument("--seeds", type=int, default=1, help="how often every model is trained")
    found = parser.parse_args(arguments)
    integer("seeds", found.seeds, 1)
    choice("dataset", found.dataset, PRESETS.names)
    settings = PRESETS.load(found.dataset, ["--seeds", str(list(range(found.seeds)))])
    out = found.out or f"quickstart-{found.dataset}"
    command = f"robustsigma quickstart --dataset {found.dataset} --seeds {found.seeds} --out {shlex.quote(out)}"
    _show(settings, out, command)


def _evaluate(arguments: list[str]) -> None:
    asked = PRESETS.ask("evaluate", _EVALUATE, "runs/evaluation", arguments)
    _show(asked.settings, asked.out, asked.command)


def _show(settings: Evaluation, out: str, command: str) -> None:
    console = Console()
    path = evaluate(settings, Path(out), console=console, command=command)
    console.print(f"\nThe report: [bold]{path}[/bold]", soft_wrap=True)
