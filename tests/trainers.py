"""The Trainer of most tests."""

import pytorch_lightning as pl
from pictures import QUIET


def quiet_trainer(*callbacks, epochs=1, **options):
    """Return a Trainer on the CPU that neither prints nor writes anything, unless an option says otherwise."""
    quiet = {"logger": False, "enable_checkpointing": False, **QUIET}
    return pl.Trainer(max_epochs=epochs, callbacks=[*callbacks], **{**quiet, **options})
