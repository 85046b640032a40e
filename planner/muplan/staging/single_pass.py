"""A single-pass model: its graph profiled, cut where that pays, and split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from muplan.deployment_choices import rounded_law
from muplan.partition import CutWeights, choose_cuts, cut_plans
from muplan.profile.operators import BATCH_AXIS, OperatorCost, graph_dtype, operator_costs
from muplan.profile.profiled import cut_where_profiled, inference_bucket
from muplan.profile.shapes import dynamic_axes, tensor_specs
from muplan.sensitivity import OperatorTimes, operator_times, phase_times, stage_law
from muplan.sources import LoadedModel
from muplan.spec_model import ModelSpec
from muplan.splitting import split, weight_bytes
from muplan.stage_memory import MemoryLimit, memory_bytes, stage_memory
from muplan.staging.staged_model import Partition
from muplan.workload import Stage
from muserve.errors import InputError
from muserve.gpu.parts import Part
from muserve.plan import CutPlan, Phase, TimeLaw

if TYPE_CHECKING:
    import onnx


def cut_graph(
    spec: ModelSpec,
    source: LoadedModel,
    graph: onnx.ModelProto,
    parts: Sequence[Part],
    link_gbs: float,
    weights: CutWeights,
) -> tuple[tuple[Partition, ...], tuple[CutPlan, ...], OperatorTimes]:
    """``graph`` in as many partitions as asked for or as pay, its cuts, and the times they were chosen by.

    InputError, naming the key, for ``dims`` and ``partitions`` that do not suit the graph, and when it does
    not fit the largest of ``parts`` however it is cut.
    """
    axes = dynamic_axes(graph)
    for axis in spec.dims:
        if axis not in axes:
            known = ", ".join(axes) or "none"
            raise InputError(f"dims.{axis}: no such free dimension, expected one of: {known}")
    dims = {**source.default_dims, **spec.dims}
    costs = operator_costs(graph, dims.get(BATCH_AXIS, 1), dims)
    if source.profile is not None:
        costs = cut_where_profiled(costs, inference_bucket(source.profile, dims))
    dtype = graph_dtype(graph)
    times = operator_times(costs, parts[0], dtype)
    largest = max(parts, key=lambda part: part.memory_bytes)
    limit = MemoryLimit(
        memory=stage_memory(graph, costs), limit_bytes=largest.memory_bytes, part=largest.name
    )
    cuts = choose_cuts(costs, times, spec.fixed_partitions, link_gbs, weights, limit)
    bounds = [-1, *cuts, len(costs) - 1]
    count = len(cuts) + 1
    names = spec.triton_names(count)[-count:]
    partitions = []
    for index, piece in enumerate(split(graph, cuts, dims)):
        low, high = bounds[index] + 1, bounds[index + 1] + 1
        sent_bytes = costs[low - 1].cut_bytes if low else 0
        laws = {part.name: (rounded_law(stage_law(costs[low:high], part, dtype)),) for part in parts}
        partitions.append(_partition(names[index], piece, costs[low:high], sent_bytes, laws, link_gbs))
    gains = cut_plans(costs, times, cuts, link_gbs, weights)
    return tuple(partitions), gains, phase_times(Phase.INFERENCE, parts[0], times)


def _partition(
    name: str,
    graph: onnx.ModelProto,
    costs: Sequence[OperatorCost],
    sent_bytes: int,
    laws: Mapping[str, tuple[TimeLaw, ...]],
    link_gbs: float,
) -> Partition:
    inputs, outputs = tensor_specs(graph)
    weights = weight_bytes(graph)
    stage = Stage(
        name=name,
        memory_bytes=memory_bytes(weights, costs),
        transfer_ms=sent_bytes / link_gbs * 1e-6,
        laws=laws,
    )
    return Partition(
        stage=stage,
        first_operator=costs[0].name,
        last_operator=costs[-1].name,
        operators=len(costs),
        inputs=tuple(tensor.name for tensor in inputs),
        outputs=tuple(tensor.name for tensor in outputs),
        flops=sum(cost.flops for cost in costs),
        weight_bytes=weights,
        transfer_bytes=sent_bytes,
        graph=graph,
    )
