"""The command line: `robustsigma VERB …`."""

from robustsigma.cli.main import main

__all__ = ["main"]
