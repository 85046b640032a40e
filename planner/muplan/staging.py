"""From a model of the spec to stages that can be placed: profile, cut, split, check against the GPUs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from muplan.deployment_choices import rounded_law, with_replica_counts, with_shardings
from muplan.partition import choose_cuts
from muplan.profile.llm import decode_costs, decode_growth_ms, decode_law, prefill_law
from muplan.profile.operators import BATCH_AXIS, OperatorCost, graph_dtype, operator_costs
from muplan.profile.shapes import dynamic_axes, tensor_specs
from muplan.sensitivity import operator_times, stage_law
from muplan.sources import LoadedModel
from muplan.spec import ModelSpec
from muplan.splitting import split, weight_bytes
from muplan.workload import Demand, Stage
from muserve.errors import InputError
from muserve.gpu.parts import Part
from muserve.plan import ModelKind, TimeLaw

if TYPE_CHECKING:
    import onnx

# Device memory that a process takes before it loads a model: CUDA context, cuBLAS and cuDNN handles.
CONTEXT_BYTES = 450_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """One partition as the plan describes it. ``graph`` is None for a generative model.

    ``flops`` are those of one run, for a generative model of one token.
    """

    stage: Stage
    first_operator: str
    last_operator: str
    operators: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    flops: float
    weight_bytes: int
    transfer_bytes: int
    graph: onnx.ModelProto | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedModel:
    """A model of the spec, cut and profiled on every part of the cluster."""

    spec: ModelSpec
    source: LoadedModel
    demand: Demand
    partitions: tuple[Partition, ...]


def stage_model(
    spec: ModelSpec,
    source: LoadedModel,
    parts: Mapping[str, Part],
    link_gbs: float,
    *,
    tensor_parallel: bool = False,
) -> StagedModel:
    """Profile and cut one model for GPUs of the given ``parts``; cuts are chosen for the first of them.

    ``tensor_parallel``: whether the engine of a generative model can be cut over several GPUs.

    Raises InputError, naming the key, when kind or sizes do not suit the source, when a partition is
    too large for every GPU, or when the SLO is below the isolated latency.
    """
    if source.kind is not spec.kind:
        raise InputError(f"kind: {spec.source} is {source.kind.value}, got {spec.kind.value}")
    if source.graph is not None:
        partitions = _cut(spec, source, source.graph, tuple(parts.values()), link_gbs)
        growth: dict[str, float] = {}
    else:
        partitions, growth = _whole_llm(spec, source, parts)
    assert spec.load.rate_rps is not None, "a trace has been read by now"
    demand = Demand(
        name=spec.name,
        kind=spec.kind,
        stages=tuple(partition.stage for partition in partitions),
        rate_rps=spec.load.rate_rps,
        burstiness_cv=spec.load.cv,
        slo_ms=0.0,
        attainment_target=spec.attainment,
        output_tokens=spec.answer_tokens.output if source.llm else 0.0,
        output_cv=spec.answer_tokens.output_cv if source.llm else 0.0,
        slots=spec.token_engine.slots if source.llm else 1,
        decode_growth_ms=growth,
    )
    demand = with_replica_counts(spec, demand)
    if tensor_parallel and source.llm is not None:
        demand = with_shardings(spec, source.llm, demand, parts, link_gbs, CONTEXT_BYTES)
    for stage in demand.stages:
        _check_memory(spec, stage, parts)
    demand = _with_slo(spec, demand, parts)
    return StagedModel(spec=spec, source=source, demand=demand, partitions=partitions)


def isolated_latency_ms(demand: Demand, parts: Mapping[str, Part]) -> tuple[float, str]:
    """Latency alone on the fastest part, and that part's name."""
    return min((demand.isolated_latency_ms(name), name) for name in parts)


def _with_slo(spec: ModelSpec, demand: Demand, parts: Mapping[str, Part]) -> Demand:
    isolated_ms, part = isolated_latency_ms(demand, parts)
    if spec.slo_scale is not None:
        return replace(demand, slo_ms=round(spec.slo_scale * isolated_ms, 3))
    assert spec.slo_ms is not None, "the spec has one of the two"
    if spec.slo_ms <= isolated_ms:
        raise InputError(
            f"slo_ms: expected more than the isolated latency of {isolated_ms:.4g} ms on {part}, "
            f"got {spec.slo_ms:g}"
        )
    return replace(demand, slo_ms=spec.slo_ms)


