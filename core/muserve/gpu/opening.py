"""From a plan to open devices."""

from __future__ import annotations

from pathlib import Path

from muserve.gpu.parts import PARTS_DIR
from muserve.gpu.protocol import Gpu
from muserve.gpu.virtual import VirtualGpu
from muserve.plan import GpuPlan, Plan, vgpu_dir


def open_gpus(plan: Plan, plan_dir: Path, node: str | None = None) -> dict[str, Gpu]:
    """Open the plan's GPUs (those of ``node`` only, when given), keyed by ``GpuPlan.name``.

    Virtual GPUs are created on first use, their state kept. Real ones are found by UUID where
    the plan names it, else by index, so name the node that this process runs on.
    Raises GpuError (no driver, no such device) or InputError (unknown part).
    """
    return {gpu.name: open_gpu(gpu, plan_dir) for gpu in plan.gpus if node in (None, gpu.node)}


def open_gpu(gpu: GpuPlan, plan_dir: Path) -> Gpu:
    """Open one GPU of the plan in ``plan_dir``; errors as for ``open_gpus``."""
    if gpu.virtual:
        uuid = gpu.uuid or f"VGPU-{gpu.node}-{gpu.index}"
        state_file = vgpu_dir(plan_dir) / f"{uuid}.vgpu"
        return VirtualGpu.create(state_file, gpu.part, gpu.index, uuid, part_dir=plan_dir / PARTS_DIR)
    # Imported here so that a machine with virtual GPUs only never loads NVML.
    from muserve.gpu.nvml import NvmlGpu

    return NvmlGpu.open_uuid(gpu.uuid) if gpu.uuid else NvmlGpu.open(gpu.index)
