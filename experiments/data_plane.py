"""Measure how image files are listed, decoded and handed over: python experiments/data_plane.py.

Files: CPU time of listing a folder, labeling its images and taking its fingerprint, beside os.walk and beside one
os.scandir and stat of each file, which is the least that a cache on disk would need to notice an edited file.
Decodes: how often an image is decoded by making a dataset and asking for its classes, length, labels and fingerprint,
and by one pass. JPEG: images of a second and core, beside torchvision's ImageFolder and decode_jpeg, on crops of the
two photographs that scikit-learn contains. Draft: what decoding at a smaller scale changes and saves where a photograph
is much larger than `size`. Handing over: an epoch through a loading process with bytes and with floats.

Everything is timed in turns, one thread, so that other work on the machine affects all alike; medians of CPU time.
Writes results/data_plane.json. `--files 1281167` is the large form, of ImageNet's number of files.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image, ImageFile

from robustsigma.data import ImageFolder, ImageTable, RandomResizedCrop
from robustsigma.data.loading import load_pixels
from robustsigma.data.resize_crop import ResizeCrop
from robustsigma.lightning import RobustDataModule
from robustsigma.lightning.loaders import make_loader
from robustsigma.runs.files import write_atomically
from robustsigma.runs.provenance import Provenance

CLASSES = 100


def in_turns(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the median CPU time of each function in seconds."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.process_time()
            function()
            times[name].append(time.process_time() - start)
    return {name: statistics.median(each) for name, each in times.items()}


def write_files(root: Path, count: int) -> None:
    """Write files whose names are those of images, in class folders, and a table of them."""
    rows = ["file,label"]
    for label in range(CLASSES):
        folder = root / f"n{label:08d}"
        folder.mkdir()
        for place in range(label, count, CLASSES):
            name = f"{folder.name}_{place:07d}.JPEG"
            (folder / name).write_bytes(b"no image")
            rows.append(f"{folder.name}/{name},{label}")
    (root / "labels.csv").write_text("\n".join(rows))


def stat_every_file(root: Path) -> None:
    """Read every folder, and the size and time of change of every file."""
    stack = [str(root)]
    while stack:
        with os.scandir(stack.pop()) as entries:
            for entry in entries:
                if entry.is_dir():
                    stack.append(entry.path)
                else:
                    entry.stat()


def files(count: int, repeats: int) -> dict[str, Any]:
    """Return CPU time per file in microseconds, and its ratio to os.walk."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_files(root, count)
        known = ImageFolder(name, test_fraction=1)
        known.split("test")
        functions: dict[str, Callable[[], object]] = {
            "os.walk": lambda: [None for _ in os.walk(root)],
            "os.scandir and stat": lambda: stat_every_file(root),
            "ImageFolder: classes": lambda: ImageFolder(name, test_fraction=1).classes,
            "ImageFolder: split": lambda: ImageFolder(name, test_fraction=1).split("test"),
            "ImageFolder: fingerprint, once listed": known.fingerprint,
            "ImageTable: split": lambda: ImageTable(name).split("test"),
        }
        times = in_turns(functions, repeats)
        tracemalloc.start()
        dataset = ImageFolder(name, test_fraction=1).split("test")
        rows = tracemalloc.take_snapshot()
        tracemalloc.stop()
        assert len(dataset) == count
    held = [each for each in rows.statistics("filename") if each.traceback[0].filename.endswith("image_files.py")]
    walk = times["os.walk"]
    return {
        "count": count,
        "microseconds": {key: 1e6 * value / count for key, value in times.items()},
        "ratio_to_walk": {key: value / walk for key, value in times.items()},
        "bytes_of_a_row_in_a_worker": sum(each.size for each in held) / count,
    }


