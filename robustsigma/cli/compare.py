"""`compare`: two runs of `evaluate` on the same images, as a gate for CI."""

from __future__ import annotations

from pathlib import Path

from robustsigma.cli.parsing import new_parser

_DESCRIPTION = (
    "Compare the accuracies of two runs of `evaluate` on the same images, by paired differences of their stored "
    "per-image outcomes. The exit status is 1 if a gate refuses a change, 2 for a mistake, else 0."
)
REFUSED = 1


def run(verb: str, arguments: list[str]) -> int:
    """Parse the arguments, print the comparison, and return the exit status."""
    parser = new_parser("robustsigma compare", _DESCRIPTION)
    parser.add_argument("first", type=str, help="folder of the run before")
    parser.add_argument("second", type=str, help="folder of the run after; the same one to compare two of its models")
    parser.add_argument("--models", type=str, nargs="+", default=[], help="model name, or one for each run")
    parser.add_argument("--conditions", type=str, nargs="+", default=[], help="ids of conditions; all if none")
    parser.add_argument(
        "--fail-below", type=float, default=None, help="smallest allowed difference in percentage points, such as -1"
    )
    parser.add_argument("--fail-if-worse", action="store_true", help="refuse every significant loss of accuracy")
    parser.add_argument("--junit", type=str, default=None, help="JUnit XML file to write, a test case for each change")
    parser.add_argument("--sarif", type=str, default=None, help="SARIF file to write, for code scanning")
    parser.add_argument("--json", type=str, default=None, help="JSON file of the comparison to write")
    found = parser.parse_args(arguments)

    from rich.console import Console

    from robustsigma.evaluation.comparison import compare
    from robustsigma.report.comparison import junit, print_comparison, sarif
    from robustsigma.runs.files import write_atomically, write_json

    compared = compare(found.first, found.second, models=found.models, conditions=found.conditions)
    failures = compared.failures(below=found.fail_below, if_worse=found.fail_if_worse)
    comparison = compared.to_dict(failures)
    print_comparison(comparison, Console())
    if found.junit:
        write_atomically(Path(found.junit), junit(comparison).encode())
    if found.sarif:
        write_json(Path(found.sarif), sarif(comparison), indent=1)
    if found.json:
        write_json(Path(found.json), comparison, indent=1)
    return REFUSED if failures else 0
