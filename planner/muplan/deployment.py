"""The ways to deploy one model: how many replicas, each tensor parallel over how many GPUs. Pure.

Each replica has a queue of its own and gets an even share of the arrivals, so a deployed model is as many
equal demands, which need not know of each other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from muplan.queueing import split_cv
from muplan.workload import Demand
from muserve.plan import ModelKind


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Deployment:
    """``replicas`` of a model, each on ``degree`` GPUs at once (1 unless it is tensor parallel)."""

    replicas: int = 1
    degree: int = 1


def deployments(demand: Demand) -> tuple[Deployment, ...]:
    """Every way to deploy ``demand``, the fewest GPUs first."""
    ways = [
        Deployment(replicas=count, degree=degree)
        for degree in _shardings(demand)
        for count in demand.replica_counts
        # Triton's vLLM backend cannot place the GPUs of several tensor parallel instances.
        if degree == 1 or count == demand.replica_counts[0]
    ]
    return tuple(sorted(ways, key=lambda way: (way.replicas * way.degree, way.replicas)))


def replica_demand(demand: Demand, deployment: Deployment) -> Demand:
    """What one replica must carry. KeyError for a degree that ``demand`` does not have."""
    return replace(
        sharded_demand(demand, deployment.degree),
        rate_rps=demand.rate_rps / deployment.replicas,
        burstiness_cv=split_cv(demand.burstiness_cv, deployment.replicas),
        shardings=(),
        replica_counts=(1,),
    )


def sharded_demand(demand: Demand, degree: int) -> Demand:
    """``demand`` with each replica on ``degree`` GPUs. KeyError for a degree that it does not have."""
    return _shardings(demand)[degree]


def _shardings(demand: Demand) -> dict[int, Demand]:
    """The demand in each of its degrees."""
    if demand.kind is ModelKind.SINGLE_PASS:
        return {1: demand}
    found = {len(demand.stages): demand}
    for sharding in demand.shardings:
        stages, growth_ms = sharding.stages, sharding.decode_growth_ms
        found[len(stages)] = replace(demand, stages=stages, decode_growth_ms=growth_ms)
    return found
