"""`fit`, `validate` and `test`: print help and refuse misspelled names before Lightning is imported."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import docstring_parser
import yaml  # type: ignore[import-untyped]

from robustsigma.cli.presets import ALLOW_HELP
from robustsigma.engine.validation import near

_DESCRIPTIONS = {
    "fit": "Train a network with a Lightning Trainer, on images that a perturbation changes on the fly.",
    "validate": "Validate a network with a Lightning Trainer, under every validation condition.",
    "test": "Test a network with a Lightning Trainer, under every test condition.",
}
_EPILOG = (
    "A class is given as --data.dataset Baggage --data.dataset.size 64, or in YAML as class_path and init_args; "
    "--data.dataset.help Baggage prints the options of a class. Start from files in the repository's configs/fit: "
    "base.yaml and one of a dataset (baggage, cifar10, digits, mnist5k), sigma.yaml to train on SIGMA samples, and the "
    "recipes: --config configs/fit/base.yaml --config configs/fit/mnist5k.yaml."
)
_TRAINER = ("pytorch_lightning", "trainer/trainer.py", "Trainer")
# Options by group: where a class is defined, and which of its arguments is no option.
_GROUPS = {
    "model": (("robustsigma", "lightning/lit_classifier.py", "LitClassifier"), ()),
    "data": (("robustsigma", "lightning/data_module.py", "RobustDataModule"), ("seed",)),
    "trainer": (_TRAINER, ()),
}
_COMMON = {
    "config": "YAML file of settings; may be given several times",
    "print_config": "print the settings in YAML and exit",
    "seed_everything": "seed of the weights, the order of the images and all perturbations (default: 0)",
    "optimizer": "class of an optimizer, in place of the model's",
    "lr_scheduler": "class of a schedule of the learning rate, in place of the model's",
    "allow": ALLOW_HELP,
}
_LOADERS = {"model", "train_dataloaders", "val_dataloaders", "dataloaders", "datamodule"}  # made from the options


class _Option(NamedTuple):
    default: str | None  # as its source is written; None if it is required
    description: str


def run(verb: str, arguments: list[str]) -> None:
    """Print the help or refuse a misspelled name at once; otherwise parse the arguments and run the Trainer.

    Raises:
        ValueError: an option, or a name in a file of settings, that is none of the verb's.
    """
    groups = {name: _options(*place, omit=omit) for name, (place, omit) in _GROUPS.items()}
    own = _options(*_TRAINER, function=verb, omit=_LOADERS)
    if "-h" in arguments or "--help" in arguments:
        _print_help(verb, own, groups)
    nested = {f"{group}.{name}" for group, options in groups.items() for name in options}
    for name, shown in _names(arguments, groups):
        known = nested if "." in name else {*_COMMON, *own, *groups}
        if name not in known:
            prefix = shown.removesuffix(name)
            raise ValueError(f"unrecognized arguments: {shown}{near(shown, [prefix + each for each in sorted(known)])}")

    from robustsigma.cli import lightning_cli

    lightning_cli.run(verb, arguments)


def _options(package: str, path: str, owner: str, function: str = "__init__", omit: Any = ()) -> dict[str, _Option]:
    """Return the arguments of a method, read from its source."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    source = (Path(spec.origin).parent / path).read_text(encoding="utf-8")
    (cls,) = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == owner)
    (method,) = (node for node in cls.body if isinstance(node, ast.FunctionDef) and node.name == function)
    text = ast.get_docstring(method) or ast.get_docstring(cls) or ""
    described = {each.arg_name: each.description for each in docstring_parser.parse(text).params}
    taken = method.args
    positional: list[ast.expr | None] = [None] * (len(taken.args) - len(taken.defaults))
    pairs = [*zip(taken.args, [*positional, *taken.defaults], strict=True)]
    pairs += zip(taken.kwonlyargs, taken.kw_defaults, strict=True)
    return {
        arg.arg: _Option(None if default is None else ast.unparse(default), described.get(arg.arg) or "")
        for arg, default in pairs
        if arg.arg != "self" and arg.arg not in omit
    }


def _names(arguments: Sequence[str], groups: Any) -> Iterator[tuple[str, str]]:
    """Yield each name that the options and files of settings give, `group.option` in a group, and how it was typed."""
    for place, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if option.startswith("--"):
            parts = option[2:].rstrip("+").split(".")
            name = ".".join(parts[:2] if parts[0] in groups else parts[:1])
            if parts[-1] != "help":
                yield name, f"--{name}"
        if option in ("-c", "--config"):
            value = value if equals else "".join(arguments[place + 1 : place + 2])
            yield from ((name, name) for name in _names_in_file(value, groups))


def _names_in_file(value: str, groups: Any) -> Iterator[str]:
    try:  # a mistake of another kind is reported where the settings are parsed
        found = yaml.safe_load(Path(value).read_text(encoding="utf-8") if Path(value).is_file() else value)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return
    for name, part in found.items() if isinstance(found, dict) else ():
        if name in groups and isinstance(part, dict):
            yield from (f"{name}.{each}" for each in part if each != "seed")
        else:
            yield str(name)


def _print_help(verb: str, own: dict[str, _Option], groups: dict[str, dict[str, _Option]]) -> NoReturn:
    parser = argparse.ArgumentParser(
        usage=f"robustsigma {verb} [--config FILE] [--OPTION VALUE ...]",
        description=_DESCRIPTIONS[verb],
        epilog=_EPILOG,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32),
    )
    for name, text in _COMMON.items():
        parser.add_argument(f"--{name}", metavar="", help=text)
    _add(parser, "", own)
    for name, options in groups.items():
        place = ".".join((_GROUPS[name][0][0], _GROUPS[name][0][2]))
        _add(parser.add_argument_group(f"{name}: arguments of {place}"), f"{name}.", options)
    parser.print_help()
    parser.exit()


def _add(parser: Any, prefix: str, options: dict[str, _Option]) -> None:
    for name, (default, description) in options.items():
        shown = "required" if default is None else f"default: {default}"
        text = f"{' '.join(description.split())} ({shown})".replace("%", "%%")
        parser.add_argument(f"--{prefix}{name}", metavar="", help=text)
