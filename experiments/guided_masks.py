"""Ask whether it matters where training images are perturbed: python experiments/guided_masks.py.

A network of the built-in scans is trained, and trained on in each regime for the same number of steps: on unperturbed
images, or with half of each batch perturbed. Noise, FGSM and the image's mean color are applied to a third of the
pixels: those where the map of IG (for FGSM also SIGMA) is highest, or lowest, or, as a control, the region of the
highest values moved at random. Noise and FGSM everywhere and SIGMA samples are compared as well. All networks are
tested on the same images: clean, under noise, FGSM, PGD and SIGMA made against each, four corruptions at severity 3,
and on scans whose clutter training did not show.

Differences are paired by image and seed. The first family asks the question once for each perturbation, method and
place, over all conditions; the second for each condition; the third compares every regime with unperturbed training,
over all conditions. Holm's correction counts a family. Finished trainings are kept in `--work`, so an interrupted
script resumes, and several with their own `--only` share the work. Writes results/guided_masks.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from shared.output import command, output_options, table, write
from torch import Tensor

from robustsigma import (
    FGSM,
    PGD,
    AttributionMasked,
    Classifier,
    Corruption,
    GaussianNoise,
    Identity,
    IntegratedGradients,
    Mixture,
    Perturbation,
    Sigma,
    SigmaSample,
)
from robustsigma.data import Baggage
from robustsigma.data.loading import load_batch
from robustsigma.engine.metrics import holm, paired_difference, share_interval
from robustsigma.engine.metrics.interval import LEVEL, Interval, as_dict
from robustsigma.engine.perturbations import Perturbed
from robustsigma.engine.perturbations.attribution_masked import Where
from robustsigma.evaluation.training import quiet, quiet_trainer, seeded
from robustsigma.lightning import LitClassifier, RobustDataModule
from robustsigma.models import SmallCNN
from robustsigma.runs.files import write_atomically
from robustsigma.runs.provenance import Provenance

EPS, SHARE, FRACTION, BATCH, LR = 2 / 255, 0.5, 1 / 3, 64, 0.001
SHOWN, SHIFTED = ("clothes", "bottle", "carton", "laptop"), ("cable", "rod", "ring", "keys", "gadget")
CONTROL = "clean"
RANDOM: Where = "random"
GUIDED: tuple[Where, ...] = ("high", "low")
WALK = Sigma(alpha=0.01, beta=0.1, objective="logit", paths=1, max_steps=10)


@dataclass(frozen=True)
class MeanColor(Perturbation):
    """Replace every pixel with the mean color of its image."""

    depends_on_model = False

    def perturb(self, classifier: Classifier, images: Tensor, labels: Tensor, seeds: Tensor) -> Perturbed:
        """Return images of one color each."""
        return Perturbed.plain(images.mean((2, 3), keepdim=True).expand_as(images).clone())


PERTURBATIONS = {"noise": GaussianNoise(0.1), "mean": MeanColor(), "FGSM": FGSM(EPS, random_start=True)}
METHODS = {"IG": IntegratedGradients(steps=4, baseline="white"), "SIGMA": WALK}
# SIGMA's map costs five times as much as this IG's, so it guides one perturbation.
MASKED = {**dict.fromkeys(PERTURBATIONS, ("IG",)), "FGSM": ("IG", "SIGMA")}
REGIMES: dict[str, Perturbation] = {
    CONTROL: Identity(),
    "noise": PERTURBATIONS["noise"],
    "FGSM": PERTURBATIONS["FGSM"],
    "SIGMA samples": SigmaSample(WALK),
    **{
        f"{name}, {place} {method}": AttributionMasked(PERTURBATIONS[name], METHODS[method], place, FRACTION)
        for name, methods in MASKED.items()
        for method in methods
        for place in (*GUIDED, RANDOM)
    },
}
CONDITIONS: dict[str, Perturbation] = {
    "clean": Identity(),
    "noise": GaussianNoise(0.1),
    "FGSM": FGSM(EPS),
    "PGD": PGD(EPS, steps=10),
    "SIGMA": SigmaSample(WALK),
    **{name: Corruption(name, 3) for name in ("gaussian_noise", "motion_blur", "frost", "contrast")},
    "other clutter": Identity(),
}


def dataset(options: argparse.Namespace, clutter: Sequence[str] = SHOWN) -> Baggage:
    """Return the scans with some kinds of clutter."""
    return Baggage(32, options.train, 1, options.images, clutter=tuple(clutter))


def fitted(model: LitClassifier, options: argparse.Namespace, seed: int, name: str, perturbation: Perturbation,
           epochs: int) -> LitClassifier:  # fmt: skip
    """Return the network after training on scans of which half of each batch are perturbed."""
    with quiet(), seeded(seed, f"guided_masks {name}"):
        mixture = None if isinstance(perturbation, Identity) else Mixture({perturbation: SHARE})
        data = RobustDataModule(dataset(options), train_perturbation=mixture, batch_size=BATCH, seed=seed)
        quiet_trainer([], max_epochs=epochs, limit_val_batches=0).fit(model.train(), data)
    return model.eval()


def base(options: argparse.Namespace, seed: int) -> LitClassifier:
    """Return the network that every regime of a seed starts from, trained if it is not stored."""
    path = options.work / "guided_masks" / f"base_{seed}_{options.epochs}_{options.train}.pt"
    with seeded(seed, "guided_masks start"):
        net = SmallCNN(3, len(dataset(options).classes), width=12)
    model = LitClassifier(net, optimizer=partial(torch.optim.AdamW, lr=3e-3, weight_decay=1e-3))
    if path.is_file():
        net.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()
    fitted(model, options, seed, "base", Identity(), options.epochs)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(net.state_dict(), path)
    return model


def tested(model: LitClassifier, options: argparse.Namespace) -> dict[str, list[int]]:
    """Return for each condition which test images are classified correctly, 0 or 1."""
    found = {}
    for name, condition in CONDITIONS.items():
        split = dataset(options, SHIFTED if name == "other clutter" else SHOWN).split("test")
        images, labels = load_batch(split, range(len(split)))
        made = condition(model.classifier, images, labels, seed=0)
        with torch.no_grad():
            found[name] = (model(made).argmax(1) == labels).int().tolist()
    return found


def cell(regime: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return the outcomes of a training, which is made if it is not finished."""
    name = f"{regime}_{seed}_{options.epochs}_{options.retrain}_{options.train}_{options.images}"
    path = options.work / "guided_masks" / f"{name.replace(', ', '_').replace(' ', '_')}.json"
    if not path.is_file():
        before = base(options, seed)
        start = time.process_time()
        model = LitClassifier(copy.deepcopy(before.classifier.net), optimizer=partial(torch.optim.AdamW, lr=LR))
        # The order of images and dropout are those of the seed, the same in all regimes.
        fitted(model, options, seed, "again", REGIMES[regime], options.retrain)
        found = {"cpu_seconds": time.process_time() - start, "correct": tested(model, options)}
        write_atomically(path, json.dumps(found).encode())
    read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    shown = ", ".join(f"{name} {sum(row) / len(row):.3f}" for name, row in read["correct"].items())
    print(f"{regime}, seed {seed}: {shown}; {read['cpu_seconds']:.0f} s of training", flush=True)
    return read


