"""Why a plan is as it is, from the plan alone: who shares a GPU, who sets its clock, what is left. Pure.

Everything is predicted again with the model that the planner used (``muplan.operating``), at the clocks of
the plan and at the driver's default clocks. Nothing is measured.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from muplan.gpu_load import GpuLoad
from muplan.group import GpuPoint, Group
from muplan.headroom import needed_slos_ms
from muplan.mixing import MixingPrice, mixing_prices
from muplan.plan_model import cluster_from_plan
from muserve.errors import InputError
from muserve.plan import CutPlan, GpuPlan, ModelPlan, Plan, TimeLaw

# So many names are listed when one is not known.
_MOST_NAMES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """One replica of a partition on a GPU.

    ``busy_share`` is the share of time it keeps the GPU busy, ``power_w`` its part of the average power.
    ``own_clock_mhz`` is the lowest clock of this GPU that keeps its model's SLO.
    """

    partition: str
    model: str
    laws: tuple[TimeLaw, ...]
    memory_bytes: int
    busy_share: float
    power_w: float
    own_clock_mhz: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuExplanation:
    """One GPU: its clock and the reason, its power there and at the default clock, and its residents.

    ``binding_model`` is the one that keeps the clock from being lower; None at the knee and on a parked GPU.
    ``tightest_model`` is the resident with the least headroom (``ModelExplanation``). ``mixing_price_w`` is
    what sharing one clock costs (``muplan.mixing``).
    """

    name: str
    part: str
    virtual: bool
    clock_mhz: int
    default_clock_mhz: int
    clock_reason: str
    busy_share: float
    memory_bytes: int
    memory_used_bytes: int
    power_w: float
    default_clock_power_w: float
    binding_model: str | None
    tightest_model: str | None
    least_headroom: float | None
    mixing_price_w: float
    residents: tuple[Resident, ...]

    @property
    def parked(self) -> bool:
        """Whether nothing is placed here."""
        return not self.residents


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelExplanation:
    """One model: what its requests see at the plan's clocks, and what is left.

    ``needed_slo_ms`` is the shortest limit that the plan's clocks would keep, None when no limit would do;
    ``headroom`` is the share of the SLO beyond it, negative when the SLO is not kept. Of several replicas
    the worst counts.
    """

    name: str
    slo_ms: float
    attainment_target: float
    attainment: float
    default_clock_attainment: float
    needed_slo_ms: float | None
    headroom: float | None
    gpus: tuple[str, ...]
    cuts: tuple[CutPlan, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """A plan explained; the powers are predicted averages of the whole cluster, whatever is selected."""

    gpus: tuple[GpuExplanation, ...]
    models: tuple[ModelExplanation, ...]
    power_w: float
    default_clock_power_w: float
    mixing_price_w: float


def explain_plan(plan: Plan) -> Explanation:
    """Explain ``plan``; InputError for a model without GPUs, or a GPU that is not in the part catalogue."""
    _check_placed(plan)
    cluster, assignment, clocks_mhz = cluster_from_plan(plan)
    group = cluster.group(assignment)
    loads = group.loads(dict(enumerate(clocks_mhz)))
    default = cluster.point(assignment, [slot.part.top_clock_mhz for slot in cluster.slots])
    prices = mixing_prices(plan)
    needed_ms = needed_slos_ms(cluster, assignment, clocks_mhz)
    models = []
    for model in plan.models:
        replicas = [owner for owner, demand in enumerate(cluster.demands) if demand.name == model.name]
        attainment = min(group.response(owner, loads).attainment for owner in replicas)
        default_attainment = min(default.attainment[owner] for owner in replicas)
        longest_ms = _longest([needed_ms[owner] for owner in replicas])
        models.append(_model(model, attainment, default_attainment, longest_ms))
    headroom = {model.name: model.headroom for model in models}
    gpus = []
    for number, gpu in enumerate(plan.gpus):
        price = prices.get(gpu.name)
        residents = _residents(plan, group, loads, number, price) if price is not None else ()
        explained = _gpu(gpu, group.gpu_point(number, loads), default.gpus[number], residents)
        if price is not None:
            at_knee = explained.clock_mhz <= cluster.slots[number].part.knee_mhz
            tightest = min((r.model for r in residents), key=lambda name: _or_least(headroom[name]))
            explained = replace(
                explained,
                binding_model=None if at_knee else price.binding,
                tightest_model=tightest,
                least_headroom=headroom[tightest],
                mixing_price_w=price.price_w,
            )
        gpus.append(explained)
    return Explanation(
        gpus=tuple(gpus),
        models=tuple(models),
        power_w=sum(gpu.power_w for gpu in gpus),
        default_clock_power_w=default.power_w,
        mixing_price_w=sum(gpu.mixing_price_w for gpu in gpus),
    )


def select(explanation: Explanation, models: Collection[str], gpus: Collection[str]) -> Explanation:
    """Only the named models and GPUs, with the GPUs those models are on and the models on those GPUs.

    Naming nothing selects all. Raises InputError for a name that the plan does not have.
    """
    _check_names("model", models, [model.name for model in explanation.models])
    _check_names("GPU", gpus, [gpu.name for gpu in explanation.gpus])
    if not models and not gpus:
        return explanation
    wanted_gpus = {name for model in explanation.models if model.name in models for name in model.gpus}
    wanted_models = {
        resident.model for gpu in explanation.gpus if gpu.name in gpus for resident in gpu.residents
    }
    wanted_gpus.update(gpus)
    wanted_models.update(models)
    return replace(
        explanation,
        gpus=tuple(gpu for gpu in explanation.gpus if gpu.name in wanted_gpus),
        models=tuple(model for model in explanation.models if model.name in wanted_models),
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
    point: GpuPoint,
    default: GpuPoint,
    residents: tuple[Resident, ...],
) -> GpuExplanation:
    return GpuExplanation(
        name=gpu.name,
        part=gpu.part,
        virtual=gpu.virtual,
        clock_mhz=point.clock_mhz,
        default_clock_mhz=default.clock_mhz,
        clock_reason=gpu.initial_clock_reason,
        busy_share=point.busy_share,
        memory_bytes=gpu.memory_bytes,
        memory_used_bytes=point.memory_used_bytes,
        power_w=point.power_w,
        default_clock_power_w=default.power_w,
        binding_model=None,
        tightest_model=None,
        least_headroom=None,
        mixing_price_w=0.0,
        residents=residents,
    )


def _model(
    model: ModelPlan, attainment: float, default_attainment: float, needed_slo_ms: float | None
) -> ModelExplanation:
    gpus = dict.fromkeys(gpu for p in model.partitions for replica in p.replicas for gpu in replica.gpus)
    return ModelExplanation(
        name=model.name,
        slo_ms=model.slo_ms,
        attainment_target=model.attainment_target,
        attainment=attainment,
        default_clock_attainment=default_attainment,
        needed_slo_ms=needed_slo_ms,
        headroom=None if needed_slo_ms is None else 1.0 - needed_slo_ms / model.slo_ms,
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


def _check_names(what: str, names: Iterable[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            shown = ", ".join(known[:_MOST_NAMES]) + (", ..." if len(known) > _MOST_NAMES else "")
            raise InputError(f"the plan has no {what} {name!r}: expected one of {shown}")
