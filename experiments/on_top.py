"""Ask whether SIGMA samples help on top of adversarial training: python experiments/on_top.py.

Four trainings of a small network on MNIST5k with the same number of optimizer steps, all with an average of weights
(EMA): on PGD alone, on PGD with a quarter of each batch SIGMA samples instead, with TRADES, and with TRADES on batches
of which a quarter are SIGMA samples. All are tested on the same images: clean, under AutoAttack "standard" within the
training radius, and under four corruptions, one of each group of Hendrycks and Dietterich (2019), at severity 3.

Differences are paired by image and seed, with SIGMA minus without; Holm's correction counts all of them. Finished
trainings are kept in `--work`, so an interrupted script resumes, and several with their own `--only` share the work.
Writes results/on_top.json. `--table FILE` prints its table.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from autoattack import small_network
from pytorch_lightning.callbacks import EMAWeightAveraging
from shared.output import command, table, write

from robustsigma import PGD, AutoAttack, Corruption, Identity, Mixture, Perturbation, Sigma, SigmaSample
from robustsigma.data import MNIST5k
from robustsigma.data.loading import load_batch, subsample
from robustsigma.engine.metrics import holm, paired_difference, share_interval
from robustsigma.engine.metrics.interval import LEVEL, as_dict
from robustsigma.evaluation.training import quiet, quiet_trainer, seeded
from robustsigma.lightning import LitClassifier, RobustDataModule, Trades
from robustsigma.lightning.training_perturbation import Ramp
from robustsigma.runs.files import write_atomically
from robustsigma.runs.provenance import Provenance

EPS, SHARE, DECAY, BATCH, LR = 0.2, 0.25, 0.99, 100, 0.002
RAMP = Ramp(eps=4)  # at full strength from the start PGD training stays at chance for some seeds
RECIPES = ("PGD", "TRADES")
ON_TOP = " + SIGMA"
ATTACK = "AutoAttack"
CORRUPTIONS = ("gaussian_noise", "motion_blur", "frost", "contrast")
PGD_STEPS = 7

_PGD = PGD(EPS, steps=PGD_STEPS)
_SIGMA = SigmaSample(Sigma(alpha=0.03, beta=0.1, objective="logit", paths=1, max_steps=20))
REGIMES: dict[str, tuple[Perturbation, Trades | None]] = {
    "PGD": (_PGD, None),
    "PGD + SIGMA": (Mixture({_PGD: 1 - SHARE, _SIGMA: SHARE}), None),
    "TRADES": (Identity(), Trades(EPS, steps=PGD_STEPS)),
    "TRADES + SIGMA": (Mixture({_SIGMA: SHARE}), Trades(EPS, steps=PGD_STEPS)),
}


def trained(regime: str, seed: int, epochs: int, limit: int | None) -> LitClassifier:
    """Return a network trained in a regime; a seed is the start and the order of images, the same in all regimes."""
    perturbation, trades = REGIMES[regime]
    with quiet(), seeded(seed, "on_top"):
        optimizer = partial(torch.optim.AdamW, lr=LR, weight_decay=1e-3)
        model = LitClassifier(small_network(), optimizer=optimizer, trades=trades)
        ramp = RAMP if trades is None else None
        limits = {} if limit is None else {"train": limit}
        data = RobustDataModule(
            MNIST5k(), train_perturbation=perturbation, ramp=ramp, batch_size=BATCH, seed=seed, limits=limits
        )
        trainer = quiet_trainer([EMAWeightAveraging(decay=DECAY)], max_epochs=epochs, limit_val_batches=0)
        trainer.fit(model, data)
    return model.eval()


def tested(model: LitClassifier, images: int, attack: AutoAttack) -> dict[str, Any]:
    """Return for each condition which of some test images, the same for all, are classified right, 0 or 1."""
    dataset = MNIST5k().split("test")  # in the order of its classes
    x, y = load_batch(dataset, subsample(len(dataset), images, 0))
    conditions: dict[str, Perturbation] = {"clean": Identity(), ATTACK: attack}
    conditions |= {name: Corruption(name, 3) for name in CORRUPTIONS}
    found = {}
    for name, condition in conditions.items():
        made = condition(model.classifier, x, y, seed=0)
        with torch.no_grad():
            found[name] = (model(made).argmax(1) == y).int().tolist()
    return found


def walked(model: LitClassifier, images: int) -> dict[str, float]:
    """Return how far SIGMA samples go against a trained network: the share that converges, and the mean distance."""
    dataset = MNIST5k().split("test")
    x, y = load_batch(dataset, subsample(len(dataset), images, 0))
    made = _SIGMA(model.classifier, x, y, seed=0, return_info=True)
    distance = (made.images - x).abs().flatten(1).amax(1)
    return {"converged": float(made.converged.double().mean()), "linf": float(distance.double().mean())}


def cell(regime: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return the outcomes of a training, which is made if it is not finished."""
    path = options.work / "on_top" / f"{regime}_{seed}_{options.epochs}_{options.images}.json"
    if not path.is_file():
        start = time.perf_counter()
        model = trained(regime, seed, options.epochs, 100 if options.fast else None)
        seconds = time.perf_counter() - start
        attack = AutoAttack(EPS, steps=2, queries=2) if options.fast else AutoAttack(EPS)
        found = {"training_seconds": seconds, "right": tested(model, options.images, attack)}
        if regime.endswith(ON_TOP):
            found["sigma_samples"] = walked(model, options.images)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(found).encode())
    read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    shown = ", ".join(f"{name} {sum(row) / len(row):.3f}" for name, row in read["right"].items())
    print(f"{regime}, seed {seed}: {shown}; {read['training_seconds']:.0f} s of training", flush=True)
    return read


