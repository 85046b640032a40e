"""The GPU time that a model spends."""

from __future__ import annotations

from typing import Protocol

from mubackend.settings import Settings
from muserve.errors import GpuNotFoundError
from muserve.gpu.virtual import VirtualGpu, VirtualRun
from muserve.plan import vgpu_dir


class Device(Protocol):
    """What spends GPU time; ``VirtualGpu`` is one."""

    def run(self, latency_ms: float, sensitivity: float, *, not_before_s: float | None = None) -> VirtualRun:
        """Block for work that alone takes ``latency_ms`` at the top clock; see ``VirtualGpu.run``."""


def open_virtual_gpu(settings: Settings) -> VirtualGpu:
    """The virtual GPU that the model is planned on; GpuNotFoundError when nobody has created it."""
    uuid = settings.text("gpu_uuid")
    state_file = vgpu_dir(settings.plan_dir) / f"{uuid}.vgpu"
    try:
        return VirtualGpu(state_file)
    except GpuNotFoundError as error:
        raise GpuNotFoundError(
            f"virtual GPU {uuid} does not exist ({state_file}): "
            "start Triton with `muplan serve`, which creates it"
        ) from error
