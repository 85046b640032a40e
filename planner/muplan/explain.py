"""Why a plan is as it is, from the plan alone: who shares a GPU, who sets its clock, what is left. Pure.

Everything is predicted again with the model that the planner used (``muplan.operating``), at the clocks of
the plan and at the driver's default clocks. Nothing was observed in service.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from muplan.explanation import Explanation, GpuExplanation, ModelExplanation, Resident
from muplan.gpu_load import GpuLoad
from muplan.group import GpuPoint, Group
from muplan.headroom import needed_slos_ms
from muplan.mixing import MixingPrice, mixing_prices
from muplan.operating import Point
from muplan.plan_model import cluster_from_plan
from muserve.errors import InputError
from muserve.gpu.parts import Part
from muserve.plan import GpuPlan, ModelPlan, Plan


def explain_plan(plan: Plan, parts_dir: Path | None = None) -> Explanation:
    """Explain ``plan``; ``parts_dir`` has the files of parts that the catalogue does not have.

    Raises InputError for a model without GPUs and for a part that nobody knows.
    """
    _check_placed(plan)
    cluster, assignment, clocks_mhz = cluster_from_plan(plan, parts_dir=parts_dir)
    now = cluster.point(assignment, clocks_mhz)
    default = cluster.point(assignment, [slot.part.top_clock_mhz for slot in cluster.slots])
    needed_ms = needed_slos_ms(cluster, assignment, clocks_mhz)
    owners = [demand.name for demand in cluster.demands]
    models = tuple(_model(model, owners, now, default, needed_ms) for model in plan.models)

    group = cluster.group(assignment)
    loads = group.loads(dict(enumerate(clocks_mhz)))
    prices = mixing_prices(plan, parts_dir=parts_dir)
    headroom = {model.name: model.headroom for model in models}
    gpus = []
    for number, gpu in enumerate(plan.gpus):
        price, part = prices.get(gpu.name), cluster.slots[number].part
        residents = _residents(plan, group, loads, number, price) if price is not None else ()
        gpus.append(_gpu(gpu, part, now.gpus[number], default.gpus[number], price, residents, headroom))
    return Explanation(
        gpus=tuple(gpus),
        models=models,
        power_w=now.power_w,
        default_clock_power_w=default.power_w,
        mixing_price_w=sum(gpu.mixing_price_w for gpu in gpus),
    )


def _residents(
    plan: Plan, group: Group, loads: Mapping[int, GpuLoad], gpu: int, price: MixingPrice
) -> tuple[Resident, ...]:
    partitions = {p.name: p for model in plan.models_on(plan.gpus[gpu].name) for p in model.partitions}
    residents = []
    for key in group.residents[gpu]:
        demand = group.model.demands[key[0]]
        partition = partitions[demand.stages[key[1]].name]
        busy_share, power_w = group.resident_power(gpu, key, loads)
        residents.append(
            Resident(
                partition=partition.name,
                model=demand.name,
                laws=partition.laws,
                memory_bytes=partition.memory_bytes,
                busy_share=busy_share,
                power_w=power_w,
                own_clock_mhz=price.own_clocks_mhz[partition.name],
            )
        )
    return tuple(residents)


def _gpu(
    gpu: GpuPlan,
    part: Part,
    now: GpuPoint,
    default: GpuPoint,
    price: MixingPrice | None,
    residents: tuple[Resident, ...],
    headroom: Mapping[str, float | None],
) -> GpuExplanation:
    tightest = min(
        (resident.model for resident in residents), key=lambda m: _or_least(headroom[m]), default=None
    )
    return GpuExplanation(
        name=gpu.name,
        part=gpu.part,
        virtual=gpu.virtual,
        clock_mhz=now.clock_mhz,
        default_clock_mhz=default.clock_mhz,
        knee_mhz=part.knee_mhz,
        clock_reason=gpu.initial_clock_reason,
        busy_share=now.busy_share,
        memory_bytes=gpu.memory_bytes,
        memory_used_bytes=now.memory_used_bytes,
        power_w=now.power_w,
        default_clock_power_w=default.power_w,
        binding_model=price.binding if price is not None and now.clock_mhz > part.knee_mhz else None,
        tightest_model=tightest,
        least_headroom=None if tightest is None else headroom[tightest],
        mixing_price_w=0.0 if price is None else price.price_w,
        residents=residents,
    )


def _model(
    model: ModelPlan, owners: Sequence[str], now: Point, default: Point, needed_ms: Sequence[float | None]
) -> ModelExplanation:
    """One model from what its replicas see, whose owners are ``owners``; the worst counts."""
    replicas = [number for number, owner in enumerate(owners) if owner == model.name]
    needed = _longest([needed_ms[number] for number in replicas])
    gpus = dict.fromkeys(gpu for p in model.partitions for replica in p.replicas for gpu in replica.gpus)
    return ModelExplanation(
        name=model.name,
        slo_ms=model.slo_ms,
        attainment_target=model.attainment_target,
        attainment=min(now.attainment[number] for number in replicas),
        default_clock_attainment=min(default.attainment[number] for number in replicas),
        needed_slo_ms=needed,
        headroom=None if needed is None else 1.0 - needed / model.slo_ms,
        gpus=tuple(gpus),
        cuts=model.cuts,
    )


def _or_least(headroom: float | None) -> float:
    return -math.inf if headroom is None else headroom


def _longest(limits_ms: Sequence[float | None]) -> float | None:
    known = [limit for limit in limits_ms if limit is not None]
    return max(known) if len(known) == len(limits_ms) else None


def _check_placed(plan: Plan) -> None:
    """A plan written by hand for the daemon may leave out what placing needs."""
    names = {gpu.name for gpu in plan.gpus}
    for model in plan.models:
        counts = {len(partition.replicas) for partition in model.partitions}
        used = {gpu for p in model.partitions for replica in p.replicas for gpu in replica.gpus}
        if len(counts) != 1 or not used or not used <= names:
            raise InputError(
                f"model {model.name}: expected as many replicas of every partition, each on GPUs of the plan"
            )
