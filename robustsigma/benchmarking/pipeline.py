"""`run_benchmark`: from settings to the attribution report."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from robustsigma.benchmarking.attribution_report import AttributionReport
from robustsigma.benchmarking.results import collect, gallery_arrays, score_tables
from robustsigma.benchmarking.run import BenchmarkRun
from robustsigma.benchmarking.settings import Benchmark
from robustsigma.benchmarking.table import ScoreTable
from robustsigma.engine.metrics import Skip
from robustsigma.engine.network_state import deterministic
from robustsigma.report import print_table
from robustsigma.report.base import publish
from robustsigma.runs.directory import write_command
from robustsigma.runs.files import write_atomically
from robustsigma.runs.provenance import Provenance
from robustsigma.runs.ranks import WHOLE, Phases, Ranks


@deterministic()
def run_benchmark(
    settings: Benchmark,
    out: str | Path,
    *,
    console: Console | None = None,
    command: str | None = None,
    phases: Phases = WHOLE,
) -> AttributionReport | None:
    """Evaluate every method by every metric on every model, and write the report.

    If a launcher such as torchrun has started several processes that make the same call, they share the images.

    Args:
        settings: what to evaluate.
        out: folder of `report.html`, `results.json`, `values.csv` (every value of every image), `figures/`, and of all
            intermediate results. A call with the same settings resumes an interrupted run.
        console: where progress and the table are shown; standard output if None.
        command: command line that reproduces the report, which shows it.
        phases: what to do of the run; a shard has no report.

    Returns:
        The report: its results, and the path of the HTML file; None for a shard.

    Raises:
        ValueError: settings or a folder that cannot be used, or a phase that needs another one first.
    """
    provenance, ranks = Provenance(command), Ranks.join()
    console = (console or Console()) if ranks.is_main else Console(quiet=True)
    with ranks.folder(out) as folder:
        run = ranks.main_first(lambda: BenchmarkRun(settings, folder, console, ranks))
        write_command(folder, command)
        run.run(phases)
        if not phases.report:
            return None
        report = finish(run, provenance, folder)
        print_table(report.to_dict(), console)
    return report


def finish(run: BenchmarkRun, provenance: Provenance, folder: Path | None) -> AttributionReport:
    """Return the report of a finished run, which rank 0 writes if there is a folder."""
    tables = score_tables(run)
    arrays = gallery_arrays(run, tables)
    results = dataclasses.replace(collect(run, tables), run=provenance.record())
    path = None
    if folder is not None:
        path = folder / "report.html"
        if run.ranks.is_main:
            write_atomically(folder / "values.csv", _values(tables).encode())
            publish(results, arrays, folder)
        run.ranks.barrier()
    return AttributionReport(results, path, arrays)


def _values(tables: Mapping[str, ScoreTable]) -> str:
    """Return one line for each value of each image, which is named by its index in the split."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "method", "metric", "image", "value", "skipped"])
    for model, table in tables.items():
        for method, arrays in table.arrays.items():
            for key in sorted(name for name in arrays if name.startswith("value/")):
                name = key.removeprefix("value/")
                for index, value, code in zip(arrays["index"], arrays[key], arrays[f"skip/{name}"], strict=False):
                    reason = "" if code == 0 else Skip(int(code)).reason
                    writer.writerow([model, method, name, int(index), "" if code else f"{value:.9g}", reason])
    return text.getvalue()