def family(pairs: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
    """Return paired differences of outcomes (seeds, images), corrected for their number."""
    gains: list[Interval | None] = [paired_difference(*pair) for pair in pairs.values()]
    return {
        name: {**as_dict(gain), "holm": corrected, "significant": corrected < LEVEL}  # type: ignore[arg-type]
        for name, gain, corrected in zip(pairs, gains, holm(gains), strict=True)
    }


def summary(cells: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return accuracies, and differences with corrected p-values."""
    correct = {name: {c: np.array([row["correct"][c] for row in rows]) for c in CONDITIONS}
               for name, rows in cells.items()}  # fmt: skip
    # Images differ between the two test sets, so that place i stands for two images; intervals cover both.
    mean = {name: np.mean(list(own.values()), axis=0) for name, own in correct.items()}
    masked = [(f"{name}, {place} {method}", f"{name}, {RANDOM} {method}")
              for name, methods in MASKED.items() for method in methods for place in GUIDED]  # fmt: skip
    every = {f"{a}: {c}": (correct[a][c], correct[b][c]) for a, b in masked for c in CONDITIONS}
    return {
        "accuracy": {
            name: {c: as_dict(share_interval(rows)) for c, rows in own.items()} for name, own in correct.items()
        },
        "guided minus random, all conditions": family({a: (mean[a], mean[b]) for a, b in masked}),
        "guided minus random, each condition": family(every),
        "minus clean, all conditions": family({a: (mean[a], mean[CONTROL]) for a in cells if a != CONTROL}),
        "cpu_seconds": {name: [row["cpu_seconds"] for row in rows] for name, rows in cells.items()},
    }


def points(entry: Mapping[str, Any]) -> str:
    """Return a difference in percentage points; a significant one is bold."""
    text = "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * entry[key] for key in ("mean", "low", "high")))
    text = text.replace("-", "\N{MINUS SIGN}")
    return f"**{text}**" if entry["significant"] else text


def shown(found: Mapping[str, Any]) -> str:
    """Return the tables of a file of results."""
    head = ["regime", *CONDITIONS]
    accuracy = [[name, *(f"{100 * own[c]['mean']:.1f}" for c in CONDITIONS)] for name, own in found["accuracy"].items()]
    gains = found["guided minus random, all conditions"]
    guided = [[name, points(gain)] for name, gain in gains.items()]
    each = [[name, points(gain)] for name, gain in found["guided minus random, each condition"].items()
            if gain["significant"]]  # fmt: skip
    control = [[name, points(gain)] for name, gain in found["minus clean, all conditions"].items()]
    return "\n\n".join([table(head, accuracy), table(["minus random, all conditions", "difference"], guided),
                        table(["significant in one condition", "difference"], each),
                        table(["minus clean", "difference"], control)])  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Train, test, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=300, help="number of test images")
    parser.add_argument("--train", type=int, default=1500, help="number of training images")
    parser.add_argument("--seeds", type=int, default=5, help="number of trainings in each regime")
    parser.add_argument("--only", type=int, nargs="+", help="seeds to train and test, without results")
    parser.add_argument("--epochs", type=int, default=20, help="epochs of the first training")
    parser.add_argument("--retrain", type=int, default=3, help="epochs of each regime")
    output_options(parser)
    options = parser.parse_args(arguments)
    if options.fast:
        options.images, options.train, options.seeds, options.epochs, options.retrain = 10, 20, 2, 1, 1
    provenance = Provenance(command("guided_masks", arguments))
    cells: dict[str, list[dict[str, Any]]] = {name: [] for name in REGIMES}
    for seed in options.only or range(options.seeds):
        for name, rows in cells.items():
            rows.append(cell(name, seed, options))
    if options.only:
        return
    settings = {
        **{key: getattr(options, key) for key in ("images", "train", "epochs", "retrain")},
        "seeds": [*range(options.seeds)],
        "batch_size": BATCH,
        "lr": LR,
        "share": SHARE,
        "fraction": FRACTION,
        "clutter": {"training": SHOWN, "other": SHIFTED},
        "regimes": {name: repr(perturbation) for name, perturbation in REGIMES.items()},
        "conditions": {name: repr(perturbation) for name, perturbation in CONDITIONS.items()},
    }
    path = write(options, "guided_masks", {"settings": settings, **summary(cells)}, provenance)
    print(shown(json.loads(path.read_text(encoding="utf-8"))))
    print(path)


if __name__ == "__main__":
    main()
