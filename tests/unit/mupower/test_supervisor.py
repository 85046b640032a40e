"""The supervisor's watch over a real pipe."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from mupower.supervisor import unlock_all, watch
from muserve.errors import GpuBusyError, GpuPermissionError


class Watching:
    """``watch`` in a thread, with the daemon's end of the pipe."""

    def __init__(self, lease_s: float) -> None:
        self.read_end, self.write_end = os.pipe()
        self.reasons: list[str] = []
        self.unlocked = threading.Event()
        self.succeeds = True
        self.status: int | None = None
        self.thread = threading.Thread(target=self._run, args=(lease_s,))
        self.thread.start()

    def _run(self, lease_s: float) -> None:
        self.status = watch(self.read_end, lease_s, self._unlock)

    def _unlock(self, reason: str) -> bool:
        self.reasons.append(reason)
        self.unlocked.set()
        return self.succeeds

    def close(self) -> None:
        os.close(self.write_end)
        self.thread.join(5)
        assert not self.thread.is_alive()
        os.close(self.read_end)


@pytest.fixture
def watching() -> Callable[[float], Watching]:
    return Watching


def test_the_daemons_death_unlocks(watching: Callable[[float], Watching]) -> None:
    watch_ = watching(60.0)
    os.write(watch_.write_end, b".")
    watch_.close()
    assert watch_.reasons == ["the daemon is gone"]
    assert watch_.status == 0


def test_death_before_the_first_beat_unlocks_too(watching: Callable[[float], Watching]) -> None:
    watch_ = watching(60.0)
    watch_.close()
    assert watch_.reasons == ["the daemon is gone"]


def test_goodbye_leaves_the_clocks_alone(watching: Callable[[float], Watching]) -> None:
    watch_ = watching(60.0)
    os.write(watch_.write_end, b"..")
    os.write(watch_.write_end, b"Q")
    watch_.close()
    assert watch_.reasons == []
    assert watch_.status == 0


def test_silence_beyond_the_lease_unlocks_once_and_watching_goes_on(
    watching: Callable[[float], Watching],
) -> None:
    watch_ = watching(0.1)
    os.write(watch_.write_end, b".")
    assert watch_.unlocked.wait(5)
    watch_.unlocked.clear()
    assert not watch_.unlocked.wait(0.3)
    os.write(watch_.write_end, b".")
    assert watch_.unlocked.wait(5)
    watch_.close()
    assert watch_.reasons == ["the daemon has not been heard of for 0.1 s"] * 2 + ["the daemon is gone"]


def test_failing_to_unlock_is_the_exit_status(watching: Callable[[float], Watching]) -> None:
    watch_ = watching(60.0)
    watch_.succeeds = False
    watch_.close()
    assert watch_.status == 1


def test_unlocking_retries_a_busy_device(make_gpu: Callable[..., Any]) -> None:
    busy = make_gpu(locked_mhz=945, failure=GpuBusyError("busy"), failing=frozenset({"unlock"}))
    healthy = make_gpu(locked_mhz=945)
    relief = threading.Timer(0.4, lambda: setattr(busy, "failure", None))
    relief.start()
    assert unlock_all({"a": busy, "b": healthy}, "test")
    relief.join()
    assert (busy.locked_mhz, healthy.locked_mhz) == (None, None)
    assert healthy.history == [None]


def test_a_slow_device_does_not_keep_the_others_waiting() -> None:
    class Slow:
        def unlock_clock(self) -> None:
            time.sleep(0.3)

    began_s = time.monotonic()
    assert unlock_all({str(number): Slow() for number in range(4)}, "test")  # type: ignore[misc]
    assert time.monotonic() - began_s < 0.8


def test_a_refusal_is_not_asked_again(make_gpu: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    refused = make_gpu(failure=GpuPermissionError("needs root"), failing=frozenset({"unlock"}))
    healthy = make_gpu(locked_mhz=945)
    began_s = time.monotonic()
    assert not unlock_all({"a": refused, "b": healthy}, "test")
    assert time.monotonic() - began_s < 0.2
    assert healthy.locked_mhz is None
    assert "supervisor: test: could not unlock a: needs root" in caplog.text
