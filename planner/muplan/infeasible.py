"""Why no placement keeps the SLOs, and the smallest changes that would help. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from muplan.deployment import deployments
from muplan.deployment_choices import MOST_REPLICAS
from muplan.placement import SLO_GUARD, Placement, feasible
from muplan.workload import Demand, Slot
from muserve.errors import InfeasiblePlanError
from muserve.plan import ModelKind

_MOST_MORE_GPUS = 8
_BISECTIONS = 10
_LARGEST_FACTOR = 10.0


def infeasible(placement: Placement, slots: Sequence[Slot]) -> InfeasiblePlanError:
    """The error for a placement whose score is not feasible: model, binding constraint, what would help."""
    demands = placement.demands
    worst = min(
        range(len(demands)),
        key=lambda m: placement.guarded_attainment[m] - demands[m].attainment_target,
    )
    nowhere = [m for m, d in enumerate(demands) if not placement.replicas[d.stages[0].name]]
    if nowhere:
        worst = nowhere[0]
    elif placement.score.overflow_bytes:
        worst = max(range(len(demands)), key=lambda m: sum(s.memory_bytes for s in demands[m].stages))
    loaded = not nowhere and not placement.score.overflow_bytes
    helps = _helpful_changes(demands, worst, slots, loaded=loaded)
    advice = f"; it would fit with {' or '.join(helps)}" if helps else ""
    return InfeasiblePlanError(f"no feasible plan: {_constraint(placement, worst, slots)}{advice}")


def _constraint(placement: Placement, worst: int, slots: Sequence[Slot]) -> str:
    demand = placement.demands[worst]
    if not placement.replicas[demand.stages[0].name]:
        fewest = deployments(demand)[0]
        return (
            f"model {demand.name}: it needs {fewest.replicas * fewest.degree} GPUs of one part on one node, "
            "and no node has as many"
        )
    if placement.score.overflow_bytes:
        need = sum(stage.memory_bytes for d in placement.demands for stage in d.stages)
        have = sum(slot.part.memory_bytes for slot in slots)
        return (
            f"model {demand.name}: memory: the partitions need {need / 1e9:.1f} GB and the "
            f"{len(slots)} GPUs have {have / 1e9:.1f} GB, which does not pack"
        )
    gpus = sorted({gpu for stage in demand.stages for r in placement.replicas[stage.name] for gpu in r})
    alone_ms = min(demand.isolated_latency_ms(slot.part.name) for slot in slots)
    if alone_ms >= SLO_GUARD * demand.slo_ms:
        return (
            f"model {demand.name}: its latency: {alone_ms:.4g} ms even alone at the top clock, expected less "
            f"than {SLO_GUARD:.0%} of the SLO of {demand.slo_ms:g} ms"
        )
    busy = max(g.busy_share for g, s in zip(placement.point.gpus, slots, strict=True) if s.name in gpus)
    what = "slots or GPU time" if demand.kind is ModelKind.GENERATIVE else "GPU time"
    limit = f"its {what} at {demand.rate_rps:g} requests/s" if busy > 0.99 else "waiting for the shared GPU"
    return (
        f"model {demand.name}: {limit}: {placement.guarded_attainment[worst]:.1%} of its requests would meet "
        f"{SLO_GUARD:.0%} of the SLO of {demand.slo_ms:g} ms at the top clock on {', '.join(gpus)}, "
        f"expected {demand.attainment_target:.1%}"
    )


def _helpful_changes(
    demands: Sequence[Demand], worst: int, slots: Sequence[Slot], *, loaded: bool
) -> list[str]:
    """``loaded``: there are GPUs and memory enough, so that the load or the SLO may be to blame."""
    found = (_more_gpus(demands, worst, slots), _other_replicas(demands, worst, slots))
    helps = [change for change in found if change is not None]
    if not loaded:
        return helps

    def with_slo(factor: float) -> list[Demand]:
        return _changed(demands, worst, slo_ms=demands[worst].slo_ms * factor)

    def with_rate(factor: float) -> list[Demand]:
        return _changed(demands, worst, rate_rps=demands[worst].rate_rps / factor)

    slo_factor = _smallest_factor(with_slo, worst, slots)
    if slo_factor is not None:
        helps.append(f"slo_ms: {math.ceil(demands[worst].slo_ms * slo_factor)}")
    rate_factor = _smallest_factor(with_rate, worst, slots)
    if rate_factor is not None:
        helps.append(f"rate_rps: {_rounded_down(demands[worst].rate_rps / rate_factor):g}")
    return helps


def _more_gpus(demands: Sequence[Demand], worst: int, slots: Sequence[Slot]) -> str | None:
    """How many more of the cluster's largest GPU would help."""
    largest = max(slots, key=lambda slot: slot.part.memory_bytes)
    spare = [replace(largest, name=f"{largest.name}+{i}") for i in range(_MOST_MORE_GPUS)]
    fewest = deployments(demands[worst])[0]
    own = [replace(largest, name=f"own{i}") for i in range(fewest.replicas * len(demands[worst].stages))]
    if not feasible([demands[worst]], own):
        return None  # not even with GPUs of its own
    for more in range(1, _MOST_MORE_GPUS + 1):
        if feasible(demands, [*slots, *spare[:more]]):
            return f"{more} more {largest.part.name}"
    return None


def _other_replicas(demands: Sequence[Demand], worst: int, slots: Sequence[Slot]) -> str | None:
    """The nearest number of replicas that would help where the spec fixes it; fewer before more."""
    if len(demands[worst].replica_counts) > 1:
        return None
    (asked,) = demands[worst].replica_counts
    for count in (*range(asked - 1, 0, -1), *range(asked + 1, MOST_REPLICAS + 1)):
        if feasible(_changed(demands, worst, replica_counts=(count,)), slots):
            return f"replicas: {count}"
    return None


def _changed(demands: Sequence[Demand], model: int, **changes: float | tuple[int, ...]) -> list[Demand]:
    changed = replace(demands[model], **changes)  # type: ignore[arg-type]
    return [*demands[:model], changed, *demands[model + 1 :]]


def _smallest_factor(
    changed: Callable[[float], list[Demand]], worst: int, slots: Sequence[Slot]
) -> float | None:
    """The smallest factor up to 10 that helps, to about 1 %; None when even 10 does not.

    What the worst model would need with the cluster to itself is found first: it is quick, a lower bound, and
    mostly enough.
    """
    if not feasible(changed(_LARGEST_FACTOR), slots):
        return None
    alone = _bisected(lambda factor: feasible([changed(factor)[worst]], slots), 1.0)
    if feasible(changed(alone), slots):
        return alone
    return _bisected(lambda factor: feasible(changed(factor), slots), alone)


def _bisected(helps: Callable[[float], bool], low: float) -> float:
    """A factor that helps, within about 1 % of the smallest above ``low``; the largest is known to help."""
    high = _LARGEST_FACTOR
    for _ in range(_BISECTIONS):
        middle = (low * high) ** 0.5
        if helps(middle):
            high = middle
        else:
            low = middle
    return high


def _rounded_down(value: float) -> float:
    """``value`` with three significant digits, never larger."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 2)
    return math.floor(value / unit) * unit
