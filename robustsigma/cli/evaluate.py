"""`quickstart` and `evaluate`: train and test models, and write the robustness report."""

from __future__ import annotations

import shlex
from importlib.resources import files

from robustsigma.cli.parsing import new_parser
from robustsigma.cli.presets import SHARED, ParsedCommand, Presets, add_devices
from robustsigma.engine.validation import choice, integer
from robustsigma.evaluation.settings import Evaluation
from robustsigma.models.architecture import constructor
from robustsigma.runs.ranks import Phases, world_size

PRESETS = Presets(Evaluation, "robustsigma.evaluation")
_QUICKSTART = (
    "Retrain a small network that comes with the package on clean images, FGSM and SIGMA samples, test all models "
    "under all conditions, explain some images, and write one HTML report, in two minutes on a CPU core. With --full "
    "or --dataset, train the network first, and retrain it on noise and mixtures, too."
)
_QUICK = (
    "Three retrainings of a small network on X-ray-like scans, tested under noise, FGSM, PGD and SIGMA: about two "
    "minutes on a CPU core. --full trains everything (15 minutes)."
)
_FULL = "Ten trainings of a small network, tested under noise, FGSM, PGD and SIGMA: 2 to 15 minutes on one CPU core."
_EVALUATE = (
    "Train and test every regime under every condition, and write the report. Run the same command again to resume."
)


def run(verb: str, arguments: list[str], *, reduce: bool = False) -> int | None:
    """Parse the arguments and evaluate; or only write the report of what is finished."""
    parsed = (_quickstart if verb == "quickstart" else _evaluate)(arguments)
    constructor(parsed.settings.architecture.name)  # raises before the folder is bound to an unknown name
    status = None if reduce else parsed.launch(verb, arguments)
    if status is not None:
        return status

    # Imported here: help and errors should not wait for Lightning.
    from rich.console import Console

    from robustsigma.evaluation import run_study
    from robustsigma.runs.ranks import is_main_process

    console, phases = Console(), Phases.of_report(parsed.command) if reduce else parsed.phases
    report = run_study(
        parsed.settings, parsed.out, console=console, command=parsed.command, allow=parsed.allow, phases=phases
    )
    if report is None:
        print(parsed.next_step)
    elif is_main_process():
        if verb == "quickstart":
            console.print(f"\nWhat came out: {' '.join(report.verdict)}", markup=False)
        console.print(f"\nThe report: [bold]{report.path}[/bold]", soft_wrap=True)
    return None


def _quickstart(arguments: list[str]) -> ParsedCommand:
    parser = new_parser("robustsigma quickstart", _QUICKSTART)
    parser.add_argument("--full", action="store_true", help="train the network too, and every regime")
    parser.add_argument("--dataset", type=str, default=None, help=f"the full form on one of {', '.join(PRESETS.names)}")
    parser.add_argument("--out", type=str, default=None, help="folder of the report; quickstart-DATASET if not given")
    parser.add_argument("--seeds", type=int, default=1, help="number of times that every model is trained")
    add_devices(parser)
    found = parser.parse_args(arguments)
    integer("seeds", found.seeds, 1)
    name = PRESETS.names[0] if found.dataset is None else found.dataset
    choice("dataset", name, PRESETS.names)
    full, options = found.full or found.dataset is not None, ["--seeds", str(found.seeds)]
    if not full:
        presets = files("robustsigma.evaluation") / "presets"
        options += ["--config", str(presets / "quick.yaml")]
        options += ["--architecture.weights", str(presets / f"{name}.safetensors")]
    out = found.out or (f"quickstart-{name}" if full else "quickstart")
    shown = f"--dataset {name} " if full else ""
    command = f"robustsigma quickstart {shown}--seeds {found.seeds} --out {shlex.quote(out)}"
    if world_size() == 1:  # not again in each process of --devices
        print(_FULL if full else _QUICK, flush=True)
    return ParsedCommand(PRESETS.load(name, options), out, command, **{key: found[key] for key in SHARED})


def _evaluate(arguments: list[str]) -> ParsedCommand:
    return PRESETS.parse("evaluate", _EVALUATE, "runs/evaluation", arguments)
