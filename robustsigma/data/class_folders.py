"""Folders of images: which are splits, which are classes, and what a user may not expect of them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from robustsigma.data.files import Found, count_by_suffix, image_suffixes, is_visible, scan, shorten, subfolders
from robustsigma.data.source import Split
from robustsigma.engine.validation import fail

# The words that the Hugging Face library `datasets` looks for.
_WORDS: dict[str, Split] = {
    "training": "train",
    "train": "train",
    "validation": "val",
    "valid": "val",
    "val": "val",
    "dev": "val",
    "testing": "test",
    "test": "test",
    "evaluation": "test",
    "eval": "test",
}
# At the beginning of a word, also in "MyTest", but not in "latest".
_WORD = re.compile(rf"(?-i:(?<![A-Za-z])|(?<=[a-z])(?=[A-Z]))(?:{'|'.join(_WORDS)})", re.IGNORECASE)
_UNREADABLE = "Pillow cannot read them as images"


class Tree(NamedTuple):
    """The images of a folder.

    Attributes:
        parts: images by split and class folder. The only key is None where the images are yet to be split.
        folders: that hold the class folders.
        notes: what a user may not expect, for a warning.
    """

    parts: dict[Split | None, dict[str, list[Path]]]
    folders: list[Path]
    notes: list[str]


def split_name(text: str) -> Split | None:
    """Return the split that a word such as "Training" or "valid" names, or None."""
    return _WORDS.get(text.strip().lower())


def split_folders(names: Sequence[str]) -> dict[str, Split]:
    """Return which of some folders of one level are splits.

    These are names such as "Train" and "valid", and those that only differ in such a word, such as "seg_train" and
    "seg_test". "train_station" is none unless there is also a "test_station".
    """
    found = {name: match for name in names if (match := _WORD.search(name))}
    splits = {name: _WORDS[match[0].lower()] for name, match in found.items()}
    around = {name: (name[: match.start()], name[match.end() :]) for name, match in found.items()}
    return {
        name: split
        for name, split in splits.items()
        if split_name(name) or any(around[name] == around[other] and split != splits[other] for other in splits)
    }


def read_tree(root: Path, class_list: Sequence[str] | None, masks: Path | None) -> Tree:
    """Find the images of a folder of class folders, or of split folders with class folders in them.

    Args:
        root: the folder.
        class_list: names of all classes, or None. Where all folders are called so, they are classes, even "train".
        masks: folder of masks, which may lie beside the split folders, or None.

    Raises:
        ValueError: no such folder, split folders beside other folders, two folders of one split, a class in one split
            that the training images lack, or what `read_classes` refuses.
    """
    if not root.is_dir():
        raise fail("root", "an existing folder", root)
    names = subfolders(root)
    are_classes = class_list is not None and len(names) > 1 and set(names) <= set(class_list)
    splits = {} if are_classes else split_folders(names)
    skipped = Found([], [])
    if not splits:
        classes = read_classes(root, names, class_list or (), skipped)
        return Tree({None: classes}, [root], skipped_notes(skipped, root))
    others = [name for name in names if name not in splits and not _holds(root / name, masks)]
    if others:
        hint = "move the others away, or give class_list if all of them are classes"
        raise fail(
            "root", f"folders of splits or of classes in {root}", f"{_list(splits)} beside {_list(others)}; {hint}"
        )
    by_split: dict[Split, Path] = {}
    for name, split in splits.items():
        if split in by_split:
            raise fail("root", f"one folder for {split!r} in {root}", f"{by_split[split].name} and {name}")
        by_split[split] = root / name
    skipped.images.extend(_loose(root))
    parts: dict[Split | None, dict[str, list[Path]]] = {}
    for split, folder in sorted(by_split.items(), key=lambda item: ("train", "test", "val").index(item[0])):
        parts[split] = read_classes(folder, subfolders(folder), class_list or (), skipped)
        first = next(iter(parts.values()))
        unknown = sorted(set(parts[split]) - set(first))
        if unknown:
            reference = next(iter(by_split[each] for each in parts if each is not None)).name
            raise fail("root", f"only classes of {reference}/ in {folder}", unknown)
    notes = skipped_notes(skipped, root)
    if "test" not in parts and "val" in parts:
        drawn = ", and validation images are drawn from the training images" if "train" in parts else ""
        notes.append(f"there is no test folder, so {by_split['val'].name}/ is the test split{drawn}")
        parts["test"] = parts.pop("val")
    elif "test" not in parts:
        notes.append(
            f"{by_split['train'].name}/ is the only split folder, so its images are split as an unsplit folder's"
        )
        parts = {None: parts["train"]}
    return Tree(parts, list(by_split.values()), notes)


def read_classes(
    folder: Path, names: Sequence[str], class_list: Collection[str], skipped: Found
) -> dict[str, list[Path]]:
    """Return the images of each class folder.

    Args:
        folder: that holds the class folders.
        names: of the class folders.
        class_list: names that are classes even if they could be those of splits.
        skipped: gets the images beside the class folders, and the files in them that are not images.

    Raises:
        ValueError: fewer than two classes, a class without an image, or folders that are splits.
    """
    loose = _loose(folder)
    if len(names) < 2:
        beside = f", beside {count_by_suffix(loose, folder)}" if loose else ""
        got = f"{len(names)}{f' ({names[0]})' if names else ''}{beside}"
        raise fail("root", f"at least two class folders in {folder}", got)
    splits = [name for name in split_folders(names) if name not in class_list]
    if splits:
        raise fail("root", f"class folders in {folder}", f"{_list(splits)}, which names splits")
    found = {name: scan(folder / name) for name in names}
    _check_classes(folder, found)
    skipped.images.extend(loose)
    skipped.others.extend(path for each in found.values() for path in each.others)
    return {name: each.images for name, each in found.items()}


def _check_classes(folder: Path, found: Mapping[str, Found]) -> None:
    empty = {name: each.others for name, each in found.items() if not each.images}
    if empty:
        told = [f"{name} ({count_by_suffix(paths, folder) if paths else 'empty'})" for name, paths in empty.items()]
        hint = f"; {_UNREADABLE}" if any(empty.values()) else ""
        raise fail("root", f"images of every class in {folder}", f"none of {shorten(told)}{hint}")
    for name in found:
        splits = split_folders(subfolders(folder / name))
        if len(set(splits.values())) > 1:
            expected = f"split folders above the class folders in {folder}"
            raise fail("root", expected, f"{_list(splits)} in {name}")


def skipped_notes(skipped: Found, root: Path) -> list[str]:
    """Return notes of the images beside class or split folders, and of files that are not images."""
    notes = [skipped_files(skipped.others, root)] if skipped.others else []
    if skipped.images:
        notes.append(f"skipped {count_by_suffix(skipped.images, root)}, beside the folders of classes or splits")
    return notes


def skipped_files(paths: Sequence[Path], root: Path) -> str:
    """Return the note for files that are not images."""
    heif = any(path.suffix.lower() in (".heic", ".heif") for path in paths)
    hint = "; pillow_heif.register_heif_opener() reads HEIC" if heif else ""
    return f"skipped {count_by_suffix(paths, root)}: {_UNREADABLE}{hint}"


def uncovered(classes: Sequence[str], labels: Mapping[Split, Iterable[int]]) -> list[str]:
    """Return notes of classes without training images, and of those with images that another split lacks."""
    by_split = {split: set(each) for split, each in labels.items()}
    notes = []
    for split, found in by_split.items():
        wanted = set(range(len(classes))) if split == "train" else set().union(*by_split.values())
        missing = [classes[label] for label in sorted(wanted - found)]
        if missing:
            what = {"train": "training", "val": "validation", "test": "test"}[split]
            notes.append(f"{len(missing)} of {len(classes)} classes without a {what} image: {shorten(missing)}")
    return notes


def _loose(folder: Path) -> list[Path]:
    suffixes = image_suffixes()
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in suffixes and is_visible(path.name) and path.is_file()
    )


def _holds(folder: Path, masks: Path | None) -> bool:
    return masks is not None and masks.resolve().is_relative_to(folder.resolve())


def _list(names: Iterable[str]) -> str:
    return shorten(list(names))
