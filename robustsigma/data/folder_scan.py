"""Folders of images: the image files in them, and which subfolders are splits or classes."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from robustsigma.data.dataset_spec import Split
from robustsigma.engine.validation import fail

# Formats that Pillow recognizes but does not decode, or only through another program.
_NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
# Windows, macOS and network drives put these beside images, some with copies of them.
_SYSTEM_FILES = {"$recycle.bin", "@eadir", "__macosx", "desktop.ini", "ehthumbs.db", "lost+found", "thumbs.db"}
# The words that the Hugging Face library `datasets` looks for.
_SPLIT_WORDS: dict[str, Split] = {
    **dict.fromkeys(("training", "train"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "val"),
    **dict.fromkeys(("testing", "test", "evaluation", "eval"), "test"),
}
# At the beginning of a word, also in "MyTest", but not in "latest".
_SPLIT_WORD = re.compile(rf"(?-i:(?<![A-Za-z])|(?<=[a-z])(?=[A-Z]))(?:{'|'.join(_SPLIT_WORDS)})", re.IGNORECASE)
_UNREADABLE = "Pillow cannot read them as images"


class ScannedFiles(NamedTuple):
    """The visible files in a folder and its subfolders: images that Pillow can read by their suffix, and others.

    Paths are text: a `Path` takes several times as long as listing its file, and ImageNet has 1.3 million.
    """

    images: list[str]
    others: list[str]


class FolderTree(NamedTuple):
    """The images of a dataset's folder by split and class (the only split is None if it has none), and warnings."""

    images: dict[Split | None, dict[str, list[str]]]
    folders: list[Path]
    notes: list[str]


def image_suffixes() -> set[str]:
    """Return the lowercase suffixes, such as ".png", of the images that Pillow and its plugins can read."""
    known = Image.registered_extensions().items()
    return {suffix for suffix, kind in known if kind in Image.OPEN and kind not in _NOT_DECODED}


def is_visible(name: str) -> bool:
    """Return whether a file or folder is neither hidden nor one that an operating system writes beside images."""
    return not name.startswith(".") and name.lower() not in _SYSTEM_FILES


def subfolders(folder: Path) -> list[str]:
    """Return the sorted names of the visible folders in a folder, with links to folders and broken links."""
    found = (entry for entry in _entries(folder) if entry.is_dir() or _is_broken_link(entry))
    return sorted(
        entry.name for entry in found if is_visible(entry.name) and (entry.is_dir() or not Path(entry.name).suffix)
    )


def scan(folder: Path) -> ScannedFiles:
    """Return the visible files in a folder and its subfolders, sorted. Links are followed."""
    suffixes = image_suffixes()
    found = ScannedFiles([], [])
    for path in _walk(str(folder), ()):
        (found.images if suffix_of(path) in suffixes else found.others).append(path)
    return found


def suffix_of(path: str) -> str:
    """Return the lowercase suffix of a file that has one, such as ".png"."""
    return f".{path.rpartition('.')[2].lower()}"


def _entries(folder: Path | str) -> list[os.DirEntry[str]]:
    if not Path(folder).is_dir():
        return []
    with os.scandir(folder) as entries:
        return list(entries)


def _visible(folder: Path | str) -> list[os.DirEntry[str]]:
    return sorted((entry for entry in _entries(folder) if is_visible(entry.name)), key=lambda entry: entry.name)


