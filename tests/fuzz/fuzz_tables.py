"""Tables of images and of annotations, and lists of classes: bytes that somebody else has written."""

from __future__ import annotations

import io
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from outcome import settled
from PIL import Image

from robustsigma.data import ImageTable
from robustsigma.data.class_names import ClassIndex
from robustsigma.data.csv_tables import read_annotations
from robustsigma.data.resize_crop import ResizeCrop
from robustsigma.models import Pretrained

CELLS = (
    "a.png", "b/c.png", "0", "1", "cat", "dog", "0;1", "cat|dog", "1 2", "", " ", '"', "'", "\0", "../x.png",
    "/etc/passwd", "..\\x.png", "C:\\x.png", "x" * 300, "x" * 200_000, "link.png", "circle.png", "none.png",
    "n01440764", "train", "val", "test", "\ufeff", "\u202e", "-1", "1e3", "²", "٣", "9" * 30, "=1+1", "a\nb",
    "a\rb", "[[0, 1]]", "[[0.5]]", "[[NaN]]", "[" * 5000, "[[1], [2, 3]]", "[[1e999]]", "{}", "a.png/", ".",
    "./a.png", "b//c.png", "~/x.png",
)  # fmt: skip
HEADS = ("file", "label", "mask", "split", "img_idx", "attention", "", "\ufefffile", "x")
ENCODINGS = ("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1", "utf-32")


@st.composite
def tables(draw: Any) -> dict[str, Any]:
    """Return the bytes of a table, most often with the columns that it should have."""
    kind = draw(st.sampled_from(["images", "annotations"]))
    usual = ["file", "label"] if kind == "images" else ["img_idx", "attention"]
    head = draw(
        st.one_of(st.just(usual), st.just([*usual, "mask", "split"]), st.lists(st.sampled_from(HEADS), max_size=5))
    )
    right = st.tuples(st.sampled_from(["a.png", "b/c.png"]), st.sampled_from(["0", "1", "cat", "[[0, 1]]"]))
    width = max(1, len(head))
    any_row = st.lists(st.sampled_from(CELLS), min_size=width - (width > 1), max_size=width + 1)
    full_row = st.lists(st.sampled_from(CELLS), min_size=width, max_size=width)
    rows = draw(st.lists(st.one_of(right.map(list), full_row, full_row, any_row), max_size=4))
    quoted = draw(st.booleans())
    lines = [",".join(f'"{cell}"' if quoted and '"' not in cell else cell for cell in row) for row in [head, *rows]]
    text = draw(st.sampled_from(["\n", "\r\n", "\r"])).join(lines) + draw(st.sampled_from(["", "\n", "\n\n"]))
    content = text.encode(draw(st.sampled_from(ENCODINGS)), "replace")
    if draw(st.integers(0, 5)) == 0:
        place = draw(st.integers(0, len(content)))
        content = content[:place] + draw(st.binary(max_size=9)) + content[place + 1 :]
    return {
        "kind": kind,
        "content": content,
        "classes": draw(st.sampled_from([None, ("cat", "dog"), ("0", "1", "2"), ("cat", "cat", "dog")])),
        "columns": draw(
            st.sampled_from([{}, {}, {"mask_column": "mask"}, {"split_column": "split"}, {"file_column": ""}])
        ),
        "test_fraction": draw(st.sampled_from([1.0, 0.4])),
        "skip_broken": draw(st.booleans()),
    }


@lru_cache(maxsize=1)
def _picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (5, 4), 90).save(buffer, "PNG")
    return buffer.getvalue()


def read_table(drawn: dict[str, Any]) -> None:
    """Read it; what is read lies in the folder, and no label is out of range."""
    with tempfile.TemporaryDirectory() as outer:
        root = Path(outer) / "root"
        (root / "b").mkdir(parents=True)
        for path in (root / "a.png", root / "b" / "c.png", Path(outer) / "x.png"):
            path.write_bytes(_picture())
        (root / "link.png").symlink_to(Path(outer) / "x.png")
        (root / "circle.png").symlink_to(root / "circle.png")
        (root / "labels.csv").write_bytes(drawn["content"])
        if drawn["kind"] == "annotations":
            rows = settled(lambda: read_annotations(root))
            for name, row in (rows or {}).items():
                assert "/" not in name
                assert "\\" not in name
                numbers = settled(row.numbers)
                assert numbers is None or bool(((numbers >= 0) & (numbers <= 1)).all())
            return
        source = settled(lambda: ImageTable(str(root), class_list=drawn["classes"],
                                            geometry=ResizeCrop(2, 3), channels=1,
                                            test_fraction=drawn["test_fraction"], skip_broken=drawn["skip_broken"],
                                            **drawn["columns"]))  # fmt: skip
        for split in (settled(lambda: source.splits) or ()) if source else ():
            dataset = settled(lambda split=split: source.split(split))
            for place in range(0 if dataset is None else len(dataset)):
                path = dataset.paths[place]
                assert path.resolve().is_relative_to(root.resolve()), f"{path} was read"
                item = settled(lambda dataset=dataset, place=place: dataset[place])
                if item is None:  # a missing or broken file, which is known when it is read
                    continue
                image, label = item
                assert torch.isfinite(image).all()
                assert all(0 <= each < len(source.classes) for each in dataset.correct_labels(place))
                assert label == dataset.correct_labels(place)[0]


@st.composite
def names(draw: Any) -> tuple[Any, str, bytes]:
    """Return names of classes, what somebody calls one of them, and a file of names."""
    cell = st.sampled_from(CELLS)
    return draw(st.lists(cell, max_size=4)), draw(cell), draw(st.binary(max_size=40))


def find_class(drawn: tuple[Any, str, bytes]) -> None:
    """Find it."""
    classes, text, content = drawn
    found = settled(lambda: ClassIndex(classes).find(text, "label", "here"))
    assert found is None or (0 <= found < len(classes))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "names.txt"
        path.write_bytes(content)
        settled(lambda: Pretrained("torchvision:resnet18", classes=str(path))._names())


TARGETS = {"tables": (tables(), read_table), "names of classes": (names(), find_class)}
