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

_DELAY = 0.1  # seconds until a signal that was lost, or came too early, is raised again
_WHOLE = ("<frozen importlib._bootstrap>", "popen_spawn_posix.py")  # an import, and the start of a process


class Terminated(KeyboardInterrupt):
    """Raised on SIGTERM, which batch systems send before they kill a process."""


_RAISED: dict[int, type[KeyboardInterrupt]] = {signal.SIGTERM: Terminated, signal.SIGINT: KeyboardInterrupt}


@contextmanager
def terminable() -> Iterator[None]:
    """Within this context, SIGTERM acts like Ctrl-C: unfinished files are removed and workers are ended.

    Python drops an exception that is raised while it forks or deletes an object, so that a signal may be lost there; it
    is raised again a moment later. So is one that comes in the middle of an import, which leaves broken modules, or of
    the start of a process, which then fails.
    """
    if threading.current_thread() is not threading.main_thread():  # where no handler can be set
        yield
        return
    received: type[KeyboardInterrupt] | None = None
    outer = _inside(sys._getframe())

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received = Terminated if Terminated in (received, _RAISED[number]) else KeyboardInterrupt
        if _inside(frame) > outer:
            send_again(number)
        else:
            raise _RAISED[number]

    def send_again(number: int) -> None:
        timer = threading.Timer(_DELAY, _send, (number,))
        timer.daemon = True
        timer.start()

    def raise_again(dropped: Any) -> None:
        if isinstance(dropped.exc_value, KeyboardInterrupt):
            send_again(signal.SIGTERM if isinstance(dropped.exc_value, Terminated) else signal.SIGINT)
        else:
            show_dropped(dropped)

    show_dropped, sys.unraisablehook = sys.unraisablehook, raise_again
    ignored = signal.getsignal(signal.SIGINT) is not signal.default_int_handler  # as by a shell's background job
    before = {each: signal.signal(each, end) for each in _RAISED if each == signal.SIGTERM or not ignored}
    try:
        yield
    except SystemExit as error:  # what Lightning makes of an interrupt and of a SIGTERM
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None
        if received:
            raise received from None
        raise
    except Exception:  # C code may put its own error in place of what a signal raises
        if received:
            raise received from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        sys.unraisablehook = show_dropped


def _send(number: int) -> None:
    """Send a signal to the main thread, and end its wait for other processes, as `interrupt_main` does not."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, number)
    else:
        _thread.interrupt_main(signal.Signals(number))


def _inside(frame: FrameType | None) -> int:
    """Return how many calls of what has to be finished a frame is in."""
    found = 0
    while frame is not None:
        found += frame.f_code.co_filename.endswith(_WHOLE)
        frame = frame.f_back
    return found
