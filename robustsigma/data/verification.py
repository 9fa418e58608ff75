"""`verify_images`: find the files that cannot be decoded before a training or an evaluation meets them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from robustsigma.data.file_dataset_spec import FileDatasetSpec
from robustsigma.data.folder_scan import scan
from robustsigma.data.image_files import FileDataset, ImageRow, MaskedFileDataset
from robustsigma.engine.validation import fail

_SIZE = 64  # to which images of a folder are resized; JPEG files are decoded faster at a smaller scale


def verify_images(data: FileDatasetSpec | str | Path) -> dict[str, str]:
    """Decode every image and mask once, in threads, and return why some cannot be read, by file.

    Args:
        data: a dataset of image files, or a folder, whose subfolders count too.

    Raises:
        ValueError: no dataset of files, or a folder without images.

    Example:
        >>> verify_images("photos")
        {'photos/cat/17.jpg': 'image file is truncated (5 bytes not processed)'}
    """
    if isinstance(data, FileDatasetSpec):
        spec = dataclasses.replace(data, skip_broken=False)  # type: ignore[type-var]
        datasets = [spec.split(split) for split in spec.splits]
    elif isinstance(data, (str, Path)) and Path(data).is_dir():
        rows = [ImageRow(path) for path in scan(Path(data)).images]
        if not rows:
            raise fail("data", f"a folder with images, at {data}", "none")
        datasets = [FileDataset(rows, _SIZE, channels=3, name="data")]
    else:
        raise fail("data", "an existing folder, or a dataset of image files such as ImageFolder", repr(data)[:80])
    found = {dataset.rows[index].path: why for dataset in datasets for index, why in dataset.find_broken().items()}
    for dataset in datasets:
        found |= dataset.find_broken_masks() if isinstance(dataset, MaskedFileDataset) else {}
    return found
