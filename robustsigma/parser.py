"""The form that every command-line parser of ours has, and settings that lie in packages as YAML."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files

from jsonargparse import ArgumentParser


def new_parser(program: str, description: str | None = None) -> ArgumentParser:
    """Return a parser that raises on a mistake, and takes no abbreviation for an option."""
    return ArgumentParser(prog=program, exit_on_error=False, allow_abbrev=False, description=description)


def preset_arguments(package: str, names: Iterable[str]) -> list[str]:
    """Return command-line arguments that lay the presets of a package over each other, the last on top."""
    folder = files(package) / "presets"
    texts = [(folder / f"{name}.yaml").read_text(encoding="utf-8") for name in names]
    return [argument for text in texts for argument in ("--config", text)]
