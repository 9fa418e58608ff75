"""The command line: `robustsigma VERB …`."""

from robustsigma.cli.verbs import main

__all__ = ["main"]
