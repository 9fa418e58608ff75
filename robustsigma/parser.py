"""The form that every command-line parser of ours has, and settings that come from YAML over a preset."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Generic, NamedTuple, TypeVar
from unittest.mock import patch

import yaml  # type: ignore[import-untyped]
from jsonargparse import ArgumentError, ArgumentParser, Namespace, get_loader, set_loader
from jsonargparse import _typehints as typehints  # there is no public way to say what a class keeps

from robustsigma import trust
from robustsigma.engine.validation import choice, fail
from robustsigma.mistyped import mistyped
from robustsigma.models import Architecture

T = TypeVar("T")
_MODE = "bounded yaml"
_MOST = 100_000  # values in a file; the presets have about a hundred
_ALLOW = "dotted path of your code that class paths may name; may be given several times"
PROCESSES = "that share the work, each on a GPU of its own where there are some; torchrun does the same"
_yaml_load = get_loader("yaml")


def _bounded(text: str) -> Any:
    """Return what YAML says, unless its aliases or its depth make more of it than anybody wrote."""
    try:
        found = _yaml_load(text)
        if _size(found, {}) > _MOST:
            raise yaml.YAMLError(f"more than {_MOST} values, counting each as often as it is referred to")
    except RecursionError:
        raise yaml.YAMLError("values nested too deeply, or in themselves") from None
    except ValueError as error:  # such as a date or a number that Python cannot hold
        raise yaml.YAMLError(str(error)) from error
    return found


def _size(value: Any, known: dict[int, int]) -> int:
    """Return how many values there are in nested ones."""
    if not isinstance(value, (dict, list)):
        return 1
    if id(value) not in known:
        parts = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(value)]


set_loader(_MODE, _bounded, (yaml.YAMLError,))


@contextmanager
def classes_stand_alone() -> Iterator[None]:
    """Within this context, a class that a file or an option names inherits no argument from the settings below it.

    jsonargparse keeps every argument of the class below that the new class accepts too. An option or an entry without
    a class (`--conditions.fgsm.init_args.eps 0.1`) still changes one argument of the class below it.
    """
    adapt, update = typehints.adapt_typehints, Namespace.update

    def adapt_alone(val: Any, typehint: Any, *args: Any, **kwargs: Any) -> Any:
        # A network's name is to its arguments what a class is.
        names = ("class_path", "name") if typehint is Architecture else ("class_path",)
        if isinstance(val, typehints.NestedArg):
            names_class = val.key in names
        else:
            names_class = isinstance(val, str) or any(isinstance(val, dict) and name in val for name in names)
        return adapt(val, typehint, *args, **{**kwargs, "prev_val": None} if names_class else kwargs)

    def replace_classes(self: Namespace, value: Any, key: str | None = None, only_unset: bool = False) -> Namespace:
        if isinstance(value, Namespace) and not only_unset:
            parts = ((f"{key}.{name}" if key else name, part) for name, part in value.items(branches=True))
            for name, part in [(key or "", value), *parts]:
                if name and typehints.is_subclass_spec(part):
                    self.pop(name)
        return update(self, value, key, only_unset)

    def keep_nothing(*_: Any) -> None:
        """Do nothing: no argument of the class below is left, and jsonargparse fails where the new class takes none."""

    with (
        patch.object(typehints, "adapt_typehints", adapt_alone),
        patch.object(typehints.ActionTypeHint, "discard_init_args_on_class_path_change", keep_nothing),
        patch.object(Namespace, "update", replace_classes),
    ):
        yield


class _Parser(ArgumentParser):
    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parse a command line and the files that it names, which must be text."""
        try:
            with classes_stand_alone():
                return super().parse_args(*args, **kwargs)
        except UnicodeDecodeError as error:
            raise fail("config", "a file of UTF-8 text", error) from error
        except ArgumentError as error:
            raise mistyped(self, error) from error


def new_parser(program: str, description: str | None = None) -> ArgumentParser:
    """Return a parser that raises on a mistake, takes no abbreviation for an option, and no endless YAML."""
    return _Parser(prog=program, exit_on_error=False, allow_abbrev=False, description=description, parser_mode=_MODE)


def parse_trusting(parser: ArgumentParser, arguments: Sequence[str]) -> tuple[Any, Any]:
    """Parse a command line under the import policy of all verbs, see `robustsigma.trust`.

    Args:
        parser: with an option `allow`, a list.
        arguments: the command line.

    Returns:
        The parsed arguments, and the same with the classes instantiated.

    Raises:
        ValueError: a class path that is not allowed, or a file that would allow one; nothing of it was imported.
    """
    allow, rest = trust.allowed_by(arguments)
    with trust.only(allow):
        found = parser.parse_args(rest)
        if found.allow:
            raise fail("allow", "on the command line: a file cannot allow what it names", repr(list(found.allow)))
        made = parser.instantiate(found)
    found.allow = made.allow = allow
    return found, made


class Asked(NamedTuple):
    """What a command line asks for.

    Attributes:
        settings: of the run.
        out: folder of the report.
        command: the line itself.
        processes: that share the work.
        allow: dotted paths that the command line allows.
    """

    settings: Any
    out: str
    command: str
    processes: int
    allow: Sequence[str] = ()


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
        """Parse a verb's command line, which may name a preset and the folder of the report.

        Args:
            verb: of the command line.
            description: of the verb.
            out: folder of the report where none is given.
            arguments: the command line after the verb.

        Raises:
            ValueError: a mistake, or code that may not be named; nothing of it was imported.
        """
        command = shlex.join(["robustsigma", verb, *arguments])
        allow, arguments = trust.allowed_by(arguments)
        # The preset comes before anything else is parsed: the other options change its settings.
        first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
        first.add_argument("--preset", default=self.names[0])
        try:
            name = first.parse_known_args(list(arguments))[0].preset
        except argparse.ArgumentError as error:
            raise fail("preset", f"one of {', '.join(self.names)}, as in --preset {self.names[0]}", "none") from error
        parser = self._parser(f"robustsigma {verb}", description)
        parser.add_argument("--preset", type=str, default=name, help=f"settings to start from: {', '.join(self.names)}")
        parser.add_argument("--out", type=str, default=out, help="folder of the report")
        parser.add_argument("--processes", type=int, default=1, help=PROCESSES)
        if "allow" in self.kind.__dataclass_fields__:  # type: ignore[attr-defined]
            # The last word: a file cannot allow what it names.
            arguments = [*arguments, "--allow", json.dumps(allow)]
        else:
            parser.add_argument("--allow", type=str, help=_ALLOW)
        with trust.only(allow):
            found = parser.parse_args([*self._given(name), *arguments])
            settings = self._settings(parser, found)
        trust.check_networks(settings, allow)
        return Asked(settings, found.out, command, found.processes, allow)

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
