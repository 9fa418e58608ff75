"""Benchmarks from YAML: the schema is the constructors, the embedded datasets have presets."""

from __future__ import annotations

from collections.abc import Sequence

from jsonargparse import ArgumentParser, Namespace

from robustsigma.benchmark.settings import Benchmark
from robustsigma.engine.validation import choice
from robustsigma.parser import new_parser, preset_arguments

PRESETS = ("baggage", "digits", "mnist5k")


def settings_parser(program: str, description: str | None = None) -> ArgumentParser:
    """Return a parser whose options are the fields of `Benchmark`."""
    parser = new_parser(program, description)
    parser.add_argument("--config", action="config", help="YAML file of settings; may be given several times")
    parser.add_class_arguments(Benchmark, sub_configs=True)
    return parser


def parse(parser: ArgumentParser, preset_name: str, arguments: Sequence[str]) -> Namespace:
    """Parse arguments over the settings of a preset, which itself lies over those of "baggage"."""
    choice("preset", preset_name, PRESETS)
    given = preset_arguments("robustsigma.benchmark", dict.fromkeys(["baggage", preset_name]))
    return parser.parse_args([*given, *arguments])


def settings_of(parser: ArgumentParser, found: Namespace) -> Benchmark:
    """Return the settings that were parsed."""
    made = parser.instantiate(found)
    return Benchmark(**{name: made[name] for name in Benchmark.__dataclass_fields__})


def preset(name: str = "baggage") -> Benchmark:
    """Return the settings of an embedded dataset: "baggage", "digits" or "mnist5k"."""
    parser = settings_parser("preset")
    return settings_of(parser, parse(parser, name, []))
