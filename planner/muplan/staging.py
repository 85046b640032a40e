"""From a model of the spec to stages that can be placed: profile, cut, split, check against the GPUs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from muplan.architecture.generative import GenerativeModel
from muplan.deployment_choices import rounded_law, with_replica_counts, with_shardings
from muplan.memory_check import check_memory
from muplan.partition import DEFAULT_WEIGHTS, CutWeights, choose_cuts, cut_plans
from muplan.profile import profiled
from muplan.profile.llm import decode_costs, decode_growth_ms, decode_law, prefill_costs, prefill_law
from muplan.profile.operators import BATCH_AXIS, OperatorCost, graph_dtype, operator_costs
from muplan.profile.profiled import cut_where_profiled, inference_bucket, stage_laws
from muplan.profile.record import Profile
from muplan.profile.roofline import EAGER
from muplan.profile.shapes import dynamic_axes, tensor_specs
from muplan.sensitivity import OperatorTimes, operator_times, phase_times, stage_law
from muplan.sources import LoadedModel
from muplan.spec import ModelSpec
from muplan.splitting import split, weight_bytes
from muplan.stage_memory import CONTEXT_BYTES, MemoryLimit, memory_bytes, stage_memory
from muplan.workload import Demand, Stage
from muserve.errors import InputError
from muserve.gpu.parts import Part
from muserve.plan import CutPlan, Phase, TimeLaw

if TYPE_CHECKING:
    import onnx


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
    """A model of the spec, cut and profiled on every part of the cluster.

    ``cuts`` lie between partitions. ``operators`` are those that the cuts were chosen by, one entry for each
    phase.
    """

    spec: ModelSpec
    source: LoadedModel
    demand: Demand
    partitions: tuple[Partition, ...]
    cuts: tuple[CutPlan, ...]
    operators: tuple[OperatorTimes, ...]
    parts: Mapping[str, Part]


def stage_model(
    spec: ModelSpec,
    source: LoadedModel,
    parts: Mapping[str, Part],
    link_gbs: float,
    weights: CutWeights = DEFAULT_WEIGHTS,
    *,
    tensor_parallel: bool = False,
) -> StagedModel:
    """Profile and cut one model for GPUs of the given ``parts``.

    Cuts are chosen by the times on the first of them and so that every partition fits into the largest: a
    model that fits one GPU of the cluster whole need not be cut for the others. ``tensor_parallel``:
    whether the engine of a generative model can be cut over several GPUs; a profile keeps it on one, whose
    times it has.

    Raises InputError, naming the key, when kind or sizes do not suit the source, when a partition is
    too large for every GPU, or when the SLO is below the isolated latency.
    """
    if source.kind is not spec.kind:
        raise InputError(f"kind: {spec.source} is {source.kind.value}, got {spec.kind.value}")
    if source.graph is not None:
        partitions, cuts, times = _cut(spec, source, source.graph, tuple(parts.values()), link_gbs, weights)
        operators: tuple[OperatorTimes, ...] = (times,)
        growth: dict[str, float] = {}
    else:
        partitions, growth = _whole_llm(spec, source, parts)
        cuts, operators = (), _llm_operators(spec, source, next(iter(parts.values())))
    if source.profile is not None:
        partitions, growth = _profiled(spec, source, source.profile, partitions, growth)
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
    if tensor_parallel and source.llm is not None and source.profile is None:
        demand = with_shardings(spec, source.llm, demand, parts, link_gbs, CONTEXT_BYTES)
    check_memory(
        spec,
        demand,
        parts,
        source.llm,
        longest=longest_request(spec, source.llm) if source.llm else 0,
        tensor_parallel=tensor_parallel,
    )
    demand = _with_slo(spec, demand, parts)
    return StagedModel(
        spec=spec,
        source=source,
        demand=demand,
        partitions=partitions,
        cuts=cuts,
        operators=operators,
        parts=parts,
    )


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
    weights: CutWeights,
) -> tuple[tuple[Partition, ...], tuple[CutPlan, ...], OperatorTimes]:
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


def _whole_llm(
    spec: ModelSpec, source: LoadedModel, parts: Mapping[str, Part]
) -> tuple[tuple[Partition, ...], dict[str, float]]:
    """A generative model as one partition: its layers, and a full key-value cache for every slot."""
    llm = source.llm
    assert llm is not None, "a generative source has an architecture"
    tokens, slots = spec.answer_tokens, spec.token_engine.slots
    longest = longest_request(spec, llm)
    if tokens.prompt + tokens.output > longest:
        raise InputError(
            f"tokens: expected prompt and output of at most {longest} tokens together, "
            f"got {tokens.prompt + tokens.output:g}"
        )
    prompt, context = _prompt_and_context(spec)
    cache = slots * longest * llm.kv_bytes_per_token
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


def longest_request(spec: ModelSpec, llm: GenerativeModel) -> int:
    """Tokens of the longest prompt and answer together; InputError when the model cannot take as many."""
    asked = spec.token_engine.max_model_len
    if asked is not None and asked > llm.max_tokens:
        raise InputError(f"engine.max_model_len: expected at most the model's {llm.max_tokens}, got {asked}")
    return asked or llm.max_tokens


def _llm_operators(spec: ModelSpec, source: LoadedModel, part: Part) -> tuple[OperatorTimes, ...]:
    """The operators of reading a typical prompt, and of a token step in the middle of a typical answer."""
    llm = source.llm
    assert llm is not None, "a generative source has an architecture"
    prompt, context = _prompt_and_context(spec)
    phases = {
        Phase.PREFILL: prefill_costs(llm, 1, prompt),
        Phase.DECODE: decode_costs(llm, 1, round(context)),
    }
    return tuple(
        phase_times(phase, part, operator_times(costs, part, llm.dtype, EAGER))
        for phase, costs in phases.items()
    )


def _prompt_and_context(spec: ModelSpec) -> tuple[int, float]:
    """Tokens of a mean prompt, and those in the cache in the middle of a mean answer."""
    tokens = spec.answer_tokens
    return max(1, round(tokens.prompt)), tokens.prompt + tokens.output / 2


def _profiled(
    spec: ModelSpec,
    source: LoadedModel,
    profile: Profile,
    partitions: Sequence[Partition],
    growth: Mapping[str, float],
) -> tuple[tuple[Partition, ...], dict[str, float]]:
    """``partitions`` and ``growth`` with the laws of ``profile`` on its part."""
    if source.llm is None:
        bucket = inference_bucket(profile, {**source.default_dims, **spec.dims})
        laws: list[tuple[TimeLaw, ...]] = [
            (law,) for law in stage_laws(profile, bucket, [p.operators for p in partitions])
        ]
        profiled_growth = {**growth}
    else:
        if len(partitions) > 1:
            raise InputError("profile: says nothing of a generative model in several partitions")
        slots, (prompt, context) = spec.token_engine.slots, _prompt_and_context(spec)
        prefill = profiled.prefill_law(profile, prompt)
        laws = [(prefill, profiled.decode_law(profile, 1, context))]
        growth_ms = round(profiled.decode_growth_ms(profile, slots, context), 6)
        profiled_growth = {**growth, profile.part: growth_ms}
    stages = [
        replace(p.stage, laws={**p.stage.laws, profile.part: tuple(rounded_law(law) for law in stage)})
        for p, stage in zip(partitions, laws, strict=True)
    ]
    return tuple(
        replace(p, stage=stage) for p, stage in zip(partitions, stages, strict=True)
    ), profiled_growth
