"""The NVML device: the real binding on a fake driver library built from ``tests/data/fake_nvml.c``."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pynvml
import pytest

from fake_nvml import FakeDriver, build_fake_nvml, load_fake_nvml
from muserve.errors import (
    GpuBusyError,
    GpuError,
    GpuLostError,
    GpuNotFoundError,
    GpuPermissionError,
    GpuUnsupportedError,
)
from muserve.gpu.nvml import NvmlGpu, driver_version, list_gpus
from muserve.gpu.nvml_errors import ERRORS, translated
from muserve.gpu.protocol import Gpu, GpuHealth, PowerLimits


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_fake_nvml(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def driver(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    return load_fake_nvml(library, tmp_path, monkeypatch)


@pytest.fixture
def gpu(driver: FakeDriver) -> NvmlGpu:
    return NvmlGpu.open(1)


def test_it_reads_a_gpu(gpu: NvmlGpu) -> None:
    device: Gpu = gpu
    assert device.identity.index == 1
    assert device.identity.uuid == "GPU-fake-1"
    assert device.identity.name == "Tesla Fake"
    assert not device.identity.virtual
    assert device.clock_mhz() == 1380
    assert device.power_w() == 174.25
    assert gpu.average_power_w() == 173.25
    assert device.energy_j() == 5_000_000_001.5
    assert device.utilisation() == 0.37
    assert device.throttle_reasons() == frozenset()


def test_clocks_are_those_of_the_highest_memory_clock_ascending(gpu: NvmlGpu) -> None:
    clocks = gpu.supported_clocks_mhz()
    assert clocks == tuple(range(135, 1381, 15))


def test_a_lock_holds_until_it_is_removed_by_anyone(gpu: NvmlGpu) -> None:
    gpu.lock_clock(945)
    assert gpu.clock_mhz() == gpu.locked_clock_mhz() == 945
    another = NvmlGpu.open(1)
    assert another.clock_mhz() == 945
    assert another.locked_clock_mhz() is None, "NVML does not tell of locks set by others"
    assert NvmlGpu.open(0).clock_mhz() == 1380
    another.unlock_clock()
    assert gpu.clock_mhz() == 1380
    gpu.unlock_clock()
    assert gpu.locked_clock_mhz() is None


def test_only_supported_clocks_reach_the_driver(gpu: NvmlGpu) -> None:
    with pytest.raises(GpuUnsupportedError, match="1000 MHz is not one of its 84 supported clocks from 135"):
        gpu.lock_clock(1000)
    assert gpu.clock_mhz() == 1380


@pytest.mark.parametrize(
    ("bits", "names"),
    [
        (0x1, set()),
        (0x2, set()),
        (0x4, {"SwPowerCap"}),
        (0x1 | 0x8 | 0x40, {"HwSlowdown", "HwThermalSlowdown"}),
        (0x10 | 0x20 | 0x80, {"SyncBoost", "SwThermalSlowdown", "HwPowerBrakeSlowdown"}),
        (0x100 | 0x200 | 0x400, {"BoardLimit", "Reliability"}),
    ],
)
def test_throttle_reasons_have_names(gpu: NvmlGpu, driver: FakeDriver, bits: int, names: set[str]) -> None:
    driver.tell(f"reasons 1 {bits:#x}", "reasons 0 0x4")
    assert gpu.throttle_reasons() == names


def test_an_older_driver_has_the_reasons_under_their_first_name_and_no_instant_power(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = build_fake_nvml(tmp_path, "-DFAKE_NVML_OLD_DRIVER")
    driver = load_fake_nvml(library, tmp_path, monkeypatch)
    driver.tell("reasons 0 4")
    gpu = NvmlGpu.open(0)
    assert gpu.throttle_reasons() == {"SwPowerCap"}
    assert gpu.power_w() == gpu.average_power_w() == 173.25
    driver.tell("fail nvmlDeviceGetFieldValues 15")
    assert gpu.power_w() == 173.25, "a reading that the driver does not have is not asked for again"


def test_gpus_are_listed(gpu: NvmlGpu) -> None:
    assert [(found.index, found.uuid) for found in list_gpus()] == [(0, "GPU-fake-0"), (1, "GPU-fake-1")]
    assert list_gpus()[1] == gpu.identity


@pytest.mark.parametrize("index", [-1, 2])
def test_a_gpu_that_is_not_there(gpu: NvmlGpu, index: int) -> None:
    with pytest.raises(GpuNotFoundError, match=f"no GPU {index}: the driver reports 2"):
        NvmlGpu.open(index)


@pytest.mark.parametrize(
    ("function", "code", "kind", "sentence"),
    [
        ("nvmlDeviceSetGpuLockedClocks", 4, GpuPermissionError, "changing clocks or power limits needs root"),
        ("nvmlDeviceSetGpuLockedClocks", 3, GpuUnsupportedError, "Not Supported"),
        ("nvmlDeviceSetGpuLockedClocks", 15, GpuLostError, "fallen off the bus"),
        ("nvmlDeviceSetGpuLockedClocks", 10, GpuBusyError, "Timeout"),
        ("nvmlDeviceSetGpuLockedClocks", 999, GpuError, "Unknown Error"),
        ("nvmlDeviceSetGpuLockedClocks", 777, GpuError, "an error only the driver knows"),
    ],
)
def test_a_refused_lock_is_one_sentence_and_not_taken_for_a_lock(
    gpu: NvmlGpu,
    driver: FakeDriver,
    function: str,
    code: int,
    kind: type[GpuError],
    sentence: str,
) -> None:
    driver.tell(f"fail {function} {code}")
    with pytest.raises(GpuError) as caught:
        gpu.lock_clock(945)
    assert type(caught.value) is kind
    assert str(caught.value).startswith("GPU 1 (Tesla Fake) lock at 945 MHz: ")
    assert sentence in str(caught.value)
    assert gpu.locked_clock_mhz() is None


@pytest.mark.parametrize(
    ("function", "method"),
    [
        ("nvmlDeviceResetGpuLockedClocks", "unlock_clock"),
        ("nvmlDeviceGetClockInfo", "clock_mhz"),
        ("nvmlDeviceGetFieldValues", "power_w"),
        ("nvmlDeviceGetPowerUsage", "average_power_w"),
        ("nvmlDeviceGetTotalEnergyConsumption", "energy_j"),
        ("nvmlDeviceGetUtilizationRates", "utilisation"),
        ("nvmlDeviceGetCurrentClocksEventReasons", "throttle_reasons"),
        ("nvmlDeviceGetPowerManagementLimit", "power_limits"),
        ("nvmlDeviceGetRemappedRows", "health"),
    ],
)
def test_every_method_translates_its_errors(
    gpu: NvmlGpu, driver: FakeDriver, function: str, method: str
) -> None:
    driver.tell(f"fail {function} 15")
    with pytest.raises(GpuLostError, match="fallen off the bus"):
        getattr(gpu, method)()


@pytest.mark.parametrize("function", ["nvmlInitWithFlags", "nvmlDeviceGetCount_v2"])
def test_a_driver_that_is_not_loaded(gpu: NvmlGpu, driver: FakeDriver, function: str) -> None:
    driver.tell(f"fail {function} 9")
    for attempt in (lambda: NvmlGpu.open(0), list_gpus):
        with pytest.raises(GpuNotFoundError, match="the NVIDIA driver is not loaded"):
            attempt()


CODES = sorted(value for name, value in vars(pynvml).items() if name.startswith("NVML_ERROR_"))


@pytest.mark.parametrize("code", CODES)
def test_every_nvml_error_has_an_answer(code: int) -> None:
    """A code that a newer pynvml adds fails here until somebody decides what it means."""
    assert code in ERRORS
    with pytest.raises(ERRORS[code], match=r"^GPU 0: ."), translated("GPU 0"):
        raise pynvml.NVMLError(code)


@pytest.mark.parametrize("code", CODES)
def test_every_code_crosses_the_real_binding(gpu: NvmlGpu, driver: FakeDriver, code: int) -> None:
    driver.tell(f"fail nvmlDeviceGetClockInfo {code}")
    with pytest.raises(GpuError, match=r"^GPU 1 \(Tesla Fake\) clock: .") as caught:
        gpu.clock_mhz()
    assert type(caught.value) is ERRORS[code]


def test_a_call_may_fail_at_any_time(gpu: NvmlGpu, driver: FakeDriver) -> None:
    driver.tell("fail nvmlDeviceGetClockInfo 10 2 3")
    assert gpu.clock_mhz() == 1380
    for _ in range(2):
        with pytest.raises(GpuBusyError, match="Timeout"):
            gpu.clock_mhz()
    assert gpu.clock_mhz() == 1380


def test_one_lost_gpu_leaves_the_others(gpu: NvmlGpu, driver: FakeDriver) -> None:
    other = NvmlGpu.open(0)
    driver.tell("lose 1")
    for method in ("clock_mhz", "power_w", "unlock_clock", "health", "power_limits"):
        with pytest.raises(GpuLostError, match="fallen off the bus"):
            getattr(gpu, method)()
    assert other.clock_mhz() == 1380


def test_gpus_go_by_index_and_by_the_uuid_of_triton_metrics(gpu: NvmlGpu) -> None:
    for found in list_gpus():
        assert NvmlGpu.open_uuid(found.uuid).identity == NvmlGpu.open(found.index).identity == found
    with pytest.raises(GpuNotFoundError, match="GPU GPU-fake-9: Not Found"):
        NvmlGpu.open_uuid("GPU-fake-9")
    with pytest.raises(
        GpuUnsupportedError, match="MIG-1 is a MIG instance: expected the UUID of a whole GPU"
    ):
        NvmlGpu.open_uuid("MIG-1")


def test_a_gpu_in_mig_mode_is_refused_with_the_way_out(gpu: NvmlGpu, driver: FakeDriver) -> None:
    driver.tell("mig 1")
    with pytest.raises(GpuUnsupportedError, match=r"^GPU 1 \(Tesla Fake\) is split .* `nvidia-smi -i 1 -mig"):
        NvmlGpu.open(1)
    assert NvmlGpu.open(0).identity.index == 0


def test_memory_clocks_come_with_their_own_sm_clocks(gpu: NvmlGpu) -> None:
    assert gpu.clock_table_mhz() == {877: tuple(range(135, 1381, 15)), 405: (135,)}


def test_a_power_limit_lowers_the_clock_and_says_why(gpu: NvmlGpu, driver: FakeDriver) -> None:
    assert gpu.power_limits() == PowerLimits(least_w=100, most_w=250, default_w=250, limit_w=250)
    gpu.limit_power(120)
    assert driver.limit_mw(1) == 120_000
    assert gpu.power_limits().limit_w == 120
    assert 945 < gpu.clock_mhz() < 1380
    assert gpu.power_w() <= 120
    assert gpu.throttle_reasons() == {"SwPowerCap"}
    gpu.limit_power(200)  # above what it draws
    assert (gpu.clock_mhz(), gpu.throttle_reasons()) == (1380, frozenset())
    with pytest.raises(GpuUnsupportedError, match="power limit of 90 W: Invalid Argument"):
        gpu.limit_power(90)


def test_health_tells_what_the_board_has(gpu: NvmlGpu, driver: FakeDriver) -> None:
    healthy = GpuHealth(temperature_c=41, persistence=True, uncorrected_ecc_errors=0)
    assert gpu.health() == healthy
    driver.tell("persistence 0", "ecc 1 3", "remap 1")
    assert gpu.health() == replace(healthy, persistence=False, uncorrected_ecc_errors=3, needs_reset=True)
    driver.tell("fail nvmlDeviceGet* 3")
    assert gpu.health() == GpuHealth()


def test_locks_outlive_the_process_that_set_them(gpu: NvmlGpu, driver: FakeDriver) -> None:
    code = "from muserve.gpu.nvml import NvmlGpu; NvmlGpu.open(1).lock_clock(945)"
    subprocess.run([sys.executable, "-c", code], env=os.environ | driver.environment, check=True)
    assert driver.locked_mhz(1) == gpu.clock_mhz() == 945


def test_pynvml_finds_the_driver_library_by_name(driver: FakeDriver) -> None:
    code = "from muserve.gpu.nvml import list_gpus; print(*(gpu.uuid for gpu in list_gpus()))"
    driver.tell("gpus 3")
    environment = os.environ | driver.environment
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout == "GPU-fake-0 GPU-fake-1 GPU-fake-2\n", done.stderr


def test_without_a_driver_the_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        with pytest.raises(GpuNotFoundError, match=r"libnvidia-ml\.so\.1 was not found: install the NVIDIA"):
            NvmlGpu.open(0)
    else:
        pytest.skip("this machine has an NVIDIA driver")


def test_the_driver_tells_its_version(driver: FakeDriver) -> None:
    assert driver_version() == "550.54.15"
