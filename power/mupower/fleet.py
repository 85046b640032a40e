"""The plan's GPUs on this node, opened once and handed down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mupower.actuator import Actuator, CapHold, LockHold, cap_watts
from mupower.run_files import GpuFiles, LimitNote, gpu_files
from muserve.errors import GpuBusyError, GpuError, GpuLostError, InputError
from muserve.gpu.guarded import GuardedGpu
from muserve.gpu.opening import open_gpu
from muserve.gpu.parts import PARTS_DIR, Part, load_part
from muserve.gpu.protocol import Gpu
from muserve.plan import GpuPlan, Plan, read_plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """A plan and the devices of it that are in reach.

    By GPU: ``parts`` are their products, ``files`` say who steers them, ``absent`` are those that are lost
    or do not answer, which must not keep the others from being steered.
    """

    plan: Plan
    gpus: dict[str, Gpu]
    parts: dict[str, Part]
    files: dict[str, GpuFiles]
    absent: dict[str, GpuError]


def open_fleet(plan_path: Path, node: str | None) -> Fleet:
    """Open the GPUs of ``node`` (None: every GPU of the plan); calls into a driver are guarded.

    Raises InputError when the plan is unreadable, has no such node, or names a part that neither
    the catalogue nor the plan's directory has, and GpuError when a device cannot be opened, or none is
    left once the lost and the silent ones are set aside.
    """
    plan = read_plan(plan_path)
    plan_dir = plan_path if plan_path.is_dir() else plan_path.parent
    wanted = gpus_of_node(plan, plan_path, node)
    parts = {gpu.name: _part(plan_path, plan_dir, gpu) for gpu in wanted}
    gpus: dict[str, Gpu] = {}
    absent: dict[str, GpuError] = {}
    for gpu in wanted:
        try:
            gpus[gpu.name] = open_guarded(gpu, plan_dir)
        except (GpuLostError, GpuBusyError) as error:
            absent[gpu.name] = error
    if not gpus:
        raise next(iter(absent.values()))
    present = [gpu for gpu in wanted if gpu.name in gpus]
    return Fleet(
        plan=plan,
        gpus=gpus,
        parts={name: parts[name] for name in gpus},
        files={gpu.name: gpu_files(gpu, gpus[gpu.name].identity.uuid, plan_dir) for gpu in present},
        absent=absent,
    )


def gpus_of_node(plan: Plan, plan_path: Path, node: str | None) -> tuple[GpuPlan, ...]:
    """The plan's GPUs on ``node`` (None: all); InputError when there are none."""
    nodes = sorted({gpu.node for gpu in plan.gpus})
    if node is not None and node not in nodes:
        raise InputError(f"--node: expected one of {', '.join(nodes)}, got {node!r}")
    if not plan.gpus:
        raise InputError(f"{plan_path}: gpus: expected at least one GPU, the plan has none")
    return tuple(gpu for gpu in plan.gpus if node in (None, gpu.node))


def open_guarded(gpu: GpuPlan, plan_dir: Path) -> Gpu:
    """Open one GPU; a real one behind a guard, because a driver may hang. GpuError when it fails."""
    if gpu.virtual:
        return open_gpu(gpu, plan_dir)
    return GuardedGpu(gpu.name, lambda: open_gpu(gpu, plan_dir))


def holds(fleet: Fleet, actuators: Mapping[str, Actuator]) -> dict[str, LockHold | CapHold]:
    """What holds each GPU at a clock, by the actuator chosen for it."""
    found: dict[str, LockHold | CapHold] = {}
    for name, gpu in fleet.gpus.items():
        note = LimitNote(fleet.files[name].limit)
        if actuators[name] is Actuator.CAP:
            watts_at = cap_watts(fleet.parts[name], fleet.plan.models_on(name))
            found[name] = CapHold(gpu, note, watts_at)
        else:
            found[name] = LockHold(gpu, note)
    return found


def _part(plan_path: Path, plan_dir: Path, gpu: GpuPlan) -> Part:
    try:
        return load_part(gpu.part, plan_dir / PARTS_DIR)
    except InputError as error:
        raise InputError(f"{plan_path}: gpu {gpu.name}: part: {error}") from error
