"""A result as an evaluation writes it: plausible numbers, random images."""

import copy

import attribution_case
import numpy as np
import pytest

CLASSES = ["knife", "gun", "wrench", "pliers", "scissors", "no threat"]
EFFECT = {"base": 0.0, "clean": 0.01, "gaussian": 0.08, "fgsm": 0.22, "sigma": 0.3, "mixture": 0.28}
STRENGTH = {"clean": 0.0, "gaussian": 0.12, "fgsm": 0.55, "sigma": 0.7, "pgd": 0.8}


def _estimate(mean, half, n=1200):
    return {"mean": round(mean, 4), "low": round(mean - half, 4), "high": round(mean + half, 4), "n": n}


def _conditions():
    settings = {
        "clean": "untouched images",
        "gaussian": "sigma = 0.1, the best of 5 swept",
        "fgsm": "L-infinity, eps = 8/255",
        "sigma": "at most 60 steps, stop at confidence 0.05",
        "pgd": "L-infinity, eps = 8/255, 40 steps, 5 restarts",
    }
    quality = {"gaussian": (0.1, 0.4, 0.71), "fgsm": (0.031, 0.0314, 0.93), "sigma": (0.048, 0.31, 0.88),
               "pgd": (0.027, 0.0314, 0.94)}  # fmt: skip
    pairs = [("clean", "none"), ("gaussian", "none")]
    pairs += [(name, reading) for reading in ("adaptive", "transfer") for name in ("fgsm", "sigma", "pgd")]
    return [
        {
            "name": name,
            "attack_setting": reading,
            "id": name if reading == "none" else f"{name}/{reading}",
            "settings": settings[name],
            "quality": {
                key: _estimate(value, value / 30, 400)
                for key, value in zip(("rmse", "linf", "ssim"), quality.get(name, ()), strict=False)
            },
        }
        for name, reading in pairs
    ]


def _regimes():
    found = [{"id": "base", "name": "base", "protocol": "none", "settings": "ResNet-18, 30 epochs", "seconds": 312.0}]
    for protocol in ("retrain", "on_the_fly"):
        for name in EFFECT:
            if name != "base" and not (protocol == "on_the_fly" and name == "clean"):
                settings = f"10 epochs, half of each batch from {name}"
                found.append({"id": f"{name}/{protocol}", "name": name, "protocol": protocol, "settings": settings,
                              "seconds": 140.0 + 400 * EFFECT[name]})  # fmt: skip
    return found


def _add_trust(results):
    """Add what an evaluation says of its attacks: threat models, worst cases, calibration, checks, curves."""
    adaptive = [c["id"] for c in results["conditions"] if c["attack_setting"] == "adaptive"]
    for condition in results["conditions"]:
        if condition["attack_setting"] != "none":
            bounded = condition["name"] != "sigma"
            condition["threat"] = {
                "norm": "L\u221e" if bounded else "unbounded",
                "eps": 8 / 255 if bounded else None,
                "knowledge": "weights of the model under test",
                "goal": "any wrong class",
            }
            condition["parameters"] = {"attack": condition["name"].upper(), "steps": 40, "walk": {"alpha": 0.01}}
    for cell in results["cells"]:
        cell["calibration"] = _estimate(0.05, 0.02)
    worst = {"id": "worst/all", "name": "all", "attack_setting": "worst", "settings": "right under each of the three"}
    results["conditions"].append({**worst, "quality": {}})
    for regime in results["regimes"]:
        identity = regime["id"]
        mine = [cell for cell in results["cells"] if cell["regime"] == identity]
        own = [cell["accuracy"]["mean"] for cell in mine if cell["condition"] in adaptive]
        results["cells"].append({"regime": identity, "condition": "worst/all", "n": 1200, "seeds": 3, "flags": [],
                                 "accuracy": _estimate(0.9 * min(own), 0.02)})  # fmt: skip
    weak = {"accuracy": 0.41, "difference": _estimate(0.05, 0.02, 64)}
    strong = {"accuracy": 0.87, "difference": _estimate(-0.41, 0.06, 64)}
    results["checks"] = [
        {"regime": regime["id"], "condition": attack, "n": 64, "accuracy": 0.46, "noise": strong,
         **({"double_steps": weak, "search": strong} if attack == "pgd/adaptive" else {})}
        for regime in results["regimes"] for attack in adaptive
    ]  # fmt: skip
    results["networks"] = [
        {"regime": regime["id"], "images": 64, "dead": 0.25 if regime["id"] == "base" else 0.0,
         "random_outputs": regime["id"] == "sigma/retrain", "probabilities": False}
        for regime in results["regimes"]
    ]  # fmt: skip
    results["curves"] = [
        {"regime": regime, "condition": "pgd/adaptive", "eps": [0.0, 0.0157, 0.0314], "n": 64, "chance": 1 / 6,
         "mean": [0.95, 0.7, 0.02], "low": [0.9, 0.6, 0.0], "high": [0.99, 0.8, 0.06], "reached": True}
        for regime in ("base", "sigma/retrain")
    ]  # fmt: skip


