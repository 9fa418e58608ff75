"""The table of SIGMA's settings in docs/results/sigma_settings.md comes from the files beside it."""

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAMES = {  # the page's titles, and those of the results
    "the paper's": "the paper's",
    "the notebook's (\u03b5 = .05)": "the notebook's",
    "logit, \u03b1 = .01, \u03b2 = .1 (default of `SigmaSample`)": "logit, the default",
    "logit, larger steps (\u03b1 = .03)": "logit, larger steps",
    "logit, smaller steps (\u03b1 = .005)": "logit, smaller steps",
}


def test_the_page_says_what_the_settings_say():
    page = (ROOT / "docs" / "results" / "sigma_settings.md").read_text()
    head, _, *rows = page[page.index("| walk | ") :].split("\n\n")[0].splitlines()
    columns = [name.strip() for name in head.strip("|").split("|")][1:]
    found = {}
    for path in sorted((ROOT / "results").glob("sigma_settings*.json")):
        for name, entries in json.loads(path.read_text())["datasets"].items():
            found[name.lower()] = {entry["name"]: entry for entry in entries}
    assert {column.lower() for column in columns} == set(found)
    told = 0
    for row in rows:
        title, *cells = (cell.strip() for cell in row.strip("|").split("|"))
        for column, cell in zip(columns, cells, strict=True):
            entry = found[column.lower()].get(NAMES.get(title, title))
            assert bool(cell) == (entry is not None), (title, column)
            if entry is not None:
                assert cell == f"{entry['converged']['mean']:.0%} / {entry['ssim']['mean']:.2f}"
                told += 1
    assert told > 20
