"""`run_study`: from settings to the robustness report."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from robustsigma.engine.device import best_device
from robustsigma.engine.precision import deterministic
from robustsigma.evaluation.illustrations import illustrate
from robustsigma.evaluation.noise_sweep import sweep_noise
from robustsigma.evaluation.plan import BASE
from robustsigma.evaluation.results import collect
from robustsigma.evaluation.robustness_report import RobustnessReport
from robustsigma.evaluation.run import RobustnessRun
from robustsigma.evaluation.settings import Evaluation
from robustsigma.report import print_table, write_report
from robustsigma.runs.files import write_arrays
from robustsigma.runs.processes import Processes
from robustsigma.runs.progress import RunProgress
from robustsigma.runs.provenance import Provenance
from robustsigma.runs.results import RobustnessResults


@deterministic()
def run_study(
    settings: Evaluation,
    out: str | Path,
    *,
    console: Console | None = None,
    command: str | None = None,
    allow: Sequence[str] = (),
) -> RobustnessReport:
    """Train and test every regime under every condition, after the sweep if there is one, and write the report.

    If a launcher such as torchrun has started several processes that make the same call, they share the regimes.

    Args:
        settings: what to evaluate.
        out: folder of `report.html`, `results.json`, `figures/`, and of all intermediate results. A call with the same
            settings resumes an interrupted run; seeds may be added.
        console: where progress and the table are shown; standard output if None.
        command: line that makes the report again; the report shows it.
        allow: dotted paths of your code; the folder is bound to their source as well as to the settings.

    Returns:
        The report.

    Raises:
        ValueError: settings or a folder that cannot be used.
    """
    provenance, folder = Provenance(command), Path(out)
    console, processes = console or Console(), Processes.join()
    swept = sweep_noise(settings, folder, console, processes, allow=allow)

    def begin() -> RobustnessRun:
        run = RobustnessRun(swept.settings, folder, console, processes, allow)
        if swept.base is not None:
            run.store.adopt_model(settings.each_seed[0], BASE, swept.base)
        return run

    run = processes.main_process_first("evaluation", begin)
    run.run()
    if processes.is_main:
        classifier = run.model(run.settings.each_seed[0], BASE).classifier.eval().to(best_device())
        with RunProgress(1, console) as progress, progress.job("pictures for the report") as step:
            sections, arrays = illustrate(classifier, run.settings.dataset, run.conditions, step)
        results = dataclasses.replace(collect(run, swept.entries), run=provenance.record(), **sections)
        results.write(folder / "results.json")
        write_arrays(folder / "arrays.npz", arrays)
        write_report(results.to_json(), arrays, folder)
        print_table(results.to_json(), console)
    processes.barrier("report")
    return RobustnessReport(RobustnessResults.read(folder / "results.json"), folder / "report.html")