def make_results():
    random = np.random.default_rng(0)
    conditions, regimes, seeds = _conditions(), _regimes(), [0, 1, 2]
    cells, per_seed = [], []
    for regime in regimes:
        for condition in conditions:
            gain = EFFECT[regime["name"]] * (1.6 if condition["attack_setting"] == "transfer" else 1.0)
            mean = 0.957 - 0.08 * EFFECT[regime["name"]] - STRENGTH[condition["name"]] * max(0.05, 1 - 1.9 * gain)
            mean = float(np.clip(mean + random.normal(0, 0.008), 0.02, 0.99))
            search = condition["name"] == "sigma"
            cells.append(
                {
                    "regime": regime["id"],
                    "condition": condition["id"],
                    "n": 1200,
                    "seeds": 3,
                    "accuracy": _estimate(mean, 0.028 * (1.1 - abs(2 * mean - 1))),
                    "confidence": _estimate(0.95 * mean, 0.02),
                    "converged": round(1 - 0.9 * gain**2, 3) if search else None,
                    "steps": 14.2 + 50 * gain if search else None,
                    "quality": condition["quality"],
                    "flags": [],
                }
            )
            per_seed += [{"seed": s, "regime": regime["id"], "condition": condition["id"],
                          "accuracy": float(np.clip(mean + random.normal(0, 0.01), 0, 1))} for s in seeds]  # fmt: skip
    cells[5]["flags"] = [
        {"code": "R6", "message": "40 more steps still lower the accuracy: the attack has not settled"}
    ]
    cells[22]["flags"] = [
        {"code": "R6", "message": "40 more steps still lower the accuracy: the attack has not settled"},
        {"code": "R9", "message": "transfer beats adaptive: gradients may be masked"},
    ]
    del cells[31]
    table = {(cell["regime"], cell["condition"]): cell["accuracy"]["mean"] for cell in cells}
    differences = []
    for against in ("base", "clean/retrain"):
        for (regime, condition), mean in table.items():
            if regime not in ("base", against) and (against, condition) in table:
                change = mean - table[against, condition]
                differences.append({"regime": regime, "against": against, "condition": condition,
                                    **_estimate(change, 0.012 + 0.05 * abs(change))})  # fmt: skip
    curve = 0.97 / (1 + np.exp(0.35 * (np.arange(41) - 22)))
    results = {
        "schema": 1,
        "run": {
            "command": "robustsigma evaluate --config conf/baggage.yaml --checkpoint base.ckpt --out results/baggage",
            "started": "2026-11-24T07:12:05+00:00",
            "seconds": 4521.3,
            "versions": {"robustsigma": "0.1.0", "torch": "2.13.0", "python": "3.12.4"},
            "hardware": {"device": "NVIDIA H200", "cpu cores": 16},
        },
        "settings": {"model": "resnet", "train": {"epochs": 10, "lr": 0.001, "mix": {"share": 0.5}}, "size": [64, 64]},
        "seeds": seeds,
        "dataset": {"name": "baggage", "classes": CLASSES, "shape": [3, 32, 32], "train": 4800, "test": 1200},
        "conditions": conditions,
        "regimes": regimes,
        "cells": cells,
        "differences": differences,
        "per_seed": per_seed,
        "augmentation": [
            {"regime": r["id"], "seed": seed, "converged": 0.93 if r["name"] == "sigma" else None,
             "steps": 17.4 if r["name"] == "sigma" else None, "samples": 24000, "seconds": 61.0 + seed,
             "cache": {"hit_rate": 0.62, "mean_age": 1.5, "expired": 0.11, "stale": 0.07}
             if r["name"] == "mixture" else None}
            for r in regimes if r["name"] in ("fgsm", "sigma", "mixture") for seed in seeds
        ],
        "examples": {
            "labels": [0, 1, 2, 3, 4, 5, 0, 1],
            "items": [
                {"condition": c["id"], "predictions": [0, 1, 2, 3, 4, 5, 0, 1] if i < 2 else [0, 3, 5, 3, 2, 5, 5, 1],
                 "confidences": [float(v) for v in random.uniform(0.01, 0.99, 8)]}
                for i, c in enumerate(conditions)
            ],
        },
        "path": {"target": 1, "confidence": curve.tolist(), "shown_steps": [0, 6, 12, 18, 22, 26, 32, 40]},
        "explanations": [
            {"method": "sigma", "target": [0, 1, 2, 3, 4, 5], "converged": [True, True, True, False, True, True],
             "gap": [0.012, 0.03, 0.002, 0.21, 0.04, 0.01]},
            {"method": "integrated gradients", "target": [0, 1, 2, 3, 4, 5], "converged": None,
             "gap": [0.001, 0.002, 0.001, 0.004, 0.001, 0.003]},
        ],
        "flags": [{"code": "R12", "message": "AutoAttack was not run: the adaptive numbers are upper bounds"}],
        "findings": [
            "SIGMA retraining raised accuracy under adaptive SIGMA by 40 points; clean accuracy fell by 3.",
            "The clean control, trained as long, changed nothing beyond its interval.",
        ],
    }  # fmt: skip
    _add_trust(results)
    return results


