"""Small scenarios for the simulator's tests."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from muplan.load.arrivals import ArrivalLaw
from muplan.load.trace import Trace
from muplan.simulator.scenario import (
    Batching,
    Discipline,
    Routing,
    SimulatedGpu,
    SimulatedModel,
    SimulatedStage,
)
from muserve.gpu.parts import load_part
from muserve.plan import Basis, ModelKind, Phase, Sensitivity, TimeLaw

V100 = load_part("V100-16GB")


def law(phase: Phase, latency_ms: float, k: float) -> TimeLaw:
    sensitivity = Sensitivity(value=k, low=k, high=k, basis=Basis.MODELLED)
    return TimeLaw(phase=phase, latency_ms=latency_ms, sensitivity=sensitivity, basis=Basis.MODELLED)


def gpus(count: int, clock_mhz: int = V100.top_clock_mhz) -> tuple[SimulatedGpu, ...]:
    return tuple(SimulatedGpu(name=f"gpu{n}", part=V100, clock_mhz=clock_mhz) for n in range(count))


def trace(arrivals_s: Iterable[float], tokens: Iterable[float] | None = None) -> Trace:
    return Trace(
        arrival_s=np.array(list(arrivals_s), float),
        output_tokens=None if tokens is None else np.array(list(tokens), float),
    )


def single_pass(
    name: str,
    latency_ms: float,
    *,
    rate: float = 1.0,
    load: ArrivalLaw | Trace | None = None,
    k: float = 0.5,
    on: Iterable[int] = (0,),
    together: bool = False,
    routing: Routing = Routing.LEAST_BACKLOG,
    service_cv: float = 0.0,
    slo_ms: float = 100.0,
    slots: int = 1,
    max_batch: int = 1,
    growth: float = 1.0,
    max_delay_ms: float = 0.0,
    discipline: Discipline = Discipline.FCFS,
    alpha: float = 4.0,
    queue_limit: int | None = None,
) -> SimulatedModel:
    """One stage with a replica on each GPU of ``on``, or one replica on all of them ``together``."""
    names = tuple(f"gpu{n}" for n in on)
    stage = SimulatedStage(
        name=name,
        laws={V100.name: (law(Phase.INFERENCE, latency_ms, k),)},
        replicas=(names,) if together else tuple((gpu,) for gpu in names),
        routing=routing,
    )
    return SimulatedModel(
        name=name,
        kind=ModelKind.SINGLE_PASS,
        stages=(stage,),
        load=load or ArrivalLaw(rate_rps=rate),
        slo_ms=slo_ms,
        slots=slots,
        service_cv=service_cv,
        batching=Batching(max_batch=max_batch, growth=growth, max_delay_ms=max_delay_ms),
        discipline=discipline,
        alpha=alpha,
        queue_limit=queue_limit,
    )


def engine(
    name: str,
    *,
    load: ArrivalLaw | Trace,
    prefill_ms: float = 12.0,
    decode_ms: float = 6.0,
    growth_ms: float = 0.5,
    slots: int = 4,
    discipline: Discipline = Discipline.FCFS,
    alpha: float = 4.0,
    prediction_tau: float = 1.0,
    output_tokens: float = 50.0,
    slo_ms: float = 10_000.0,
    on: Iterable[int] = (0,),
    queue_limit: int | None = None,
) -> SimulatedModel:
    """A token engine on each GPU of ``on``."""
    stage = SimulatedStage(
        name=f"{name}_engine",
        laws={V100.name: (law(Phase.PREFILL, prefill_ms, 0.7), law(Phase.DECODE, decode_ms, 0.1))},
        replicas=tuple((f"gpu{n}",) for n in on),
        decode_growth_ms={V100.name: growth_ms},
    )
    return SimulatedModel(
        name=name,
        kind=ModelKind.GENERATIVE,
        stages=(stage,),
        load=load,
        slo_ms=slo_ms,
        slots=slots,
        output_tokens=output_tokens,
        output_cv=1.0,
        discipline=discipline,
        alpha=alpha,
        prediction_tau=prediction_tau,
        queue_limit=queue_limit,
    )
