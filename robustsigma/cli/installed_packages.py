"""Installed packages: their versions, unmet requirements, and combinations that are known to do harm."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import distributions
from typing import Literal, NamedTuple

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


class Hazard(NamedTuple):
    """A known problem of installed packages.

    Attributes:
        level: "danger" is code that must not run, "warning" may break or mislead, "note" is good to know.
        package: name of the distribution.
        what: the problem.
        remedy: what to do.
    """

    level: Literal["danger", "warning", "note"]
    package: str
    what: str
    remedy: str


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
        version = versions.get(canonicalize_name(stated.name))
        if asked and not (release(version) and stated.specifier.contains(str(version), prereleases=True)):
            found.append(Unmet(f"{canonicalize_name(stated.name)}{stated.specifier}", version))
    return found


def release(version: str | None) -> tuple[int, ...]:
    """Return the numbers of a version, such as (2, 25, 1), or () for an invalid one."""
    try:
        return Version(version or "").release
    except InvalidVersion:
        return ()


def hazards(versions: Mapping[str, str]) -> list[Hazard]:
    """Return every known hazard, the dangerous ones first.

    Args:
        versions: version by canonical name of every installed distribution.
    """
    return sorted(_hazards(versions), key=lambda hazard: ("danger", "warning", "note").index(hazard.level))


def _hazards(versions: Mapping[str, str]) -> Iterator[Hazard]:
    for name in ("lightning", "pytorch-lightning"):
        # Uploaded on 2026-04-30 with code that steals credentials; 2.6.4 is clean.
        if release(versions.get(name)) in {(2, 6, 2), (2, 6, 3)}:
            remedy = f"pip uninstall {name}, renew every key and token this machine could read, "
            remedy += "then pip install 'pytorch-lightning>=2.6.4'"
            yield Hazard("danger", name, f"{versions[name]} is a malicious upload that steals credentials", remedy)
    if "lightning" in versions:
        what = f"{versions['lightning']} is a second copy of pytorch-lightning, which robustsigma does not use"
        remedy = "import pytorch_lightning, and pip uninstall lightning where nothing else needs it"
        yield Hazard("warning", "lightning", what, remedy)
    torch, vision = release(versions.get("torch")), release(versions.get("torchvision"))
    # Since torch 2.0, torchvision 0.(15 + N) is built for torch 2.N.
    if len(torch) > 1 and len(vision) > 1 and torch[0] == 2 and vision[0] == 0 and vision[1] != torch[1] + 15:
        what = f"{versions['torchvision']} is built for torch 2.{vision[1] - 15}, found {versions['torch']}"
        yield Hazard("warning", "torchvision", what, f"pip install 'torchvision==0.{torch[1] + 15}.*'")
    if "torchattacks" in versions:
        yield from _torchattacks_hazards(versions)
    if "albumentationsx" in versions:
        both = ", and it overwrites the files of albumentations" if "albumentations" in versions else ""
        what = f"{versions['albumentationsx']} is under the AGPL or a commercial license{both}"
        remedy = "pip uninstall albumentationsx albumentations, then pip install albumentations==2.0.8"
        yield Hazard("warning", "albumentationsx", what, remedy)
    if release(versions.get("albumentations")) > (2, 0, 8):
        what = f"{versions['albumentations']} is later than 2.0.8, the last release under the MIT license"
        yield Hazard("warning", "albumentations", what, "pip install albumentations==2.0.8")
    opencv = [f"opencv-{kind}python{form}" for kind in ("", "contrib-") for form in ("", "-headless")]
    found = [name for name in opencv if name in versions]
    if len(found) > 1:
        what = f"{', '.join(found)} all install the same package cv2: the last one overwrote the others"
        yield Hazard("warning", found[0], what, f"pip uninstall {' '.join(found)}, then pip install the one you need")


def _torchattacks_hazards(versions: Mapping[str, str]) -> Iterator[Hazard]:
    requests = release(versions.get("requests"))
    pin = "torchattacks demands requests~=2.25.1, though it does not import it"
    if requests[:2] == (2, 25):
        what = f"{versions['requests']} is from 2020, with known security holes (CVE-2023-32681); {pin}"
        remedy = "pip install 'requests>=2.32' after everything else, and ignore pip's complaint"
        yield Hazard("warning", "requests", what, remedy)
    elif requests:
        yield Hazard("note", "requests", f"{versions['requests']} fails pip check: {pin}", "nothing, it works")
    if "robustbench" in versions:
        what = f"{versions['robustbench']} and torchattacks own the same files: the later one overwrote the other"
        remedy = "keep them in two environments; with torchattacks removed, pip install --force-reinstall robustbench"
        yield Hazard("warning", "robustbench", what, remedy)
    else:
        what = "brings an old copy of another project: `import robustbench` finds it, not RobustBench"
        yield Hazard("note", "torchattacks", what, "do not install robustbench beside it")
