"""The form that every command-line parser of ours has."""

from __future__ import annotations

from jsonargparse import ArgumentParser


def new_parser(program: str, description: str | None = None) -> ArgumentParser:
    """Return a parser that raises on a mistake, and takes no abbreviation for an option."""
    return ArgumentParser(prog=program, exit_on_error=False, allow_abbrev=False, description=description)
