"""A real NVIDIA GPU through NVML. The only module that imports ``pynvml``.

``pynvml`` is the binding that ``nvidia-ml-py`` installs; it loads ``libnvidia-ml.so.1``, which comes with
the driver. Locking clocks needs root (or CAP_SYS_ADMIN in a container). Clock locks survive the process that
set them: whoever locks must unlock.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pynvml

from muserve.errors import (
    GpuBusyError,
    GpuError,
    GpuLostError,
    GpuNotFoundError,
    GpuPermissionError,
    GpuUnsupportedError,
)
from muserve.gpu.protocol import GpuIdentity

# The answer to every NVML error code known to nvidia-ml-py 13; a code added later is a plain GpuError.
_ERRORS: dict[int, type[GpuError]] = {
    pynvml.NVML_ERROR_UNINITIALIZED: GpuNotFoundError,
    pynvml.NVML_ERROR_INVALID_ARGUMENT: GpuUnsupportedError,
    pynvml.NVML_ERROR_NOT_SUPPORTED: GpuUnsupportedError,
    pynvml.NVML_ERROR_NO_PERMISSION: GpuPermissionError,
    pynvml.NVML_ERROR_ALREADY_INITIALIZED: GpuBusyError,
    pynvml.NVML_ERROR_NOT_FOUND: GpuNotFoundError,
    pynvml.NVML_ERROR_INSUFFICIENT_SIZE: GpuUnsupportedError,
    pynvml.NVML_ERROR_INSUFFICIENT_POWER: GpuLostError,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: GpuNotFoundError,
    pynvml.NVML_ERROR_TIMEOUT: GpuBusyError,
    pynvml.NVML_ERROR_IRQ_ISSUE: GpuLostError,
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: GpuNotFoundError,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: GpuUnsupportedError,
    pynvml.NVML_ERROR_CORRUPTED_INFOROM: GpuLostError,
    pynvml.NVML_ERROR_GPU_IS_LOST: GpuLostError,
    pynvml.NVML_ERROR_RESET_REQUIRED: GpuLostError,
    pynvml.NVML_ERROR_OPERATING_SYSTEM: GpuPermissionError,
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: GpuNotFoundError,
    pynvml.NVML_ERROR_IN_USE: GpuBusyError,
    pynvml.NVML_ERROR_MEMORY: GpuBusyError,
    pynvml.NVML_ERROR_NO_DATA: GpuBusyError,
    pynvml.NVML_ERROR_VGPU_ECC_NOT_SUPPORTED: GpuUnsupportedError,
    pynvml.NVML_ERROR_INSUFFICIENT_RESOURCES: GpuBusyError,
    pynvml.NVML_ERROR_FREQ_NOT_SUPPORTED: GpuUnsupportedError,
    pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH: GpuUnsupportedError,
    pynvml.NVML_ERROR_DEPRECATED: GpuUnsupportedError,
    pynvml.NVML_ERROR_NOT_READY: GpuBusyError,
    pynvml.NVML_ERROR_GPU_NOT_FOUND: GpuNotFoundError,
    pynvml.NVML_ERROR_INVALID_STATE: GpuBusyError,
    30: GpuUnsupportedError,  # NVML_ERROR_RESET_TYPE_NOT_SUPPORTED, unknown to nvidia-ml-py 12
    pynvml.NVML_ERROR_UNKNOWN: GpuError,
}

_HINTS = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "libnvidia-ml.so.1 was not found: install the NVIDIA driver",
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "the NVIDIA driver is not loaded",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "driver and NVML library differ in version: reboot",
    pynvml.NVML_ERROR_NO_PERMISSION: "permission denied: changing clocks needs root",
    pynvml.NVML_ERROR_GPU_IS_LOST: "the GPU has fallen off the bus: reboot",
}

# Bits of nvmlDeviceGetCurrentClocksEventReasons that mean "slower than asked". Left out are the three that
# do not: GpuIdle, ApplicationsClocksSetting (a user's own setting) and DisplayClockSetting.
_THROTTLE_REASONS = {
    pynvml.nvmlClocksThrottleReasonSwPowerCap: "SwPowerCap",
    pynvml.nvmlClocksThrottleReasonHwSlowdown: "HwSlowdown",
    pynvml.nvmlClocksThrottleReasonSyncBoost: "SyncBoost",
    pynvml.nvmlClocksThrottleReasonSwThermalSlowdown: "SwThermalSlowdown",
    pynvml.nvmlClocksThrottleReasonHwThermalSlowdown: "HwThermalSlowdown",
    pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown: "HwPowerBrakeSlowdown",
}


class NvmlGpu:
    """One GPU found by NVML; implements ``muserve.gpu.protocol.Gpu``. Errors: see ``_ERRORS``."""

    def __init__(self, handle: Any, identity: GpuIdentity) -> None:
        self._handle = handle
        self._identity = identity
        self._locked_mhz: int | None = None
        with _translated(f"{self} clocks"):
            memory_mhz = max(pynvml.nvmlDeviceGetSupportedMemoryClocks(handle))
            clocks = pynvml.nvmlDeviceGetSupportedGraphicsClocks(handle, memory_mhz)
        self._clocks_mhz = tuple(sorted(set(clocks)))

    @classmethod
    def open(cls, index: int) -> NvmlGpu:
        """The GPU with NVML index ``index``; GpuNotFoundError without a driver or without such a GPU."""
        count = _start()
        if not 0 <= index < count:
            raise GpuNotFoundError(f"no GPU {index}: the driver reports {count} (indices from 0)")
        with _translated(f"GPU {index}"):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            return cls(handle, _identity(handle, index))

    def __str__(self) -> str:
        return f"GPU {self._identity.index} ({self._identity.name})"

    @property
    def identity(self) -> GpuIdentity:
        """NVML index, UUID and product name."""
        return self._identity

    def supported_clocks_mhz(self) -> tuple[int, ...]:
        """SM clocks at the highest memory clock, ascending; read once."""
        return self._clocks_mhz

    def clock_mhz(self) -> int:
        """The SM clock that the GPU runs at now."""
        with _translated(f"{self} clock"):
            return int(pynvml.nvmlDeviceGetClockInfo(self._handle, pynvml.NVML_CLOCK_SM))

    def locked_clock_mhz(self) -> int | None:
        """The lock this object set. NVML does not tell of locks set by others: those read None."""
        return self._locked_mhz

    def lock_clock(self, clock_mhz: int) -> None:
        """Lock minimum and maximum SM clock to one supported clock (nvmlDeviceSetGpuLockedClocks)."""
        if clock_mhz not in self._clocks_mhz:
            raise GpuUnsupportedError(
                f"{self}: {clock_mhz} MHz is not one of its {len(self._clocks_mhz)} supported clocks"
                f" from {self._clocks_mhz[0]} to {self._clocks_mhz[-1]} MHz"
            )
        with _translated(f"{self} lock at {clock_mhz} MHz"):
            pynvml.nvmlDeviceSetGpuLockedClocks(self._handle, clock_mhz, clock_mhz)
        self._locked_mhz = clock_mhz

    def unlock_clock(self) -> None:
        """Remove the lock, whoever set it (nvmlDeviceResetGpuLockedClocks)."""
        with _translated(f"{self} unlock"):
            pynvml.nvmlDeviceResetGpuLockedClocks(self._handle)
        self._locked_mhz = None

    def power_w(self) -> float:
        """Board power; on recent parts NVML averages it over up to a second."""
        with _translated(f"{self} power"):
            return float(pynvml.nvmlDeviceGetPowerUsage(self._handle)) / 1000

    def energy_j(self) -> float:
        """Energy since the driver was loaded. GpuUnsupportedError before Volta."""
        with _translated(f"{self} energy"):
            return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1000

    def utilisation(self) -> float:
        """Share of NVML's last sample period in which a kernel ran."""
        with _translated(f"{self} utilisation"):
            return float(pynvml.nvmlDeviceGetUtilizationRates(self._handle).gpu) / 100

    def throttle_reasons(self) -> frozenset[str]:
        """Names of NVML's clock event reasons that hold the clock below the requested one."""
        with _translated(f"{self} clock event reasons"):
            bits = _event_reasons(self._handle)
        return frozenset(name for bit, name in _THROTTLE_REASONS.items() if bits & bit)


