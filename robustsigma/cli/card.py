"""`card`: write what a model of a finished run may claim, as JSON and Markdown."""

from __future__ import annotations

from pathlib import Path

from robustsigma.cli.parsing import new_parser

_DESCRIPTION = (
    "Write card.json and card.md of one model of a finished run of `evaluate`: threat models, parameters, accuracies "
    "with intervals, hashes, and the accuracies that a flag withdraws. The Markdown file is a model card for the "
    "Hugging Face Hub (`model-index`)."
)


def run(verb: str, arguments: list[str]) -> None:
    """Parse the arguments and write both files."""
    parser = new_parser("robustsigma card", _DESCRIPTION)
    parser.add_argument("run", type=str, help="folder of a finished run of evaluate")
    parser.add_argument("--model", type=str, default=None, help="model name as in the report; the first if not given")
    parser.add_argument("--out", type=str, default=None, help="folder of both files; the run's folder if not given")
    found = parser.parse_args(arguments)

    from robustsigma.evaluation.card import robustness_card
    from robustsigma.report.card import markdown
    from robustsigma.runs.directory import output_folder
    from robustsigma.runs.files import write_atomically, write_json

    card = robustness_card(found.run, model=found.model)
    out = output_folder(found.out or found.run)
    write_json(out / "card.json", card, indent=1)
    path = write_atomically(Path(out) / "card.md", markdown(card).encode())
    print(f"{len(card['claims'])} accuracies claimed, {len(card['withdrawn'])} withdrawn: {path}")
