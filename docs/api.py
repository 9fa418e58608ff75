"""Writes the API reference from the docstrings, HTML for every module of robustsigma: `python docs/api.py [FOLDER]`."""

from __future__ import annotations

import pkgutil
import sys
import warnings
from importlib import import_module
from pathlib import Path

import pdoc
import pdoc.extract
import pdoc.render

import robustsigma


def main(folder: Path) -> None:
    """Write the pages; a module that cannot be imported or a docstring that cannot be read is an error."""
    warnings.filterwarnings("error", module="pdoc")
    # It looks for the types of an `__init__` that NamedTuple or dataclass wrote in another module than where they are.
    warnings.filterwarnings("ignore", r"Error parsing type annotation .*\.__init__\. Import of", module="pdoc")
    pdoc.render.configure(docformat="google", show_source=False)
    # By itself pdoc leaves out the modules of packages that have an `__all__`.
    asked: list[str] = []
    covered: set[str] = set()
    for module in ("robustsigma", *(m.name for m in pkgutil.walk_packages(robustsigma.__path__, "robustsigma."))):
        # pdoc reads what a module holds: names that are imported when they are first used are not there yet.
        held = import_module(module)
        vars(held).update({name: getattr(held, name) for name in getattr(held, "__all__", ())})
        if module not in covered:
            asked.append(module)
            covered.update(pdoc.extract.walk_specs([module]))
    pdoc.pdoc(*asked, output_directory=folder)
    print(folder / "index.html")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("api"))
