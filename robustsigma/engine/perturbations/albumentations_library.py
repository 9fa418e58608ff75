"""The optional library of image transforms, imported when it is first needed."""

from __future__ import annotations

import os
from typing import Any


def albumentations_library(needed_by: str) -> Any:
    """Return the module `albumentations`.

    Raises:
        ImportError: naming who needs it and how to install it.
    """
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else importing it asks the network for its version
    try:
        import albumentations
    except ImportError as error:
        raise ImportError(f"{needed_by} needs albumentations: pip install 'robustsigma[augment]'") from error
    return albumentations
