"""One model of a Triton repository, before it becomes files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muserve.plan import GpuPlan, ModelPlan

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonModel:
    """``config`` is its ``ModelConfig``; ``shim`` the package of ``mubackend`` that runs it.

    An ensemble has no shim. ``node_files`` maps paths relative to the node's directory to the user's
    files that belong there.
    """

    config: Any
    shim: str | None = None
    graph: onnx.ModelProto | None = None
    node_files: Mapping[str, Path] = field(default_factory=dict)


def common_parameters(model: ModelPlan, gpu: GpuPlan | None) -> dict[str, str]:
    """What every model of ours is told: the public name and SLO, and the one GPU it works on, if one."""
    parameters = {"muserve_model": model.name, "slo_ms": number(model.slo_ms)}
    if gpu is not None:
        parameters["gpu"] = gpu.name
        parameters["gpu_uuid"] = gpu.uuid or ""
    return parameters


def number(value: float) -> str:
    """A number as a parameter, without the last digits, which differ between Python versions."""
    return f"{value:.9g}"
