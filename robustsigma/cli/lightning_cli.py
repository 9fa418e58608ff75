"""`fit`, `validate` and `test`: a LightningCLI whose options are the arguments of the model and the data module."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from jsonargparse import ArgumentError
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from robustsigma.cli.parsing import check_networks, classes_stand_alone, clearer_error, import_allowlist, split_allow
from robustsigma.engine.validation import fail, integer
from robustsigma.lightning import AtomicCheckpointIO, LastCheckpoint, LitClassifier, RobustDataModule
from robustsigma.runs.directory import remove_leftovers

_LAST = "last"


class _CLI(LightningCLI):
    def __init__(self, *args: Any, allow: Sequence[str], **kwargs: Any) -> None:
        self.allow = allow  # dotted paths that the command line allows
        super().__init__(*args, **kwargs)

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        """Name each verb as it is typed, where Lightning would print "robustsigma [options] fit"."""
        super()._add_subcommands(parser, **kwargs)
        for verb, own in self._subcommand_parsers.items():
            own.prog = f"robustsigma {verb}"

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the command line, name near matches of a misspelled class, and check the networks that it names."""
        try:
            with classes_stand_alone():
                super().parse_arguments(parser, args)
        except AttributeError as error:
            if "'append'" not in str(error):
                raise
            # jsonargparse fails so where a file has a `config` of its own that is no path.
            raise fail("config", "paths of files, also in a file", "another value") from error
        except ArgumentError as error:
            raise clearer_error(self._subcommand_parsers[args[0]], error) from error
        check_networks(self.config.as_dict(), self.allow)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Use one seed for the weights, the order, the augmentation and the perturbations."""
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)

    def _parse_ckpt_path(self) -> None:
        """Ignore the settings in a checkpoint, which Lightning would use: they could name any class, and run it."""

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Return a Trainer whose checkpoints are complete or absent, whenever it is killed.

        Raises:
            ValueError: missing hardware, or another option that Lightning refuses.
        """
        given = self._get(self.config, "trainer")
        integer("trainer.accumulate_grad_batches", given["accumulate_grad_batches"], 1)
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, TypeError) as error:
            wanted = given["accelerator"]
            if (wanted in ("gpu", "cuda", "mps") and "backend" in str(error)) or "not available" in str(error):
                expected = "one that this machine has, such as cpu or auto (robustsigma doctor prints the devices)"
                raise fail("trainer.accelerator", expected, repr(wanted)) from error
            raise ValueError(f"trainer: {error}") from error
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        kept = trainer.checkpoint_callbacks  # empty if checkpoints are off
        if self.subcommand == "fit" and kept and not any(_keeps_last(each) for each in kept):
            trainer.callbacks.append(LastCheckpoint())  # type: ignore[attr-defined]
        return trainer

    def before_fit(self) -> None:
        """Find the checkpoint to resume from, and resume in its folder."""
        found = self._find_last()
        if found is None:
            return
        remove_leftovers(found.parent.parent)
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(found.parent)
        logger, folder = self.trainer.logger, found.parent.parent
        if isinstance(logger, TensorBoardLogger) and folder.parent == Path(logger.root_dir):
            number = folder.name.removeprefix("version_")
            version = int(number) if number.isdecimal() else folder.name
            self.trainer.logger = TensorBoardLogger(logger.save_dir, logger.name, version)

    def _find_last(self) -> Path | None:
        """Replace `ckpt_path` "last" by the newest last checkpoint of this training's folder, and return it.

        Raises:
            ValueError: there is none, for a verb other than `fit`, which then starts from scratch.
        """
        given = self.config_init[self.subcommand]
        if given.get("ckpt_path") != _LAST:
            return None
        found = max(last_checkpoints(self.trainer), key=lambda path: path.stat().st_mtime_ns, default=None)
        root = self.trainer.default_root_dir
        if found is None and self.subcommand != "fit":  # the numbers would be those of fresh weights
            raise fail("ckpt_path", f"a {_LAST}.ckpt below {root}", "none")
        given["ckpt_path"] = None if found is None else str(found)
        verb = "resumes from" if self.subcommand == "fit" else "uses"
        print(f"{verb} {found}" if found else f"no {_LAST}.ckpt below {root}: starts from scratch")
        return found

    before_validate = before_test = _find_last


def _keeps_last(callback: Any) -> bool:
    """Return whether a callback writes a `last.ckpt`, which an interrupted training resumes from."""
    return isinstance(callback, LastCheckpoint) or bool(getattr(callback, "save_last", False))


def last_checkpoints(trainer: pl.Trainer) -> list[Path]:
    """Return every `last.ckpt` of trainings with the same folders."""
    folders = [Path(trainer.default_root_dir) / "checkpoints"]
    own = (getattr(callback, "dirpath", None) for callback in trainer.checkpoint_callbacks)
    folders += [Path(folder) for folder in own if folder is not None]
    for logger in trainer.loggers:
        root = getattr(logger, "root_dir", None)  # of all versions
        folders += sorted(Path(root).glob("*/checkpoints")) if root else []
    paths = [folder / f"{_LAST}.ckpt" for folder in folders]
    # A distributed checkpoint is a folder, in which this file is written last.
    return [path for path in paths if path.is_file() or (path / "meta.pt").is_file()]


def run(verb: str, arguments: list[str]) -> None:
    """Parse the arguments and run the Trainer."""
    allow, arguments = split_allow(arguments)
    options = {"exit_on_error": False, "allow_abbrev": False}
    verbs = dict.fromkeys(("fit", "validate", "test"), options)
    with warnings.catch_warnings():
        # LightningCLI takes the verb of our command line for a second one.
        warnings.filterwarnings("ignore", message=".*args parameter is intended to run from within Python.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")
        # A resumed training continues in its folder.
        warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
        # Lightning uses names that jsonargparse has deprecated.
        warnings.filterwarnings("ignore", message=r"(?s).*(was deprecated in v|only one JsonargparseDeprecation)")
        try:
            with import_allowlist(allow):
                _CLI(
                    LitClassifier,
                    RobustDataModule,
                    seed_everything_default=0,
                    save_config_kwargs={"overwrite": True},
                    parser_kwargs={**options, **verbs},
                    args=[verb, *arguments],
                    allow=allow,
                )
        except MisconfigurationException as error:
            raise ValueError(f"trainer: {error}") from error
        except RuntimeError as error:
            if not str(error).startswith("Early stopping conditioned on metric"):
                raise
            raise ValueError(f"trainer.callbacks: {error}") from error
