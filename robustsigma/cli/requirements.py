"""Installed distributions, and the requirements that they do not meet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import distributions
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version


class Unmet(NamedTuple):
    """A requirement that is not met.

    Attributes:
        requirement: the requirement, such as "albumentations==2.0.8".
        found: the installed version, or None.
    """

    requirement: str
    found: str | None


def installed() -> dict[str, str]:
    """Return the version of every installed distribution by its canonical name, without importing any."""
    found: dict[str, str] = {}
    for distribution in distributions():
        name, version = distribution.metadata["Name"], distribution.version
        if name and version:  # a half-removed distribution has neither
            found.setdefault(canonicalize_name(name), version)  # the first on the path is the one that is imported
    return found


def unmet(requirements: Iterable[str], versions: Mapping[str, str], extra: str = "") -> list[Unmet]:
    """Return the requirements that are missing or installed in another version.

    Args:
        requirements: requirements as in metadata, such as "rich>=13" or "jinja2>=3.1; extra == 'report'".
        versions: version by canonical name, as `installed` returns them.
        extra: extra whose own requirements are checked; "" checks those of every installation.
    """
    found = []
    for stated in map(Requirement, requirements):
        always = stated.marker is None or stated.marker.evaluate({"extra": ""})
        asked = always if not extra else not always and stated.marker.evaluate({"extra": extra})  # type: ignore[union-attr]
        name = canonicalize_name(stated.name)
        if asked and not _meets(stated, versions.get(name)):
            found.append(Unmet(f"{name}{stated.specifier}", versions.get(name)))
    return found


def release(version: str | None) -> tuple[int, ...]:
    """Return the numbers of a version, such as (2, 25, 1), or () for an invalid one."""
    try:
        return Version(version or "").release
    except InvalidVersion:
        return ()


def _meets(stated: Requirement, version: str | None) -> bool:
    return bool(release(version)) and stated.specifier.contains(str(version), prereleases=True)
