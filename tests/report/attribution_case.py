"""A made-up result of an attribution benchmark: plausible numbers, maps that lie more or less on the object."""

import numpy as np

CLASSES = ["knife", "gun", "wrench", "pliers", "scissors", "no threat"]
# How good each made-up method is, and its forward and backward passes.
METHODS = {
    "Sigma": (0.93, 141, 140),
    "AGI": (0.7, 320, 300),
    "IG2": (0.74, 101, 100),
    "IDG": (0.66, 101, 50),
    "IntegratedGradients": (0.6, 51, 50),
    "IntegratedGradients-blurred-baseline": (0.63, 51, 50),
    "LeftIntegratedGradients": (0.64, 101, 50),
    "GuidedIntegratedGradients": (0.68, 151, 150),
    "ExpectedGradients": (0.71, 200, 200),
    "CrediblePath": (0.55, 64, 62),
    "AttentionRollout": (0.3, 1, 0),
    "SmoothGrad": (0.58, 50, 50),
    "SigmaTwice": (0.9, 282, 280),
    "Gradient": (0.28, 1, 1),
    "RandomAttribution": (0.1, 0, 0),
}
CONTROLS = ("Gradient", "RandomAttribution")
METRICS = {
    "insertion": ("Insertion", "faithfulness", "higher"),
    "deletion": ("Deletion", "faithfulness", "lower"),
    "difference": ("Insertion \u2212 deletion", "faithfulness", "higher"),
    "sic": ("SIC", "faithfulness", "higher"),
    "aic": ("AIC", "faithfulness", "higher"),
    "sensitivity_n": ("Sensitivity-N", "faithfulness", "higher"),
    "infidelity": ("Infidelity", "faithfulness", "lower"),
    "iou": ("IoU, area of the mask", "localization", "higher"),
    "iou_fixed": ("IoU, fixed share", "localization", "higher"),
    "iou_best": ("IoU, best threshold", "localization", "higher"),
    "pointing_game": ("Pointing game", "localization", "higher"),
    "completeness_gap": ("Completeness gap", "consistency", "lower"),
    "stability": ("Stability", "consistency", "lower"),
    "relative_stderr": ("Relative standard error", "consistency", "lower"),
    "forwards": ("Forward passes", "cost", "lower"),
    "backwards": ("Backward passes", "cost", "lower"),
    "seconds": ("Seconds", "cost", "lower"),
}
CURVES = {
    "insertion": ("Insertion", "share of pixels shown", "probability of the class", "mean"),
    "deletion": ("Deletion", "share of pixels taken away", "probability of the class", "mean"),
    "sic": ("Softmax information curve", "normalized entropy", "normalized probability", "median"),
    "aic": ("Accuracy information curve", "normalized entropy", "accuracy", "median"),
    "sensitivity_n": ("Sensitivity-N", "pixels taken away", "correlation", "mean"),
}
WITHOUT_MASK, NOT_A_PATH = "the image has no mask", "the method makes no promise of completeness"


def _estimate(mean, half, n):
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def _mean(random, metric, method):
    quality, forwards, backwards = METHODS[method]
    noisy = float(np.clip(quality + random.normal(0, 0.03), 0.02, 0.99))
    counts = {"forwards": forwards, "backwards": backwards, "seconds": 0.0011 * (forwards + 2 * backwards) + 0.0002}
    found = {
        "deletion": 0.6 - 0.45 * noisy, "infidelity": 0.02 * (1.1 - noisy), "completeness_gap": 0.00012 / noisy,
        "stability": 0.4 * (1 - noisy), "relative_stderr": 0.5 * (1 - noisy), "difference": 0.9 * noisy - 0.25,
        **counts,
    }  # fmt: skip
    return float(found.get(metric, 0.2 + 0.7 * noisy))


def _cell(random, model, method, metric, images, checked):
    group = METRICS[metric][1]
    n = checked if metric in ("stability", "relative_stderr") else images
    skipped = {WITHOUT_MASK: 3} if group == "localization" else {}
    if metric == "insertion" and method == "CrediblePath":
        skipped = {"the search <b>failed</b>": 2}
    if metric == "completeness_gap" and method in ("AttentionRollout", *CONTROLS):
        skipped = {NOT_A_PATH: n}
    n -= sum(skipped.values())
    cell = {"model": model, "method": method, "metric": metric, "n": n, "skipped": skipped, "best": False,
            "clear": False, "against_random": None, "flags": [], "mean": None, "low": None, "high": None}  # fmt: skip
    if n:
        mean = _mean(random, metric, method)
        half = 0 if metric in ("forwards", "backwards") else abs(mean) * random.uniform(0.04, 0.1)
        cell.update(_estimate(mean, half, n))
        if group in ("faithfulness", "localization") and method != "RandomAttribution":
            gain = float(METHODS[method][0] - METHODS["RandomAttribution"][0] + random.normal(0, 0.05))
            gain = -0.08 if (method, metric) == ("AttentionRollout", "aic") else gain
            verdict = "worse" if gain < -0.05 else "better" if gain > 0.25 else "same"
            cell["against_random"] = {**_estimate(gain, 0.1, n), "verdict": verdict}
    return cell


def _mark_best(cells, random):
    for metric, (_, _, better) in METRICS.items():
        mine = [c for c in cells if c["metric"] == metric and c["mean"] is not None and c["method"] not in CONTROLS]
        chosen = (max if better == "higher" else min)(mine, key=lambda cell: cell["mean"])
        chosen.update(best=True, clear=bool(random.random() < 0.5))


