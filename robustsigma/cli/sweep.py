"""`sweep`: find the Gaussian noise that is best to train on; `evaluate` then uses it."""

from __future__ import annotations

from robustsigma.cli.evaluate import PRESETS
from robustsigma.engine.validation import fail
from robustsigma.models.architecture import constructor

_DESCRIPTION = (
    "Train on Gaussian noise of every std in --sweep.stds, evaluate each model on validation images, and print the "
    "table. Run the same command again to resume; `evaluate` with the same settings and folder uses the result."
)


def run(verb: str, arguments: list[str]) -> int | None:
    """Parse the arguments and sweep."""
    parsed = PRESETS.parse(verb, _DESCRIPTION, "runs/evaluation", arguments)
    if parsed.shard is not None:
        raise fail("shard", "none, as a sweep is short; `evaluate --shard 0/n` makes it too", parsed.shard)
    if parsed.settings.sweep is None:
        raise fail("sweep", "standard deviations to try, as in --sweep.stds '[0.05, 0.1, 0.2]'", "none")
    constructor(parsed.settings.architecture.name)  # raises before the folder is bound to an unknown name

    status = parsed.launch(verb, arguments)
    if status is not None:
        return status

    # Imported here: help and errors should not wait for Lightning.
    from rich.console import Console

    from robustsigma.evaluation.noise_sweep import sweep_noise
    from robustsigma.report import print_sweep
    from robustsigma.runs.ranks import Ranks

    ranks = Ranks.join()
    console = Console(quiet=not ranks.is_main)
    with ranks.folder(parsed.out) as folder:
        found = sweep_noise(parsed.settings, folder, console, ranks, allow=parsed.allow)
        print_sweep({"sweep": found.entries}, console)
        console.print(f"\nThe table: [bold]{found.table}[/bold]", soft_wrap=True)
    return None
