"""The model of a cluster that a plan stands for: what the planner knew when it placed. Pure but for parts.

A plan holds the time laws of each partition on the part it was placed on, so what is rebuilt here answers
for the plan's own placement and its clocks, not for other parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from muplan.deployment import Deployment, replica_demand
from muplan.operating import ClusterModel
from muplan.workload import Demand, Slot, Stage, StageKey
from muserve.gpu.parts import load_part
from muserve.plan import ModelKind, ModelPlan, PartitionPlan, Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedReplica:
    """One replica of a model: what it must carry, and the names of its stages' GPUs."""

    demand: Demand
    gpus: tuple[str, ...]


def slots_from_plan(plan: Plan) -> tuple[Slot, ...]:
    """Every GPU of the plan, in its order; InputError for a part the catalogue does not have."""
    parts = {gpu.part: load_part(gpu.part) for gpu in plan.gpus}
    return tuple(
        Slot(name=gpu.name, node=gpu.node, index=gpu.index, part=parts[gpu.part], virtual=gpu.virtual)
        for gpu in plan.gpus
    )


def demands_from_plan(plan: Plan) -> tuple[Demand, ...]:
    """Every model of the plan with its whole load, in the plan's order."""
    return tuple(_demand(plan, model) for model in plan.models)


def replicas_from_plan(plan: Plan) -> tuple[PlacedReplica, ...]:
    """Every replica of every model, in the plan's order, with its share of the load."""
    replicas = []
    for model, demand in zip(plan.models, demands_from_plan(plan), strict=True):
        count = len(model.partitions[0].replicas)
        deployment = Deployment(replicas=count, degree=_degree(model))
        share = replica_demand(demand, deployment)
        for number in range(count):
            gpus = tuple(gpu for part in model.partitions for gpu in part.replicas[number].gpus)
            replicas.append(PlacedReplica(demand=share, gpus=gpus))
    return tuple(replicas)


def cluster_from_plan(
    plan: Plan, *, slo_share: float = 1.0
) -> tuple[ClusterModel, dict[StageKey, int], tuple[int, ...]]:
    """The model of the plan's cluster, one demand per replica, with the plan's assignment and clocks.

    ``slo_share`` is the share of each SLO that requests may use up.
    """
    slots, replicas = slots_from_plan(plan), replicas_from_plan(plan)
    position = {slot.name: number for number, slot in enumerate(slots)}
    demands = [replace(replica.demand, slo_ms=replica.demand.slo_ms * slo_share) for replica in replicas]
    assignment = {
        (number, stage): position[gpu]
        for number, replica in enumerate(replicas)
        for stage, gpu in enumerate(replica.gpus)
    }
    return ClusterModel(demands, slots), assignment, tuple(gpu.initial_clock_mhz for gpu in plan.gpus)


def _degree(model: ModelPlan) -> int:
    return len(model.partitions[0].replicas[0].gpus) if model.kind is ModelKind.GENERATIVE else 1


def _demand(plan: Plan, model: ModelPlan) -> Demand:
    return Demand(
        name=model.name,
        kind=model.kind,
        stages=_stages(plan, model),
        rate_rps=model.rate_rps,
        burstiness_cv=model.burstiness_cv,
        slo_ms=model.slo_ms,
        attainment_target=model.attainment_target,
        output_tokens=model.mean_output_tokens if model.kind is ModelKind.GENERATIVE else 0.0,
        output_cv=model.output_cv,
        slots=model.slots,
        decode_growth_ms={_part(plan, model.partitions[0]): model.partitions[0].decode_growth_ms},
        replica_counts=(len(model.partitions[0].replicas),),
    )


def _stages(plan: Plan, model: ModelPlan) -> tuple[Stage, ...]:
    partitions: Sequence[PartitionPlan] = model.partitions * _degree(model)
    return tuple(
        Stage(
            name=partition.name,
            memory_bytes=partition.memory_bytes,
            transfer_ms=partition.transfer_bytes / plan.link_gbs * 1e-6,
            laws={_part(plan, partition): partition.laws},
        )
        for partition in partitions
    )


def _part(plan: Plan, partition: PartitionPlan) -> str:
    return plan.gpu(partition.replicas[0].gpu).part
