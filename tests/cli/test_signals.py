"""SIGTERM and Ctrl-C end a run wherever they come, also where Python drops the exception that they raise."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import time

import pytest

from robustsigma.cli.signals import _RAISED as RAISED
from robustsigma.cli.signals import Terminated, terminable


class SignalledWhileDeleted:
    def __init__(self, number):
        self.number = number

    def __del__(self):
        signal.raise_signal(self.number)


@pytest.fixture(autouse=True)
def _interrupts():  # background jobs of a shell ignore them
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", RAISED)
def test_a_signal_that_comes_while_an_object_is_deleted_still_ends_the_run(number):
    with pytest.raises(KeyboardInterrupt) as raised, terminable():  # noqa: PT012
        SignalledWhileDeleted(number)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            time.sleep(0.01)
    assert raised.type is RAISED[number]


@pytest.mark.parametrize("number", RAISED)
def test_a_signal_that_comes_during_an_import_ends_the_run_after_it(number, tmp_path, monkeypatch):
    (tmp_path / "signalled.py").write_text(f"import signal\nsignal.raise_signal({int(number)})\nwhole = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    start, module = time.monotonic(), None
    with pytest.raises(KeyboardInterrupt) as raised, terminable():  # noqa: PT012
        module = importlib.import_module("signalled")
        time.sleep(60)  # a wait, as for other processes
    del sys.modules["signalled"]
    assert module.whole
    assert raised.type is RAISED[number]
    assert time.monotonic() - start < 30


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_signal_that_comes_while_a_process_forks_still_ends_the_run(monkeypatch):
    numbers = [signal.SIGTERM]
    os.register_at_fork(after_in_parent=lambda: [signal.raise_signal(numbers.pop()) for _ in numbers[:1]])
    with pytest.raises(Terminated), terminable():  # noqa: PT012
        child = os.fork()
        if not child:
            os._exit(0)
        os.waitpid(child, 0)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            time.sleep(0.01)


def test_an_exit_after_a_lost_sigterm_is_no_success():
    with pytest.raises(Terminated), terminable():  # noqa: PT012
        with contextlib.suppress(Terminated):
            signal.raise_signal(signal.SIGTERM)
        raise SystemExit  # Lightning's SIGTERMException is one, without an exit status


@pytest.mark.parametrize("number", RAISED)
def test_an_error_in_place_of_an_interrupt_is_the_interrupt(number):
    with pytest.raises(KeyboardInterrupt) as raised, terminable():  # noqa: PT012
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:  # as C code does
            raise ValueError("could not determine the shape") from None
    assert raised.type is RAISED[number]
    with pytest.raises(ValueError, match="own"), terminable():
        raise ValueError("of its own")


def test_an_exit_without_a_signal_keeps_its_status():
    with pytest.raises(SystemExit) as raised, terminable():
        raise SystemExit(3)
    assert raised.value.code == 3


def test_other_dropped_errors_are_shown_as_before(monkeypatch):
    class Broken:
        def __del__(self):
            raise ValueError("broken")

    shown = []
    monkeypatch.setattr(sys, "unraisablehook", lambda dropped: shown.append(str(dropped.exc_value)))
    hook = sys.unraisablehook
    with terminable():
        Broken()
    assert shown == ["broken"]
    assert sys.unraisablehook is hook
