"""Draw the guide's pictures of `robustsigma explain`: docs/explain.png, explain_methods.png and explain_path.png.

    python experiments/explained_scans.py

The images are procedural baggage scans of 64 pixels, the network is the one that `robustsigma quickstart` explains.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from PIL import Image

from robustsigma import data, evaluation
from robustsigma.cli import main as robustsigma
from robustsigma.runs.files import write_atomically

_MODEL = Path(evaluation.__file__).parent / "presets" / "baggage.safetensors"
_PLACE = 3  # in the test split; its walk converges
_SIDE_BY_SIDE = ("--method=ig", "--method=gig", "--method=smoothgrad", "--outline=10")


def main(arguments: list[str] | None = None) -> None:
    """Explain a scan twice and keep the pictures."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, default=Path("docs"), help="folder of the pictures")
    options = made.parse_args(arguments)
    images, _ = data.Baggage().split("test").batch([_PLACE])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Image.fromarray((images[0] * 255).round().byte().permute(1, 2, 0).numpy()).save(folder / "scan.png")
        for extra, files in (
            (["--path=strip"], {"scan.png": "explain", "scan.Sigma.path.png": "explain_path"}),
            (_SIDE_BY_SIDE, {"scan.png": "explain_methods"}),
        ):
            given = ["explain", f"{folder}/scan.png", f"--model={_MODEL}", f"--out={folder}/out", *extra]
            if robustsigma(given) != 0:
                raise SystemExit(1)
            for source, kept in files.items():
                write_atomically(options.out / f"{kept}.png", (folder / "out" / source).read_bytes())


if __name__ == "__main__":
    main()
