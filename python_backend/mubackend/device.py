"""The GPU time that a model spends."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from mubackend.settings import Settings
from muserve.errors import GpuNotFoundError
from muserve.gpu.virtual import VirtualGpu, VirtualRun
from muserve.plan import vgpu_dir


class Device(Protocol):
    """What spends GPU time; ``VirtualGpu`` is one."""

    def run(self, latency_ms: float, sensitivity: float, *, not_before_s: float | None = None) -> VirtualRun:
        """Block for work that alone takes ``latency_ms`` at the top clock; see ``VirtualGpu.run``."""


class TensorParallelGpus:
    """GPUs that work on everything together, each for the whole time: the slowest one sets the pace."""

    def __init__(self, gpus: Sequence[Device]) -> None:
        self._gpus = tuple(gpus)
        self._threads = ThreadPoolExecutor(len(gpus), thread_name_prefix="virtual-gpu")

    def run(self, latency_ms: float, sensitivity: float, *, not_before_s: float | None = None) -> VirtualRun:
        """Block until every GPU has done the work; ``gpu_s`` is the time of all of them."""
        runs = [
            pending.result()
            for pending in [
                self._threads.submit(gpu.run, latency_ms, sensitivity, not_before_s=not_before_s)
                for gpu in self._gpus
            ]
        ]
        return VirtualRun(
            started_s=min(run.started_s for run in runs),
            finished_s=max(run.finished_s for run in runs),
            gpu_s=sum(run.gpu_s for run in runs),
        )


def open_virtual_gpus(settings: Settings) -> Device:
    """The virtual GPUs of the replica; GpuNotFoundError when nobody has created one of them."""
    gpus = [_open_virtual_gpu(settings, uuid) for uuid in settings.gpu_uuids]
    return gpus[0] if len(gpus) == 1 else TensorParallelGpus(gpus)


def _open_virtual_gpu(settings: Settings, uuid: str) -> VirtualGpu:
    state_file = vgpu_dir(settings.plan_dir) / f"{uuid}.vgpu"
    try:
        return VirtualGpu(state_file)
    except GpuNotFoundError as error:
        raise GpuNotFoundError(
            f"virtual GPU {uuid} does not exist ({state_file}): "
            "start Triton with `muplan serve`, which creates it"
        ) from error
