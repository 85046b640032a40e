"""A real NVIDIA GPU through NVML. With ``nvml_errors``, the only module that imports ``pynvml``.

``pynvml`` is the binding that ``nvidia-ml-py`` installs; it loads ``libnvidia-ml.so.1``, which comes with
the driver. Locking clocks and limiting power need root (or CAP_SYS_ADMIN in a container). Both survive
the process that set them: whoever locks must unlock.

A GPU goes by three names: its NVML index (order of PCI addresses, may change with a reboot), its UUID
(stays with the board), and ``gpu_uuid``, which is what Triton's ``nv_gpu_*`` metrics call the UUID.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pynvml

from muserve.errors import GpuNotFoundError, GpuUnsupportedError
from muserve.gpu.nvml_errors import translated
from muserve.gpu.protocol import GpuHealth, GpuIdentity, PowerLimits

# Bits of nvmlDeviceGetCurrentClocksEventReasons that mean "slower than asked". Left out are the three that
# do not: GpuIdle, ApplicationsClocksSetting (a user's own setting) and DisplayClockSetting.
_THROTTLE_REASONS = {
    pynvml.nvmlClocksThrottleReasonSwPowerCap: "SwPowerCap",
    pynvml.nvmlClocksThrottleReasonHwSlowdown: "HwSlowdown",
    pynvml.nvmlClocksThrottleReasonSyncBoost: "SyncBoost",
    pynvml.nvmlClocksThrottleReasonSwThermalSlowdown: "SwThermalSlowdown",
    pynvml.nvmlClocksThrottleReasonHwThermalSlowdown: "HwThermalSlowdown",
    pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown: "HwPowerBrakeSlowdown",
    0x200: "BoardLimit",  # unknown to nvidia-ml-py 12, as is the next
    0x400: "Reliability",
}

_MIG_SENTENCE = (
    "is split into MIG instances, which share one clock: no instance can be steered alone."
    " Turn MIG off with `nvidia-smi -i {index} -mig 0`, or leave this GPU out of the plan"
)


class NvmlGpu:
    """One GPU found by NVML; implements ``muserve.gpu.protocol.Gpu``. Errors: see ``nvml_errors.ERRORS``."""

    def __init__(self, handle: Any, identity: GpuIdentity) -> None:
        self._handle = handle
        self._identity = identity
        self._locked_mhz: int | None = None
        self._shows_fields = True
        if _has_mig(handle):
            raise GpuUnsupportedError(f"{self} {_MIG_SENTENCE.format(index=identity.index)}")
        with translated(f"{self} clocks"):
            self._table_mhz = {
                int(memory_mhz): tuple(sorted(set(_graphics_clocks(handle, memory_mhz))))
                for memory_mhz in pynvml.nvmlDeviceGetSupportedMemoryClocks(handle)
            }
        self._clocks_mhz = self._table_mhz[max(self._table_mhz)]

    @classmethod
    def open(cls, index: int) -> NvmlGpu:
        """The GPU with NVML index ``index``; GpuNotFoundError without a driver or without such a GPU."""
        count = count_gpus()
        if not 0 <= index < count:
            raise GpuNotFoundError(f"no GPU {index}: the driver reports {count} (indices from 0)")
        with translated(f"GPU {index}"):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            identity = _identity(handle, index)
        return cls(handle, identity)

    @classmethod
    def open_uuid(cls, uuid: str) -> NvmlGpu:
        """The GPU called ``uuid`` by NVML, and by the ``gpu_uuid`` label of Triton's metrics.

        GpuNotFoundError without a driver or such a GPU, GpuUnsupportedError for a ``MIG-`` instance.
        """
        count_gpus()
        if uuid.startswith("MIG-"):
            raise GpuUnsupportedError(f"{uuid} is a MIG instance: expected the UUID of a whole GPU (GPU-...)")
        with translated(f"GPU {uuid}"):
            handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            identity = _identity(handle, int(pynvml.nvmlDeviceGetIndex(handle)))
        return cls(handle, identity)

    def __str__(self) -> str:
        return f"GPU {self._identity.index} ({self._identity.name})"

    @property
    def identity(self) -> GpuIdentity:
        """NVML index, UUID and product name."""
        return self._identity

    def supported_clocks_mhz(self) -> tuple[int, ...]:
        """SM clocks at the highest memory clock, ascending; read once."""
        return self._clocks_mhz

    def clock_table_mhz(self) -> dict[int, tuple[int, ...]]:
        """SM clocks, ascending, that go with each memory clock."""
        return dict(self._table_mhz)

    def clock_mhz(self) -> int:
        """The SM clock that the GPU runs at now."""
        with translated(f"{self} clock"):
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
        with translated(f"{self} lock at {clock_mhz} MHz"):
            pynvml.nvmlDeviceSetGpuLockedClocks(self._handle, clock_mhz, clock_mhz)
        self._locked_mhz = clock_mhz

    def unlock_clock(self) -> None:
        """Remove the lock, whoever set it (nvmlDeviceResetGpuLockedClocks)."""
        with translated(f"{self} unlock"):
            pynvml.nvmlDeviceResetGpuLockedClocks(self._handle)
        self._locked_mhz = None

    def power_limits(self) -> PowerLimits:
        """What may be set, the factory's setting, and the limit in force."""
        with translated(f"{self} power limits"):
            least_mw, most_mw = pynvml.nvmlDeviceGetPowerManagementLimitConstraints(self._handle)
            return PowerLimits(
                least_w=least_mw / 1000,
                most_w=most_mw / 1000,
                default_w=pynvml.nvmlDeviceGetPowerManagementDefaultLimit(self._handle) / 1000,
                limit_w=pynvml.nvmlDeviceGetPowerManagementLimit(self._handle) / 1000,
            )

    def limit_power(self, limit_w: float) -> None:
        """Limit board power to ``limit_w``, one of ``power_limits`` range."""
        with translated(f"{self} power limit of {limit_w:g} W"):
            pynvml.nvmlDeviceSetPowerManagementLimit(self._handle, round(limit_w * 1000))

    def power_w(self) -> float:
        """Board power at this instant where the driver tells it (530 and later), else as averaged by it."""
        instant_mw = self._power_field(pynvml.NVML_FI_DEV_POWER_INSTANT)
        return self.average_power_w() if instant_mw is None else instant_mw / 1000

    def average_power_w(self) -> float:
        """Board power averaged by the driver: over one second from Ampere on, 20 to 100 ms before."""
        with translated(f"{self} power"):
            return float(pynvml.nvmlDeviceGetPowerUsage(self._handle)) / 1000

    def energy_j(self) -> float:
        """Energy since the driver was loaded. GpuUnsupportedError before Volta."""
        with translated(f"{self} energy"):
            return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1000

    def utilisation(self) -> float:
        """Share of NVML's last sample period in which a kernel ran."""
        with translated(f"{self} utilisation"):
            return float(pynvml.nvmlDeviceGetUtilizationRates(self._handle).gpu) / 100

    def throttle_reasons(self) -> frozenset[str]:
        """Names of NVML's clock event reasons that hold the clock below the requested one."""
        with translated(f"{self} clock event reasons"):
            bits = _event_reasons(self._handle)
        return frozenset(name for bit, name in _THROTTLE_REASONS.items() if bits & bit)

    def health(self) -> GpuHealth:
        """Temperature, persistence and memory errors; a figure this board does not have is None."""
        handle = self._handle
        sensor = pynvml.NVML_TEMPERATURE_GPU
        remapped = self._if_offered(pynvml.nvmlDeviceGetRemappedRows, handle)
        persistence = self._if_offered(pynvml.nvmlDeviceGetPersistenceMode, handle)
        return GpuHealth(
            temperature_c=self._if_offered(pynvml.nvmlDeviceGetTemperature, handle, sensor),
            persistence=None if persistence is None else persistence == pynvml.NVML_FEATURE_ENABLED,
            uncorrected_ecc_errors=self._if_offered(
                pynvml.nvmlDeviceGetTotalEccErrors,
                handle,
                pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
                pynvml.NVML_VOLATILE_ECC,
            ),
            needs_reset=remapped is not None and bool(remapped[2] or remapped[3]),
        )

    def _if_offered(self, ask: Callable[..., Any], *arguments: Any) -> Any:
        try:
            with translated(f"{self} health"):
                return ask(*arguments)
        except GpuUnsupportedError:
            return None

    def _power_field(self, field: int) -> int | None:
        """A power reading in mW; None from a driver that does not have it, which is not asked again."""
        if not self._shows_fields:
            return None
        try:
            with translated(f"{self} power"):
                (value,) = pynvml.nvmlDeviceGetFieldValues(self._handle, [field])
                if value.nvmlReturn != pynvml.NVML_SUCCESS:
                    raise pynvml.NVMLError(value.nvmlReturn)
        except GpuUnsupportedError:
            self._shows_fields = False
            return None
        return int(value.value.uiVal)


