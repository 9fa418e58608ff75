"""`init`: write a commented file of settings for the user's images and model."""

from __future__ import annotations

import csv
import json
import shlex
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from robustsigma.cli.evaluate import PRESETS
from robustsigma.cli.method_names import walk_of_photographs
from robustsigma.cli.parsing import check_model, new_parser
from robustsigma.cli.presets import ALLOW_HELP
from robustsigma.data.class_names import class_names, order_notes
from robustsigma.data.csv_tables import delimiter_of
from robustsigma.data.folder_scan import scan
from robustsigma.data.image_files import BROKEN, is_gray
from robustsigma.data.image_folder import ImageFolder
from robustsigma.data.image_table import ImageTable
from robustsigma.data.resize_crop import ResizeCrop
from robustsigma.engine.validation import fail
from robustsigma.evaluation.resolve_settings import resolve_settings
from robustsigma.models.identification import identified, identify
from robustsigma.models.model_files import read_card
from robustsigma.models.published_weights import PUBLISHED, Published, published
from robustsigma.models.weight_files import read_state, stored_statistics
from robustsigma.report.text import one_line
from robustsigma.runs.files import write_atomically

_DESCRIPTION = (
    "Look at a folder of images, and at a model if there is one, and write the settings that `robustsigma evaluate` "
    "needs for them, with comments. Nothing is trained."
)
# Names that columns of tables usually have.
_COLUMNS = {
    "file_column": ("file", "filename", "file_name", "path", "filepath", "image", "image_path", "img"),
    "label_column": ("label", "class", "class_name", "category", "target", "wnid", "class_index"),
    "split_column": ("split", "set", "subset"),
    "mask_column": ("mask", "mask_path"),
}
_SMALL = 128  # pixels
_SAMPLE = 100  # images whose headers are read
_TRAINED_SIZE = 64  # pixels of a network that is trained from scratch, on a CPU as well
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


_TEMPLATE = """\
# Written by: {written}
# Lines with CHECK are guesses. After changing what you like, run this, and run it again to resume:
#   {command}

# {found}
dataset:
  class_path: robustsigma.data.{kind}
  init_args: {options}

# {note}
architecture: {architecture}
{statistics}training: {training}

# Perturbations of the test images, by name. eps is the radius of an attack, for pixels in [0, 1]. CHECK: the radius.
conditions:
  clean: {{class_path: robustsigma.Identity}}
  noise: {{class_path: robustsigma.GaussianNoise, init_args: {{std: 0.1}}}}
  fgsm: {{class_path: robustsigma.FGSM, init_args: {{eps: {eps}}}}}
  pgd: {{class_path: robustsigma.PGD, init_args: {{eps: {eps}, steps: 20}}}}
  sigma: {sample}
  # The attack that reviewers ask for, hundreds of times as expensive as PGD:
  # autoattack: {{class_path: robustsigma.AutoAttack, init_args: {{eps: {eps}}}}}

{retraining}

test_images: 200  # drawn at random; null uses all
eval_batch_size: {batch}
num_workers: 2
seeds: 1  # trainings of each model; 3 show how much chance there is in one training
"""
_RETRAINING = """\
# Models that are trained further and compared: on clean images (the control), FGSM and SIGMA samples.
retraining:
  epochs: 2
  retrain:
    clean: {{class_path: robustsigma.Identity}}
  on_the_fly:
    fgsm: {{class_path: robustsigma.FGSM, init_args: {{eps: {eps}, random_start: true}}}}
    sigma: {sample}"""
_STATISTICS = """\
# CHECK: the numbers of your Normalize transform. These are ImageNet's.
mean: {mean}
std: {std}
"""
_NO_RETRAINING = "retraining: {retrain: {}, on_the_fly: {}}  # no model is trained further"


class _Model(NamedTuple):
    name: str
    weights: str | None
    logits: int | None  # None if unknown
    known: Published | None
    statistics: Any  # mean and std, where `evaluate` finds them by itself
    classes: tuple[str, ...] = ()  # of published weights or a saved model, whose order `evaluate` takes


