"""Installed packages and combinations of them that are known to do harm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from robustsigma.cli.requirements import release

Level = Literal["danger", "warning", "note"]
Versions = Mapping[str, str]


class Hazard(NamedTuple):
    """A known problem of installed packages.

    Attributes:
        level: "danger" is code that must not run, "warning" may break or mislead, "note" is good to know.
        package: name of the distribution.
        what: the problem.
        remedy: what to do.
    """

    level: Level
    package: str
    what: str
    remedy: str


_MALICIOUS = {(2, 6, 2), (2, 6, 3)}  # uploaded on 2026-04-30 with code that steals credentials; 2.6.4 is clean
_LAST_MIT = (2, 0, 8)
_OPENCV = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")


def hazards(versions: Versions) -> list[Hazard]:
    """Return every known hazard, the dangerous ones first.

    Args:
        versions: version by canonical name of every installed distribution.
    """
    checks = (_lightning, _torch_pair, _torchattacks, _albumentations, _opencv)
    found = [hazard for check in checks for hazard in check(versions)]
    return sorted(found, key=lambda hazard: ("danger", "warning", "note").index(hazard.level))


def _lightning(versions: Versions) -> Iterator[Hazard]:
    for name in ("lightning", "pytorch-lightning"):
        if release(versions.get(name)) in _MALICIOUS:
            yield Hazard(
                "danger",
                name,
                f"{versions[name]} is a malicious upload that steals credentials",
                f"pip uninstall {name}, renew every key and token this machine could read, "
                "then pip install 'pytorch-lightning>=2.6.4'",
            )
    if "lightning" in versions:
        yield Hazard(
            "warning",
            "lightning",
            f"{versions['lightning']} is a second copy of pytorch-lightning, which robustsigma does not use",
            "import pytorch_lightning, and pip uninstall lightning where nothing else needs it",
        )


def _torch_pair(versions: Versions) -> Iterator[Hazard]:
    torch, vision = release(versions.get("torch")), release(versions.get("torchvision"))
    # Since torch 2.0, torchvision 0.(15 + N) is built for torch 2.N.
    if len(torch) > 1 and len(vision) > 1 and torch[0] == 2 and vision[0] == 0 and vision[1] != torch[1] + 15:
        yield Hazard(
            "warning",
            "torchvision",
            f"{versions['torchvision']} is built for torch 2.{vision[1] - 15}, found {versions['torch']}",
            f"pip install 'torchvision==0.{torch[1] + 15}.*'",
        )


def _torchattacks(versions: Versions) -> Iterator[Hazard]:
    if "torchattacks" not in versions:
        return
    requests = release(versions.get("requests"))
    pin = "torchattacks demands requests~=2.25.1, though it does not import it"
    if requests[:2] == (2, 25):
        yield Hazard(
            "warning",
            "requests",
            f"{versions['requests']} is from 2020, with known security holes (CVE-2023-32681); {pin}",
            "pip install 'requests>=2.32' after everything else, and ignore pip's complaint",
        )
    elif requests:
        yield Hazard(
            "note",
            "requests",
            f"{versions['requests']} fails pip check: {pin}",
            "nothing, it works",
        )
    if "robustbench" in versions:
        yield Hazard(
            "warning",
            "robustbench",
            f"{versions['robustbench']} and torchattacks own the same files: the later one overwrote the other",
            "keep them in two environments; with torchattacks removed, pip install --force-reinstall robustbench",
        )
    else:
        yield Hazard(
            "note",
            "torchattacks",
            "brings an old copy of another project: `import robustbench` finds it, not RobustBench",
            "do not install robustbench beside it",
        )


def _albumentations(versions: Versions) -> Iterator[Hazard]:
    if "albumentationsx" in versions:
        both = ", and it overwrites the files of albumentations" if "albumentations" in versions else ""
        yield Hazard(
            "warning",
            "albumentationsx",
            f"{versions['albumentationsx']} is under the AGPL or a commercial license{both}",
            "pip uninstall albumentationsx albumentations, then pip install albumentations==2.0.8",
        )
    if release(versions.get("albumentations")) > _LAST_MIT:
        yield Hazard(
            "warning",
            "albumentations",
            f"{versions['albumentations']} is later than 2.0.8, the last release under the MIT license",
            "pip install albumentations==2.0.8",
        )


def _opencv(versions: Versions) -> Iterator[Hazard]:
    found = [name for name in _OPENCV if name in versions]
    if len(found) > 1:
        yield Hazard(
            "warning",
            found[0],
            f"{', '.join(found)} all install the same package cv2: the last one overwrote the others",
            f"pip uninstall {' '.join(found)}, then pip install the one you need",
        )
