"""Which code files may name: class paths that are neither ours nor allowed are refused before they are imported.

A YAML file with a `class_path` runs code, as does the dotted path of a network. Under every verb, files and options may
name what this package and the libraries in `LIBRARIES` have, torchvision's and timm's networks, and what the command
line allows by `--allow NAME`. A file cannot allow anything itself.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jsonargparse import set_parsing_settings
from jsonargparse._common import parsing_settings  # there is no public way to take a setting back

from robustsigma.engine.validation import fail, near
from robustsigma.models.architecture import Architecture, suggest_name
from robustsigma.models.pretrained import Pretrained

# Of torch and torchvision the parts that settings name: others, such as torch.hub, load code.
LIBRARIES = (
    *("torch.nn", "torch.optim", "torch.utils.data", "torchvision.models", "torchvision.transforms"),
    *("torchvision.datasets", "pytorch_lightning", "lightning", "lightning_fabric", "torchmetrics"),
    *("albumentations", "torchattacks"),
)
_DENIED = re.compile(r"Importing '([^']*)' is not allowed")


def allowed_by(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the names that a command line allows, and the command line without them.

    Raises:
        ValueError: `--allow` without a dotted path.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--allow", action="append", default=[])
    try:
        found, rest = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise fail("allow", "a dotted path, as in --allow mypackage.models", "none") from error
    for name in found.allow:
        if not all(part.isidentifier() for part in name.split(".")) or name.split(".")[0] == "jsonargparse":
            raise fail("allow", "the dotted path of a module, a class or a function", repr(name))
    return found.allow, rest


@contextmanager
def only(allow: Sequence[str]) -> Iterator[None]:
    """Within it, parsers import this package, `LIBRARIES` and what lies below some dotted paths, and nothing else.

    Raises:
        ValueError: another class path; nothing of it was imported.
    """
    before = dict(parsing_settings)
    parsing_settings["import_path_verdicts"] = {}  # `--allow os` is the user's word, against jsonargparse's own list
    # An argument of any type that looks like a class path stays what it is.
    set_parsing_settings(
        import_path_denylist=["*"],
        import_path_allowlist=["robustsigma", *LIBRARIES, *allow],
        instantiate_subclass_spec_in_any=False,
    )
    try:
        yield
    except Exception as error:
        denied = _DENIED.search(str(error))
        if denied is None:
            raise
        expected = f"a class of robustsigma, {', '.join(LIBRARIES)} or of code that the command line allows"
        raise fail("class_path", expected, f"{denied[1]!r}; add --allow {denied[1]} if you trust it") from error
    finally:
        parsing_settings.clear()
        parsing_settings.update(before)


def check_network(name: str, allow: Sequence[str]) -> None:
    """Raise ValueError if to build the network of this name may run code that is neither known nor allowed."""
    Architecture(name).check_origin(allow)


def check_model(argument: str, name: str, allow: Sequence[str]) -> None:
    """Do so for a model that the command line names, which may not be the name of any network.

    Args:
        argument: that names it, for the error.
        name: no file.
        allow: dotted paths that are allowed.
    """
    try:
        check_network(name, allow)
    except ValueError as error:
        known = "FILE.safetensors, torchvision:NAME, timm:NAME or a class path allowed by --allow NAME"
        files = map(str, Path(name).parent.glob("*.safetensors"))
        raise fail(argument, known, repr(name) + (near(name, files) or suggest_name(name))) from error


def check_networks(settings: Any, allow: Sequence[str]) -> None:
    """Do so for every network that some settings describe, however deep; nothing is imported before."""
    if isinstance(settings, (Architecture, Pretrained)):
        check_network(settings.name, allow)
    elif dataclasses.is_dataclass(settings):
        for field in dataclasses.fields(settings):
            check_networks(getattr(settings, field.name), allow)
    elif isinstance(settings, Mapping):
        for part in settings.values():
            check_networks(part, allow)
