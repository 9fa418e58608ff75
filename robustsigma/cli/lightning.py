"""`fit`, `validate` and `test`: LightningCLI; the constructors of the model and the data module are its schema."""

from __future__ import annotations

import warnings

from pytorch_lightning.cli import LightningArgumentParser, LightningCLI

from robustsigma.data import RobustDataModule
from robustsigma.training import LitClassifier


class _CLI(LightningCLI):
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Let one seed decide the weights, the order, the augmentation and the perturbations."""
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)


def run(verb: str, arguments: list[str]) -> None:
    """Parse the arguments and run the Trainer."""
    options = {"exit_on_error": False, "allow_abbrev": False}
    verbs = dict.fromkeys(("fit", "validate", "test"), options)
    with warnings.catch_warnings():
        # It takes the verb of our own command line for a second one.
        warnings.filterwarnings("ignore", message=".*args parameter is intended to run from within Python.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")
        # Lightning calls what jsonargparse renamed, which says so.
        warnings.filterwarnings("ignore", message=r"(?s).*(was deprecated in v|only one JsonargparseDeprecation)")
        _CLI(
            LitClassifier,
            RobustDataModule,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={**options, **verbs},
            args=[verb, *arguments],
        )
