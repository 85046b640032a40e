"""Every NVML error code as one of our errors, with a sentence that says what to do where that is known."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pynvml

from muserve.errors import (
    GpuBusyError,
    GpuError,
    GpuLostError,
    GpuNotFoundError,
    GpuPermissionError,
    GpuUnsupportedError,
)

# The answer to every NVML error code known to nvidia-ml-py 13; a code added later is a plain GpuError.
ERRORS: dict[int, type[GpuError]] = {
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

_HINTS: dict[int, str] = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "libnvidia-ml.so.1 was not found: install the NVIDIA driver",
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "the NVIDIA driver is not loaded",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "driver and NVML library differ in version: reboot",
    pynvml.NVML_ERROR_NO_PERMISSION: "permission denied: changing clocks or power limits needs root",
    pynvml.NVML_ERROR_GPU_IS_LOST: "the GPU has fallen off the bus: reboot",
    pynvml.NVML_ERROR_RESET_REQUIRED: "the GPU must be reset: nvidia-smi --gpu-reset",
    pynvml.NVML_ERROR_INSUFFICIENT_POWER: "the GPU lacks external power: check its cables",
    pynvml.NVML_ERROR_CORRUPTED_INFOROM: "the GPU's infoROM is corrupted: replace the board",
    pynvml.NVML_ERROR_OPERATING_SYSTEM: "the operating system forbids it: is /dev/nvidiactl accessible?",
}


@contextmanager
def translated(subject: str) -> Iterator[None]:
    """Turn any NVMLError into one of our GpuErrors, with one sentence about ``subject``."""
    try:
        yield
    except pynvml.NVMLError as error:
        kind = ERRORS.get(error.value, GpuError)
        raise kind(f"{subject}: {_HINTS.get(error.value, str(error))}") from error
