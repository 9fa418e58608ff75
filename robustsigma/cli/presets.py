"""Settings from YAML files over a preset, and the command line of the verbs that take them."""

from __future__ import annotations

import argparse
import json
import os
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Generic, NamedTuple, TypeVar

from jsonargparse import ArgumentParser

from robustsigma.cli.parsing import check_networks, import_allowlist, new_parser, split_allow
from robustsigma.engine.validation import choice, fail, integer
from robustsigma.runs.ranks import WHOLE, Phases, Shard, read_cluster, world_size

T = TypeVar("T")
ALLOW_HELP = "dotted path of your code that files and options may name; may be given several times"
SHARED = ("devices", "num_nodes", "accelerator")  # options of processes that share the work
DEVICES_HELP = "processes on this machine that share the work, each on its own GPU if there are several; like torchrun"
_NODES_HELP = "machines that share the work; on each, the command runs with NODE_RANK, MASTER_ADDR and MASTER_PORT set"
_SHARD_HELP = (
    "i/n: make share i of n of the blocks, and no report; 0/n first trains what is missing, `report` comes last"
)


class ParsedCommand(NamedTuple):
    """A parsed command line.

    Attributes:
        settings: settings of the run.
        out: folder of the report.
        command: the command line itself.
        allow: dotted paths that the command line allows.
        devices: processes that share the work on this machine.
        num_nodes: machines that do.
        accelerator: "auto", "cpu" or "gpu".
        shard: the share of the blocks that is made, as i/n, or None.
    """

    settings: Any
    out: str
    command: str
    allow: Sequence[str] = ()
    devices: int = 1
    num_nodes: int = 1
    accelerator: str = "auto"
    shard: str | None = None

    @property
    def phases(self) -> Phases:
        """What the command does of its run."""
        return WHOLE if self.shard is None else Phases.of_shard(Shard.parse(self.shard), self.command)

    @property
    def next_step(self) -> str:
        """What comes after a shard, in a sentence."""
        number, total = Shard.parse(self.shard or "")
        if not number:
            return f"Everything is ready: run --shard 1/{total} to {total}/{total}, in any order."
        return f"Shard {number} of {total} is done. When all are: robustsigma report {shlex.quote(self.out)}"

    def launch(self, verb: str, arguments: Sequence[str]) -> int | None:
        """Run a verb in several processes and return its exit status, or None if this process must run it itself."""
        choice("accelerator", self.accelerator, ("auto", "cpu", "gpu"))
        if self.accelerator == "cpu":
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        read_cluster()
        wanted = integer("devices", self.devices, 1) * integer("num_nodes", self.num_nodes, 1)
        if wanted == 1 or world_size() == wanted:
            return None
        if world_size() > 1:
            expected = f"the processes that were launched, {world_size()} on all machines"
            raise fail("devices and num_nodes", expected, f"{self.devices} and {self.num_nodes}")
        from robustsigma.cli.verbs import main
        from robustsigma.runs.launch import launch

        return launch(self.devices, self.num_nodes, main, [verb, *arguments])


def add_devices(parser: ArgumentParser) -> None:
    """Add the options of the processes that share the work."""
    parser.add_argument("--devices", type=int, default=1, help=DEVICES_HELP)
    parser.add_argument("--num_nodes", type=int, default=1, help=_NODES_HELP)
    parser.add_argument("--accelerator", type=str, default="auto", help="auto, cpu or gpu")


def command_line(verb: str, arguments: Sequence[str]) -> str:
    """Return the line that runs a verb, without the options that only divide its work."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in (*SHARED, "shard"):
        parser.add_argument(f"--{name}")
    with suppress(argparse.ArgumentError):  # which the verb's own parser reports
        _, arguments = parser.parse_known_args(list(arguments))
    return shlex.join(["robustsigma", verb, *arguments])


@dataclass(frozen=True)
class Presets(Generic[T]):
    """Settings of one class: its constructor is the schema, and a package's YAML files are the starting points.

    Attributes:
        kind: a dataclass, whose fields are the options.
        package: name of the package whose folder `presets` holds NAME.yaml.
        names: names of the presets. The first has every setting; each of the others is applied over those before it.

    Example:
        >>> settings = PRESETS.load("digits", ["--training.lr", "0.01"])
    """

    kind: type[T]
    package: str
    names: tuple[str, ...] = ("baggage", "digits", "mnist5k")

    def load(self, name: str | None = None, arguments: Sequence[str] = ()) -> T:
        """Return the settings of a preset, the first if no name is given, changed by command-line arguments.

        Raises:
            ValueError: an unknown name, or wrong arguments.
        """
        parser = self._parser("preset")
        return self._settings(parser, parser.parse_args([*self._configs(name or self.names[0]), *arguments]))

    def parse(self, verb: str, description: str, out: str, arguments: Sequence[str]) -> ParsedCommand:
        """Parse a verb's command line, which may name a preset and the folder of the report.

        Args:
            verb: name of the verb.
            description: description of the verb, for its help.
            out: default folder of the report.
            arguments: the command line after the verb.

        Raises:
            ValueError: a mistake, or code that may not be named; nothing of it was imported.
        """
        command = command_line(verb, arguments)
        allow, arguments = split_allow(arguments)
        # The preset is parsed first: all other options change its settings.
        first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
        first.add_argument("--preset", default=self.names[0])
        try:
            name = first.parse_known_args(list(arguments))[0].preset
        except argparse.ArgumentError as error:
            raise fail("preset", f"one of {', '.join(self.names)}, as in --preset {self.names[0]}", "none") from error
        parser = self._parser(f"robustsigma {verb}", description)
        parser.add_argument("--preset", type=str, default=name, help=f"settings to start from: {', '.join(self.names)}")
        parser.add_argument("--out", type=str, default=out, help="folder of the report")
        add_devices(parser)
        parser.add_argument("--shard", type=str, default=None, help=_SHARD_HELP)
        if "allow" in self.kind.__dataclass_fields__:  # type: ignore[attr-defined]
            arguments = [*arguments, "--allow", json.dumps(allow)]  # last: a file cannot allow what it names
        else:
            parser.add_argument("--allow", type=str, help=ALLOW_HELP)
        with import_allowlist(allow):
            found = parser.parse_args([*self._configs(name), *arguments])
            settings = self._settings(parser, found)
        check_networks(settings, allow)
        shared = {name: found[name] for name in (*SHARED, "shard")}
        return ParsedCommand(settings, found.out, command, allow, **shared)

    def _parser(self, program: str, description: str | None = None) -> ArgumentParser:
        parser = new_parser(program, description)
        parser.add_argument("--config", action="config", help="YAML file of settings; may be given several times")
        parser.add_class_arguments(self.kind, sub_configs=True)
        return parser

    def _configs(self, name: str) -> list[str]:
        choice("preset", name, self.names)
        folder = files(self.package) / "presets"
        layers = self.names[: self.names.index(name) + 1]
        texts = [(folder / f"{each}.yaml").read_text(encoding="utf-8") for each in layers]
        return [argument for text in texts for argument in ("--config", text)]

    def _settings(self, parser: ArgumentParser, found: Any) -> T:
        made = parser.instantiate(found)
        return self.kind(**{name: made[name] for name in self.kind.__dataclass_fields__})  # type: ignore[attr-defined]