def make_arrays():
    random = np.random.default_rng(1)
    y, x = np.mgrid[0:32, 0:32] / 31
    base = []
    for index in range(8):
        blob = np.exp(-(((x - 0.3 - 0.05 * index) ** 2 + (y - 0.5) ** 2) / 0.03))
        base.append(np.stack([0.9 - 0.7 * blob, 0.9 - 0.3 * blob * x, 0.9 - 0.5 * blob * y]))
    base = np.stack(base)
    noise = random.normal(0, 1, (8, 8, 3, 32, 32))
    level = np.array([0, 0.1, 0.03, 0.05, 0.03, 0.03, 0.05, 0.03])[:, None, None, None, None]
    heat = np.stack([0.9 - base[:6].mean(1), random.normal(0, 0.3, (6, 32, 32)) * (0.9 - base[:6].mean(1))])
    return {
        "examples": np.clip(base[None] + level * noise, 0, 1).astype("float32"),
        "path": np.clip(base[1] + np.linspace(0, 0.1, 8)[:, None, None, None] * noise[0], 0, 1).astype("float32"),
        "path_attribution": heat[0, 1],
        "explanations": heat,
        "explained": base[:6].astype("float32"),
        "masks": base[:6].mean(1) < 0.75,
    }


MEANS = {0.05: (0.98, 0.2), 0.1: (0.96, 0.36), 0.2: (0.9, 0.3)}


