"""Command-line and YAML parsing that all verbs share: parsers, the import policy, and errors that name near matches.

Import policy: a YAML file with a `class_path` runs code, and so does the dotted path of a network. Files and options
may name only what this package and `LIBRARIES` define, networks of torchvision, timm and transformers, and what
`--allow NAME` allows. Everything else is refused before it is imported. A file cannot allow anything.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args
from unittest.mock import patch

import torch
import yaml  # type: ignore[import-untyped]
from jsonargparse import ArgumentError, ArgumentParser, Namespace, get_loader, set_loader, set_parsing_settings
from jsonargparse import _typehints as typehints  # no public interface says what a class keeps
from jsonargparse._common import parsing_settings  # no public interface restores a setting

from robustsigma.engine.validation import fail, near
from robustsigma.models.architecture import Architecture, suggest_origin
from robustsigma.models.pretrained import Pretrained, check_no_file

# Only those parts of torch and torchvision that settings name: others, such as torch.hub, load code.
LIBRARIES = (
    *("torch.nn", "torch.optim", "torch.utils.data", "torchvision.models", "torchvision.transforms"),
    *("torchvision.datasets", "pytorch_lightning", "lightning", "lightning_fabric", "torchmetrics"),
    *("albumentations", "torchattacks"),
)
_MODE = "bounded yaml"
_MAX_VALUES = 100_000  # in one file; the presets have about a hundred
_yaml_load = get_loader("yaml")


# YAML


def _load_bounded(text: str) -> Any:
    """Load YAML; raise YAMLError for a name given twice, or if aliases or nesting make it too large."""
    try:
        found = _yaml_load(text)
        if isinstance(found, dict) and not isinstance(found.get("config"), (str, list, type(None))):
            raise yaml.YAMLError(f"config: expected the path of a file, or several, got {found['config']!r}"[:200])
        _refuse_repeated(yaml.compose(text, Loader=yaml.SafeLoader), set())
        if _count_values(found, {}) > _MAX_VALUES:
            raise yaml.YAMLError(f"more than {_MAX_VALUES} values, counting each as often as it is referred to")
    except RecursionError:
        raise yaml.YAMLError("values nested too deeply, or in themselves") from None
    except ValueError as error:  # such as a date or a number that Python cannot hold
        raise yaml.YAMLError(str(error)) from error
    return found


def _refuse_repeated(node: Any, seen: set[int]) -> None:
    """Raise YAMLError if a mapping has a name twice: YAML would keep the last without a word."""
    if isinstance(node, yaml.CollectionNode) and id(node) not in seen:
        seen.add(id(node))
        pairs = node.value if isinstance(node, yaml.MappingNode) else [(each,) for each in node.value]
        names: set[str] = set()
        for name in (pair[0] for pair in pairs if len(pair) == 2 and isinstance(pair[0], yaml.ScalarNode)):
            if name.value in names:
                raise yaml.YAMLError(
                    f"the name {name.value!r} twice in one mapping, in line {name.start_mark.line + 1}"
                )
            names.add(name.value)
        for each in (part for pair in pairs for part in pair):
            _refuse_repeated(each, seen)


def _count_values(value: Any, known: dict[int, int]) -> int:
    if not isinstance(value, (dict, list)):
        return 1
    if id(value) not in known:
        parts = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_count_values(part, known) for part in parts)
    return known[id(value)]


set_loader(_MODE, _load_bounded, (yaml.YAMLError,))


# Parsers


@contextmanager
def classes_stand_alone() -> Iterator[None]:
    """Within this context, a class that a file or an option names inherits no argument from earlier settings.

    jsonargparse keeps every argument of the earlier class that the new class accepts too. An option or an entry without
    a class (`--conditions.fgsm.init_args.eps 0.1`) still changes one argument of the earlier class.
    """
    adapt, update = typehints.adapt_typehints, Namespace.update

    def adapt_alone(val: Any, typehint: Any, *args: Any, **kwargs: Any) -> Any:
        # The arguments of a network belong to its name, as those of a class do to its path.
        named = typehint is Architecture or Pretrained in (typehint, *get_args(typehint))
        names = ("class_path", "name") if named else ("class_path",)
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

    with (
        patch.object(typehints, "adapt_typehints", adapt_alone),
        # No argument of the earlier class is left, and it fails where the new class takes none.
        patch.object(typehints.ActionTypeHint, "discard_init_args_on_class_path_change", lambda *_: None),
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
            raise clearer_error(self, error) from error


def new_parser(program: str, description: str | None = None) -> ArgumentParser:
    """Return a parser that raises on a mistake, accepts no abbreviated option and bounds the size of YAML."""
    return _Parser(prog=program, exit_on_error=False, allow_abbrev=False, description=description, parser_mode=_MODE)


def parse(parser: ArgumentParser, arguments: Sequence[str]) -> tuple[Any, Any]:
    """Parse a command line under the import policy.

    Args:
        parser: a parser with an option `allow`, a list.
        arguments: the command line.

    Returns:
        The parsed arguments, and the same with the classes instantiated.

    Raises:
        ValueError: a class path that is not allowed, or a file that would allow one; nothing of it was imported.
    """
    allow, rest = split_allow(arguments)
    with import_allowlist(allow):
        found = parser.parse_args(rest)
        if found.allow:
            raise fail("allow", "on the command line: a file cannot allow what it names", repr(list(found.allow)))
        made = parser.instantiate(found)
    found.allow = made.allow = allow
    return found, made


# Import policy


def split_allow(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
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
def import_allowlist(allow: Sequence[str]) -> Iterator[None]:
    """Within this context, parsers import this package, `LIBRARIES` and what lies below `allow`, and nothing else.

    Raises:
        ValueError: another class path; nothing of it was imported.
    """
    before = dict(parsing_settings)
    parsing_settings["import_path_verdicts"] = {}  # `--allow os` is the user's decision, against jsonargparse's list
    # A value of any type that looks like a class path stays as it is.
    set_parsing_settings(
        import_path_denylist=["*"],
        import_path_allowlist=["robustsigma", *LIBRARIES, *allow],
        instantiate_subclass_spec_in_any=False,
    )
    try:
        yield
    except Exception as error:
        denied = re.search(r"Importing '([^']*)' is not allowed", str(error))
        if denied is None:
            raise
        expected = f"a class of robustsigma, {', '.join(LIBRARIES)} or of code that the command line allows"
        raise fail("class_path", expected, f"{denied[1]!r}; add --allow {denied[1]} if you trust it") from error
    finally:
        parsing_settings.clear()
        parsing_settings.update(before)


def check_model(argument: str, name: str, allow: Sequence[str]) -> None:
    """Raise ValueError if `name`, which is no file, is not a network that may be built.

    Args:
        argument: name of the argument, for the error.
        name: name of the model.
        allow: dotted paths that the command line allows.
    """
    check_no_file(argument, name)
    try:
        Architecture(name).check_origin(allow)
    except ValueError as error:
        known = "FILE.safetensors, torchvision:NAME, timm:NAME, hf:NAME or a class path allowed by --allow NAME"
        files = [str(path) for path in Path(name).parent.glob("*.safetensors")]
        raise fail(argument, known, repr(name) + (near(name, files) or suggest_origin(name))) from error


def check_networks(settings: Any, allow: Sequence[str]) -> None:
    """Raise ValueError if building a network that the settings describe would run code that is not allowed.

    Args:
        settings: a dataclass, or the nested dictionaries of a configuration that may call `robustsigma.models.network`.
        allow: dotted paths that the command line allows.
    """
    if isinstance(settings, (Architecture, Pretrained)):
        Architecture(settings.name).check_origin(allow)
    elif dataclasses.is_dataclass(settings):
        for field in dataclasses.fields(settings):
            check_networks(getattr(settings, field.name), allow)
    elif isinstance(settings, Mapping):
        path, given = str(settings.get("class_path")), settings.get("init_args")
        if path.startswith("robustsigma.") and path.endswith(".network") and given:
            Architecture(given["name"]).check_origin(allow)
        check_networks(list(settings.values()), allow)
    elif isinstance(settings, (list, tuple)):
        for part in settings:
            check_networks(part, allow)


# Errors


def clearer_error(parser: ArgumentParser, error: ArgumentError) -> Exception:
    """Return a parser's error, or one that lists what is known where a name, an option or a value was misspelled."""
    text = str(error)
    if unknown := re.search(r"[Uu]nrecognized arguments: (--?[^\s=]+)(.*)", text, re.DOTALL):
        known = [option for option in parser._option_string_actions if not option.endswith(".help")]
        return ValueError(f"unrecognized arguments: {unknown[1]}{unknown[2].rstrip()}{near(unknown[1], known)}")
    if unknown := re.search(r"Option '([^']+)' is not accepted", text if text.startswith("Option") else ""):
        known = [action.dest for action in parser._actions]
        top = unknown[1].partition(".")[0]
        hidden = ("help", "config", "print_config", "print_shtab")
        shown = sorted(name for name in known if "." not in name and name not in hidden)
        meant = near(top, known) or near(unknown[1], known)
        return fail(unknown[1], f"a name of a setting ({', '.join(shown)})", f"another{meant}")
    keys = re.findall(r'Parser key "([^"]+)"', text)
    if not keys:
        return error
    # The parser of a class within another has raised a clear error, which this one quotes.
    if inner := re.search(r"(\S+: expected an option of .*?, got '[^']*'(; did you mean [^?]*\?)?)", text):
        return ValueError(f"{'.'.join(keys)}.{inner[1]}")
    key = ".".join(dict.fromkeys(keys))
    options = {*re.findall(r"Problem with given class_path '([^']+)':\s+Option '([^']+)' is not accepted", text)}
    if len(options) == 1:
        ((path, option),) = options
        known = _options(path)
        listed = f" ({', '.join(known)})" if known else ""
        return fail(key, f"an option of {path}{listed}", repr(option) + near(option, known))
    if missing := re.search(r"module '([^']+)' has no attribute '([^']+)'", text):
        public = getattr(sys.modules.get(missing[1]), "__all__", ())
        return fail(key, f"a name of {missing[1]}", repr(missing[2]) + near(missing[2], public))
    choices = re.findall(r"Expected a typing\.Literal\[(.*?)\]", text)
    value = re.search(r"(?:Got|Given) value: (\S+)", text)
    if choices and value:
        known = list(dict.fromkeys(each.strip("'\"") for listed in choices for each in listed.split(", ")))
        return fail(key, f"one of {', '.join(known)}", repr(value[1]) + near(value[1], known))
    name = re.search(r"Expected a dot import path string: (\S+)", text)
    if name is None:
        return _wrong_type(key, text) or error
    hints = [getattr(action, "_typehint", None) for action in parser._actions if action.dest == keys[0]]
    # For a class within another, jsonargparse does not say which type it should have.
    kinds = {each for hint in hints for each in _classes(hint)} if len(keys) == 1 else set()
    if torch.nn.Module in hints:  # a list of all known modules would not help
        by_name = f"--{key} robustsigma.models.network --{key}.name {name[1]} --{key}.channels 3 --{key}.classes 10"
        return fail(key, f"the dotted path of a class, or a network by name as in {by_name}", repr(name[1]))
    names = {kind.__name__ for kind in kinds if not kind.__name__.startswith("_")}
    ours = {kind.__name__ for kind in kinds if kind.__module__.startswith("robustsigma.")} & names
    expected = f"one of {', '.join(sorted(ours))}, or" if ours else "the name of a class of robustsigma, or"
    return fail(key, f"{expected} the dotted path of a class", repr(name[1]) + near(name[1], sorted(names)))


