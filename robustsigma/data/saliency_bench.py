"""`SaliencyBench`: images in class folders, and tables of what people marked in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from robustsigma.data.csv_tables import Annotation, is_file_name, read_annotations
from robustsigma.data.file_dataset_spec import FileDatasetSpec, ListedImage, Listing
from robustsigma.data.folder_scan import ScannedFiles, read_classes, scan, skipped_notes, subfolders
from robustsigma.data.resize_crop import ResizeCrop
from robustsigma.engine.validation import fail, integer, several


@dataclass(frozen=True)
class SaliencyBench(FileDatasetSpec):
    """A folder in the published layout of Saliency-Bench (Zhang et al., arXiv 2310.08537, xaidataset.github.io).

    All of its datasets have this layout, such as nodules in the lung (the SIGMA paper's Disease-XAI) and prohibited
    items in baggage (its Security-XAI, whose annotations are boxes).

    `root/image/CLASS/` and its subfolders hold the images of a class. `root/attention_label/*.csv` are tables with the
    columns `img_idx`, the name of an image's file, and `attention`, a two-dimensional JSON array of numbers in [0, 1]
    that spans the whole image. An image without a row is unannotated: its mask is all zero. Images are squeezed to a
    square and EXIF orientation is ignored, as in the benchmark's own loader, since annotations follow the stored
    pixels. Gray images become color, transparency is dropped. Annotations are resized by area average and stay soft:
    metrics decide the value from which a pixel counts as marked. The benchmark splits 60:20:20 at random and does not
    publish its split; this one is stratified and drawn from the seed.

    The first split warns once about skipped files, about classes without a test image, and about rows whose image is
    in no class folder, which are left out. Hidden files and folders are skipped. The folder is listed once: make a new
    `SaliencyBench` after changing it.

    Args:
        root: the folder.
        class_list: names of the class folders to use. A label is the place of a class in it. None uses all, sorted.
        size: side of the images and masks in pixels.
        val_fraction: fraction of the images that becomes "val".
        test_fraction: fraction of the images that becomes "test".
        seed: seed of the split.
        skip_broken: leave unreadable images out, with one warning that counts them, instead of raising ValueError. Each
            split is decoded once in advance for it.

    Example:
        >>> SaliencyBench("lung", size=128).shape
        (3, 128, 128)
    """

    _upright = False  # annotations follow the stored pixels
    root: str
    class_list: tuple[str, ...] | None = None
    size: int = 224
    val_fraction: float = 0.2
    test_fraction: float = 0.2
    seed: int = 0
    skip_broken: bool = False

    def __post_init__(self) -> None:
        integer("size", self.size, 1)
        self._check_settings()
        if self.class_list is None:
            return
        several("class_list", self.class_list)
        names = tuple(self.class_list)
        if len(names) < 2 or len(set(names)) < len(names) or not all(map(is_file_name, names)):
            raise fail("class_list", "at least two names of folders, each once", list(names))
        object.__setattr__(self, "class_list", names)  # a list is not hashable

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the class folders, in the given order or sorted."""
        return tuple(self._images[0])

    @property
    def _resize(self) -> ResizeCrop:
        return ResizeCrop(self.size, squeeze=True)

    @property
    def _place(self) -> Path:
        return Path(self.root) / "image"

    @property
    def _tables(self) -> list[Path]:
        return sorted((Path(self.root) / "attention_label").glob("*.csv"))

    @cached_property
    def _images(self) -> tuple[dict[str, list[str]], list[str]]:
        """The images of each class, and warnings for the user."""
        folder, skipped = self._place, ScannedFiles([], [])
        if not folder.is_dir():
            raise fail("root", "a folder with the subfolders image and attention_label", f"no folder {folder}")
        found = subfolders(folder)
        names = found if self.class_list is None else self.class_list
        missing = [name for name in names if name not in found]
        if missing:
            raise fail("class_list", f"folders of {folder}: {', '.join(found) or 'none'}", missing)
        images = read_classes(folder, names, self.class_list or (), skipped)
        return images, skipped_notes(skipped, folder)

    @cached_property
    def _listing(self) -> Listing:
        images, notes = self._images
        annotations = read_annotations(Path(self.root) / "attention_label")
        others = [scan(self._place / name).images for name in subfolders(self._place) if name not in images]
        every = [path for paths in (*images.values(), *others) for path in paths]
        rows = [
            ListedImage(path, (name,), annotations.get(Path(path).name), f"as a folder of {self._place}")
            for name, paths in images.items()
            for path in paths
        ]
        return Listing({None: rows}, [*notes, *_unmatched_notes(annotations, every)])


def _unmatched_notes(annotations: Mapping[str, Annotation], images: list[str]) -> list[str]:
    """Return a note about annotations without an image; refuse one that fits two images, or none that fits any."""
    by_name: dict[str, str] = {}
    for path in images:
        name = Path(path).name
        first = by_name.setdefault(name, path)
        if first != path and name in annotations:
            where = annotations[name].where
            raise fail("root", f"one image for the annotation in {where}", f"{first} and {path}")
    lost = [name for name in annotations if name not in by_name]
    if not lost:
        return []
    hint = f"{len(lost)} of {len(annotations)} annotations are of images that no class folder has"
    hint += f", the first of {lost[0]}"
    if len(lost) == len(annotations):
        raise fail("root", "annotations that name the files of images", hint)
    return [f"{hint} ({annotations[lost[0]].where}); left out"]
