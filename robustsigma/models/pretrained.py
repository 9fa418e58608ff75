"""`Pretrained`: networks that were trained elsewhere, and `model`, which loads any model by its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from robustsigma.data.resize_crop import ResizeCrop
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.validation import Settings, fail, integer, near
from robustsigma.models.architecture import Architecture, constructor, count_logits
from robustsigma.models.hugging_face import HF
from robustsigma.models.identification import identified, identify
from robustsigma.models.lightning_checkpoint import is_lightning, load_checkpoint, normalization, part
from robustsigma.models.model_files import ModelCard, load_model, read_card
from robustsigma.models.published_weights import (
    PUBLISHED,
    TORCHVISION,
    Published,
    guesses,
    load_fitted,
    published,
    published_state,
    statistics,
    warn_of_guess,
)
from robustsigma.models.same_padding import with_same_padding
from robustsigma.models.weight_files import SUFFIX, SUFFIXES, State, fit_state, read_state, stored_statistics

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Pretrained(Settings):
    """A network that was trained elsewhere: its weights, and how a photograph becomes its input.

    Args:
        name: "torchvision:resnet50"; "timm:NAME" if timm is installed; "hf:NAME" if transformers is, with an id on the
            Hugging Face Hub such as "hf:google/vit-base-patch16-224" or a folder of `save_pretrained`; or the dotted
            path of a class or function, which is imported and called: name only code that you trust.
        weights: safetensors file, state dict of `torch.save` or Lightning checkpoint, which is read with
            `weights_only`. If the name is that of a LightningModule's class, its checkpoint, whose hyperparameters are
            the constructor's arguments. None takes the published weights, from the cache or the site of their
            publisher. The network of a dotted path has its weights already.
        arguments: arguments of the constructor.
        classes: names by label, or their number, or a text file with one name per line. None takes the published
            names, or numbers, as many as the file has outputs.
        geometry: how photographs are resized and cropped. None is the published one, or 224 pixels of 256.
        mean: mean per channel of the normalization of images in [0, 1]. None takes it from the file of weights if that
            is of a `Classifier` (as a checkpoint of a `LitClassifier` is), else the published one, else that of the
            `Normalize` that the module has.
        std: standard deviation per channel, as `mean`.
        channels: channels of the images.
        padding: "same" for weights that come from TensorFlow, or None.
        net: attribute of the built module that is the network, such as "net" or "ema.module"; None is the module
            itself, or the network of its `Classifier`.
        strict: whether a checkpoint of a LightningModule must hold all of its weights and no others.

    Example:
        >>> classifier, card = Pretrained("torchvision:resnet50").load()
        >>> card.classes[0]
        'tench'
        >>> mine = Pretrained("myproject.LitNet", weights="last.ckpt", net="ema", mean=[0.5], std=[0.5])
    """

    name: str
    weights: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)
    classes: int | str | Sequence[str] | None = None
    geometry: ResizeCrop | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    channels: int = 3
    padding: Literal["same"] | None = None
    net: str | None = None
    strict: bool = True

    def __post_init__(self) -> None:
        integer("channels", self.channels, 1)
        if (self.mean is None) != (self.std is None):
            raise fail("mean and std", "both or neither", f"{self.mean} and {self.std}")

    def __str__(self) -> str:
        weights = "published weights" if self.weights is None else f"weights of {Path(self.weights).name}"
        return f"{self.name}, {weights}"

    def load(self, allow: Sequence[str] = ()) -> tuple[Classifier, ModelCard]:
        """Return the classifier in eval mode, and its card.

        Args:
            allow: dotted paths of code that a Lightning checkpoint may hold, such as classes of its hyperparameters.

        Raises:
            ValueError: an unknown name, or weights that cannot be downloaded, read or fitted.
            ImportError: a name needs timm or transformers, which is not installed.
        """
        return self._load(allow)

    def _load(
        self, allow: Sequence[str], state: State | None = None, outputs: int | None = None
    ) -> tuple[Classifier, ModelCard]:
        """Do so; `state` and `outputs` are those of the file of weights where it was read and recognized."""
        stated = None not in (self.mean, self.std, self.geometry)
        known = published(self.name, self.weights, stated=stated)
        if known is not None and self.mean is None and self.weights is None:
            statistics(known, self.arguments)  # an error before weights are downloaded
        kind = None if known is not None or self.weights is None else constructor(self.name)
        names, count = self._names()
        with torch.random.fork_rng(devices=[]):  # initial weights are drawn from the global generator and overwritten
            if is_lightning(kind) and Path(str(self.weights)).suffix != SUFFIX:
                module = load_checkpoint(kind, str(self.weights), self.arguments, strict=self.strict, allow=allow)
            else:
                state = read_state(self.weights) if state is None and self.weights is not None else state
                module = self._build(known, count, state, outputs)
        net = part(module, self.net)
        own = getattr(module, "classifier", None)
        if self.net is None and isinstance(own, Classifier):  # as modules of RobustDataModule have
            net = own.net
        geometry = self.geometry or (ResizeCrop(224, 256) if known is None else known.geometry)
        shape = (self.channels, geometry.size, geometry.size)
        mean, std = self._statistics(known, state, module, net, shape)
        if known is not None and guesses(known, self.weights):
            guessed: dict[str, object] = {}
            if self.mean is None and (state is None or stored_statistics(state, net) is None):
                guessed |= {"mean": list(mean), "std": list(std)}
            if self.geometry is None:
                short = geometry.resize or geometry.size
                guessed |= {"geometry.size": geometry.size, "geometry.resize": short}
            if guessed:
                warn_of_guess(self.name, self.weights, guessed)
        classifier = Classifier(net, mean=mean, std=std).eval()
        found = count_logits(classifier, shape, "geometry")
        if count is not None and count != found:
            raise fail("classes", f"{found}, as many as there are logits", count)
        if names is None:
            fits = known is not None and len(known.classes) == found
            names = known.classes if known is not None and fits else tuple(map(str, range(found)))
        architecture = getattr(net, "architecture", None)
        return classifier, ModelCard(architecture, names, shape, tuple(mean), tuple(std), geometry)

    def _build(self, known: Published | None, count: int | None, state: State | None, outputs: int | None) -> nn.Module:
        architecture = Architecture(
            self.name, padding=self.padding, weights=self.weights or (PUBLISHED if known else None)
        )
        given = {**({} if known is None else known.arguments), **self.arguments}
        if known is not None and state is not None and "num_classes" not in given:
            found = identify(state, self.name, len(known.classes)) if outputs is None else (self.name, outputs)
            if found is not None and count not in (None, found[1]):
                raise fail("classes", f"{found[1]}, as many as {self.weights} has outputs", count)
            if found is not None and found[1] != len(known.classes):
                count = found[1]
        if count is not None:
            takes = {"num_classes"} if known is not None else architecture.parameters().keys()
            name = next((each for each in ("num_classes", "classes") if each in takes), None)
            given = given if name is None else {name: count, **given}
        if state is None and known is not None and not self.name.startswith(TORCHVISION):
            net = load_fitted(self.name, given)
            if self.name.startswith(HF):
                given = {"config": net.config.to_dict()}  # type: ignore[operator, union-attr]
            net.architecture = Architecture(self.name, given, padding=self.padding)  # type: ignore[assignment]
            return with_same_padding(net) if self.padding == "same" else net
        net = architecture.make(given)
        if state is not None:
            fit_state(net, state, str(self.weights))
        elif known is not None:
            fit_state(net, *published_state(self.name, given, known))
        return net

    def _names(self) -> tuple[tuple[str, ...] | None, int | None]:
        """Return the given names and number of classes, each None if it was not given."""
        if self.classes is None:
            return None, None
        if isinstance(self.classes, int):
            integer("classes", self.classes, 2)
            return None, self.classes
        names = self.classes
        if isinstance(names, str):
            if not Path(names).is_file():
                raise fail("classes", "a number, a list of names, or a text file with a name in each line", names)
            try:
                lines = Path(names).read_text(encoding="utf-8-sig").splitlines()
            except UnicodeDecodeError as error:
                raise fail("classes", f"a text file in UTF-8, {names}", error) from error
            names = [line.strip() for line in lines if line.strip()]
        return tuple(map(str, names)), len(names)

    def _statistics(
        self, known: Published | None, state: State | None, module: nn.Module, net: nn.Module, shape: Shape
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        if self.mean is not None and self.std is not None:
            return tuple(self.mean), tuple(self.std)
        own = getattr(module, "classifier", None)
        if isinstance(own, Classifier) and own.net is net:
            return tuple(own.mean.flatten().tolist()), tuple(own.std.flatten().tolist())
        stored = None if state is None else stored_statistics(state, net)
        if stored is not None:
            return stored
        if known is not None:
            return statistics(known, self.arguments)
        found = normalization(module, net, shape)
        if found is None:
            told = "the numbers that images were normalized with in training, since none are published beside it"
            raise fail("mean and std", told, f"none for {self.name}")
        return found


def model(
    description: str | Path | Pretrained | Mapping[str, Any], *, allow: Sequence[str] = (), **options: Any
) -> tuple[Classifier, ModelCard]:
    """Return a classifier in eval mode, and its card.

    Args:
        description: file that `save_model` wrote; file of weights of a network of torchvision; or a network that was
            trained elsewhere, by its name, such as "torchvision:resnet50", by a folder of `save_pretrained`, as a
            `Pretrained` or as a mapping of its arguments.
        allow: dotted paths that a file may name as its network, in addition to this package's and torchvision's, and
            that a checkpoint may hold.
        options: arguments of `Pretrained` except the name. None stands for the default.

    Raises:
        ValueError: an unknown name, or a file that cannot be used.

    Example:
        >>> classifier, card = model("torchvision:resnet18", weights="last.ckpt", classes=10)
        >>> classifier, card = model("hf:google/vit-base-patch16-224")
        >>> classifier, card = model({"name": "myproject.LitNet", "weights": "last.ckpt", "mean": [0.5], "std": [0.5]})
    """
    given = {key: value for key, value in options.items() if value is not None}
    if isinstance(description, Mapping):
        description = Pretrained(**description)
    if isinstance(description, Pretrained):
        if given:
            raise fail(next(iter(given)), "no option beside the description of the model", given)
        return description.load(allow)
    if (Path(description) / "config.json").is_file():
        description = f"{HF}{description}"
    if not is_saved(description):
        check_no_file("model", str(description))
        return Pretrained(str(description), **given).load(allow)
    if read_card(description) is None and "weights" not in given:
        state = read_state(description, "model")
        name, outputs = identified(state, description)
        return Pretrained(name, str(description), **{"classes": outputs, **given})._load(allow, state, outputs)
    if given:
        told = f"no option beside {description}, which says itself how to use it"
        raise fail(next(iter(given)), told, next(iter(given.values())))
    return load_model(description, allow=allow)


def is_saved(name: str | Path) -> bool:
    """Return whether this names a file rather than a network."""
    return isinstance(name, Path) or name.endswith(SUFFIX) or Path(name).is_file()


def check_no_file(argument: str, name: str) -> None:
    """Raise ValueError, naming `argument`, if a name that is no file ends as a file of weights does."""
    path = Path(name)
    if path.suffix in SUFFIXES:
        files = [str(each) for each in path.parent.glob(f"*{path.suffix}") if each.is_file()]
        raise fail(argument, "an existing file", repr(name) + near(name, files))
