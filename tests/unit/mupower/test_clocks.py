"""Who owns a lock gives it back."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from mupower.clocks import ClockChange, ClockLocks
from muserve.errors import GpuLostError, GpuPermissionError

MakeGpu = Callable[..., Any]


def test_entering_unlocks_what_a_dead_daemon_left(make_gpu: MakeGpu) -> None:
    gpu = make_gpu(locked_mhz=945)
    with ClockLocks({"g": gpu}) as locks:
        assert gpu.history == [None]
        assert locks.commanded_mhz("g") is None


def test_leaving_unlocks_whichever_way(make_gpu: MakeGpu) -> None:
    gpus = {"a": make_gpu(), "b": make_gpu(index=1)}
    with pytest.raises(KeyError), ClockLocks(gpus) as locks:
        [locks.apply(name, 1200) for name in ("a", "no such GPU")]
    assert gpus["a"].history == [None, 1200, None]
    assert gpus["b"].history == [None, None]


def test_only_real_differences_are_applied(make_gpu: MakeGpu) -> None:
    gpu = make_gpu()
    with ClockLocks({"g": gpu}, dead_band_mhz=30) as locks:
        assert locks.apply("g", None) is None
        assert locks.apply("g", 1200) == ClockChange(gpu="g", before_mhz=None, after_mhz=1200)
        assert locks.apply("g", 1200) is None
        assert locks.apply("g", 1185) is None  # inside the dead band
        assert locks.commanded_mhz("g") == 1200
        assert locks.apply("g", 1170) is not None
        assert locks.apply("g", 1185) is not None  # raising is never put off
        assert locks.apply("g", None) is not None
    assert gpu.history == [None, 1200, 1170, 1185, None, None]


def test_a_clock_is_kept_for_its_dwell_before_it_is_lowered_again(make_gpu: MakeGpu) -> None:
    gpu, now_s = make_gpu(), 100.0
    with ClockLocks({"g": gpu}, dwell_s=2.0, clock=lambda: now_s) as locks:
        assert locks.apply("g", 1200) is not None
        now_s = 101.9
        assert locks.apply("g", 1100) is None
        assert locks.apply("g", 1300) is not None  # raising is never put off
        now_s = 103.8
        assert locks.apply("g", 1100) is None  # the dwell counts from the last change
        assert locks.apply("g", None) is not None  # nor is unlocking
        assert locks.apply("g", 1100) is None  # locking lowers
        now_s = 105.9
        assert locks.apply("g", 1100) is not None
    assert gpu.history == [None, 1200, 1300, None, 1100, None]


def test_a_dry_run_tracks_and_touches_nothing(make_gpu: MakeGpu) -> None:
    gpu = make_gpu(locked_mhz=945)
    with ClockLocks({"g": gpu}, dry_run=True) as locks:
        assert locks.apply("g", 1200) is not None
        assert locks.apply("g", 1200) is None
        assert locks.commanded_mhz("g") == 1200
    assert gpu.history == []
    assert gpu.locked_mhz == 945


def test_every_gpu_is_unlocked_though_one_refuses(
    make_gpu: MakeGpu, caplog: pytest.LogCaptureFixture
) -> None:
    lost = make_gpu(failure=GpuLostError("a is lost"), failing=frozenset({"unlock"}))
    healthy = make_gpu(index=1, locked_mhz=945)
    with pytest.raises(GpuLostError, match="a is lost"):
        ClockLocks({"a": lost, "b": healthy}).release_all()
    assert healthy.locked_mhz is None
    assert "a: could not be unlocked and may still be held" in caplog.text


def test_a_gpu_that_failed_is_unlocked_last(make_gpu: MakeGpu) -> None:
    order: list[str] = []
    gpus = {name: make_gpu() for name in ("sick", "healthy")}
    for name, gpu in gpus.items():
        gpu.unlock_clock = lambda name=name: order.append(name)
    locks = ClockLocks(gpus)
    gpus["sick"].failure, gpus["sick"].failing = GpuLostError("lost"), frozenset({"lock"})
    with pytest.raises(GpuLostError):
        locks.apply("sick", 945)
    locks.release_all()
    assert order == ["healthy", "sick"]


def test_after_a_refused_command_nothing_is_taken_for_granted(make_gpu: MakeGpu) -> None:
    gpu = make_gpu()
    with ClockLocks({"g": gpu}) as locks:
        locks.apply("g", 1200)
        gpu.failure, gpu.failing = GpuPermissionError("no"), frozenset({"lock"})
        with pytest.raises(GpuPermissionError):
            locks.apply("g", 1500)
        gpu.failing = frozenset()
        assert locks.apply("g", 1200) is not None  # is it at 1200? Only a new command makes sure.


def test_a_lock_changed_by_somebody_else_is_noticed(
    make_gpu: MakeGpu, caplog: pytest.LogCaptureFixture
) -> None:
    gpu = make_gpu()
    with caplog.at_level(logging.WARNING), ClockLocks({"g": gpu}) as locks:
        locks.apply("g", 1200)
        locks.apply("g", 1200)
        gpu.locked_mhz = None
        assert locks.apply("g", 1200) is not None
    assert "g: its clock lock was changed by somebody else" in caplog.text


def test_doubt_applies_anew(make_gpu: MakeGpu) -> None:
    gpu = make_gpu()
    with ClockLocks({"g": gpu}) as locks:
        locks.apply("g", 1200)
        locks.doubt()
        assert locks.apply("g", 1200) is not None
        assert locks.apply("g", 1200) is None
