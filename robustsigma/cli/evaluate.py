"""`quickstart` and `evaluate`: from settings to the report."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from rich.console import Console

from robustsigma.engine.validation import integer
from robustsigma.evaluation import evaluate
from robustsigma.evaluation.parsing import PRESETS, parse, settings_of, settings_parser
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
    parser.add_argument("--dataset", type=str, default="baggage", help=f"one of {', '.join(PRESETS)}")
    parser.add_argument("--out", type=str, default=None, help="folder of the report; quickstart-DATASET if not given")
    parser.add_argument("--seeds", type=int, default=1, help="how often every model is trained")
    found = parser.parse_args(arguments)
    integer("seeds", found.seeds, 1)
    settings = settings_parser("robustsigma quickstart")
    chosen = parse(settings, found.dataset, ["--seeds", str(list(range(found.seeds)))])
    out = found.out or f"quickstart-{found.dataset}"
    command = f"robustsigma quickstart --dataset {found.dataset} --seeds {found.seeds} --out {shlex.quote(out)}"
    _show(settings_of(settings, chosen), out, command)


def _evaluate(arguments: list[str]) -> None:
    # The preset comes before anything else is parsed: the other options change its settings.
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default="baggage")
    name = first.parse_known_args(arguments)[0].preset
    parser = settings_parser("robustsigma evaluate", _EVALUATE)
    parser.add_argument("--preset", type=str, default=name, help=f"settings to start from: {', '.join(PRESETS)}")
    parser.add_argument("--out", type=str, default="runs/evaluation", help="folder of the report")
    found = parse(parser, name, arguments)
    _show(settings_of(parser, found), found.out, shlex.join(["robustsigma", "evaluate", *arguments]))


def _show(settings: Evaluation, out: str, command: str) -> None:
    console = Console()
    path = evaluate(settings, Path(out), console=console, command=command)
    console.print(f"\nThe report: [bold]{path}[/bold]", soft_wrap=True)
