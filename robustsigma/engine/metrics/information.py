"""How much information an image holds: the size of its lossless compression."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from robustsigma.engine.validation import fail


def information(image: np.ndarray[Any, Any]) -> int:
    """Return the size in bytes of an image as lossless WebP (Kapishnikov et al., XRAI, 2019, section 4).

    The number depends on the build of libwebp: compare only values of one build
    (`PIL.features.version("webp")`).

    Args:
        image: uint8 (H, W, 3), (H, W, 1) or (H, W).

    Raises:
        ValueError: another dtype or shape.
    """
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise fail("image", "uint8 (H, W, 3), (H, W, 1) or (H, W)", f"{image.dtype} {image.shape}")
    buffer = io.BytesIO()
    # What quality means without loss is effort; at less of it the size says less about the image.
    Image.fromarray(image).save(buffer, format="webp", lossless=True, quality=100)
    return buffer.getbuffer().nbytes
