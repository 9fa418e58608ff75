"""From the per-image outcomes of a finished run to its results: accuracies, paired differences, checks and flags."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from robustsigma.engine.metrics import mean_interval, paired_difference, share_interval
from robustsigma.engine.metrics.calibration import calibration_error
from robustsigma.engine.metrics.interval import as_dict
from robustsigma.engine.perturbations import AutoAttack, Identity
from robustsigma.evaluation.attack_checks import DOUBLE_STEPS, NOISE, AttackCheckResults
from robustsigma.evaluation.distances import bands, distance_entries
from robustsigma.evaluation.findings import findings, title, verdict
from robustsigma.evaluation.flags import NOTES, cell_flags, run_flags
from robustsigma.evaluation.matrix import CONTROL, WORST, Matrix, OverfittingEvent, has_distances
from robustsigma.evaluation.outcomes import Outcomes
from robustsigma.evaluation.plan import ADAPTIVE, TRANSFER, Condition, Regime
from robustsigma.evaluation.threat_model import parameters, threat_model
from robustsigma.evaluation.unwrapped_data import data_name
from robustsigma.report import text
from robustsigma.runs.fingerprint import describe
from robustsigma.runs.results import RobustnessResults

if TYPE_CHECKING:  # it loads Lightning
    from robustsigma.evaluation.run import RobustnessRun
    from robustsigma.evaluation.settings import Evaluation

Notes = dict[tuple[str, int], dict[str, Any]]


def collect(run: RobustnessRun, sweep: Sequence[dict[str, Any]] = ()) -> RobustnessResults:
    """Return the results of a finished run, without pictures and provenance.

    Args:
        run: finished.
        sweep: tables of the sweep that chose its Gaussian noise.
    """
    settings, store, seeds = run.settings, run.store, list(run.settings.each_seed)
    cells = {
        (regime.id, each.id): [run.outcomes(seed, regime.id, each.id) for seed in seeds]
        for regime in run.regimes
        for each in run.conditions
    }
    notes = {(r.id, seed): store.notes(seed, r.id) for r in run.regimes for seed in seeds}
    events = {r.id: overfitting_events({seed: notes[r.id, seed] for seed in seeds}) for r in run.regimes}
    dataset = settings.dataset
    matrix = Matrix(run.regimes, run.conditions, cells, seeds, len(dataset.classes), _attack_checks(run), events)
    made = augmentation(matrix, notes)
    trained = settings.training.epochs > 0 or any(each.retrained for each in run.regimes)
    tried = {entry["regime"]: len(entry["rows"]) for entry in sweep}
    seconds = {r.id: [notes[r.id, seed]["seconds"] for seed in seeds] for r in run.regimes}
    return dataclasses.replace(
        results_of(matrix, flags=run_flags(matrix, sweep, made, trained=trained)),
        settings=describe(settings),
        dataset={
            "name": data_name(dataset),
            "classes": list(dataset.classes),
            "shape": list(dataset.shape),
            "train": len(dataset.split("train")) if "train" in dataset.splits else 0,  # type: ignore[arg-type]
            "test": len(cells[matrix.base, run.conditions[0].id][0].indices),
        },
        regimes=[_regime(each, settings, seconds[each.id], tried.get(each.id)) for each in run.regimes],
        augmentation=made,
        sweep=list(sweep),
    )


def results_of(matrix: Matrix, *, flags: list[dict[str, str]]) -> RobustnessResults:
    """Return what the outcomes say, whatever the models and the data are.

    Args:
        matrix: the outcomes.
        flags: flags of the whole run.
    """
    cells = cell_entries(matrix)
    return RobustnessResults(
        seeds=list(matrix.seeds),
        conditions=[_condition(each, matrix.cells[matrix.base, each.id]) for each in matrix.conditions]
        + [_worst_case(matrix, name) for name in matrix.worst],
        cells=cells,
        differences=differences(matrix),
        per_seed=per_seed(matrix) if len(matrix.seeds) > 1 else [],
        checks=checks(matrix),
        networks=networks(matrix),
        curves=curve_entries(matrix),
        distances=distance_entries(matrix),
        flags=flags,
        verdict=verdict(matrix, cells, flags),
        findings=findings(matrix),
    )


def _attack_checks(run: RobustnessRun) -> dict[str, list[AttackCheckResults]]:
    """Return the attack checks of every regime that has them for all seeds."""
    found = {r.id: [run.attack_checks(seed, r) for seed in run.settings.each_seed] for r in run.regimes}
    return {name: [each for each in of if each is not None] for name, of in found.items() if None not in of}


def _condition(condition: Condition, base: list[Outcomes]) -> dict[str, Any]:
    moved = condition.attack_setting != TRANSFER and any(each.linf.any() for each in base)
    return {
        "id": condition.id,
        "name": condition.name,
        "attack_setting": condition.attack_setting,
        "settings": repr(condition.perturbation),
        "threat": dataclasses.asdict(threat_model(condition.perturbation, condition.attack_setting)),
        "parameters": parameters(condition.perturbation),
        "quality": quality(base) if moved else {},
        **({"minimum_norm": True} if has_distances(condition) else {}),
    }


def _worst_case(matrix: Matrix, name: str) -> dict[str, Any]:
    names, members = {each.id: title(each.name) for each in matrix.conditions}, matrix.worst[name]
    return {
        "id": name,
        "name": text.radii(name.removeprefix(f"{WORST}/")),
        "attack_setting": WORST,
        "settings": f"correct under each of {', '.join(names[member] for member in members)} (adaptive)",
        "members": list(members),
        "quality": {},
    }


def _regime(regime: Regime, settings: Evaluation, seconds: list[float], tried: int | None) -> dict[str, Any]:
    again = settings.retraining
    if regime.protocol == "none":
        epochs = settings.training.epochs
        described = f"{settings.architecture.name}, {f'{epochs} epochs' if epochs else 'as it was given'}"
    elif regime.protocol == "retrain":
        clean = isinstance(regime.perturbation, Identity)
        samples = f"{again.samples} {'unchanged images' if clean else f'samples of {regime.perturbation!r}'}"
        described = f"{again.epochs} epochs on the training images and {samples}"
    else:
        described = f"{again.epochs} epochs, {again.share:.0%} of each batch through {regime.perturbation!r}"
    if tried:
        described += f", the best std of {tried}"
    shown = {"id": regime.id, "name": regime.name, "protocol": regime.protocol, "settings": described}
    return {**shown, "seconds": float(np.mean(seconds))}


def cell_entries(matrix: Matrix) -> list[dict[str, Any]]:
    """Return every cell; only more than five classes have a top-5 accuracy.

    A worst case has an accuracy and the flags of its attacks. It is not evaluated only if none of them is.
    """
    entries = []
    for regime in matrix.regimes:
        for condition in matrix.conditions:
            found = matrix.cells[regime.id, condition.id]
            attempted = np.concatenate([each.attempted for each in found])
            converged = np.concatenate([each.converged for each in found])[attempted]
            steps = np.concatenate([each.steps for each in found])[attempted]
            max_confidence = np.stack([each.max_confidence for each in found])
            top5 = np.stack([each.top5 for each in found])
            entries.append(
                {
                    **_accuracy(matrix, regime, condition.id),
                    **({"top5": as_dict(share_interval(top5))} if matrix.classes > 5 else {}),
                    "confidence": as_dict(mean_interval(np.stack([each.confidences for each in found]))),
                    "calibration": as_dict(
                        calibration_error(max_confidence, np.stack([each.correct for each in found]))
                    ),
                    "converged": float(converged.mean()) if attempted.any() else None,
                    "steps": float(steps.mean()) if attempted.any() else None,
                    "quality": quality(found),
                    "passes": passes(found),
                    **attacks_of(condition, found),
                    "flags": cell_flags(matrix, regime, condition),
                }
            )
        own = {entry["condition"]: entry["flags"] for entry in entries if entry["regime"] == regime.id}
        for name, members in matrix.worst.items():
            evaluated = not all(any(flag["code"] == "not_evaluated" for flag in own[each]) for each in members)
            of_members = {(f["code"], f["message"]): f for each in members for f in own[each] if f["code"] not in NOTES}
            flags = [f for (code, _), f in of_members.items() if not (evaluated and code == "not_evaluated")]
            entries.append({**_accuracy(matrix, regime, name), "flags": flags})
    return entries


def _accuracy(matrix: Matrix, regime: Regime, condition: str) -> dict[str, Any]:
    seeds, n = matrix.correct(regime.id, condition).shape
    names = {"regime": regime.id, "condition": condition, "n": n, "seeds": seeds}
    return {**names, "accuracy": as_dict(matrix.accuracy(regime.id, condition))}


def passes(found: Sequence[Outcomes]) -> float | None:
    """Return the mean number of passes per image, None in runs of earlier versions; large numbers are whole."""
    known = [float(each.passes.mean()) for each in found if each.passes is not None]
    return None if len(known) < len(found) else round(float(np.mean(known)), 1 if np.mean(known) < 10 else None)


def attacks_of(condition: Condition, found: Sequence[Outcomes]) -> dict[str, dict[str, float]]:
    """Return the accuracy after each attack of an `AutoAttack` on the tested model, else nothing."""
    attack, parts = condition.perturbation, [each.found_by for each in found if each.found_by is not None]
    if not isinstance(attack, AutoAttack) or condition.attack_setting != ADAPTIVE or not parts:
        return {}
    return {"attacks": attack.accuracies(torch.from_numpy(np.concatenate(parts)))}


def quality(found: Sequence[Outcomes]) -> dict[str, dict[str, float]]:
    """Return how far the images of a cell are from the clean ones."""
    parts = ("rmse", "linf", "ssim")
    return {name: as_dict(mean_interval(np.stack([getattr(each, name) for each in found]))) for name in parts}


def differences(matrix: Matrix) -> list[dict[str, Any]]:
    """Return the change of each regime from the base model and from the control."""
    return [
        {"regime": regime, "against": against, "condition": condition, **as_dict(found), "p_holm": corrected}
        for against in (matrix.base, CONTROL)
        if matrix.has(against)
        for (regime, condition), (found, corrected) in matrix.changes(against).items()
    ]


def checks(matrix: Matrix) -> list[dict[str, Any]]:
    """Return the accuracy under each adaptive attack beside that under further attacks, on the checked images.

    `accuracy` is that of the attack; every other part has the accuracy under another attack and the paired
    `difference` attack minus other, which is above zero where the other attack is stronger.
    """
    entries = []
    for regime in matrix.regimes:
        for condition in matrix.conditions:
            known = matrix.attack_checks.get(regime.id)
            if condition.attack_setting != ADAPTIVE or has_distances(condition) or not (known and known[0].of_attacks):
                continue
            own = matrix.checked_images(regime.id, condition.id)
            others = {kind: matrix.check(regime.id, kind, condition.id) for kind in (DOUBLE_STEPS, NOISE)}
            others["search"] = matrix.search(regime.id, condition)
            if regime.id != matrix.base:
                others["transfer"] = matrix.checked_images(regime.id, f"{condition.name}/{TRANSFER}")
            parts = {
                kind: {"accuracy": float(other.mean()), "difference": as_dict(paired_difference(own, other))}
                for kind, other in others.items()
                if other is not None
            }
            names = {"regime": regime.id, "condition": condition.id, "n": own.shape[1]}
            entries.append({**names, "accuracy": float(own.mean()), **parts})
    return entries


def networks(matrix: Matrix) -> list[dict[str, Any]]:
    """Return the fraction of useless gradients of each regime's models, and properties of their outputs."""
    found = {regime.id: matrix.soundness(regime.id) for regime in matrix.regimes}
    return [
        {
            "regime": name,
            "images": each.images,
            "dead": each.dead / each.images,
            "random_outputs": each.random_outputs,
            "probabilities": each.probabilities,
            "batch_dependent": each.batch_dependent,
        }
        for name, each in found.items()
        if each is not None
    ]