def make_sweep(protocol="retrain", by="mean"):
    rows = []
    for std, (clean, attacked) in MEANS.items():
        score = (clean + attacked) / 2
        behind = None if std == 0.1 else {"mean": score - 0.66, "low": score - 0.68, "high": score - 0.64, "n": 400}
        accuracy = {"clean": _estimate(clean, 0.04, 400), "fgsm/adaptive": _estimate(attacked, 0.04, 400)}
        rows.append({"std": std, "best": std == 0.1, "score": _estimate(score, 0.04, 400), "behind": behind,
                     "accuracy": accuracy, "seconds": 12.5})  # fmt: skip
    columns = [{"id": "clean", "name": "clean", "attack_setting": "none"},
               {"id": "fgsm/adaptive", "name": "fgsm", "attack_setting": "adaptive"}]  # fmt: skip
    return {"regime": f"gaussian/{protocol}", "name": "gaussian", "protocol": protocol, "seed": 3, "by": by,
            "images": 400, "held_out": "val", "columns": columns, "best": 0.1, "rows": rows}  # fmt: skip


@pytest.fixture(scope="session")
def _shared():
    """Return the result cut to few images, which are drawn soon."""
    results, arrays = make_results(), make_arrays()
    results["examples"]["labels"] = results["examples"]["labels"][:2]
    for item in results["examples"]["items"]:
        item.update(predictions=item["predictions"][:2], confidences=item["confidences"][:2])
    arrays["examples"] = arrays["examples"][:, :2]
    for method in results["explanations"]:
        method.update({key: value and value[3:5] for key, value in method.items() if key != "method"})
    arrays["explanations"] = arrays["explanations"][:, 3:5]
    arrays["explained"], arrays["masks"] = arrays["explained"][3:5], arrays["masks"][3:5]
    return results, arrays


@pytest.fixture
def results(_shared):
    return copy.deepcopy(_shared[0])


@pytest.fixture
def swept(results):
    return {**results, "sweep": [make_sweep(), make_sweep("on_the_fly")]}


@pytest.fixture
def arrays(_shared):
    return dict(_shared[1])


@pytest.fixture(scope="session")
def _shared_attribution():
    """Return a benchmark of two models with few curves, on small grayscale images without masks."""
    benchmark = attribution_case.make_results(models=("base", "retrained"), shown=2, shape=(1, 28, 28))
    benchmark["dataset"]["masks"] = False
    benchmark["curves"] = [curve for curve in benchmark["curves"] if curve["id"] in ("insertion", "sic")]
    images = np.random.default_rng(3).uniform(0, 1, (2, 1, 28, 28)).astype("float32")
    return benchmark, attribution_case.make_arrays(benchmark, images)


@pytest.fixture
def benchmark_results(_shared_attribution):
    return copy.deepcopy(_shared_attribution[0])


@pytest.fixture
def benchmark_arrays(_shared_attribution):
    return dict(_shared_attribution[1])


@pytest.fixture
def few_methods(benchmark_results, benchmark_arrays):
    """Return a benchmark of three methods and one curve with its arrays, which is soon drawn."""
    kept = ("Sigma", "AGI", "RandomAttribution")
    places = [place for place, method in enumerate(attribution_case.METHODS) if method in kept]
    for key in ("cells", "sanity"):
        benchmark_results[key] = [entry for entry in benchmark_results[key] if entry["method"] in kept]
    (curve, *_) = benchmark_results["curves"]
    benchmark_results["curves"] = [{**curve, "lines": [line for line in curve["lines"] if line["method"] in kept]}]
    benchmark_results["gallery"]["methods"] = list(kept)
    return benchmark_results, {**benchmark_arrays, "maps": benchmark_arrays["maps"][:, places]}


@pytest.fixture
def scores_only(benchmark_results):
    """Return a benchmark of one model and few metrics, of which only one figure is drawn: it is soon written."""
    kept = {"insertion", "deletion", "iou", "forwards", "backwards"}
    return {
        **{key: value for key, value in benchmark_results.items() if key not in ("curves", "sanity", "gallery")},
        "models": benchmark_results["models"][:1],
        "metrics": [metric for metric in benchmark_results["metrics"] if metric["id"] in kept],
        "cells": [c for c in benchmark_results["cells"] if c["model"] == "base" and c["metric"] in kept],
    }
