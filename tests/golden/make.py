"""Makes the golden numbers again: run it when a method is new or meant to give others, and say in the commit why.

python tests/golden/make.py
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import numpy as np
from golden_case import FILE, NAMES, RUNS, Engine, stored


def main() -> None:
    """Compute everything on this machine's CPU in double precision and write the file."""
    warnings.simplefilter("ignore")  # Lightning's advice on loaders
    kept = {}
    engine = Engine()
    for name in NAMES:
        kept |= {f"{name}: {key}": value for key, value in stored(engine.result(name)).items()}
    for name, run in RUNS.items():
        with tempfile.TemporaryDirectory() as folder:
            kept |= {f"{name}: {key}": value for key, value in run(Path(folder)).items()}
    np.savez_compressed(FILE, **kept)
    print(f"{FILE}: {len(kept)} arrays, {FILE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