def _cut(
    spec: ModelSpec,
    source: LoadedModel,
    graph: onnx.ModelProto,
    parts: Sequence[Part],
    link_gbs: float,
) -> tuple[Partition, ...]:
    axes = dynamic_axes(graph)
    for axis in spec.dims:
        if axis not in axes:
            known = ", ".join(axes) or "none"
            raise InputError(f"dims.{axis}: no such free dimension, expected one of: {known}")
    dims = {**source.default_dims, **spec.dims}
    costs = operator_costs(graph, dims.get(BATCH_AXIS, 1), dims)
    dtype = graph_dtype(graph)
    cuts = choose_cuts(costs, operator_times(costs, parts[0], dtype), spec.partitions, link_gbs)
    bounds = [-1, *cuts, len(costs) - 1]
    names = spec.triton_names()[-spec.partitions :]
    partitions = []
    for index, piece in enumerate(split(graph, cuts)):
        low, high = bounds[index] + 1, bounds[index + 1] + 1
        sent_bytes = costs[low - 1].cut_bytes if low else 0
        laws = {part.name: (rounded_law(stage_law(costs[low:high], part, dtype)),) for part in parts}
        partitions.append(_partition(names[index], piece, costs[low:high], sent_bytes, laws, link_gbs))
    return tuple(partitions)


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
    # What is live while an operator runs: what crosses it, and what it reads and writes itself.
    activations = max(c.cut_bytes + c.bytes_read - c.weight_bytes + c.bytes_written for c in costs)
    stage = Stage(
        name=name,
        memory_bytes=CONTEXT_BYTES + weights + activations,
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


def _whole_llm(
    spec: ModelSpec, source: LoadedModel, parts: Mapping[str, Part]
) -> tuple[tuple[Partition, ...], dict[str, float]]:
    """A generative model as one partition: its layers, and a full key-value cache for every slot."""
    llm = source.llm
    assert llm is not None, "a generative source has an architecture"
    tokens, slots = spec.answer_tokens, spec.token_engine.slots
    if tokens.prompt + tokens.output > llm.max_tokens:
        raise InputError(
            f"tokens: expected prompt and output of at most {llm.max_tokens} tokens together, "
            f"got {tokens.prompt + tokens.output:g}"
        )
    prompt, context = max(1, round(tokens.prompt)), tokens.prompt + tokens.output / 2
    cache = slots * llm.max_tokens * llm.kv_bytes_per_token
    stage = Stage(
        name=f"{spec.name}_engine",
        memory_bytes=CONTEXT_BYTES + llm.weight_bytes + cache,
        transfer_ms=0.0,
        laws={
            name: (
                rounded_law(prefill_law(llm, part, prompt)),
                rounded_law(decode_law(llm, part, 1, context)),
            )
            for name, part in parts.items()
        },
    )
    partition = Partition(
        stage=stage,
        first_operator="layer 0",
        last_operator=f"layer {llm.layers - 1}",
        operators=llm.layers,
        inputs=("text_input",),
        outputs=("text_output",),
        flops=sum(cost.flops for cost in decode_costs(llm, 1, 1)),
        weight_bytes=llm.weight_bytes,
        transfer_bytes=0,
        graph=None,
    )
    growth_ms = {name: round(decode_growth_ms(llm, part, slots, context), 6) for name, part in parts.items()}
    return (partition,), growth_ms


def _check_memory(spec: ModelSpec, stage: Stage, parts: Mapping[str, Part]) -> None:
    largest = max(parts.values(), key=lambda part: part.memory_bytes)
    if stage.memory_bytes <= largest.memory_bytes:
        return
    advice = "fewer slots or a larger GPU" if spec.kind is ModelKind.GENERATIVE else "more partitions"
    raise InputError(
        f"{stage.name} needs {stage.memory_bytes / 1e9:.1f} GB on one GPU and the "
        f"largest here, {largest.name}, has {largest.memory_bytes / 1e9:.1f} GB: expected {advice}"
    )
