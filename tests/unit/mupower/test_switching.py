"""Measuring a clock switch, and the rhythm that follows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mupower.switching import dwell_s, least_period_s, measure_switches
from muserve.errors import GpuLostError
from muserve.gpu.virtual import VirtualGpu


class SlowGpu:
    """A GPU in virtual time whose calls take ``call_s`` and whose clock follows after ``settle_s``."""

    def __init__(self, gpu: Any, call_s: float, settle_s: float) -> None:
        self.now_s = 0.0
        self.gpu = gpu
        self.call_s, self.settle_s = call_s, settle_s
        self.shown = 1530
        self.due_s = 0.0

    def supported_clocks_mhz(self) -> tuple[int, ...]:
        clocks: tuple[int, ...] = self.gpu.supported_clocks_mhz()
        return clocks

    def lock_clock(self, clock_mhz: int) -> None:
        self.gpu.lock_clock(clock_mhz)
        self.now_s += self.call_s
        self.due_s = self.now_s + self.settle_s

    def unlock_clock(self) -> None:
        self.gpu.unlock_clock()

    def clock_mhz(self) -> int:
        if self.now_s >= self.due_s:
            self.shown = self.gpu.clock_mhz()
        return self.shown

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def test_call_and_settle_are_told_apart(make_gpu: Callable[..., Any]) -> None:
    gpu = SlowGpu(make_gpu(), 0.005, 0.040)
    latency = measure_switches(gpu, 945, 20.0, clock=lambda: gpu.now_s, sleep=gpu.sleep)  # type: ignore[arg-type]
    assert latency.call_ms == pytest.approx(5)
    assert latency.settle_ms == pytest.approx(40, abs=1.1)
    assert (latency.switches, latency.observed) == (4, True)
    assert gpu.gpu.history == [1305, 1530, 1305, 1530, None], "at 85 % of the top, and unlocked again"


def test_a_clock_that_never_shows_falls_back_to_the_catalogue(make_gpu: Callable[..., Any]) -> None:
    gpu = SlowGpu(make_gpu(observed_mhz=300), 0.005, 0.0)
    latency = measure_switches(gpu, 945, 20.0, clock=lambda: gpu.now_s, sleep=gpu.sleep)  # type: ignore[arg-type]
    assert (latency.settle_ms, latency.observed) == (20.0, False)
    assert gpu.now_s < 2.1


def test_a_device_that_fails_meanwhile_is_unlocked(make_gpu: Callable[..., Any]) -> None:
    gpu = make_gpu(failure=GpuLostError("lost"), failing=frozenset({"read"}))
    with pytest.raises(GpuLostError):
        measure_switches(gpu, 945, 20.0)
    assert gpu.history[-1] is None


def test_a_virtual_gpu_takes_what_its_part_says(tmp_path: Path) -> None:
    gpu = VirtualGpu.create(tmp_path / "gpu.vgpu", "V100-16GB", 0, "VGPU-test-0")
    latency = measure_switches(gpu, 945, 1.0)
    assert latency.observed
    assert latency.call_ms >= 4.5
    # On a busy machine the call returns late and less is left to settle.
    assert 0.024 <= latency.switch_s < 0.2
    assert gpu.locked_clock_mhz() is None


def test_the_rhythm_follows_from_the_switch() -> None:
    assert least_period_s(0.0245) == pytest.approx(0.1225)
    assert dwell_s(0.0245, 1.0) == 1.0
    assert dwell_s(0.2, 1.0) == pytest.approx(4.0)