def photographs(root: Path, count: int, size: tuple[int, int], quality: int) -> None:
    """Write JPEG crops of scikit-learn's two photographs, in two class folders."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    for label, array in enumerate(load_sample_images().images):
        image = Image.fromarray(array)
        (root / str(label)).mkdir(parents=True)
        for place in range(count // 2):
            width, height = (int(side * rng.uniform(0.7, 1)) for side in image.size)
            left, top = (int(rng.integers(0, most + 1)) for most in (image.width - width, image.height - height))
            crop = image.resize(size, Image.Resampling.LANCZOS, (left, top, left + width, top + height))
            crop.save(root / str(label) / f"{place:04d}.jpg", quality=quality)


def decodes(root: Path) -> dict[str, float]:
    """Return the number of decodes per image of some actions."""
    found: dict[str, float] = {}
    load, counted = ImageFile.ImageFile.load, [0]

    def counting(self: Any) -> Any:
        counted[0] += bool(self.tile)  # empty once the image is decoded
        return load(self)

    def note(name: str, action: Callable[[], object]) -> None:
        counted[0] = 0
        action()
        found[name] = counted[0] / count

    with patch.object(ImageFile.ImageFile, "load", counting):
        spec = ImageFolder(str(root), size=224, test_fraction=0.2)
        count = sum(1 for _ in root.rglob("*.jpg"))
        note("classes, lengths, labels", lambda: [(len(spec.split(s)), spec.split(s).labels) for s in spec.splits])
        note("fingerprint", spec.fingerprint)
        data = RobustDataModule(spec, batch_size=8, num_workers=0)
        loaders: Any = [data.train_dataloader(), *data.val_dataloader(), *data.test_dataloader()]
        note("one pass over each split", lambda: [sum(len(batch) for batch in loader) for loader in loaders])
    return found


def throughput(root: Path, repeats: int) -> dict[str, Any]:
    """Return images of a second and core, and its ratio to torchvision's ImageFolder."""
    from torchvision.datasets import ImageFolder as Folder
    from torchvision.io import decode_jpeg, read_file
    from torchvision.transforms import v2

    paths = sorted(map(str, root.rglob("*.jpg")))
    crop = v2.Compose([v2.Resize(256), v2.CenterCrop(224), v2.PILToTensor()])
    random = v2.Compose([v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), v2.PILToTensor()])
    of_tensors = v2.Compose([v2.Resize(256), v2.CenterCrop(224)])
    every = list(range(len(paths)))
    ours = ImageFolder(str(root), geometry=ResizeCrop(224, 256), test_fraction=1).split("test")
    cropped, plain, randomly = (Folder(str(root), each) for each in (crop, None, random))
    functions: dict[str, Callable[[], object]] = {
        "torchvision ImageFolder, Resize(256), CenterCrop(224)": lambda: [cropped[i] for i in every],
        "robustsigma, ResizeCrop(224, 256)": lambda: load_pixels(ours, every),
        "torchvision ImageFolder, RandomResizedCrop(224), flip": lambda: [randomly[i] for i in every],
        "robustsigma, RandomResizedCrop": lambda: load_pixels(ours, every, RandomResizedCrop(), every),
        "torchvision ImageFolder, decoding alone": lambda: [plain[i] for i in every],
        "torchvision decode_jpeg alone": lambda: [decode_jpeg(read_file(path)) for path in paths],
        "torchvision decode_jpeg, Resize(256), CenterCrop(224)": lambda: [
            of_tensors(decode_jpeg(read_file(path))) for path in paths
        ],
    }
    expected = torch.stack([cropped[i][0] for i in every[:8]])
    rates = {key: len(every) / value for key, value in in_turns(functions, repeats).items()}
    first = next(iter(rates.values()))
    return {
        "images_per_second": rates,
        "ratio_to_first": {key: rate / first for key, rate in rates.items()},
        "same_pixels_as_torchvision": torch.equal(load_pixels(ours, every[:8])[0], expected),
    }


def draft(root: Path, sizes: list[int], repeats: int) -> list[dict[str, Any]]:
    """Return what decoding at a smaller scale changes, in 255ths, and how much faster it is."""
    found = []
    for size in sizes:
        spec = ImageFolder(str(root), size=size, test_fraction=1).split("test")
        load = partial(load_pixels, spec, range(len(spec)))
        drafted, fast = load()[0].int(), in_turns({"": load}, repeats)[""]
        with patch("PIL.JpegImagePlugin.JpegImageFile.draft", lambda *_: None):
            full, slow = load()[0].int(), in_turns({"": load}, repeats)[""]
        change = (drafted - full).abs().flatten()
        row = {
            "mean": float(change.float().mean()),
            "99th percentile": int(change.sort().values[int(0.99 * len(change))]),
        }
        found.append({"size": size, **row, "most": int(change.max()), "faster": slow / fast})
    return found


def handing_over(root: Path, repeats: int) -> dict[str, Any]:
    """Return the wall time of an epoch with one loading process, of floats as a multiple of that of bytes."""
    spec = ImageFolder(str(root), size=224, test_fraction=1).split("test")
    options: dict[str, Any] = {"limit": None, "sampler": None, "rank": 0, "world_size": 1, "batch_size": 16}
    times: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(repeats + 1):
        for keep in times:
            start = time.perf_counter()
            fresh = make_loader(spec, augment=None, seed=0, shuffle=True, num_workers=1, drop_last=False, **options)
            fresh.on_start, fresh.dataset.keep_bytes = (lambda: True), keep  # type: ignore[attr-defined]
            sizes = {batch.images.element_size() for batch in fresh}
            times[keep].append(time.perf_counter() - start)
            assert sizes == {1 if keep else 4}
    return {"floats_to_bytes": statistics.median(times[False][1:]) / statistics.median(times[True][1:])}


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=50_000, help="number of files that are listed")
    parser.add_argument("--images", type=int, default=64, help="number of JPEG files of 500 x 375 pixels")
    parser.add_argument("--repeats", type=int, default=5, help="number of repetitions, of which the median is taken")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the results")
    parser.add_argument("--fast", action="store_true", help="small version that only checks that the script runs")
    options = parser.parse_args(arguments)
    if options.fast:
        options.files, options.images, options.repeats = 400, 8, 1
    provenance = Provenance("python experiments/data_plane.py")
    torch.set_num_threads(1)
    results: dict[str, Any] = {"settings": {name: getattr(options, name) for name in ("files", "images", "repeats")}}
    results["files"] = files(options.files, options.repeats)
    with tempfile.TemporaryDirectory() as name:
        small, large = Path(name) / "small", Path(name) / "large"
        photographs(small, options.images, (500, 375), quality=90)
        photographs(large, max(4, options.images // 8), (2000, 1500), quality=90)
        results["decodes"] = decodes(small)
        results["jpeg"] = throughput(small, options.repeats)
        results["draft"] = draft(large, [32, 64, 224, 512], options.repeats)
        results["handing_over"] = handing_over(small, options.repeats)
    results["provenance"] = provenance.record()
    for name in ("files", "decodes", "jpeg", "draft", "handing_over"):
        print(name, json.dumps(results[name], indent=1))
    print(write_atomically(options.out / "data_plane.json", (json.dumps(results, indent=1) + "\n").encode()))


if __name__ == "__main__":
    main()
