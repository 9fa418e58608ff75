"""Try everything that takes what others give with many inputs: what comes must be right, or an error that says why not.

python experiments/fuzz.py --examples 2000 --seed 0

The inputs and the properties are those of tests/fuzz, of which the test suite tries a few. Started again, it goes on.
Writes results/fuzz.json: for each target the inputs that were tried, how many calls took theirs and how many refused
it, the slowest input in seconds, and each kind of failure once, with the first input that showed it. A run ends with
status 1 if there is one. Each target runs in a process of its own, whose memory is limited.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from robustsigma.files import write_atomically
from robustsigma.provenance import Provenance

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / part) for part in ("", "engine", "engine/attributors", "fuzz")]
_MEMORY = 12 << 30


def tried(name: str, examples: int, seed: int) -> dict[str, Any]:
    """Return what came of a target's inputs."""
    import hypothesis
    import outcome
    from targets import TARGETS

    strategy, check = TARGETS[name]
    failures: dict[tuple[str, str], dict[str, str]] = {}
    count, slowest = 0, 0.0

    def one(drawn: Any) -> None:
        nonlocal count, slowest
        count += 1
        start = time.perf_counter()
        try:
            check(drawn)
        except Exception as error:  # whatever it is, it is what is searched for
            places = [frame for frame in traceback.extract_tb(error.__traceback__) if "robustsigma" in frame.filename]
            place = f"{Path(places[-1].filename).name}:{places[-1].lineno}" if places else "elsewhere"
            told = {"error": f"{type(error).__name__}: {error}"[:300], "place": place, "input": repr(drawn)[:600]}
            failures.setdefault((type(error).__name__, place), told)
        slowest = max(slowest, time.perf_counter() - start)

    settings = hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=(hypothesis.Phase.generate,),
    )
    hypothesis.seed(seed)(settings(hypothesis.given(strategy)(one)))()
    return {"inputs": count, **outcome.COUNTS, "slowest": round(slowest, 2), "failures": list(failures.values())}


def _run(name: str, examples: int, seed: int, place: Path) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    place.write_text(json.dumps(tried(name, examples, seed)), encoding="utf-8")


def run(examples: int, seed: int, only: list[str], out: Path) -> int:
    """Try every target, write what came of it, and return how many kinds of failure there were."""
    from targets import TARGETS

    provenance = Provenance(f"python experiments/fuzz.py --examples {examples} --seed {seed}")
    found: dict[str, Any] = {"examples": examples, "seed": seed, "targets": {}}
    before = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
    if (before.get("examples"), before.get("seed")) == (examples, seed):  # stopped, it goes on
        found["targets"] = {name: entry for name, entry in before["targets"].items() if name not in only}
    for name in [name for name in only or TARGETS if name not in found["targets"]]:
        place = out.with_suffix(".part")
        place.unlink(missing_ok=True)
        process = multiprocessing.get_context("spawn").Process(target=_run, args=(name, examples, seed, place))
        process.start()
        process.join()
        died = {"failures": [{"error": f"the process died: {process.exitcode}", "place": name, "input": "unknown"}]}
        found["targets"][name] = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else died
        place.unlink(missing_ok=True)
        entry = found["targets"][name]
        print(f"{name}: {entry.get('inputs', '?')} inputs, {len(entry['failures'])} kinds of failure", flush=True)
        found["run"] = provenance.record()
        write_atomically(out, (json.dumps(found, indent=1) + "\n").encode())
    return sum(len(entry["failures"]) for entry in found["targets"].values())


def main() -> int:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=1000, help="inputs of each target")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs")
    parser.add_argument("--only", nargs="*", default=[], help="names of targets, which are then tried again")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "fuzz.json")
    given = parser.parse_args()
    return int(run(given.examples, given.seed, given.only, given.out) > 0)


if __name__ == "__main__":
    raise SystemExit(main())
