"""A driver call that does not return costs its caller a timeout and nobody anything else."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fake_nvml import FakeDriver, build_fake_nvml
from muserve.errors import GpuBusyError, GpuLostError, GpuUnsupportedError
from muserve.gpu.guarded import GuardedGpu
from muserve.gpu.protocol import Gpu
from muserve.gpu.virtual import VirtualGpu


class Sluggish:
    """A virtual GPU whose ``clock_mhz`` takes as long as told."""

    def __init__(self, gpu: VirtualGpu) -> None:
        self.takes_s = 0.0
        self._gpu = gpu

    def clock_mhz(self) -> int:
        time.sleep(self.takes_s)
        return self._gpu.clock_mhz()

    def __getattr__(self, name: str) -> object:
        return getattr(self._gpu, name)


@pytest.fixture
def virtual(tmp_path: Path) -> VirtualGpu:
    return VirtualGpu.create(tmp_path / "gpu.vgpu", "V100-16GB", 0, "VGPU-test-0")


def test_answers_and_errors_come_through(virtual: VirtualGpu) -> None:
    gpu: Gpu = GuardedGpu("g", lambda: virtual)
    gpu.lock_clock(945)
    assert gpu.locked_clock_mhz() == virtual.locked_clock_mhz() == 945
    gpu.unlock_clock()
    gpu.limit_power(150)
    assert gpu.power_limits() == virtual.power_limits()
    assert gpu.identity == virtual.identity
    assert gpu.supported_clocks_mhz() == virtual.supported_clocks_mhz()
    assert gpu.health() == virtual.health()
    assert gpu.throttle_reasons() == frozenset()
    assert (gpu.utilisation(), gpu.power_w()) == (0.0, virtual.power_w())
    assert 0 < gpu.energy_j() <= virtual.energy_j()
    with pytest.raises(GpuUnsupportedError, match="946 MHz is not one of its"):
        gpu.lock_clock(946)


def test_its_thread_ends_with_it(virtual: VirtualGpu) -> None:
    gpu = GuardedGpu("the only one of this name", lambda: virtual)
    (thread,) = (t for t in threading.enumerate() if t.name == "driver calls of the only one of this name")
    del gpu
    gc.collect()
    thread.join(5)
    assert not thread.is_alive()


def test_an_opening_that_fails_says_why(tmp_path: Path) -> None:
    (tmp_path / "gpu.vgpu").write_bytes(b"nonsense")
    with pytest.raises(GpuLostError, match="unreadable"):
        GuardedGpu("g", lambda: VirtualGpu(tmp_path / "gpu.vgpu"))


def test_a_stuck_call_is_given_up_and_later_calls_do_not_wait(virtual: VirtualGpu) -> None:
    sluggish = Sluggish(virtual)
    gpu = GuardedGpu("node0/gpu0", lambda: sluggish, timeout_s=0.05)  # type: ignore[arg-type, return-value]
    assert gpu.clock_mhz() == 1380
    sluggish.takes_s = 0.3
    with pytest.raises(GpuBusyError, match=r"node0/gpu0: the driver did not answer \(clock\) within 0\.05 s"):
        gpu.clock_mhz()
    began_s = time.monotonic()
    with pytest.raises(GpuBusyError, match=r"the driver has not answered \(clock\) for 0\.\d s"):
        gpu.unlock_clock()
    assert time.monotonic() - began_s < 0.04
    sluggish.takes_s = 0.0
    time.sleep(0.4)
    assert gpu.clock_mhz() == 1380, "once the driver answers again, so does the GPU"


def test_a_call_that_never_returns_does_not_hold_up_the_end_of_the_process(
    tmp_path: Path,
) -> None:
    driver = FakeDriver(build_fake_nvml(tmp_path), tmp_path)
    driver.tell("hang nvmlDeviceGetClockInfo 0")
    code = (
        "from muserve.gpu.guarded import GuardedGpu\n"
        "from muserve.gpu.nvml import NvmlGpu\n"
        "hung, healthy = (GuardedGpu(f'g{i}', lambda i=i: NvmlGpu.open(i), 0.1) for i in (0, 1))\n"
        "try:\n"
        "    hung.clock_mhz()\n"
        "except Exception as error:\n"
        "    print(error)\n"
        "healthy.lock_clock(945)\n"
    )
    began_s = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | driver.environment,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "g0: the driver did not answer (clock) within 0.1 s\n"
    assert driver.locked_mhz(1) == 945
    assert time.monotonic() - began_s < 10


def test_an_opening_that_hangs_is_given_up(tmp_path: Path) -> None:
    driver = FakeDriver(build_fake_nvml(tmp_path), tmp_path)
    driver.tell("hang nvmlInitWithFlags")
    code = (
        "from muserve.gpu.guarded import GuardedGpu\n"
        "from muserve.gpu.nvml import NvmlGpu\n"
        "GuardedGpu('g0', lambda: NvmlGpu.open(0), 0.1)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | driver.environment,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.stderr.strip().endswith("GpuBusyError: g0: the driver did not answer (open) within 0.1 s")
