"""RobustCallback: train on perturbed images and log robustness in any Lightning project, without changing it."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MeanMetric, Metric

from robustsigma.engine import noise, validation
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.network_state import gathered
from robustsigma.engine.perturbations import Identity, Perturbation
from robustsigma.engine.perturbations.base import MANY_UNCONVERGED
from robustsigma.engine.validation import fail
from robustsigma.lightning.batch_callback import BatchCallback, Network, check_network
from robustsigma.lightning.batch_images import PAIR, Images, Place, tensor_in, write
from robustsigma.lightning.batch_norm import explain_single_value
from robustsigma.lightning.loader_subset import LoaderSubset
from robustsigma.lightning.module_outputs import is_visible, outputs_of
from robustsigma.lightning.strategies import check_strategy, data_rank
from robustsigma.lightning.training_perturbation import (
    batch_number,
    batch_parts,
    check_conditions,
    has_cache,
    perturb_parts,
)


class RobustCallback(BatchCallback):
    """Train on perturbed images and log the accuracy under every condition, in a Lightning project as it is.

    In training, `training_step` receives the batch with some images perturbed, after every `on_after_batch_transfer`.
    In validation and test, the callback measures each condition on images that the step does not see, and logs
    `val/FGSM_acc`, `test/FGSM_acc` and so on, for `EarlyStopping` and `ModelCheckpoint` too. Module, data and
    checkpoints stay as they are. Draws depend on `seed`, the epoch of training and an image's own pixels, not on
    loaders, workers, processes or batch size, so a run that resumes in mid-epoch is the same. Each training batch has
    fixed numbers of images for the components of a `Mixture`: their shares, rounded up or down by its number.

    Works with `pytorch_lightning` and `lightning`, with DDP, and with FSDP2 (`ModelParallelStrategy`), whose parameters
    are gathered for the attacks of a batch.

    Args:
        train: perturbation of the training images, usually a `Mixture`; None trains as before.
        conditions: perturbations to measure, by name; `Identity()` is the clean accuracy.
        mean: mean per channel with which the images of a batch were normalized; None if they are in [0, 1].
        std: likewise. A batch of integers is taken as pixels in 0..255, which the step divides by 255 before that.
        images: where a batch holds its images (B, C, H, W): an index, a key, an attribute, or a pair of functions
            `(get, put)`, where `put(batch, images)` returns the new batch.
        labels: likewise; class indices (B,) or probabilities (B, K), of which the largest counts. `get` alone suffices.
        net: the network that is trained: an attribute of the module such as "net" or "model.student", or a function of
            the module. None is the module itself, whose `forward` takes normalized images and returns logits.
        eval_net: the network that validation and test evaluate, such as "ema"; None is `net`.
        every_n_epochs: measure after the last of each n epochs of a training, and after the last epoch that
            `max_epochs` or `max_steps` allows; in the next validation where there is none then.
        max_images: images measured at most, of each validation or test loader, over all processes: drawn from the whole
            loader by `seed`, at the same places in every epoch. Of a stream of unknown length they are the first.
        seed: seed of all random numbers.
        metric: a torchmetrics `Metric` of logits and class indices with one number as its result, of which each
            condition gets a copy; its class name then replaces `acc`. None is accuracy.

    Raises:
        ValueError: an argument outside what is stated here; and in the first batch, images that are not in [0, 1]
            after un-normalization, or a batch without images or labels in these places.

    Warns:
        UserWarning: once, if the logits of `eval_net` are not those that the validation step computes; if the training
            step does not use `net`; if images that are in [0, 1] already are un-normalized; if more than 5% of a
            condition's searches do not converge; or if a stream has more images than `max_images`.

    Example:
        >>> from robustsigma import FGSM, Identity, Mixture
        >>> attack = FGSM(8 / 255)
        >>> robust = RobustCallback(train=Mixture({attack: 0.5}), conditions={"clean": Identity(), "FGSM": attack})
        >>> trainer = Trainer(callbacks=[robust])  # doctest: +SKIP
    """

    def __init__(
        self,
        train: Perturbation | None = None,
        conditions: Mapping[str, Perturbation] | None = None,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        images: Place = 0,
        labels: Place = 1,
        net: Network = None,
        eval_net: Network = None,
        every_n_epochs: int = 1,
        max_images: int = 512,
        seed: int = 0,
        metric: Metric | None = None,
    ) -> None:
        validation.optional("train", train, Perturbation)
        self.train, self.conditions = train, check_conditions({} if conditions is None else conditions)
        if has_cache(train):
            raise fail("train", "no SampleCache, as samples are stored by the index of their image", repr(train))
        if train is None and not self.conditions:
            raise fail("train", "a perturbation to train on, or conditions to measure", "neither")
        options: dict[str, Any] = {"every_n_epochs": every_n_epochs, "max_images": max_images, "seed": seed}
        super().__init__(mean=mean, std=std, images=images, labels=labels, **options)
        if train is not None and not self.images.writable:
            got = f"a function that reads them; a pair is, for example, {PAIR}"
            raise fail("images", "a pair (get, put), as training writes images back", got)
        self.net = check_network("net", net)
        self.eval_net = check_network("eval_net", net if eval_net is None else eval_net)
        validation.optional("metric", metric, Metric)
        self.metric, self._kind = metric, "acc" if metric is None else type(metric).__name__

    def _reset(self) -> None:
        super()._reset()
        self._metrics: dict[tuple[str, int], Metric] = {}  # by condition and loader
        self._spreads: list[LoaderSubset] = []  # what draws the images of each loader
        self._measured: dict[int, int] = {}  # images of each loader in this process
        self._searches: dict[str, Tensor] = {}  # searches of each condition in this process, and the unconverged ones
        self._logged: dict[str, bool] = {}  # names that were logged, and whether of clean images
        self._compares_accuracy = True  # whether every image was measured, and no logits of the step were recorded
        self._batch: Images | None = None  # what is measured of the batch that the step under way is given
        self._compared: Images | None = None  # the first images of that batch
        self._watch, self._outputs = ExitStack(), list[tuple[str, Tensor]]()
        self._replaced: tuple[Any, Any] | None = None  # the module and its own attribute `training_step`

    # Training

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Replace the module's `training_step` by one that first perturbs the batch."""
        self.teardown(trainer, pl_module, stage)
        check_strategy(trainer)
        if stage == "fit":
            self._check_monitors(trainer, *(f"val/{name}_{self._kind}" for name in self.conditions))
        if self.train is None or stage != "fit":
            return
        if any(isinstance(c, RobustCallback) and c.train and c is not self for c in trainer.callbacks):
            raise fail("callbacks", "one RobustCallback with `train`", "several; combine them in a Mixture")
        step = pl_module.training_step
        if "dataloader_iter" in inspect.signature(step).parameters:
            raise fail("training_step", "a step that takes a batch, for RobustCallback(train=…)", "dataloader_iter")

        @functools.wraps(step)
        def training_step(batch: Any, *args: Any, **kwargs: Any) -> Any:
            return self._step(trainer, pl_module, step, batch, *args, **kwargs)

        self._replaced = pl_module, vars(pl_module).get("training_step")
        pl_module.training_step = training_step

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Restore the module."""
        if self._replaced is not None:
            module, own = self._replaced
            del module.training_step
            if own is not None:  # such as the code that torch.compile made
                module.training_step = own
        self._watch.close()
        self._reset()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Restore the module, and say what to do about a batch of one image."""
        explain_single_value(exception)
        self.teardown(trainer, pl_module, "")

    def _step(self, trainer: Any, module: Any, step: Callable[..., Any], batch: Any, *args: Any, **kwargs: Any) -> Any:
        first = "train" not in self._checked
        classifier = self._classifier(module, "net", self.net)
        found = self._read(batch, classifier, "train")
        assert self.train is not None
        watched = first and self.train.depends_on_model and is_visible(classifier.net)
        watch: AbstractContextManager[list[Any]] = outputs_of(classifier.net) if watched else nullcontext([])
        pixels = found.pixels.clamp(0, 1)
        seeds = noise.seeds(stage_seed(self.seed, "train", "", trainer.current_epoch), pixels)
        parts = batch_parts(self.train, seeds, seeds, batch_number(trainer))
        with watch as attacked, gathered(module.modules()), self._passes(module, "net", classifier):
            made = perturb_parts(parts, classifier, pixels, found.labels).images
        batch = write(batch, self.images, found, made, classifier)
        if not attacked:
            return step(batch, *args, **kwargs)
        with outputs_of(classifier.net) as trained:
            result = step(batch, *args, **kwargs)
        if not {name for name, _ in attacked} & {name for name, _ in trained}:
            told = f"net={self.net!r}: the attacks in training are made against it, but training_step does not run it"
            self._warn("net", f"{told}. Name the network that is trained, or ignore this if that is meant.")
        return result

    # Validation and test

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Reset the counts, and make a metric for each condition and loader."""
        self._metrics, self._measured, self._logged, self._compares_accuracy = {}, {}, {}, True
        self._searches = {}
        if not self.conditions or not self._is_due(trainer):
            return
        self._spreads = self._spread(trainer, *data_rank(trainer))
        for loader in range(len(self._spreads)):
            for name in self.conditions:
                metric = MeanMetric() if self.metric is None else self.metric.clone()
                self._metrics[name, loader] = metric.to(pl_module.device)

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Read the images before the step may change the batch, and watch what it computes of the first ones."""
        self._batch = self._compared = None
        if not self.conditions or not (self._metrics or trainer.sanity_checking):
            self._compares_accuracy = False
            return
        rows = torch.zeros(0, dtype=torch.int64)
        if self._metrics:
            spread, count = self._spreads[dataloader_idx], len(tensor_in(batch, self.images))
            rows = spread.rows(count)
            self._compares_accuracy = self._compares_accuracy and len(rows) == count
            if spread.is_unknown and len(rows) < count:
                told = f"max_images={self.max_images}: the first images of a stream are measured, which has more"
                self._warn("stream", f"{told}. Shuffle its images if they are in order, or raise max_images.")
            if batch_idx and not len(rows):
                return
        found = self._read(batch, self._classifier(pl_module, "eval_net", self.eval_net), _stage(trainer))
        if len(rows):
            self._batch = Images(*(part[rows.to(part.device)] for part in found))
        if self._metrics and batch_idx == 0 and "eval_net" not in self._warned and is_visible(pl_module):
            self._outputs = self._watch.enter_context(outputs_of(pl_module))
            self._compared = Images(*(part[: self.max_images] for part in found))

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Measure each condition."""
        self._watch.close()
        theirs, self._outputs = self._outputs, []
        if not self._metrics:
            return
        with gathered(pl_module.modules()):  # in every process, also where it measures no image of this batch
            classifier = self._classifier(pl_module, "eval_net", self.eval_net)
            with self._passes(pl_module, "eval_net", classifier):
                if theirs:
                    self._compare(trainer, classifier, theirs)
                if self._batch is not None:
                    self._measure(trainer, classifier, dataloader_idx)
        self._batch = self._compared = None

    def _measure(self, trainer: Any, classifier: Classifier, loader: int) -> None:
        assert self._batch is not None
        _, pixels, labels = self._batch
        clean = pixels.clamp(0, 1)
        for name, condition in self.conditions.items():
            seed = stage_seed(self.seed, _stage(trainer), name)
            made = condition(classifier, clean, labels, seed=seed, return_info="search")
            searches = torch.stack([made.attempted.sum(), (made.attempted & ~made.converged).sum()])
            self._searches[name] = self._searches.get(name, 0) + searches
            with classifier.frozen():
                logits = classifier.logits(made.images)
            metric = self._metrics[name, loader]
            if self.metric is None:
                metric.update((logits.argmax(1) == labels).float())
            else:
                metric.update(logits, labels)
        self._measured[loader] = self._measured.get(loader, 0) + len(labels)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log each condition."""
        loaders = len({loader for _, loader in self._metrics})
        for (name, loader), metric in self._metrics.items():
            place = f"/dataloader_idx_{loader}" if loaders > 1 else ""
            # `compute` sums over processes; `sync_dist` keeps Lightning's advice away.
            value = metric.compute()
            key = f"{_stage(trainer)}/{name}_{self._kind}{place}"
            pl_module.log(key, value, sync_dist=True, add_dataloader_idx=False)
            self._logged[key] = isinstance(self.conditions[name], Identity)
        for name, (attempted, missed) in self._searches.items():
            if missed > MANY_UNCONVERGED * attempted:
                told = f"{int(missed)} of {int(attempted)} searches of {name} stopped before they converged, so its"
                self._warn(f"search of {name}", f"conditions: {told} accuracy is too high; give it more steps")
        self._metrics, self._searches = {}, {}

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Compare the clean accuracy with one that the step logs, where its logits were not seen."""
        logged = {key: float(value) for key, value in trainer.callback_metrics.items() if value.numel() == 1}
        mine = [logged[key] for key, is_clean in self._logged.items() if is_clean]
        kept = re.compile(rf"^{_stage(trainer)}(?!.*top).*acc")
        found = {key: value for key, value in logged.items() if kept.match(key) and key not in self._logged}
        if not (self._compares_accuracy and len(self._measured) == 1 and self.metric is None and mine and found):
            return
        slack = 0.5 / (self._measured[0] * trainer.world_size) + 0.01
        if any(abs(value / scale - mine[0]) < slack for value in found.values() for scale in (1, 100)):
            return
        key, value = next(iter(found.items()))
        told = (
            f"eval_net={self.eval_net!r}: its accuracy is {mine[0]:.3g}, but {key!r} is {value:.3g} on the same images"
        )
        self._warn("eval_net", f"{told}. Name the network that the step evaluates, or ignore another kind of accuracy.")

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_start = on_validation_batch_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end
    on_test_end = on_validation_end

    def _compare(self, trainer: Any, classifier: Classifier, theirs: list[tuple[str, Tensor]]) -> None:
        """Warn unless one of the outputs of the user's step is the classifier's logits."""
        assert self._compared is not None
        _, pixels, labels = self._compared
        with classifier.frozen():
            ours = classifier.logits(pixels)
        theirs = [(name, logits[: len(ours)].to(ours)) for name, logits in theirs if logits.ndim == 2]
        theirs = [(name, logits) for name, logits in theirs if logits.shape == ours.shape]
        self._compares_accuracy = self._compares_accuracy and not theirs
        # The step may run in half precision or TF32.
        tolerance = (0.05 if "16" in str(trainer.precision) else 0.01) * float(ours.abs().max())
        if not theirs or any(torch.allclose(logits, ours, rtol=0, atol=tolerance) for _, logits in theirs):
            return
        name, logits = theirs[-1]
        mine, own = (float((each.argmax(1) == labels).float().mean()) for each in (ours, logits))
        which = f"eval_net={self.eval_net!r} ({type(classifier.net).__name__})"
        told = f"{which}: its logits are not those of {name!r}, which your step computes"
        numbers = f"accuracy {mine:.3g} and {own:.3g} on the same {len(labels)} images"
        self._warn("eval_net", f"{told}: {numbers}. Name the network that the step evaluates.")


def stage_seed(seed: int, stage: str, condition: str = "", epoch: int = 0) -> int:
    """Return the seed of a perturbation in a stage: "train", "val" or "test". Only training draws anew each epoch."""
    return int(noise.fold(torch.tensor([seed], device="cpu"), stage, condition, epoch))


def _stage(trainer: Any) -> str:
    return "test" if trainer.testing else "val"
