"""The plan's GPUs on this node, opened once and handed down."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from muserve.errors import InputError
from muserve.gpu.opening import open_gpus
from muserve.gpu.parts import PARTS_DIR, Part, load_part
from muserve.gpu.protocol import Gpu
from muserve.plan import Plan, read_plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """A plan and the devices of it that are in reach; ``parts`` are their products, by GPU."""

    plan: Plan
    gpus: dict[str, Gpu]
    parts: dict[str, Part]


def open_fleet(plan_path: Path, node: str | None) -> Fleet:
    """Open the GPUs of ``node`` (None: every GPU of the plan).

    Raises InputError when the plan is unreadable, has no such node, or names a part that neither
    the catalogue nor the plan's directory has, and GpuError when a device cannot be opened.
    """
    plan = read_plan(plan_path)
    plan_dir = plan_path if plan_path.is_dir() else plan_path.parent
    nodes = sorted({gpu.node for gpu in plan.gpus})
    if node is not None and node not in nodes:
        raise InputError(f"--node: expected one of {', '.join(nodes)}, got {node!r}")
    gpus = open_gpus(plan, plan_dir, node)
    if not gpus:
        raise InputError(f"{plan_path}: gpus: expected at least one GPU, the plan has none")
    return Fleet(plan=plan, gpus=gpus, parts={name: _part(plan_path, plan_dir, plan, name) for name in gpus})


def _part(plan_path: Path, plan_dir: Path, plan: Plan, name: str) -> Part:
    try:
        return load_part(plan.gpu(name).part, plan_dir / PARTS_DIR)
    except InputError as error:
        raise InputError(f"{plan_path}: gpu {name}: part: {error}") from error