def list_gpus() -> tuple[GpuIdentity, ...]:
    """Every GPU that NVML shows to this process, by index; GpuNotFoundError when there is no driver."""
    count = count_gpus()
    with translated("list of GPUs"):
        return tuple(_identity(pynvml.nvmlDeviceGetHandleByIndex(i), i) for i in range(count))


def driver_version() -> str:
    """Version of the NVIDIA driver, such as ``550.54.15``; GpuNotFoundError when there is none."""
    count_gpus()
    with translated("driver version"):
        return str(pynvml.nvmlSystemGetDriverVersion())


def count_gpus() -> int:
    """Load NVML, which stays loaded until the process ends, and count the GPUs that it shows.

    GpuNotFoundError when there is no driver.
    """
    with translated("NVML"):
        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetCount())


def _identity(handle: Any, index: int) -> GpuIdentity:
    return GpuIdentity(
        index=index,
        uuid=str(pynvml.nvmlDeviceGetUUID(handle)),
        name=str(pynvml.nvmlDeviceGetName(handle)),
        virtual=False,
    )


def _has_mig(handle: Any) -> bool:
    try:
        with translated("MIG mode"):
            return bool(pynvml.nvmlDeviceGetMigMode(handle)[0] == pynvml.NVML_DEVICE_MIG_ENABLE)
    except GpuUnsupportedError:
        return False


def _graphics_clocks(handle: Any, memory_mhz: int) -> list[int]:
    return [int(clock) for clock in pynvml.nvmlDeviceGetSupportedGraphicsClocks(handle, memory_mhz)]


def _event_reasons(handle: Any) -> int:
    try:
        return int(pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle))
    except pynvml.NVMLError_FunctionNotFound:
        # Drivers before 535 have it under its first name.
        return int(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
