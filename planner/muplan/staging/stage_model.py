"""From a model of the spec to stages that can be placed: profile, cut, split, check against the GPUs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from muplan.deployment_choices import with_replica_counts, with_shardings
from muplan.partition import DEFAULT_WEIGHTS, CutWeights
from muplan.sensitivity import OperatorTimes
from muplan.sources import LoadedModel
from muplan.spec_model import ModelSpec
from muplan.stage_memory import CONTEXT_BYTES
from muplan.staging.generative import engine_operators, longest_request, whole_engine
from muplan.staging.memory import check_memory
from muplan.staging.profiled_laws import with_profiled_laws
from muplan.staging.single_pass import cut_graph
from muplan.staging.staged_model import StagedModel
from muplan.workload import Demand
from muserve.errors import InputError
from muserve.gpu.parts import Part


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
    degree = spec.token_engine.tensor_parallel
    if source.llm is not None and not tensor_parallel and degree not in ("auto", 1):
        raise InputError(
            f"engine.tensor_parallel: engines of target embedded work on one GPU: expected 1 or target ngc, "
            f"got {degree}"
        )
    if source.graph is not None:
        partitions, cuts, times = cut_graph(
            spec, source, source.graph, tuple(parts.values()), link_gbs, weights
        )
        operators: tuple[OperatorTimes, ...] = (times,)
        growth: dict[str, float] = {}
    else:
        partitions, growth = whole_engine(spec, source, parts)
        cuts, operators = (), engine_operators(spec, source, next(iter(parts.values())))
    if source.profile is not None:
        partitions, growth = with_profiled_laws(spec, source, source.profile, partitions, growth)
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
