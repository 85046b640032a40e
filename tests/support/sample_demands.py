"""Demands and clusters for tests of the placement: small, and with every figure in sight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from muplan.workload import Demand, Sharding, Slot, Stage
from muserve.gpu.parts import BusyCurve, Part, load_part
from muserve.plan import Basis, ModelKind, Phase, Sensitivity, TimeLaw

V100 = load_part("V100-16GB")
GB = 10**9


def _scaled(part: Part, name: str, *, power: float, memory_bytes: int) -> Part:
    curves = tuple(
        BusyCurve(
            name=curve.name,
            sensitivity=curve.sensitivity,
            points=tuple(replace(point, power_w=point.power_w * power) for point in curve.points),
        )
        for curve in part.busy_curves
    )
    return replace(
        part,
        name=name,
        memory_bytes=memory_bytes,
        busy_curves=curves,
        idle_w=part.idle_w * power,
        idle_default_w=part.idle_default_w * power,
        limit_w=part.limit_w * power,
    )


# A made-up part that draws more, is twice as fast (see ``law``) and holds more.
BIG = _scaled(V100, "BIG", power=1.5, memory_bytes=40 * GB)
SPEED = {V100.name: 1.0, BIG.name: 2.0}


def laws(*phases: tuple[Phase, float, float]) -> dict[str, tuple[TimeLaw, ...]]:
    """Time laws on both parts from (phase, latency in ms on a V100, sensitivity)."""
    return {
        part: tuple(law(phase, ms / speed, k) for phase, ms, k in phases) for part, speed in SPEED.items()
    }


def law(phase: Phase, latency_ms: float, k: float) -> TimeLaw:
    sensitivity = Sensitivity(value=k, low=k, high=k, basis=Basis.MODELLED)
    return TimeLaw(phase=phase, latency_ms=latency_ms, sensitivity=sensitivity, basis=Basis.MODELLED)


def single_pass(
    name: str,
    *stages: tuple[float, float],
    rate: float,
    slo: float,
    memory: int = GB,
    cv: float = 1.0,
    replicas: Sequence[int] = (1,),
) -> Demand:
    """A model whose stages have the given (latency in ms, sensitivity)."""
    return Demand(
        name=name,
        kind=ModelKind.SINGLE_PASS,
        stages=tuple(
            Stage(
                name=f"{name}_stage{i}",
                memory_bytes=memory,
                transfer_ms=0.05,
                laws=laws((Phase.INFERENCE, latency_ms, k)),
            )
            for i, (latency_ms, k) in enumerate(stages)
        ),
        rate_rps=rate,
        burstiness_cv=cv,
        slo_ms=slo,
        attainment_target=0.99,
        replica_counts=tuple(replicas),
    )


def generative(
    name: str,
    *,
    rate: float,
    slo: float = 20_000.0,
    decode_k: float = 0.05,
    memory: int = 6 * GB,
    cv: float = 1.0,
    degrees: Sequence[int] = (1,),
    replicas: Sequence[int] = (1,),
) -> Demand:
    """A token engine; ``memory`` and time are divided by the degree, without any cost of communication."""

    def sharding(degree: int) -> Sharding:
        stage = Stage(
            name=f"{name}_engine",
            memory_bytes=memory // degree,
            transfer_ms=0.0,
            laws=laws((Phase.PREFILL, 12.0 / degree, 0.7), (Phase.DECODE, 6.5 / degree, decode_k)),
        )
        growth_ms = {part: 0.1 / degree / speed for part, speed in SPEED.items()}
        return Sharding(stages=(stage,) * degree, decode_growth_ms=growth_ms)

    base, *others = [sharding(degree) for degree in degrees]
    return Demand(
        name=name,
        kind=ModelKind.GENERATIVE,
        stages=base.stages,
        rate_rps=rate,
        burstiness_cv=cv,
        slo_ms=slo,
        attainment_target=0.95,
        output_tokens=280.0,
        output_cv=0.9,
        slots=8,
        decode_growth_ms=base.decode_growth_ms,
        shardings=tuple(others),
        replica_counts=tuple(replicas),
    )


def cluster(*nodes: int | Sequence[Part]) -> tuple[Slot, ...]:
    """``cluster(2, [BIG])``: a node with two V100 and one with one big GPU."""
    parts = [[V100] * node if isinstance(node, int) else node for node in nodes]
    return tuple(
        Slot(name=f"node{n}/gpu{i}", node=f"node{n}", index=i, part=part, virtual=True)
        for n, node_parts in enumerate(parts)
        for i, part in enumerate(node_parts)
    )
