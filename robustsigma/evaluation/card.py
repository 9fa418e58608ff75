"""`card`: what one model of a finished run may claim, for a model hub."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from robustsigma.engine.validation import choice
from robustsigma.evaluation.comparison import RunFolder
from robustsigma.evaluation.flags import NOTES
from robustsigma.evaluation.store import model_path
from robustsigma.runs.directory import read_settings


def robustness_card(run: str | Path, *, model: str | None = None) -> dict[str, Any]:
    """Return the card of one model of a run, in plain JSON types.

    An accuracy whose cell has a flag is not claimed: it is listed as withdrawn, with the reasons. A worst case has the
    flags of all its attacks. That a dataset has few classes alone withdraws nothing. Transferred samples are no claim
    about a model.

    Args:
        run: folder of a finished run of `evaluate`.
        model: name of a model of the run, as in the report; the first one if None.

    Returns:
        `model`, `dataset` with the hash of its images and labels, `weights` (SHA-256 by training seed), `claims` and
        `withdrawn` (each a condition with its threat model, parameters, accuracy with its 95% interval, and flags),
        `distances` (of minimum-norm attacks: median distance and area under the accuracy up to a radius, with flags),
        `limitations` (flags of the whole run) and `run` (command, time, versions and hardware).

    Raises:
        ValueError: a folder without a finished run, or an unknown model.

    Example:
        >>> [claim["condition"] for claim in robustness_card("runs/mine")["claims"]]  # doctest: +SKIP
        ['clean', 'AutoAttack']
    """
    found = RunFolder(Path(run))
    name = found.models[0] if model is None else model
    choice(f"model of {found.path}", name, found.models)
    results, settings = found.results, read_settings(found.path) or {}
    cells = {cell["condition"]: cell for cell in results.cells if cell["regime"] == name}
    claims: list[dict[str, Any]] = []
    withdrawn: list[dict[str, Any]] = []
    for condition in found.conditions.values():
        cell, flags = cells.get(condition["id"]), found.flags(name, condition["id"])
        if cell is not None:
            claim = {
                "condition": condition["id"],
                "name": condition["name"],
                "attack_setting": condition["attack_setting"],
                "threat": condition.get("threat"),
                "parameters": condition.get("parameters") or condition["settings"],
                "accuracy": cell["accuracy"],
                "images": cell.get("n"),
                "passes": cell.get("passes"),
                "flags": list({flag["code"]: flag for flag in flags}.values()),
            }
            doubted = any(flag["code"] not in NOTES for flag in flags)
            (withdrawn if doubted else claims).append(claim)
    parameters = {each["id"]: each.get("parameters") for each in results.conditions}
    distances = [
        {
            **{key: each[key] for key in ("condition", "norm", "n", "median", "area", "misled")},
            "radius": each["radii"][-1],
            "parameters": parameters[each["condition"]],
            "passes": cells[each["condition"]].get("passes"),
            "flags": cells[each["condition"]]["flags"],
        }
        for each in results.distances
        if each["regime"] == name
    ]
    entry = next(each for each in results.regimes if each["id"] == name)
    return {
        "schema": 1,
        "model": {"id": name, "training": entry.get("settings")},
        "dataset": {**results.dataset, "fingerprint": settings.get("data")},
        "seeds": results.seeds,
        "weights": _weights(found, name, settings),
        "claims": claims,
        "withdrawn": withdrawn,
        "distances": distances,
        "limitations": results.flags,
        "run": results.run,
    }


def _weights(run: RunFolder, model: str, settings: dict[str, Any]) -> dict[str, str]:
    """Return the SHA-256 of each training's file of weights; else that of the network which the run was given."""
    paths = {str(seed): model_path(run.path, seed, model) for seed in run.results.seeds}
    found = {s: hashlib.sha256(path.read_bytes()).hexdigest() for s, path in paths.items() if path.is_file()}
    given = settings.get("network") or {}
    return found or {"given": given.get(model, given).get("weights", "unknown")}
