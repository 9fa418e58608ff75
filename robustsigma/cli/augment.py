"""`augment`: write a folder of perturbed images with a manifest."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from torch import Tensor

from robustsigma.cli import images
from robustsigma.cli.parsing import new_parser, parse
from robustsigma.data.class_names import ClassIndex, are_wnids
from robustsigma.data.dataset_spec import DatasetSpec, adapt_and_check
from robustsigma.data.loading import load_batch, subsample
from robustsigma.engine import noise, validation
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.device import best_device
from robustsigma.engine.metrics import linf, rmse, ssim
from robustsigma.engine.perturbations import Perturbation
from robustsigma.engine.validation import fail, integer
from robustsigma.models import ModelCard
from robustsigma.report.text import printable
from robustsigma.runs.directory import init_run_dir, output_folder, remove_leftovers
from robustsigma.runs.files import write_atomically
from robustsigma.runs.fingerprint import code_of, files
from robustsigma.runs.progress import RunProgress

_DESCRIPTION = (
    "Perturb images against a model and write them as PNG files, in a folder for each class, with manifest.csv. "
    "Takes image files or a dataset. Run the same command again to resume."
)
_BATCH = 16  # the unit that an interrupted run keeps
_COLUMNS = (
    "file,from,label,seed,confidence_before,confidence_after,predicted_after,attempted,converged,steps,rmse,linf,ssim"
)


class Item(NamedTuple):
    """A batch of images to perturb, their origins, and their labels, -1 where the prediction takes their place."""

    origins: list[str]
    indices: Tensor
    images: Tensor
    labels: Tensor


def run(verb: str, arguments: list[str]) -> None:
    """Parse the arguments and write the folder."""
    parser = new_parser("robustsigma augment", _DESCRIPTION)
    parser.add_argument("images", type=str, nargs="*", default=[], help="image files, or folders of them")
    parser.add_argument("--dataset", type=DatasetSpec | None, default=None, help="a dataset instead, such as Baggage")
    parser.add_argument("--split", type=str, default="train", help="split of the dataset")
    parser.add_argument("--count", type=int, default=None, help="number of images drawn from the dataset; all if none")
    label_help = "class of the image files; if not given, that of their class folders, or else the predicted one"
    parser.add_argument("--label", type=str, default=None, help=label_help)
    images.add_model(parser)
    parser.add_argument("--perturbation", type=Perturbation, default="SigmaSample", help="class of a perturbation")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random draws")
    parser.add_argument("--out", type=str, default="augmented", help="folder of the samples")
    parser.add_argument("--config", action="config", help="YAML file of these options")
    _augment(*parse(parser, arguments))


def _augment(found: Any, made: Any) -> None:
    dataset: DatasetSpec | None = made.dataset
    perturbation: Perturbation = made.perturbation
    if bool(found.images) == (dataset is not None):
        raise fail("images", "image files or --dataset, one of the two", "both" if found.images else "neither")
    paths = images.files(found.images, found.out) if dataset is None else []
    classifier, card = images.model(found, made)
    batches = list(_files(found, paths, card) if dataset is None else _split(found, dataset, card))
    out, console = output_folder(found.out), Console()
    settings = {name: getattr(found, name) for name in ("images", "split", "count", "label", "seed")}
    parts = out / ".parts"
    settings |= {"dataset": repr(dataset), "perturbation": repr(perturbation)}
    data = files(paths) if dataset is None else dataset.fingerprint()
    settings |= {**images.model_settings(found, classifier, card), "data": data}
    init_run_dir(parts, {**settings, **code_of(found.allow, perturbation)})
    remove_leftovers(out)
    with RunProgress(len(batches), console) as progress:
        for number, load in enumerate(batches):
            part = parts / f"{number:06}.csv"
            if part.is_file():
                progress.finish(f"batch {number}: was written before")
                continue
            with progress.job(f"batch {number}"):
                rows = _write(load(), classifier, card, perturbation, found.seed, out)
                write_atomically(part, rows.encode())
    manifest = "".join([_COLUMNS + "\n", *((parts / f"{n:06}.csv").read_text("utf-8") for n in range(len(batches)))])
    path = write_atomically(out / "manifest.csv", manifest.encode())
    console.print(f"The manifest: [bold]{path}[/bold]", soft_wrap=True)


def _files(found: Any, paths: Sequence[Path], card: ModelCard) -> Iterator[Any]:
    """Yield functions that load a batch of the image files."""
    labels = torch.tensor(_labels(found, paths, card.classes))

    def load(start: int) -> Item:
        part, indices = paths[start : start + _BATCH], torch.arange(start, min(start + _BATCH, len(paths)))
        return Item([str(p) for p in part], indices, images.read(part, card), labels[indices])

    return ((lambda start=start: load(start)) for start in range(0, len(paths), _BATCH))


def _labels(found: Any, paths: Sequence[Path], classes: Sequence[str]) -> list[int]:
    """Return the labels of image files: the stated one, or those of their class folders, -1 for an unknown one."""
    label = images.class_index(found.label, classes, "label")
    if label is not None:
        return [label] * len(paths)
    index, roots = ClassIndex(classes), {Path(path).expanduser() for path in found.images}
    labels = [_class_of_folder(path, roots, index, classes) for path in paths]
    unknown = [path for path, label in zip(paths, labels, strict=True) if label < 0]
    if unknown:
        lie = f"{len(unknown)} of {len(paths)} images lie in no folder of a class of the model, such as {unknown[0]}"
        warnings.warn(f"label: {lie}; their labels are the model's predictions; --label CLASS states one", stacklevel=1)
    return labels


def _class_of_folder(path: Path, roots: set[Path], index: ClassIndex, classes: Sequence[str]) -> int:
    """Return the label of the closest folder, up to the given one, that is called as a class, or -1."""
    for folder in path.parents:
        if folder.name in classes or are_wnids([folder.name]):
            with suppress(ValueError):  # a name of two classes, or an identifier beside other classes
                return index.find(folder.name, "label", "")
        if not roots.isdisjoint((path, folder)):
            break
    return -1


def _split(found: Any, spec: DatasetSpec, card: ModelCard) -> Iterator[Any]:
    """Yield functions that load a batch of the dataset."""
    spec = adapt_and_check(spec, card.classes, card.shape, card.geometry, "model")
    DatasetSpec.check_split(found.split)
    if found.count is not None:
        integer("count", found.count, 1)
    dataset = spec.split(found.split)
    indices = subsample(len(dataset), found.count, found.seed)  # type: ignore[arg-type]

    def load(start: int) -> Item:
        part = indices[start : start + _BATCH]
        return Item([f"{found.split}/{i}" for i in part], torch.tensor(part), *load_batch(dataset, part))

    return ((lambda start=start: load(start)) for start in range(0, len(indices), _BATCH))


def _write(
    item: Item, classifier: Classifier, card: ModelCard, perturbation: Perturbation, seed: int, out: Path
) -> str:
    """Write a batch of samples and return its rows of the manifest."""
    clean = item.images.to(best_device())
    with classifier.frozen():
        before = classifier.logits(clean)
    validation.logits(before)
    labels = item.labels.to(clean.device)
    labels = before.argmax(1).where(labels < 0, labels)
    seeds = noise.image_seeds(seed, "augment", "augment", 0, item.indices.to(clean.device))
    made = perturbation(classifier, clean, labels, seed=seeds, return_info="search")
    pixels = (made.images * 255).round()
    with classifier.frozen():  # of the rounded pixels that the file will hold
        after = classifier.logits(pixels / 255)
    confidence = [logits.softmax(1).gather(1, labels[:, None])[:, 0].tolist() for logits in (before, after)]
    distances = [measure(pixels / 255, clean).tolist() for measure in (rmse, linf, ssim)]
    rows = []
    for row, label in enumerate(labels.tolist()):
        file = f"{_folder(label, card.classes)}/{int(item.indices[row]):07}.png"
        write_atomically(out / file, images.png(pixels[row]))
        rows.append(
            [file, printable(item.origins[row]), printable(card.classes[label]), int(seeds[row])]
            + [f"{column[row]:.6g}" for column in confidence]
            + [printable(card.classes[int(after[row].argmax())])]
            + [int(made.attempted[row]), int(made.converged[row]), int(made.steps[row])]
            + [f"{column[row]:.6g}" for column in distances]
        )
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _folder(label: int, classes: Sequence[str]) -> str:
    """Return a folder name for a class; no class name leads out of the output folder."""
    return f"{label:03}_" + "".join(c if c.isalnum() or c in "-_ " else "_" for c in classes[label])[:60]