def _is_broken_link(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and not Path(entry.path).exists()


def _walk(folder: str, above: tuple[str, ...]) -> Iterator[str]:
    here = os.path.realpath(folder)
    for entry in _visible(folder) if here not in above else ():  # a link to a folder above it would never end
        if entry.is_dir():
            yield from _walk(entry.path, (*above, here))
        elif entry.is_file() or _is_broken_link(entry):  # a broken link is reported when it is read
            yield entry.path


def split_name(text: str) -> Split | None:
    """Return the split that a word such as "Training" or "valid" names, or None."""
    return _SPLIT_WORDS.get(text.strip().lower())


def split_folders(names: Sequence[str]) -> dict[str, Split]:
    """Return which folders of one level are splits.

    These are names such as "Train" and "valid", and names that differ only in such a word, such as "seg_train" and
    "seg_test". "train_station" is a split only if there is also, for example, a "test_station".
    """
    found = {name: match for name in names if (match := _SPLIT_WORD.search(name))}
    splits = {name: _SPLIT_WORDS[match[0].lower()] for name, match in found.items()}
    rest = {name: (name[: match.start()], name[match.end() :]) for name, match in found.items()}
    return {
        name: split
        for name, split in splits.items()
        if split_name(name) or any(rest[name] == rest[other] and split != splits[other] for other in splits)
    }


def read_tree(root: Path, class_list: Sequence[str] | None, masks: Path | None) -> FolderTree:
    """Find the images of a folder of class folders, or of split folders that hold class folders.

    If all folders have names in `class_list`, they are classes, even "train". The folder `masks` may be beside the
    split folders. ValueError: an ambiguous folder, or a class in one split that the training images lack.
    """
    if not root.is_dir():
        raise fail("root", "an existing folder", root)
    names, classes = subfolders(root), class_list or ()
    splits = {} if len(names) > 1 and set(names) <= set(classes) else split_folders(names)
    skipped = ScannedFiles([], [])
    if not splits:
        found = read_classes(root, names, classes, skipped)
        notes = skipped_notes(skipped, root)
        direct = any(_images_beside(root / name) for name in names)
        inside = set() if direct or class_list is not None else {tuple(subfolders(root / name)) for name in names}
        if len(inside) == 1 and len(next(iter(inside))) > 1:
            note = f"{shorten(names)} are taken as classes, but all hold the same folders {shorten(next(iter(inside)))}"
            notes.append(f"{note}: if they are splits, call them train, val and test; if not, give class_list")
        return FolderTree({None: found}, [root], notes)
    above_masks = [] if masks is None else [masks.resolve(), *masks.resolve().parents]
    others = [name for name in names if name not in splits and (root / name).resolve() not in above_masks]
    if others:
        hint = "move the others away, or give class_list if all of them are classes"
        got = f"{shorten(list(splits))} beside {shorten(others)}; {hint}"
        raise fail("root", f"folders of splits or of classes in {root}", got)
    folders: dict[Split, Path] = {}
    for name, split in splits.items():
        if folders.setdefault(split, root / name) != root / name:
            raise fail("root", f"one folder for {split!r} in {root}", f"{folders[split].name} and {name}")
    skipped.images.extend(_images_beside(root))
    images: dict[Split | None, dict[str, list[str]]] = {}
    order: tuple[Split, ...] = ("train", "test", "val")
    present = [split for split in order if split in folders]
    for split in present:
        images[split] = read_classes(folders[split], subfolders(folders[split]), classes, skipped)
        unknown = sorted(set(images[split]) - set(images[present[0]]))
        if unknown:
            raise fail("root", f"only classes of {folders[present[0]].name}/ in {folders[split]}", unknown)
    notes = skipped_notes(skipped, root)
    if "test" not in images and "val" in images:
        drawn = ", and validation images are drawn from the training images" if "train" in images else ""
        notes.append(f"there is no test folder, so {folders['val'].name}/ is the test split{drawn}")
        images["test"] = images.pop("val")
    elif "test" not in images:
        note = "is the only split folder, so its images are split as an unsplit folder's"
        notes.append(f"{folders['train'].name}/ {note}")
        images = {None: images["train"]}
    return FolderTree(images, list(folders.values()), notes)


def read_classes(
    folder: Path, names: Sequence[str], class_list: Collection[str], skipped: ScannedFiles
) -> dict[str, list[str]]:
    """Return the images of each class folder; add other files in it to `skipped`.

    `class_list` has names that are classes even if they could be those of splits. ValueError: fewer than two class
    folders, some that are called like splits or hold split folders, or a class without an image.
    """
    beside = _images_beside(folder)
    if len(names) < 2:
        got = f"{len(names)}{f' ({names[0]})' if names else ''}"
        got += f", beside {count_by_suffix(beside, folder)}" if beside else ""
        raise fail("root", f"at least two class folders in {folder}", got)
    splits = [name for name in split_folders(names) if name not in class_list]
    if splits:
        raise fail("root", f"class folders in {folder}", f"{shorten(splits)}, which names splits")
    found = {name: scan(folder / name) for name in names}
    empty = {name: each.others for name, each in found.items() if not each.images}
    if empty:
        listed = [f"{name} ({count_by_suffix(paths, folder) if paths else 'empty'})" for name, paths in empty.items()]
        hint = f"; {_UNREADABLE}" if any(empty.values()) else ""
        raise fail("root", f"images of every class in {folder}", f"none of {shorten(listed)}{hint}")
    for name in names:
        start = len(str(folder / name)) + 1
        nested = any(os.sep in path[start:] for path in found[name].images)
        inner = split_folders(subfolders(folder / name) if nested else ())
        if len(set(inner.values())) > 1:
            got = f"{shorten(list(inner))} in {name}; give {folder / name}, if that has the images"
            raise fail("root", f"split folders above the class folders in {folder}", got)
    skipped.images.extend(beside)
    skipped.others.extend(path for each in found.values() for path in each.others)
    return {name: each.images for name, each in found.items()}


def _images_beside(folder: Path) -> list[str]:
    suffixes = image_suffixes()
    return [entry.path for entry in _visible(folder) if suffix_of(entry.name) in suffixes and entry.is_file()]


def skipped_notes(skipped: ScannedFiles, root: Path) -> list[str]:
    """Return notes about files that are not images, and about images beside class or split folders."""
    notes = [skipped_files_note(skipped.others, root)] if skipped.others else []
    if skipped.images:
        notes.append(f"skipped {count_by_suffix(skipped.images, root)}, beside the folders of classes or splits")
    return notes


def skipped_files_note(paths: Sequence[str], root: Path) -> str:
    """Return the note about files that are not images."""
    heif = any(suffix_of(path) in (".heic", ".heif") for path in paths)
    hint = "; pillow_heif.register_heif_opener() reads HEIC" if heif else ""
    return f"skipped {count_by_suffix(paths, root)}: {_UNREADABLE}{hint}"


def count_by_suffix(paths: Sequence[str], root: Path) -> str:
    """Return the number of files of each suffix and folder, such as "3 .heic files (2 in cat, 1 in dog)"."""
    by_suffix: dict[str, list[str]] = {}
    for path in map(Path, paths):
        folder = "the folder itself" if path.parent == root else path.parent.relative_to(root).as_posix()
        by_suffix.setdefault(path.suffix.lower(), []).append(folder)
    told = []
    for suffix, folders in sorted(by_suffix.items()):
        places = shorten([f"{count} in {folder}" for folder, count in Counter(folders).items()])
        told.append(f"{len(folders)} {suffix or 'suffixless'} file{'s' if len(folders) > 1 else ''} ({places})")
    return shorten(told, 8)


def shorten(items: Sequence[str], most: int = 5) -> str:
    """Return items separated by commas, the first ones if there are many."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more
