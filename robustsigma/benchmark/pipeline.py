"""The benchmark from settings to report."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from rich.console import Console

from robustsigma.benchmark.results import collect, read
from robustsigma.benchmark.run import Run
from robustsigma.benchmark.settings import Benchmark
from robustsigma.benchmark.table import Table
from robustsigma.engine.metrics import Skip
from robustsigma.engine.precision import deterministic
from robustsigma.files import write_atomically
from robustsigma.processes import Processes
from robustsigma.provenance import Provenance
from robustsigma.report import AttributionReport, print_attribution_table, write_attribution_report


@deterministic()
def benchmark(
    settings: Benchmark, out: str | Path, *, console: Console | None = None, command: str | None = None
) -> AttributionReport:
    """Judge every method by every metric on every model, and write the report.

    Where a launcher such as torchrun has started several processes that make the same call, they share the batches.

    Args:
        settings: what to judge.
        out: folder of `report.html`, `results.json`, `values.csv` (every value of every image), `figures/`, and of
            everything finished on the way. Called again with the same settings, it goes on where it stopped.
        console: where progress and the table are shown; standard output if None.
        command: line that makes the report again, which the report then shows.

    Returns:
        The report: the path of the HTML file, and its results.

    Raises:
        ValueError: settings or a folder that cannot be used.
    """
    provenance, console, folder = Provenance(command), console or Console(), Path(out)
    processes = Processes.join()

    def begin() -> Run:
        run = Run(settings, folder, console, processes)
        _ = run.judged  # which a model is trained for, if none is given
        return run

    run = processes.main_process_first("benchmark", begin)
    run.run()
    if processes.first:
        _report(run, provenance, folder)
    processes.barrier("report")
    return AttributionReport(folder / "report.html", json.loads((folder / "results.json").read_text("utf-8")))


def _report(run: Run, provenance: Provenance, folder: Path) -> None:
    """Write the results of a finished run, and show them."""
    tables = read(run)
    found, arrays = collect(run, tables)
    found["run"] = provenance.record()
    write_atomically(folder / "results.json", json.dumps(found, indent=1, allow_nan=False).encode())
    write_atomically(folder / "values.csv", _values(tables).encode())
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_atomically(folder / "arrays.npz", buffer.getvalue())
    write_attribution_report(found, arrays, folder)
    print_attribution_table(found, run.console)


def _values(tables: Mapping[str, Table]) -> str:
    """Return a line for each value of each image, which is named by its index in the split."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "method", "metric", "image", "value", "skipped"])
    for model, table in tables.items():
        for method, arrays in table.arrays.items():
            for key in sorted(name for name in arrays if name.startswith("value/")):
                name = key.removeprefix("value/")
                for index, value, code in zip(arrays["index"], arrays[key], arrays[f"skip/{name}"], strict=False):
                    told = "" if code == 0 else Skip(int(code)).reason
                    writer.writerow([model, method, name, int(index), "" if code else f"{value:.9g}", told])
    return text.getvalue()
