"""Signals end a wait at once and do nothing else."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from mupower.stopping import STOP_SIGNALS, StopSignals


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_ends_the_wait(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignals() as stop:
        sender = threading.Timer(0.1, os.kill, (os.getpid(), number))
        sender.start()
        began_s = time.monotonic()
        assert stop.wait(30.0)
        assert time.monotonic() - began_s < 5.0
        assert stop.received is number
        assert stop.wait(30.0)
        sender.join()
    assert signal.getsignal(number) is before


def test_a_hangup_may_ask_for_a_reload_instead() -> None:
    with StopSignals(hangup_reloads=True) as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.wait(30.0)
        assert stop.received is None
        assert stop.take_reload()
        assert not stop.take_reload()
        assert not stop.wait(0.0)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(30.0)
        assert stop.received is signal.SIGTERM


def test_a_signal_between_waits_is_remembered() -> None:
    with StopSignals() as stop:
        assert not stop.wait(0.0)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(30.0)


def test_a_wait_without_a_signal_takes_its_time() -> None:
    with StopSignals() as stop:
        began_s = time.monotonic()
        assert not stop.wait(0.05)
        assert time.monotonic() - began_s >= 0.05
        assert not stop.wait(-1.0)
