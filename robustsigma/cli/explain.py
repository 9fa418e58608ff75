"""`explain`: draw heatmaps over image files."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from robustsigma.cli import images
from robustsigma.cli.explained_folder import ExplainedFolder, MapFiles
from robustsigma.cli.method_names import DEFAULT, by_alias, split_methods
from robustsigma.cli.parsing import new_parser, parse
from robustsigma.engine import noise
from robustsigma.engine.attributors import Attribution, Attributor, Sigma
from robustsigma.engine.contrast import contrasted
from robustsigma.engine.device import best_device
from robustsigma.engine.validation import choice, fail
from robustsigma.report.explanation import animate_path, draw_explanation, draw_path, percent
from robustsigma.report.heatmaps import overlay
from robustsigma.report.text import count, duration, printable
from robustsigma.runs.directory import output_folder
from robustsigma.runs.fingerprint import code_of, describe

_DESCRIPTION = (
    "Draw a heatmap over each image. The map itself is saved beside the picture as .npy, and the numbers are in "
    "manifest.json. Run the same command again to resume; with other colors, pictures are drawn from the saved maps."
)
# Images in a batch after the first one, which is explained alone so that its picture comes soon.
_BATCH, _GPU_BATCH = {"cpu": 1}, 16
_STYLE = ("smooth", "clip", "opacity", "colors", "signed", "outline")
_WALKS = {"strip": (draw_path, "png"), "gif": (animate_path, "gif")}
_SHOWN = 3  # predicted classes
_SOON = 10.0  # seconds


def run(verb: str, arguments: list[str]) -> None:
    """Parse the arguments and explain."""
    parser = new_parser("robustsigma explain", _DESCRIPTION)
    parser.add_argument("images", type=str, nargs="+", help="image files, or folders of them")
    images.add_model(parser)
    method_help = "class of an attribution method, or its initials as in --method ig; several are drawn side by side"
    parser.add_argument("--method", type=Attributor, default=DEFAULT, help=method_help)
    target_help = "class name or index; the predicted class if not given"
    parser.add_argument("--target", type=str, default=None, help=target_help)
    contrast_help = "class name or index: explain why the network predicts the target rather than this class"
    parser.add_argument("--contrast", type=str, default=None, help=contrast_help)
    walk_help = "also draw the walk of a SIGMA method: strip (a PNG file) or gif (an animation)"
    parser.add_argument("--path", type=str, default=None, help=walk_help)
    parser.add_argument("--seed", type=int, default=0, help="seed of methods that use randomness")
    parser.add_function_arguments(overlay, skip={"image", "attribution", "side"}, as_group=False)
    parser.add_argument("--out", type=str, default="explanations", help="folder of the pictures")
    parser.add_argument("--config", action="config", help="YAML file of these options")
    first, *others = split_methods(arguments)
    found, made = parse(parser, by_alias(first))
    single = new_parser("robustsigma explain")
    single.add_argument("--method", type=Attributor)
    single.add_argument("--allow", type=str, action="append", default=[])
    allow = [part for name in found.allow for part in ("--allow", name)]
    _Explainer(found, made, [made.method, *(parse(single, [*by_alias(m), *allow])[1].method for m in others)]).run()


class _Explainer:
    """Explains images by some methods, and draws them.

    Args:
        found: the parsed arguments.
        made: the same with the classes instantiated.
        methods: attribution methods, drawn side by side.
    """

    def __init__(self, found: Any, made: Any, methods: Sequence[Attributor]) -> None:
        self.methods, self.walk, self.seed, self.console = methods, found.path, found.seed, Console()
        self.announced = self.advised = False
        self.style = {name: made[name] for name in _STYLE}
        overlay(torch.zeros(1, 2, 2), torch.zeros(2, 2), **self.style)  # an error before the model is loaded
        if self.walk is not None:
            choice("path", self.walk, tuple(_WALKS))
            if not any(isinstance(method, Sigma) for method in methods):
                raise fail("path", "a SIGMA method, whose walk it draws", ", ".join(type(m).__name__ for m in methods))
        self.paths = images.files(found.images, found.out)  # an error before weights are downloaded
        self.classifier, self.card = images.model(found, made)
        out = output_folder(found.out)
        self.target = images.class_index(found.target, self.card.classes, "target")
        self.contrast = images.class_index(found.contrast, self.card.classes, "contrast")
        if self.contrast is not None and self.contrast == self.target:
            raise fail("contrast", "another class than the target", repr(found.contrast))
        self.device, self.model = best_device(), str(found.model)
        settings: dict[str, Any] = {**images.model_settings(found, self.classifier, self.card), **code_of(found.allow)}
        settings |= {"methods": describe(methods), "seed": self.seed, "path": self.walk}
        settings |= {"target": self.target, "contrast": self.contrast}
        self.folder = ExplainedFolder(out, self.paths, settings, describe(self.style))

    def run(self) -> None:
        """Explain what the folder lacks, one finished picture after the other."""
        left = [path for path in self.paths if not self.folder.is_finished(path)]
        if len(left) < len(self.paths):
            known = f"{len(self.paths) - len(left)} of {len(self.paths)} images"
            self.console.print(f"{known} were explained before with the same settings")
        broken: list[str] = []
        begin, done = time.monotonic(), 0
        try:
            for batch in self._batches(left):
                pixels = {path: image for path in batch if (image := self._read(path, broken)) is not None}
                lacking = [path for path in pixels if not self.folder.has_maps(path)]
                if lacking:
                    self._explain(lacking, torch.stack([pixels[path] for path in lacking]).to(self.device))
                for path, image in pixels.items():
                    entry, maps, samples = self.folder.load(path)
                    self.folder.finish(path, draw_explanation(entry, image.numpy(), maps, samples, self.style))
                    done += 1
                    rest = (time.monotonic() - begin) / done * (len(left) - len(broken) - done)
                    self._say(entry, f"{done}/{len(left)}", f"  (about {duration(rest)} left)" if rest else "")
        finally:
            self.folder.write()
        if broken:
            others = f"; {count(done, 'other image')} explained" if len(self.paths) > 1 else ""
            raise ValueError("\n".join(broken) + others)

    def _batches(self, paths: Sequence[Path]) -> list[Sequence[Path]]:
        size = 1 if self.contrast is not None else _BATCH.get(self.device.type, _GPU_BATCH)
        return [paths[:1], *(paths[start : start + size] for start in range(1, len(paths), size))]

    def _read(self, path: Path, broken: list[str]) -> Tensor | None:
        try:
            return images.read([path], self.card)[0]
        except ValueError as error:
            broken.append(str(error))
            return None

    def _explain(self, paths: Sequence[Path], x: Tensor) -> None:
        """Predict and attribute images, and save what is found."""
        begin = time.monotonic()
        with self.classifier.frozen():
            probabilities = self.classifier.logits(x).softmax(1)
        self._announce((time.monotonic() - begin) / len(x))
        predicted = probabilities.argmax(1)
        target = predicted if self.target is None else torch.full_like(predicted, self.target)
        other = None if self.contrast == int(target[0]) else self.contrast
        made = [self._attributed(method, x, target, other) for method in self.methods]
        for row, path in enumerate(paths):
            found = [of_images[row] for of_images in made]
            entry = {
                "model": self.model,
                "predicted": self._ranked(probabilities[row]),
                "explained": self._class(probabilities[row], target[row]),
                "contrast": None if other is None else self.card.classes[other],
                "maps": [record for record, _ in found],
            }
            self.folder.save(path, entry, [files for _, files in found])

    def _attributed(
        self, method: Attributor, x: Tensor, target: Tensor, other: int | None
    ) -> list[tuple[dict[str, Any], MapFiles]]:
        """Return, for each image, what is known of a method's map, and what belongs into files."""
        seeds, walks = noise.seeds(self.seed, x), []
        with nullcontext() if other is None else contrasted(self.classifier, int(target[0]), other):
            at = target if other is None else torch.zeros_like(target)
            result = method(self.classifier, x, at, seed=seeds)
            if isinstance(method, Sigma) and self.walk is not None:
                with self.classifier.frozen():
                    rows = zip(x.split(1), at.split(1), seeds.split(1), strict=True)
                    walks = [method.path(self.classifier, *row) for row in rows]
        about = {"method": type(method).__name__, "settings": describe(method), "seed": self.seed}
        records = [{**about, **_numbers(result, row)} for row in range(len(x))]
        maps = result.values.float().cpu().numpy()
        if not isinstance(method, Sigma):
            return [(record, MapFiles(values)) for record, values in zip(records, maps, strict=True)]
        with self.classifier.frozen():
            ends = self.classifier.logits(result.endpoint).softmax(1)
        files = []
        for row, record in enumerate(records):
            record["sample_predicted"] = self._class(ends[row], ends[row].argmax())
            record["sample_explained"] = self._class(ends[row], target[row])
            walk = self._drawn(*walks[row], int(target[row]), other) if walks else None
            files.append(MapFiles(maps[row], result.endpoint[row].cpu(), walk))
        return list(zip(records, files, strict=True))

    def _drawn(self, points: Tensor, curve: Tensor, target: int, other: int | None) -> tuple[bytes, str]:
        """Return the file of a walk and its suffix."""
        draw, suffix = _WALKS[self.walk]
        name = self.card.classes[target] + ("" if other is None else f" rather than {self.card.classes[other]}")
        return draw(points.cpu().double().numpy(), curve.tolist(), name), suffix

    def _announce(self, seconds: float) -> None:
        """State how long the first picture may take, from the seconds of a forward pass of one image."""
        steps = [
            5 * m.max_steps * m.paths if isinstance(m, Sigma) else 3 * getattr(m, "steps", 0) for m in self.methods
        ]
        if not self.announced and seconds * sum(steps) > _SOON:
            self.console.print(f"the first picture takes at most about {duration(seconds * sum(steps))}")
        self.announced = True

    def _ranked(self, probabilities: Tensor) -> list[dict[str, Any]]:
        return [self._class(probabilities, index) for index in probabilities.topk(min(_SHOWN, len(probabilities)))[1]]

    def _class(self, probabilities: Tensor, index: int | Tensor) -> dict[str, Any]:
        return {"class": self.card.classes[int(index)], "index": int(index), "confidence": float(probabilities[index])}

    def _say(self, entry: dict[str, Any], place: str, rest: str) -> None:
        first = entry["predicted"][0]
        lost = [record["method"] for record in entry["maps"] if not record["converged"]]
        note = f", not converged: {', '.join(lost)}" if lost else ""
        if "Sigma" in lost and not self.advised:
            steps = max(m.max_steps for m in self.methods if isinstance(m, Sigma))
            note += f" (--method.max_steps {max(200, 2 * steps)} takes more steps)"
            self.advised = True
        line = f"{place}  {entry['picture']}  {first['class']}: {percent(first['confidence'])}{note}{rest}"
        self.console.print(printable(line), markup=False, highlight=False, soft_wrap=True)


def _numbers(result: Attribution, row: int) -> dict[str, Any]:
    heat = result.heatmap()[row]
    known = result.stderr is not None and bool(heat.any())
    error = result.stderr[row] if result.stderr is not None else heat
    return {
        "converged": bool(result.all_converged()[row]),
        "converged_paths": float(result.converged[row][result.walked[row]].float().mean()),
        "steps": result.steps[row].tolist(),
        "forwards": int(result.forwards[row]),
        "backwards": int(result.backwards[row]),
        "drop": float(result.drop[row]),
        "completeness_gap": float(result.gap()[row]),
        "relative_stderr": float(error.norm() / heat.norm()) if known else None,
    }
