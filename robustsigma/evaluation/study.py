"""`run_study`: from settings to the robustness report."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from robustsigma.engine.device import best_device
from robustsigma.engine.network_state import deterministic
from robustsigma.evaluation.illustrations import illustrate
from robustsigma.evaluation.noise_sweep import SweepResults, sweep_noise
from robustsigma.evaluation.plan import BASE
from robustsigma.evaluation.resolve_settings import resolve_settings
from robustsigma.evaluation.results import collect
from robustsigma.evaluation.robustness_report import RobustnessReport
from robustsigma.evaluation.run import RobustnessRun
from robustsigma.evaluation.settings import Evaluation
from robustsigma.report import print_table
from robustsigma.report.base import publish
from robustsigma.runs.directory import write_command
from robustsigma.runs.files import read_arrays
from robustsigma.runs.progress import RunProgress
from robustsigma.runs.provenance import Provenance
from robustsigma.runs.ranks import WHOLE, Phases, Ranks
from robustsigma.runs.results import RobustnessResults


@deterministic()
def run_study(
    settings: Evaluation,
    out: str | Path,
    *,
    console: Console | None = None,
    command: str | None = None,
    allow: Sequence[str] = (),
    phases: Phases = WHOLE,
) -> RobustnessReport | None:
    """Train and test every regime under every condition, after the sweep if there is one, and write the report.

    If a launcher such as torchrun has started several processes that make the same call, they share the trainings and
    the blocks of test images.

    Args:
        settings: what to evaluate.
        out: folder of `report.html`, `results.json`, `figures/`, and of all intermediate results. A call with the same
            settings resumes an interrupted run; seeds may be added.
        console: where progress and the table are shown; standard output if None.
        command: command line that reproduces the report, which shows it.
        allow: dotted paths of your code; the folder is bound to their source as well as to the settings.
        phases: what to do of the run; a shard has no report.

    Returns:
        The report, or None for a shard.

    Raises:
        ValueError: settings or a folder that cannot be used, or a phase that needs another one first.
    """
    settings, provenance, ranks = resolve_settings(settings), Provenance(command), Ranks.join()
    console = (console or Console()) if ranks.is_main else Console(quiet=True)
    with ranks.folder(out) as folder:
        swept = sweep_noise(settings, folder, console, ranks, allow=allow, phases=phases)

        def begin() -> RobustnessRun:
            run = RobustnessRun(swept.settings, folder, console, ranks, allow)
            if swept.base is not None:
                run.store.adopt_model(settings.each_seed[0], BASE, swept.base)
            return run

        run = ranks.main_first(begin)
        write_command(folder, command)
        run.run(phases)
        if not phases.report:
            return None
        if ranks.is_main:
            _report(run, swept, provenance, console)
        ranks.barrier()
        written = folder / "results.json", folder / "arrays.npz"
        ranks.wait_until_visible(lambda: all(path.is_file() for path in written))
    results, arrays = RobustnessResults.read(written[0]), read_arrays(written[1])
    return RobustnessReport(results, folder / "report.html", arrays=arrays)


def _report(run: RobustnessRun, swept: SweepResults, provenance: Provenance, console: Console) -> None:
    """Write the results of a finished run, print the table, and write the report with its pictures."""
    folder = run.store.folder
    classifier = run.model(run.settings.each_seed[0], BASE).classifier.eval().to(best_device())
    results = dataclasses.replace(collect(run, swept.entries), run=provenance.record())
    results.write(folder / "results.json")  # the pictures may take long
    print_table(results.to_json(), console)
    with RunProgress(1, console) as progress, progress.job("pictures for the report") as step:
        sections, arrays = illustrate(classifier, run.settings.dataset, run.conditions, step)
    publish(dataclasses.replace(results, run=provenance.record(), **sections), arrays, folder)
