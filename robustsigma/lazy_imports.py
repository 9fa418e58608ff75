"""Lazy imports of a package (PEP 562): a public name is imported when it is first used."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pkgutil import iter_modules
from typing import Any


def lazy_imports(
    package: str, modules: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return `__getattr__`, `__dir__` and `__all__` of a package whose public names and subpackages import lazily.

    Args:
        package: name of the package.
        modules: the public names of each module. A public name must not be the name of a submodule, which would
            replace it.

    Example:
        >>> __getattr__, __dir__, __all__ = lazy_imports(__name__, {"robustsigma.engine.classifier": ("Classifier",)})
    """
    module_of = {name: module for module, names in modules.items() for name in names}
    namespace = vars(sys.modules[package])

    def subpackages() -> list[str]:
        return [found.name for found in iter_modules(namespace["__path__"]) if found.ispkg]

    def get_attribute(name: str) -> Any:
        if name in module_of:
            namespace[name] = getattr(import_module(module_of[name]), name)
            return namespace[name]
        if not name.startswith("_") and name in subpackages():
            return import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def names() -> list[str]:
        return sorted({*namespace, *module_of, *subpackages()})

    return get_attribute, names, sorted(module_of)
