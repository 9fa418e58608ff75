"""Signals that end a run: SIGTERM is handled like an interrupt."""

from __future__ import annotations

import _thread
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_DELAY = 0.1  # seconds until a signal that was lost is raised again


class Terminated(KeyboardInterrupt):
    """Raised on SIGTERM, which batch systems send before they kill a process."""


@contextmanager
def terminable() -> Iterator[None]:
    """Within this context, SIGTERM acts like Ctrl-C: unfinished files are removed and workers are ended.

    Python drops an exception that is raised while it forks or deletes an object, so that a signal may be lost there; it
    is raised again a moment later.
    """
    if threading.current_thread() is not threading.main_thread():  # where no handler can be set
        yield
        return
    received = False

    def terminate(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received = True
        raise Terminated

    def raise_again(dropped: Any) -> None:
        if not isinstance(dropped.exc_value, KeyboardInterrupt):
            show_dropped(dropped)
            return
        number = signal.SIGTERM if isinstance(dropped.exc_value, Terminated) else signal.SIGINT
        timer = threading.Timer(_DELAY, _thread.interrupt_main, (number,))
        timer.daemon = True
        timer.start()

    show_dropped, sys.unraisablehook = sys.unraisablehook, raise_again
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except SystemExit as error:  # what Lightning makes of an interrupt and of a SIGTERM
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None
        if received:
            raise Terminated from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)
        sys.unraisablehook = show_dropped
