"""The scenario of a placement: models as the planner sees them, on its GPUs at given clocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from muplan.load.arrivals import ArrivalLaw
from muplan.simulator.scenario import Scenario, SimulatedGpu, SimulatedModel, SimulatedStage
from muplan.workload import Demand, Slot
from muserve.plan import ModelKind

_WARM_UP_SHARE = 0.05

# GPUs of each replica, by name of the stage.
Replicas = Mapping[str, Sequence[Sequence[str]]]


def scenario_from_placement(
    demands: Sequence[Demand],
    slots: Sequence[Slot],
    replicas: Replicas,
    clocks_mhz: Sequence[int],
    *,
    fewest_requests: int,
    seed: int = 0,
) -> Scenario:
    """So long that the model with the lowest rate gets ``fewest_requests``; the first twentieth is warm-up.

    ``clocks_mhz`` are in the order of ``slots``. Queues are first come, first served and have no limit, which
    is what the planner's formulas assume; replicas get requests by least backlog, which is better than what
    they assume. A demand that is tensor parallel has the stages of its group.
    """
    horizon_s = fewest_requests / min(demand.rate_rps for demand in demands)
    return Scenario(
        gpus=tuple(
            SimulatedGpu(name=slot.name, part=slot.part, clock_mhz=clock_mhz)
            for slot, clock_mhz in zip(slots, clocks_mhz, strict=True)
        ),
        models=tuple(_model(demand, replicas) for demand in demands),
        horizon_s=horizon_s,
        warm_up_s=_WARM_UP_SHARE * horizon_s,
        seed=seed,
    )


def _model(demand: Demand, replicas: Replicas) -> SimulatedModel:
    together = demand.kind is ModelKind.GENERATIVE
    return SimulatedModel(
        name=demand.name,
        kind=demand.kind,
        stages=tuple(
            SimulatedStage(
                name=stage.name,
                laws=stage.laws,
                replicas=tuple(map(tuple, replicas[stage.name])),
                transfer_ms=stage.transfer_ms,
                decode_growth_ms=demand.decode_growth_ms,
            )
            for stage in (demand.stages[:1] if together else demand.stages)
        ),
        load=ArrivalLaw(rate_rps=demand.rate_rps, cv=demand.burstiness_cv),
        slo_ms=demand.slo_ms,
        slots=demand.slots,
        output_tokens=demand.output_tokens,
        output_cv=demand.output_cv,
    )