def _curve(random, key, models, left_out):
    title, x_title, y_title, center = CURVES[key]
    x = np.geomspace(1, 3000, 12) if key == "sensitivity_n" else np.linspace(0, 1, 33)
    lines = []
    for model in models:
        for method, (quality, _, _) in METHODS.items():
            if (model, method) not in left_out:
                good = float(np.clip(quality + random.normal(0, 0.03), 0.05, 1))
                if key == "sensitivity_n":
                    mean = 0.1 + 0.5 * good - 0.04 * np.log(x) * (1 - 0.3 * good)
                else:
                    mean = x ** (1.6 - 1.4 * good)
                    mean = 0.97 * (1 - x) ** (0.4 + 4 * good) + 0.02 if key == "deletion" else 0.02 + 0.95 * mean
                area = float(np.trapezoid(mean, x) / (x[-1] - x[0]))
                half = 0.03 + 0.02 * np.sin(3 * x / x.max())
                lines.append({"model": model, "method": method, "mean": mean.tolist(), "low": (mean - half).tolist(),
                              "high": (mean + half).tolist(), "n": 100, "auc": area, "center": center})  # fmt: skip
    return {"id": key, "title": title, "x": x.tolist(), "x_title": x_title, "y_title": y_title, "lines": lines}


def make_results(models=("base",), images=100, checked=32, shown=6, shape=(3, 64, 64)):
    """Return a result without hostile strings; AttentionRollout is left out of every model but the first."""
    random = np.random.default_rng(5)
    left_out = {(model, "AttentionRollout") for model in models[1:]}
    pairs = [(model, method) for model in models for method in METHODS if (model, method) not in left_out]
    cells = []
    for model in models:
        mine = [_cell(random, model, method, metric, images, checked)
                for where, method in pairs if where == model for metric in METRICS]  # fmt: skip
        _mark_best(mine, random)
        cells += mine
    unconverged = {"code": "A3", "message": "the search did not converge on 12 % of the images"}
    cells[2]["flags"] = [unconverged]
    cells[9]["flags"] = [unconverged, {"code": "A5", "message": "the map has ties: their order is by chance"}]
    return {
        "schema": 1,
        "kind": "attribution",
        "settings": {"seed": 0, "images": images, "metrics": {"insertion": {"steps": 32, "baseline": "blurred"}}},
        "run": {
            "command": "robustsigma attribution --preset baggage --out results/attribution",
            "started": "2026-11-24T07:12:05+00:00", "seconds": 812.4,
            "versions": {"robustsigma": "0.2.0", "torch": "2.13.0"}, "hardware": {"device": "cpu", "cores": 2},
        },
        "dataset": {"name": "Baggage", "split": "test", "classes": CLASSES, "shape": list(shape), "images": images,
                    "checked": checked, "passed_over": {"misclassified": 14}, "masks": True},
        "models": [{"id": model, "about": "small_cnn, trained here", "accuracy": _estimate(0.93, 0.02, 600)}
                   for model in models],
        "methods": [{"id": method, "settings": f"{method}(steps={cost[1]})", "control": method in CONTROLS}
                    for method, cost in METHODS.items()],
        "left_out": [{"model": model, "method": method, "reason": "the network has no self-attention"}
                     for model, method in sorted(left_out)],
        "metrics": [{"id": key, "title": title, "group": group, "better": better,
                     "about": f"What {title} says, in one plain sentence that is about as long as this one.",
                     "settings": f"{key}(steps=32, baseline='blurred')"}
                    for key, (title, group, better) in METRICS.items()],
        "cells": cells,
        "curves": [_curve(random, key, models, left_out) for key in CURVES],
        "sanity": [{"model": model, "method": method, "changed": method != "CrediblePath", "skipped": {},
                    "similarity": _estimate(0.82 if method == "CrediblePath" else float(random.normal(0.1, 0.1)), 0.07,
                                            checked)}
                   for model, method in pairs],
        "gallery": {"models": list(models), "methods": list(METHODS), "labels": [i % 5 for i in range(shown)],
                    "items": [{"model": model, "method": method,
                               "converged": [not (method == "Sigma" and i == 1) for i in range(shown)]}
                              for model, method in pairs]},
        "flags": [{"code": "A1", "message": "CrediblePath's maps stay alike when the parameters are shuffled"}],
        "findings": ["Sigma is best by insertion minus deletion, clearly ahead of IG2.",
                     "No method but Sigma beats the plain gradient on every localization metric."],
    }  # fmt: skip


def make_arrays(results, images, masks=None):
    """Return arrays for the gallery of a result; the maps lie on the dark parts of the images."""
    random = np.random.default_rng(6)
    section = results["gallery"]
    left_out = {(entry["model"], entry["method"]) for entry in results["left_out"]}
    dark = 1 - images.mean(1)
    dark = dark - dark.mean((1, 2), keepdims=True) if masks is None else masks - masks.mean((1, 2), keepdims=True)
    maps = np.full((len(section["models"]), len(section["methods"]), *dark.shape), np.nan)
    for i, model in enumerate(section["models"]):
        for j, method in enumerate(section["methods"]):
            if (model, method) not in left_out:
                quality = METHODS[method][0]
                maps[i, j] = quality * dark + (1 - quality) * random.normal(0, 0.5, dark.shape)
    arrays = {"images": images, "maps": maps}
    return arrays if masks is None else {**arrays, "masks": masks.astype(bool)}