def list_gpus() -> tuple[GpuIdentity, ...]:
    """Every GPU that NVML shows to this process, by index; GpuNotFoundError when there is no driver."""
    count = _start()
    with _translated("list of GPUs"):
        return tuple(_identity(pynvml.nvmlDeviceGetHandleByIndex(i), i) for i in range(count))


def driver_version() -> str:
    """Version of the NVIDIA driver, such as ``550.54.15``; GpuNotFoundError when there is none."""
    _start()
    with _translated("driver version"):
        return str(pynvml.nvmlSystemGetDriverVersion())


def _start() -> int:
    """Load NVML (it stays loaded until the process ends) and count the GPUs."""
    with _translated("NVML"):
        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetCount())


def _identity(handle: Any, index: int) -> GpuIdentity:
    return GpuIdentity(
        index=index,
        uuid=str(pynvml.nvmlDeviceGetUUID(handle)),
        name=str(pynvml.nvmlDeviceGetName(handle)),
        virtual=False,
    )


def _event_reasons(handle: Any) -> int:
    try:
        return int(pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle))
    except pynvml.NVMLError_FunctionNotFound:
        # Drivers before 535 have it under its first name.
        return int(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))


@contextmanager
def _translated(subject: str) -> Iterator[None]:
    """Turn any NVMLError into one of our GpuErrors, with one sentence about ``subject``."""
    try:
        yield
    except pynvml.NVMLError as error:
        kind = _ERRORS.get(error.value, GpuError)
        raise kind(f"{subject}: {_HINTS.get(error.value, str(error))}") from error
