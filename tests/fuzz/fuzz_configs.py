"""Command lines and YAML files of every verb, in part right, in part anything."""

from __future__ import annotations

import io
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st
from outcome import settled

from robustsigma.cli import main
from robustsigma.cli.benchmark import PRESETS as BENCHMARKS
from robustsigma.cli.evaluate import PRESETS as EVALUATIONS

VALUES = (
    None, True, -1, 0, 1, 2.5, 10**30, "1e999", ".nan", "", "x", "Baggage", "robustsigma.data.Baggage", "FGSM",
    "Sigma", "Identity", "os.system", "builtins.exec", "robustsigma", "robustsigma.", ".", "..", "a b", [], [1],
    [[[]]], {}, {"class_path": "Sigma"}, {"class_path": None}, {"class_path": "FGSM", "init_args": {"eps": "x"}},
    {"class_path": "Mixture", "init_args": {"parts": 3}}, {"init_args": {}}, {"class_path": ["FGSM"]},
    {"x": {"x": 1}}, {1: 2}, "null", "~", "!!python/name:os.system", "\u202e", "'",
)  # fmt: skip
KEYS = (
    "dataset", "architecture", "training", "retraining", "conditions", "checks", "sweep", "seeds", "mean", "std",
    "images", "test_images", "eval_batch_size", "num_workers", "methods", "metrics", "models", "allow", "method",
    "perturbation", "model", "target", "seed", "out", "split", "count", "label", "config", "training.lr",
    "dataset.size", "geometry", "weights", "arguments", "classes", "trainer", "data", "optimizer", "ckpt_path", "",
    "x", "class_path", "init_args",
)  # fmt: skip
TOKENS = (
    "--", "-", "=", "--config", "--config=", "--preset", "--preset=x", "--out=", "--help=", "--seed=1",
    "--seeds=[0]", "x.png", "*", "\u00e9", "--allow", "--allow=x", "--allow=a b", "--print_config=",
    "--print_config=x", "@x", "--model=x.safetensors",
)  # fmt: skip
VERBS = (
    "quickstart",
    "evaluate",
    "sweep",
    "benchmark",
    "fit",
    "validate",
    "test",
    "explain",
    "augment",
    "frobnicate",
    "",
)


@st.composite
def lines(draw: Any) -> dict[str, Any]:
    """Return a verb, a file of settings and options."""
    settings = draw(st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES), max_size=3))
    text = yaml.safe_dump(settings, allow_unicode=True)
    damage = draw(st.sampled_from(["none", "none", "cut", "garbage", "bytes"]))
    content = text.encode()
    if damage == "cut":
        content = content[: draw(st.integers(0, len(content)))]
    elif damage == "garbage":
        content = draw(st.text("{}[]:,-&*!|>'\"\\#% \n\tabc01", max_size=30)).encode()
    elif damage == "bytes":
        content = draw(st.binary(max_size=30))
    options = draw(st.lists(st.one_of(
        st.sampled_from(TOKENS),
        st.tuples(st.sampled_from(KEYS), st.sampled_from(VALUES)).map(lambda pair: f"--{pair[0]}={pair[1]}"),
    ), max_size=3))  # fmt: skip
    return {"verb": draw(st.sampled_from(VERBS)), "content": content, "options": options, "file": draw(st.booleans())}


def parse(drawn: dict[str, Any]) -> None:
    """Parse it. Verbs that would go on to work are given an option that nobody knows."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "given.yaml"
        path.write_bytes(drawn["content"])
        given = [*drawn["options"], *([f"--config={path}"] if drawn["file"] else [])]
        verb, before = drawn["verb"], sys.argv
        sys.argv = ["robustsigma"]
        output = io.StringIO()
        try:
            with redirect_stdout(output), redirect_stderr(output):
                if verb in ("evaluate", "sweep", "benchmark"):
                    presets = BENCHMARKS if verb == "benchmark" else EVALUATIONS
                    settled(lambda: presets.parse(verb, "", f"{folder}/out", given))
                else:
                    assert main([verb, *given, f"--nobody-knows-{verb}=1"]) == 2
                    assert len([line for line in output.getvalue().splitlines() if "error: " in line]) == 1
        except SystemExit as stop:  # --help and --print_config
            if stop.code != 0:
                raise AssertionError(f"status {stop.code}") from stop
        finally:
            sys.argv = before


TARGETS = {"command lines and YAML": (lines(), parse)}
