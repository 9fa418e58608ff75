"""Everything that takes what others give, with a strategy that makes such things and a check of what comes of them."""

from __future__ import annotations

import fuzz_arguments
import fuzz_checkpoints
import fuzz_configs
import fuzz_images
import fuzz_tables

TARGETS = {
    **fuzz_arguments.TARGETS,
    **fuzz_configs.TARGETS,
    **fuzz_images.TARGETS,
    **fuzz_tables.TARGETS,
    **fuzz_checkpoints.TARGETS,
}