def run(verb: str, arguments: list[str]) -> None:
    """Parse the arguments and write the file."""
    parser = new_parser("robustsigma init", _DESCRIPTION)
    parser.add_argument("data", type=str, help="folder with a subfolder per class, or with a table of files and labels")
    model_help = "file of weights, or torchvision:NAME, timm:NAME, hf:NAME or a class path; none trains a small network"
    parser.add_argument("--model", type=str, default=None, help=model_help)
    parser.add_argument("--weights", type=str, default=None, help="file of weights of the network that --model names")
    parser.add_argument("--allow", type=str, action="append", default=[], help=ALLOW_HELP)
    parser.add_argument("--file_column", type=str, default=None, help="column of the image files in the table")
    parser.add_argument("--label_column", type=str, default=None, help="column of the labels in the table")
    parser.add_argument("--out", type=str, default="robustsigma.yaml", help="file to write, which must not exist yet")
    found = parser.parse_args(arguments)
    out = Path(found.out)
    if out.exists():
        raise fail("out", "the name of a new file", f"{out}, which exists")
    (dataset, broken), model = _dataset(found), _model(found)
    allowed = [option for name in found.allow for option in ("--allow", name)]
    folder = f"runs/{Path(found.data).resolve().stem}"
    command = shlex.join(["robustsigma", "evaluate", "--config", str(out), *allowed, "--out", folder])
    text = _settings(dataset, broken, model, shlex.join(["robustsigma", verb, *arguments]), command)
    settings = PRESETS.parse("evaluate", "", folder, ["--config", text, *allowed]).settings
    if model is not None and model.statistics is not None:  # so that the weights are not read again
        settings = replace(settings, mean=model.statistics[0], std=model.statistics[1])
    settings = resolve_settings(settings)  # what is written can be run
    if settings.architecture.weights != PUBLISHED:  # which are not downloaded here
        shape, classes = settings.dataset.shape, len(settings.dataset.classes)
        try:
            settings.architecture.check(shape, classes, trained=not settings.training.epochs)
        except ValueError as error:
            if not str(error).startswith("dataset: "):  # the size of images is a guess, which the file can correct
                raise
            warnings.warn(f"{error}; correct the size or channels of the dataset in {out}", stacklevel=1)
    write_atomically(out, text.encode())
    print(f"{out} is written. Read its comments, then run:\n  {command}")


def _dataset(found: Any) -> tuple[ImageFolder | ImageTable, str | None]:
    """Return the dataset and the first of its unreadable images, or None."""
    data = Path(found.data).expanduser()
    if not data.exists():
        raise fail("data", "an existing folder or table", data)
    stated = {name: found[name] for name in ("file_column", "label_column") if found[name] is not None}
    others = []
    for table in [data] if data.is_file() else sorted([*data.glob("*.csv"), *data.glob("*.tsv")]):
        options = _table_options(table, stated)
        if isinstance(options, dict):
            size, gray, broken = _common(scan(table.parent / options["images"]).images)
            options |= {"geometry": ResizeCrop(size) if size else None, "channels": 1 if gray else 3}
            return ImageTable(str(table.parent), table.name, **options), broken
        others.append(f"{table}, which has {options}")
    files, labels = (", ".join(_COLUMNS[name]) for name in ("file_column", "label_column"))
    expected = f"a CSV file with a column of files ({files}, or --file_column NAME) and one of labels ({labels}, or "
    no_table = fail("data", f"{expected}--label_column NAME)", "; ".join(others) or f"none in {data}")
    if data.is_file() or stated:
        raise no_table
    images = scan(data).images
    if not images:
        raise fail("data", "a folder with images", f"none in {data}")
    size, gray, broken = _common(images)
    dataset = ImageFolder(str(data), size=size, channels=1 if gray else 3)
    if others:
        try:
            class_names("data", dataset.classes)
        except ValueError as error:
            raise ValueError(f"{no_table}; nor is it a folder of classes ({error})") from error
    return dataset, broken