def curve_entries(matrix: Matrix) -> list[dict[str, Any]]:
    """Return every curve of accuracy over the radius, with its band."""
    entries = []
    for regime in matrix.regimes:
        for condition in matrix.conditions:
            found = matrix.curves(regime.id, condition.id)
            if found is None:
                continue
            entries.append(
                {
                    "regime": regime.id,
                    "condition": condition.id,
                    "eps": found.eps.tolist(),
                    **bands(found.correct[:, k] for k in range(len(found.eps))),
                    "n": found.correct.shape[-1],
                    "chance": found.chance,
                    "reached": found.reached,
                }
            )
    return entries


def overfitting_events(notes: dict[int, dict[str, Any]]) -> list[OverfittingEvent]:
    """Return the first event in the notes on each seed's training."""
    found = []
    for seed, note in notes.items():
        checks = note["overfitting"]
        first = next((place for place, check in enumerate(checks) if check["triggered"]), None)
        if first is not None:
            before = max(check["probe"] for check in checks[:first])
            found.append(OverfittingEvent(seed, checks[first]["epoch"], before, checks[first]["probe"]))
    return found


def augmentation(matrix: Matrix, notes: Notes) -> list[dict[str, Any]]:
    """Return the samples made for training, by regime and seed."""
    entries = []
    for regime in matrix.regimes:
        for seed in matrix.seeds:
            made = notes[regime.id, seed]["augmentation"]
            if made["samples"]:
                attempted = made["attempted"]
                entries.append(
                    {
                        "regime": regime.id,
                        "seed": seed,
                        "samples": made["samples"],
                        "seconds": made["seconds"],
                        "converged": made["converged"] / attempted if attempted else None,
                        "steps": round(made["steps"] / attempted, 1) if attempted else None,
                        "cache": _cache_use(made),
                    }
                )
    return entries


def _cache_use(made: dict[str, Any]) -> dict[str, float] | None:
    """Return the hit rate of the sample cache and the mean age of its samples in epochs, or None without requests."""
    requested, hits = made.get("requested", 0), made.get("hits", 0)
    if not requested:
        return None
    shares = {name: made[name] / requested for name in ("expired", "stale")}
    return {"hit_rate": hits / requested, "mean_age": made["ages"] / hits if hits else 0.0, **shares}


def per_seed(matrix: Matrix) -> list[dict[str, Any]]:
    """Return the accuracy of each training by itself."""
    return [
        {"seed": seed, "regime": regime.id, "condition": condition, "accuracy": float(correct.mean())}
        for regime in matrix.regimes
        for condition in matrix.all_ids
        for seed, correct in zip(matrix.seeds, matrix.correct(regime.id, condition), strict=True)
    ]
