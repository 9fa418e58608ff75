"""The form that every command-line parser of ours has, and settings that come from YAML over a preset."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Generic, NamedTuple, TypeVar

from jsonargparse import ArgumentParser

from robustsigma.engine.validation import choice

T = TypeVar("T")


def new_parser(program: str, description: str | None = None) -> ArgumentParser:
    """Return a parser that raises on a mistake, and takes no abbreviation for an option."""
    return ArgumentParser(prog=program, exit_on_error=False, allow_abbrev=False, description=description)


class Asked(NamedTuple):
    """What a command line asks for.

    Attributes:
        settings: of the run.
        out: folder of the report.
        command: the line itself.
    """

    settings: Any
    out: str
    command: str


@dataclass(frozen=True)
class Presets(Generic[T]):
    """Settings of one kind: the schema is their constructor, and YAML files of a package hold those to start from.

    Attributes:
        kind: a dataclass, whose fields are the options.
        package: whose folder `presets` holds NAME.yaml.
        names: of the presets. The first has every setting; each other one lies over it.
    """

    kind: type[T]
    package: str
    names: tuple[str, ...] = ("baggage", "digits", "mnist5k")

    def load(self, name: str | None = None, arguments: Sequence[str] = ()) -> T:
        """Return the settings of a preset, the first if no name is given, changed by command-line arguments."""
        parser = self._parser("preset")
        return self._settings(parser, parser.parse_args([*self._given(name or self.names[0]), *arguments]))

    def ask(self, verb: str, description: str, out: str, arguments: Sequence[str]) -> Asked:
        """Parse a verb's command line, which may name a preset and the folder of the report."""
        # The preset comes before anything else is parsed: the other options change its settings.
        first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        first.add_argument("--preset", default=self.names[0])
        name = first.parse_known_args(list(arguments))[0].preset
        parser = self._parser(f"robustsigma {verb}", description)
        parser.add_argument("--preset", type=str, default=name, help=f"settings to start from: {', '.join(self.names)}")
        parser.add_argument("--out", type=str, default=out, help="folder of the report")
        found = parser.parse_args([*self._given(name), *arguments])
        return Asked(self._settings(parser, found), found.out, shlex.join(["robustsigma", verb, *arguments]))

    def _parser(self, program: str, description: str | None = None) -> ArgumentParser:
        parser = new_parser(program, description)
        parser.add_argument("--config", action="config", help="YAML file of settings; may be given several times")
        parser.add_class_arguments(self.kind, sub_configs=True)
        return parser

    def _given(self, name: str) -> list[str]:
        choice("preset", name, self.names)
        folder = files(self.package) / "presets"
        texts = [(folder / f"{each}.yaml").read_text(encoding="utf-8") for each in dict.fromkeys((self.names[0], name))]
        return [argument for text in texts for argument in ("--config", text)]

    def _settings(self, parser: ArgumentParser, found: Any) -> T:
        made = parser.instantiate(found)
        return self.kind(**{name: made[name] for name in self.kind.__dataclass_fields__})  # type: ignore[attr-defined]