def _common(images: Sequence[str]) -> tuple[int | None, bool, str | None]:
    """Return the side of small squares, which are used as they are, or None; whether images are gray; a broken one."""
    sides, modes, broken = set(), set(), None
    for path in images[:: max(1, len(images) // _SAMPLE)]:
        try:
            with Image.open(path) as image:  # its header; pixels are not decoded
                sides |= {*image.size}
                modes.add(image.mode)
        except BROKEN as error:
            broken = broken or f"{path} ({error})"
    if broken is not None and not modes:
        raise fail(
            "data", "images that can be read", f"{broken}; robustsigma doctor --data FOLDER lists all such files"
        )
    return (sides.pop() if len(sides) == 1 and max(sides) <= _SMALL else None), all(map(is_gray, modes)), broken


def _table_options(table: Path, stated: Mapping[str, str]) -> dict[str, Any] | str:
    """Return the options of an ImageTable for a CSV file, or what it has if that is not a list of files and labels."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            delimiter = delimiter_of(file.readline())
            file.seek(0)
            rows = csv.DictReader(file, delimiter=delimiter)
            first, names = next(rows, None), {name.lower(): name for name in rows.fieldnames or () if name}
    except (csv.Error, UnicodeDecodeError):
        return "no UTF-8 text"
    columns = {
        option: next((names[each] for each in usual if each in names), None) for option, usual in _COLUMNS.items()
    }
    columns |= {option: name if name in names.values() else None for option, name in stated.items()}
    file_column = columns["file_column"]
    if file_column is None or columns["label_column"] is None:
        return f"the columns {', '.join(names.values()) or 'none'}"
    if first is None:
        return "no rows"
    path = first[file_column] or ""
    inside = [folder for folder in (".", "images") if (table.parent / folder / path).is_file()]
    if not inside:
        return f"{path!r} in the column {file_column}, which is no file in {table.parent} or its folder images"
    named = {option: name for option, name in columns.items() if name}
    return {"images": inside[0], **named, **({} if columns["split_column"] else {"test_fraction": 0.2})}


def _model(found: Any) -> _Model | None:
    name, weights = found.model, found.weights
    if name is None and weights is None:
        return None
    if name is None or (weights is not None and Path(name).is_file()):
        raise fail("weights", "--model NAME with it, or the file as --model", weights)
    if weights is None and not Path(name).is_file():
        check_model("model", name, found.allow)
        known = published(name)
        if known is None:  # your code, which returns a network with its weights
            return _Model(name, None, None, None, None)
        statistics = None if known.mean is None else (known.mean, known.std)
        return _Model(name, PUBLISHED, len(known.classes), known, statistics, known.classes)
    if weights is None:
        name, weights = None, name
    else:
        check_model("model", name, found.allow)
    card = read_card(weights, "model")
    if card is not None and card.architecture is not None:
        return _Model(card.architecture.name, weights, len(card.classes), None, (card.mean, card.std), card.classes)
    state = read_state(weights, "model")
    name, logits = identified(state, weights) if name is None else identify(state, name) or (name, None)
    return _Model(name, weights, logits, published(name), stored_statistics(state))


def _settings(
    dataset: ImageFolder | ImageTable, broken: str | None, model: _Model | None, written: str, command: str
) -> str:
    """Return the YAML, with comments that say what was found and what to check."""
    known = model.known if model else None
    # All images, if no folder or column says which are for training.
    whole = replace(dataset, test_fraction=1.0)
    if model and known and model.weights == PUBLISHED:  # whose classes may be many more than there are folders
        count = len(whole.adapt_to_model(known.classes, known.geometry).classes)
    else:
        count = len(whole.classes)
    as_is = model is not None and model.logits in (None, count)
    if as_is and whole.splits == ("test",):
        dataset = whole
    trains = "train" in dataset.splits
    if not as_is and not trains:
        logits = f"{model.logits} logits" if model else "no model"
        raise fail("model", f"one of the {count} classes of {dataset.root}, which has no training images", logits)
    if dataset.geometry is None and not (isinstance(dataset, ImageFolder) and dataset.size):
        dataset = replace(dataset, geometry=known.geometry if known else ResizeCrop(_TRAINED_SIZE))
    side = dataset.shape[1]
    eps = "0.1" if dataset.channels == 1 else f"{8 / 255 if side <= 64 else 4 / 255:.7f}"
    architecture = {"name": model.name if model else "small_cnn"}
    note = "The network is used as it is." if as_is else "The network is trained on these images."
    if model and not as_is:
        note += f" It has {model.logits} logits for other classes, so its last layer starts anew."
    if model and model.weights:
        architecture["weights"] = model.weights
    statistics = ""
    if model and model.statistics is None:
        mean, std = (known.mean, known.std) if known and known.mean else _IMAGENET
        statistics = _STATISTICS.format(mean=_flow(mean), std=_flow(std))
    sample: dict[str, Any] = {"class_path": "robustsigma.SigmaSample"}
    if side > _SMALL:
        sample["init_args"] = {"sigma": walk_of_photographs()}
    retraining = _RETRAINING.format(eps=eps, sample=_flow(sample))
    if as_is:  # evaluated only, until somebody wants more
        commented = "\n".join(f"# {line}" for line in retraining.splitlines())
        hint = '# To train further, delete the line above and the first "# " of each line below.'
        retraining = f"{_NO_RETRAINING}\n{hint}\n{commented}" if trains else _NO_RETRAINING
    given = {field.name: (getattr(dataset, field.name), field.default) for field in fields(dataset)}
    options = {name: value for name, (value, default) in given.items() if value != default}
    if dataset.geometry is not None:
        options["geometry"] = asdict(dataset.geometry)
    unreadable = ""
    if broken is not None:  # not before the images are counted, as each of them would be decoded
        options["skip_broken"] = True
        listed = shlex.join(["robustsigma", "doctor", "--data", str(dataset.root)])
        unreadable = f"\n# skip_broken leaves out images that cannot be read, such as {one_line(broken)}."
        unreadable += f" This lists them:\n#   {one_line(listed)}"
    guessed = model is not None and model.weights != PUBLISHED and dataset.geometry is not None
    used = dataset.adapt_to_model(model.classes, None) if as_is and model and model.classes else dataset
    counts = ", ".join(f"{len(used.split(split)):,} {split}" for split in dataset.splits)
    order = order_notes(used.classes) if used.class_list is None else []
    return _TEMPLATE.format(
        written=written,
        command=command,
        found=f"Found {len(dataset.classes)} classes; images: {counts}; shown to the model as {side} x {side} pixels."
        + guessed * "\n# CHECK: size and resize, in pixels, of your transforms."
        + "".join(f"\n# CHECK: {note}." for note in order)
        + unreadable,
        kind=type(dataset).__name__,
        options=_flow(options),
        note=note,
        architecture=_flow(architecture),
        statistics=statistics,
        training="{epochs: 0}  # used as it is" if as_is else "{epochs: 20, batch_size: 64, lr: 0.003}",
        retraining=retraining,
        batch=128 if side <= 64 else 32,
        eps=eps,
        sample=_flow(sample),
    )


def _flow(value: Any) -> str:
    """Return a value as YAML in one line, which JSON is."""
    return json.dumps(list(value) if isinstance(value, tuple) else value)
