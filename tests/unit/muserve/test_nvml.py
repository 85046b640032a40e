"""The NVML device: the real binding on a fake driver library built from ``tests/data/fake_nvml.c``."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pynvml
import pytest

from muserve.errors import (
    GpuBusyError,
    GpuError,
    GpuLostError,
    GpuNotFoundError,
    GpuPermissionError,
    GpuUnsupportedError,
)
from muserve.gpu import nvml
from muserve.gpu.nvml import NvmlGpu, driver_version, list_gpus
from muserve.gpu.protocol import Gpu

SOURCE = Path(__file__).parents[2] / "data/fake_nvml.c"


def build(directory: Path, *flags: str) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to build the fake NVML library with")
    library = directory / "libnvidia-ml.so.1"
    command = [compiler, "-shared", "-fPIC", "-Wall", "-Werror", *flags, "-o", str(library), str(SOURCE)]
    subprocess.run(command, check=True)
    return library


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("nvml"))


def load(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the library where pynvml would after finding it; undone after the test."""
    monkeypatch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(library)))
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    monkeypatch.setenv("FAKE_NVML_GPUS", "2")


@pytest.fixture
def gpu(library: Path, monkeypatch: pytest.MonkeyPatch) -> NvmlGpu:
    load(library, monkeypatch)
    gpu = NvmlGpu.open(1)
    gpu.unlock_clock()
    return gpu


def test_it_reads_a_gpu(gpu: NvmlGpu) -> None:
    device: Gpu = gpu
    assert device.identity.index == 1
    assert device.identity.uuid == "GPU-fake-1"
    assert device.identity.name == "Tesla Fake"
    assert not device.identity.virtual
    assert device.clock_mhz() == 1380
    assert device.power_w() == 174.25
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
    ],
)
def test_throttle_reasons_have_names(
    gpu: NvmlGpu, monkeypatch: pytest.MonkeyPatch, bits: int, names: set[str]
) -> None:
    monkeypatch.setenv("FAKE_NVML_REASONS", hex(bits))
    assert gpu.throttle_reasons() == names


def test_an_older_driver_has_the_reasons_under_their_first_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(build(tmp_path, "-DFAKE_NVML_OLD_DRIVER"), monkeypatch)
    monkeypatch.setenv("FAKE_NVML_REASONS", "4")
    assert NvmlGpu.open(0).throttle_reasons() == {"SwPowerCap"}


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
        ("nvmlDeviceSetGpuLockedClocks", 4, GpuPermissionError, "changing clocks needs root"),
        ("nvmlDeviceSetGpuLockedClocks", 3, GpuUnsupportedError, "Not Supported"),
        ("nvmlDeviceSetGpuLockedClocks", 15, GpuLostError, "fallen off the bus"),
        ("nvmlDeviceSetGpuLockedClocks", 10, GpuBusyError, "Timeout"),
        ("nvmlDeviceSetGpuLockedClocks", 999, GpuError, "Unknown Error"),
        ("nvmlDeviceSetGpuLockedClocks", 777, GpuError, "an error only the driver knows"),
    ],
)
def test_a_refused_lock_is_one_sentence_and_not_taken_for_a_lock(
    gpu: NvmlGpu,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    code: int,
    kind: type[GpuError],
    sentence: str,
) -> None:
    monkeypatch.setenv("FAKE_NVML_FAIL", f"{function}={code}")
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
        ("nvmlDeviceGetPowerUsage", "power_w"),
        ("nvmlDeviceGetTotalEnergyConsumption", "energy_j"),
        ("nvmlDeviceGetUtilizationRates", "utilisation"),
        ("nvmlDeviceGetCurrentClocksEventReasons", "throttle_reasons"),
    ],
)
def test_every_method_translates_its_errors(
    gpu: NvmlGpu, monkeypatch: pytest.MonkeyPatch, function: str, method: str
) -> None:
    monkeypatch.setenv("FAKE_NVML_FAIL", f"{function}=15")
    with pytest.raises(GpuLostError, match="fallen off the bus"):
        getattr(gpu, method)()


@pytest.mark.parametrize("function", ["nvmlInitWithFlags", "nvmlDeviceGetCount_v2"])
def test_a_driver_that_is_not_loaded(gpu: NvmlGpu, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    monkeypatch.setenv("FAKE_NVML_FAIL", f"{function}=9")
    for attempt in (lambda: NvmlGpu.open(0), list_gpus):
        with pytest.raises(GpuNotFoundError, match="the NVIDIA driver is not loaded"):
            attempt()


@pytest.mark.parametrize("code", sorted(pynvml.NVMLError._valClassMapping))
def test_every_nvml_error_has_an_answer(code: int) -> None:
    assert code in nvml._ERRORS
    with pytest.raises(nvml._ERRORS[code], match=r"^GPU 0: ."), nvml._translated("GPU 0"):
        raise pynvml.NVMLError(code)


def test_pynvml_finds_the_driver_library_by_name(library: Path) -> None:
    code = "from muserve.gpu.nvml import list_gpus; print(*(gpu.uuid for gpu in list_gpus()))"
    environment = os.environ | {"LD_LIBRARY_PATH": str(library.parent), "FAKE_NVML_GPUS": "3"}
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


def test_the_driver_tells_its_version(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(library, monkeypatch)
    assert driver_version() == "550.54.15"
