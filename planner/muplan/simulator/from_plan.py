"""The scenario of a plan: its GPUs at their initial clocks under the load it was made for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from muplan.load.arrivals import ArrivalLaw
from muplan.load.trace import Trace
from muplan.simulator.scenario import (
    Discipline,
    Scenario,
    SimulatedGpu,
    SimulatedModel,
    SimulatedStage,
)
from muplan.spec_model import EngineSpec
from muserve.errors import InputError
from muserve.gpu.parts import load_part
from muserve.plan import ModelKind, ModelPlan, PartitionPlan, Plan
from muserve.queue_order import OrderParameters

DEFAULT_ALPHA = OrderParameters().alpha

# How well the shipped length predictor orders held-out prompts (README, measured).
SHIPPED_PREDICTION_TAU = 0.42

# Share of the simulated time that passes before anything is measured.
_WARM_UP_SHARE = 0.1


def scenario_from_plan(
    plan: Plan,
    *,
    seconds: float,
    seed: int = 0,
    discipline: Discipline = Discipline.PRIORITY,
    alpha: float = DEFAULT_ALPHA,
    prediction_tau: float = SHIPPED_PREDICTION_TAU,
    traces: Mapping[str, Trace] | None = None,
    parts_dir: Path | None = None,
) -> Scenario:
    """``seconds`` of the plan's load, of which the last nine tenths are measured.

    ``discipline`` orders the queues of token engines; single-pass models are served first come, first
    served, one request at a time, as Triton serves them without a batcher. Replicas get requests by least
    predicted backlog. What the plan does not carry has the spec's default: an engine's queue holds 1024
    requests, other queues have no limit. ``traces`` replaces the arrivals (and lengths) of models by name.
    ``parts_dir`` has the part files beside the plan, for parts that the catalogue does not have. InputError
    for a trace of a model that the plan does not have, or a part that nobody knows.
    """
    traces = traces or {}
    unknown = set(traces) - {model.name for model in plan.models}
    if unknown:
        known = ", ".join(model.name for model in plan.models)
        raise InputError(f"trace: the plan has no model {min(unknown)}, expected one of {known}")
    part_of = {gpu.name: gpu.part for gpu in plan.gpus}
    return Scenario(
        gpus=tuple(
            SimulatedGpu(name=gpu.name, part=load_part(gpu.part, parts_dir), clock_mhz=gpu.initial_clock_mhz)
            for gpu in plan.gpus
        ),
        models=tuple(
            SimulatedModel(
                name=model.name,
                kind=model.kind,
                stages=tuple(_stage(partition, part_of, plan.link_gbs) for partition in model.partitions),
                load=traces.get(model.name) or ArrivalLaw(rate_rps=model.rate_rps, cv=model.burstiness_cv),
                slo_ms=model.slo_ms,
                slots=model.slots,
                output_tokens=model.mean_output_tokens,
                output_cv=model.output_cv,
                discipline=discipline if _generative(model) else Discipline.FCFS,
                alpha=alpha,
                prediction_tau=prediction_tau,
                queue_limit=EngineSpec().queue_limit if _generative(model) else None,
            )
            for model in plan.models
        ),
        horizon_s=seconds,
        warm_up_s=_WARM_UP_SHARE * seconds,
        seed=seed,
    )


def _generative(model: ModelPlan) -> bool:
    return model.kind is ModelKind.GENERATIVE


def _stage(partition: PartitionPlan, part_of: Mapping[str, str], link_gbs: float) -> SimulatedStage:
    """The plan's laws are those of its replicas' part."""
    parts = {part_of[gpu] for replica in partition.replicas for gpu in replica.gpus}
    return SimulatedStage(
        name=partition.name,
        laws=dict.fromkeys(parts, partition.laws),
        replicas=tuple(replica.gpus for replica in partition.replicas),
        transfer_ms=partition.transfer_bytes / link_gbs * 1e-6,
        decode_growth_ms=dict.fromkeys(parts, partition.decode_growth_ms),
    )