def summary(cells: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return accuracies, and the differences that SIGMA samples make, with corrected p-values."""
    conditions = list(cells[RECIPES[0]][0]["right"])
    right = {name: {c: [each["right"][c] for each in rows] for c in conditions} for name, rows in cells.items()}
    pairs = [(recipe, condition) for recipe in RECIPES for condition in conditions]
    gains = [paired_difference(right[recipe + ON_TOP][c], right[recipe][c]) for recipe, c in pairs]
    differences: dict[str, Any] = {recipe: {} for recipe in RECIPES}
    for (recipe, condition), gain, corrected in zip(pairs, gains, holm(gains), strict=True):
        differences[recipe][condition] = {**as_dict(gain), "holm": corrected, "significant": corrected < LEVEL}
    return {
        "accuracy": {
            name: {condition: as_dict(share_interval(rows)) for condition, rows in own.items()}
            for name, own in right.items()
        },
        "differences": differences,
        "sigma_samples": {
            name: [each["sigma_samples"] for each in rows] for name, rows in cells.items() if name.endswith(ON_TOP)
        },
        "training_seconds": {name: [each["training_seconds"] for each in rows] for name, rows in cells.items()},
    }


def points(entry: Mapping[str, Any], signed: bool = False) -> str:
    """Return a share with its interval in percentage points."""
    mean, low, high = (f"{100 * entry[key]:{'+' if signed else ''}.1f}" for key in ("mean", "low", "high"))
    text = f"{mean} ({low} to {high})".replace("-", "\N{MINUS SIGN}")
    return f"**{text}**" if entry.get("significant") else text


def shown(found: Mapping[str, Any]) -> str:
    """Return the table of a file of results: accuracies, and differences in percentage points."""
    rows = []
    for recipe in RECIPES:
        rows += [[name, *map(points, found["accuracy"][name].values())] for name in (recipe, recipe + ON_TOP)]
        rows.append(["difference", *(points(each, True) for each in found["differences"][recipe].values())])
    return table(["training", *(name.replace("_", " ") for name in found["accuracy"]["PGD"])], rows)


def caption(found: Mapping[str, Any]) -> str:
    """Return what stands behind the numbers."""
    settings, run = found["settings"], found["run"]
    return (
        f"MNIST5k, {settings['images']} test images, {len(settings['seeds'])} trainings each, accuracy in % and "
        f"differences in percentage points, 95% intervals over images and seeds; radius {settings['eps']:g}, "
        f"corruptions at severity 3. Bold: significant after Holm's correction for all "
        f"{sum(map(len, found['differences'].values()))} differences. {run['hardware']['device']}, "
        f"torch {run['versions']['torch']}."
    )


def main(arguments: list[str] | None = None) -> None:
    """Train, test, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=300, help="number of test images")
    parser.add_argument("--seeds", type=int, default=3, help="number of trainings in each regime")
    parser.add_argument("--epochs", type=int, default=8, help="epochs of a training")
    parser.add_argument("--only", nargs="+", choices=[*REGIMES], help="regimes to train and test, without results")
    parser.add_argument("--work", type=Path, default=Path("runs/experiments"), help="folder of unfinished work")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the results")
    parser.add_argument("--name", help="name of the results file; the name of the script by default")
    parser.add_argument("--table", type=Path, help="print the table of a file of results, and train nothing")
    parser.add_argument("--fast", action="store_true", help="small version that only checks that the script runs")
    options = parser.parse_args(arguments)
    if options.table is not None:
        found = json.loads(options.table.read_text(encoding="utf-8"))
        print(f"{shown(found)}\n\n{caption(found)}")
        return
    if options.fast:
        options.images, options.seeds, options.epochs = 20, 2, 1
    provenance = Provenance(command("on_top", arguments))
    cells: dict[str, list[dict[str, Any]]] = {name: [] for name in options.only or REGIMES}
    for seed in range(options.seeds):
        for name, rows in cells.items():
            rows.append(cell(name, seed, options))
    if options.only:
        return
    settings = {
        "images": options.images,
        "seeds": [*range(options.seeds)],
        "epochs": options.epochs,
        "ramp_epochs_of_pgd": RAMP.eps,
        "steps": options.epochs * -(-len(MNIST5k().split("train")) // BATCH),
        "batch_size": BATCH,
        "lr": LR,
        "eps": EPS,
        "sigma_share": SHARE,
        "ema_decay": DECAY,
        "regimes": {name: repr(both) for name, both in REGIMES.items()},
    }
    path = write(options, "on_top", {"settings": settings, **summary(cells)}, provenance)
    print(shown(json.loads(path.read_text(encoding="utf-8"))))
    print(path)


if __name__ == "__main__":
    main()
