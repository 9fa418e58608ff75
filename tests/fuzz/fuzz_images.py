"""Image files of every kind, whole, cut, changed and lying about themselves, as images and as masks."""

from __future__ import annotations

import io
import struct
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from outcome import settled
from PIL import Image

from robustsigma.data.folder_scan import scan
from robustsigma.data.image_files import BROKEN, FileDataset, ImageRow, read_mask
from robustsigma.data.resize_crop import ResizeCrop

FORMATS = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK", "YCbCr"),
    "GIF": ("L", "P", "RGB", "RGBA"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "LAB", "I", "F", "I;16"),
    "WEBP": ("L", "RGB", "RGBA"),
    "PPM": ("1", "L", "RGB", "I"),
}
SUFFIXES = ("png", "jpg", "gif", "bmp", "tif", "webp", "ppm", "pgm")
LOSSLESS = ("PNG", "TIFF", "BMP", "PPM")
SIZES = ((1, 1), (2, 1), (7, 5), (16, 16), (40, 33), (20_000, 1), (1, 20_000), (20_000, 3))
FITS = (8, 1, ResizeCrop(8), ResizeCrop(8, 10), ResizeCrop(224, 256), ResizeCrop(16, 16, "nearest"))


def _pixels(mode: str, size: tuple[int, int], seed: int) -> Image.Image:
    width, height = size
    random = np.random.default_rng(seed)
    if mode == "I;16":
        return Image.fromarray(random.integers(0, 65536, (height, width)).astype(np.uint16))
    if mode == "I":
        return Image.fromarray(random.integers(0, 65536, (height, width)).astype(np.int32))
    if mode == "F":
        odd = random.normal(0, 1e6, (height, width)).astype(np.float32)
        odd.flat[0] = random.choice([np.nan, np.inf, 0.0])
        return Image.fromarray(odd)
    image = Image.fromarray(random.integers(0, 256, (height, width, 3)).astype(np.uint8))
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(random.integers(0, 256, (height, width)).astype(np.uint8)))
        return image.convert(mode)
    return Image.frombytes("LAB", size, image.tobytes()) if mode == "LAB" else image.convert(mode)


def _saved(kind: str, image: Image.Image, frames: int, orientation: int, transparent: bool) -> bytes:
    buffer, options = io.BytesIO(), {}
    if frames > 1 and kind in ("GIF", "WEBP", "PNG", "TIFF"):
        options |= {"save_all": True, "append_images": [image.transpose(Image.Transpose.ROTATE_180)] * (frames - 1)}
    if orientation is not None and kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    if transparent and kind in ("PNG", "GIF") and image.mode in ("P", "L"):
        options["transparency"] = 0
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _bomb(side: int) -> bytes:
    """Return a PNG of a few bytes that says it has side x side pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


@st.composite
def files(draw: Any) -> dict[str, Any]:
    """Return a file's name and bytes, and its picture if nothing was done to it."""
    kind = draw(st.sampled_from(sorted(FORMATS)))
    mode, size = draw(st.sampled_from(FORMATS[kind])), draw(st.sampled_from(SIZES))
    orientation = draw(st.sampled_from([None, None, None, *range(10), 65_535]))
    frames = draw(st.sampled_from([1, 1, 1, 3]))
    image = _pixels(mode, size, draw(st.integers(0, 5)))
    try:
        content = _saved(kind, image, frames, orientation, draw(st.booleans()))
    except (OSError, ValueError, RuntimeError):  # a format that has no such images
        content, image = b"", None
    damage = draw(st.sampled_from(["none", "none", "cut", "flip", "zero", "append", "bomb", "empty", "garbage"]))
    place = draw(st.floats(0, 1, exclude_max=True))
    if damage == "cut":
        content = content[: int(len(content) * place)]
    elif damage == "flip":
        changed = bytearray(content)
        for where in draw(st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=8)):
            if changed:
                at = int(len(changed) * (where * where if place > 0.5 else where))  # headers are short
                changed[at] = draw(st.integers(0, 255))
        content = bytes(changed)
    elif damage == "zero":
        start = int(len(content) * place)
        content = content[:start] + bytes(max(0, len(content) - start))
    elif damage == "append":
        content += b"\0garbage" * 9
    elif damage in ("bomb", "empty", "garbage"):
        content = {"bomb": _bomb(draw(st.sampled_from([9_000, 20_000, 2**31 - 1]))), "empty": b"",
                   "garbage": draw(st.binary(max_size=99))}[damage]  # fmt: skip
    whole = damage in ("none", "append") and orientation in (None, 0, 1) and frames == 1 and kind in LOSSLESS
    return {
        "suffix": draw(st.sampled_from(SUFFIXES)),
        "content": content,
        "picture": image if whole and mode in ("1", "L", "RGB", "I;16", "I") else None,
        "fit": draw(st.sampled_from(FITS)),
        "channels": draw(st.sampled_from([1, 3])),
    }


def read(drawn: dict[str, Any]) -> None:
    """Read it as an image, as a mask, and as a mask of itself."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"x.{drawn['suffix']}"
        path.write_bytes(drawn["content"])
        assert scan(Path(folder)).images == [str(path)]
        dataset = FileDataset([ImageRow(str(path))], drawn["fit"], drawn["channels"], name="images")
        found = settled(lambda: dataset[0])
        if found is not None:
            image, _ = found
            assert image.shape == (drawn["channels"], dataset.size, dataset.size)
            assert torch.isfinite(image).all()
            assert 0 <= image.min() <= image.max() <= 1
        if drawn["picture"] is not None:
            assert found is not None, "a whole file was refused"
            _compare(drawn["picture"], path, drawn["channels"])
        mask = settled(lambda: _mask(path, drawn["fit"]))
        if mask is not None:
            assert torch.isfinite(mask).all()
            assert 0 <= mask.min() <= mask.max() <= 1


def _mask(path: Path, fit: int | ResizeCrop) -> torch.Tensor:
    try:
        return read_mask(path, path, fit)
    except BROKEN as error:  # its callers say where
        raise ValueError(f"masks: {error}") from error


def _compare(picture: Image.Image, path: Path, channels: int) -> None:
    """Check that the file's numbers are the picture's, where it has few pixels and is not cropped."""
    width, height = picture.size
    if width != height:
        return
    dataset = FileDataset([ImageRow(str(path))], width, channels)
    wide = picture.mode.startswith("I")
    exact = np.asarray(picture if wide else picture.convert("L" if channels == 1 else "RGB"), dtype=np.float64)
    exact = exact / (65535 if wide else 255)
    exact = exact[..., None] if exact.ndim == 2 else exact
    image, _ = settled(lambda: dataset[0])  # small pictures may be nearly black, of which a warning tells
    assert np.abs(image.permute(1, 2, 0).numpy() - exact).max() <= 0.003, f"{picture.mode} is read otherwise"


TARGETS = {"image files": (files(), read)}