def _wrong_type(key: str, text: str) -> Exception | None:
    """Return an error in plain words for a value of another type, or None for a text of another kind."""
    if "Expected an instantiatable class" in text:
        example = "{class_path: FGSM, init_args: {eps: 0.1}}"
        return ValueError(f"{key}: expected class names, each with its arguments below init_args, as in {example}")
    types = dict.fromkeys(re.findall(r"Expected a <class '(?:[\w.]*\.)?(\w+)'>", text))
    value = re.findall(r"(?:Got|Given) value: (.+)", text)
    if not types or not value or "is not allowed" in text:  # the import policy's error says more
        return None
    number = re.fullmatch(r"-?[\d.]+", value[-1])
    words = {
        "Sequence": f"a list in brackets, as in --{key} '[{value[-1] if number else '1, 2'}]',",
        "Mapping": f"a name for each value, as in --{key}.NAME {value[-1]}",
        "float": "a number",
        "int": "an integer",
        "bool": "true or false",
        "str": "text",
        "NoneType": "null",
    }
    return fail(key, " or ".join(words.get(each, each) for each in types), repr(value[-1]))


def _options(path: str) -> list[str]:
    """Return the options of a class that the parser has imported, or none if it has no signature."""
    module, _, name = path.rpartition(".")
    kind = getattr(sys.modules.get(module), name, None)
    try:
        return list(inspect.signature(kind).parameters) if inspect.isclass(kind) else []
    except ValueError:  # such as a class of a C extension
        return []


def _classes(hint: Any) -> Iterator[type]:
    """Yield the classes that a type hint accepts, of this package and others."""
    for part in get_args(hint):
        yield from _classes(part) if not isinstance(part, list) else ()
    if inspect.isclass(hint) and hint.__module__ != "builtins":
        if not inspect.isabstract(hint) and "._" not in hint.__module__:
            yield hint
        for kind in hint.__subclasses__():
            yield from _classes(kind)
