"""Folders of images and of what is marked in them."""

import csv
import json

import numpy as np
from PIL import Image


def picture(path, value, size=(20, 14), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


def read_everything(dataset):
    """Read every image and mask, as a training does, and return the dataset."""
    for index in range(len(dataset)):
        dataset[index]
        if hasattr(dataset, "mask"):
            dataset.mask(index)
    return dataset


def class_folders(root, count=20):
    for c, name in enumerate(("ant", "bee")):
        for i in range(count):
            picture(root / name / f"{i:02}.png", (100 * c + i, i, 0))
    return root


def masks_of(root, images, size=(20, 14)):
    """Write a mask for every second image: the left third is marked."""
    for path in sorted(images.rglob("*.png"))[::2]:
        mask = np.zeros(size[::-1], np.uint8)
        mask[:, : size[0] // 3] = 255
        target = root / path.relative_to(images)
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(target)
    return root


def table(path, rows, header=("img_idx", "attention")):
    """Write a CSV file; cells that are no text are written as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows([cell if isinstance(cell, str) else json.dumps(cell) for cell in row] for row in rows)


def marked(i, side=12):
    """Return the annotation of image i: a soft square that moves."""
    values = np.zeros((side, side))
    values[2:6, i % 6 : i % 6 + 5] = 1
    values[6, i % 6] = 0.25
    return values.tolist()


def saliency_bench(root, count=15):
    """Write two classes; in two tables, two of three images are annotated."""
    rows = []
    for c, name in enumerate(("cat", "dog")):
        for i in range(count):
            file = f"{name}_{i:02}.{'jpg' if i % 2 else 'png'}"
            pixels = np.random.default_rng((c, i)).integers(0, 256, (14, 20, 3)).astype(np.uint8)
            (root / "image" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / "image" / name / file)
            if i % 3:
                rows.append((file, marked(i)))
    table(root / "attention_label" / "first.csv", rows[::2])
    table(root / "attention_label" / "second.csv", rows[1::2])
    return root
