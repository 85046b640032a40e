"""What ``muplan generate`` shows: a table for people, a document for programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from muplan.fitted_table import FittedTable
from muserve.gpu.parts import PARTS_DIR, load_part
from muserve.plan import Basis, GpuPlan, ModelKind, ModelPlan, PartitionPlan, Plan, TimeLaw


def summary_table(plan: Plan, directory: Path) -> RenderableType:
    """Models with their partitions, GPUs with their clocks, and the power predicted for ``directory``."""
    return Group(_models_table(plan), _gpus_table(plan, directory), _closing(plan, directory))


def summary_document(plan: Plan, directory: Path) -> dict[str, Any]:
    """The same facts as plain values."""
    bases = _response_bases(plan, directory)
    return {
        "directory": str(directory),
        "target": plan.target,
        "models": [_model_document(model) for model in plan.models],
        "gpus": [_gpu_document(plan, gpu, bases[gpu.part]) for gpu in plan.gpus],
        "predicted_power_w": plan.predicted_power_w,
        "default_clock_power_w": plan.default_clock_power_w,
        "predicted_saving": saving(plan),
    }


def saving(plan: Plan) -> float:
    """Share of the power at default clocks that the plan is predicted to save."""
    return 1.0 - plan.predicted_power_w / plan.default_clock_power_w


def _models_table(plan: Plan) -> FittedTable:
    table = FittedTable(title="Models", title_justify="left", caption_justify="left")
    table.caption = (
        "k: clock sensitivity, t(f) = t(top) x ((1 - k) + k x top / f), with its plausible range. "
        "Latency at the top clock. Of a generative model: layers, and GFLOP per token."
    )
    for name in ("model", "SLO", "met", "partition"):
        table.add_column(name)
    for name in ("operators", "GFLOP", "MB", "latency", "k"):
        table.add_column(name, justify="right")
    for name in ("basis", "GPU"):
        table.add_column(name)
    for model in plan.models:
        for number, partition in enumerate(model.partitions):
            table.add_row(*_model_cells(model, first=number == 0), *_partition_cells(partition))
        table.add_section()
    return table


def _model_cells(model: ModelPlan, *, first: bool) -> tuple[str, str, str]:
    if not first:
        return ("", "", "")
    met = f"{model.predicted_attainment:.1%} of {model.attainment_target:.1%}"
    return (model.name, f"{model.slo_ms:g} ms", met)


def _partition_cells(partition: PartitionPlan) -> tuple[str, ...]:
    return (
        partition.name,
        str(partition.operators),
        f"{partition.flops / 1e9:.2f}",
        f"{partition.weight_bytes / 1e6:.0f}",
        "\n".join(f"{_phase(law, partition)}{law.latency_ms:.2f} ms" for law in partition.laws),
        "\n".join(_sensitivity(law) for law in partition.laws),
        "\n".join(law.sensitivity.basis.value for law in partition.laws),
        ", ".join("+".join(replica.gpus) for replica in partition.replicas),
    )


def _phase(law: TimeLaw, partition: PartitionPlan) -> str:
    return f"{law.phase.value} " if len(partition.laws) > 1 else ""


def _sensitivity(law: TimeLaw) -> str:
    k = law.sensitivity
    return f"{k.value:.2f} ({k.low:.2f}-{k.high:.2f})"


def _gpus_table(plan: Plan, directory: Path) -> FittedTable:
    table = FittedTable(title="GPUs", title_justify="left", caption_justify="left")
    bases = _response_bases(plan, directory)
    modelled = sorted(part for part, basis in bases.items() if basis is Basis.MODELLED)
    if modelled:
        table.caption = (
            f"How time and power follow the clock is modelled for {', '.join(modelled)}, "
            "not measured: muplan catalog says from what."
        )
    for name in ("GPU", "part"):
        table.add_column(name)
    for name in ("memory", "busy", "power", "clock"):
        table.add_column(name, justify="right")
    table.add_column("why this clock")
    for gpu in plan.gpus:
        table.add_row(
            gpu.name,
            _part(gpu),
            f"{gpu.memory_used_bytes / 1e9:.1f} of {gpu.memory_bytes / 1e9:.1f} GB",
            f"{gpu.predicted_utilisation:.0%}",
            f"{gpu.predicted_power_w:.0f} W",
            f"{gpu.initial_clock_mhz} MHz",
            gpu.initial_clock_reason,
        )
    return table


def _response_bases(plan: Plan, directory: Path) -> dict[str, Basis]:
    """Of every part in the plan, whether its response to the clock is measured or modelled."""
    parts = sorted({gpu.part for gpu in plan.gpus})
    return {part: load_part(part, directory / PARTS_DIR).response_basis for part in parts}


def _part(gpu: GpuPlan) -> str:
    return f"{gpu.part} (virtual)" if gpu.virtual else gpu.part


def _closing(plan: Plan, directory: Path) -> Text:
    return Text(
        f"Predicted power {plan.predicted_power_w:.0f} W, at default clocks "
        f"{plan.default_clock_power_w:.0f} W ({saving(plan):.0%} less). Predicted, not measured.\n"
        f"Written to {directory}. Next: muplan serve {directory}"
    )


def _model_document(model: ModelPlan) -> dict[str, Any]:
    return {
        "name": model.name,
        "kind": model.kind.value,
        "source": model.source,
        "slo_ms": model.slo_ms,
        "attainment_target": model.attainment_target,
        "predicted_attainment": model.predicted_attainment,
        "isolated_latency_ms": model.isolated_latency_ms,
        "flops_are_per": "token" if model.kind is ModelKind.GENERATIVE else "run",
        "partitions": [_partition_document(partition) for partition in model.partitions],
    }


def _partition_document(partition: PartitionPlan) -> dict[str, Any]:
    return {
        "name": partition.name,
        "operators": partition.operators,
        "first_operator": partition.first_operator,
        "last_operator": partition.last_operator,
        "flops": partition.flops,
        "weight_bytes": partition.weight_bytes,
        "laws": {
            law.phase.value: {
                "latency_ms": law.latency_ms,
                "sensitivity": law.sensitivity.value,
                "sensitivity_range": [law.sensitivity.low, law.sensitivity.high],
                "basis": law.sensitivity.basis.value,
            }
            for law in partition.laws
        },
        "gpus": ["+".join(replica.gpus) for replica in partition.replicas],
    }


def _gpu_document(plan: Plan, gpu: GpuPlan, response_basis: Basis) -> dict[str, Any]:
    return {
        "name": gpu.name,
        "part": gpu.part,
        "response_basis": response_basis.value,
        "virtual": gpu.virtual,
        "models": [model.name for model in plan.models_on(gpu.name)],
        "initial_clock_mhz": gpu.initial_clock_mhz,
        "initial_clock_reason": gpu.initial_clock_reason,
        "memory_bytes": gpu.memory_bytes,
        "memory_used_bytes": gpu.memory_used_bytes,
        "predicted_utilisation": gpu.predicted_utilisation,
        "predicted_power_w": gpu.predicted_power_w,
    }
