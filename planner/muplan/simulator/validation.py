"""How far the planner's queueing formulas are from the simulation, on drawn clusters and on drawn plans.

Every figure here is modelled: the formulas of ``muplan.operating`` on one side, the simulator on the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from muplan.operating import ClusterModel
from muplan.pipeline import plan_spec
from muplan.simulator.from_placement import scenario_from_placement
from muplan.simulator.from_plan import scenario_from_plan
from muplan.simulator.result import Estimate
from muplan.simulator.run import simulate
from muplan.simulator.scenario import Discipline
from muplan.spec import SpecFile, parse_spec
from muplan.workload import Demand, Slot, Stage, StageKey
from muserve.errors import InfeasiblePlanError
from muserve.gpu.parts import load_part
from muserve.plan import Basis, ModelKind, Phase, Sensitivity, TimeLaw

USUAL_PART = "V100-16GB"

# Requests of the model with the fewest: an attainment of 0.99 is then known to about 0.002.
_REQUESTS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One model of a cluster: the share of requests within its SLO, wanted, predicted and simulated."""

    name: str
    kind: ModelKind
    target: float
    predicted: float
    simulated: Estimate

    @property
    def error(self) -> float:
        """Prediction less simulation: above zero the formulas promise too much."""
        return self.predicted - self.simulated.value

    @property
    def confirmed(self) -> bool:
        """Whether the target lies within the confidence interval of the simulation, or below it."""
        margin = 0.0 if math.isnan(self.simulated.margin) else self.simulated.margin
        return self.simulated.value + margin >= self.target


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterComparison:
    """All models of a cluster, and its average power."""

    models: tuple[Comparison, ...]
    predicted_power_w: float
    simulated_power_w: float

    @property
    def power_error(self) -> float:
        """Prediction over simulation, less one."""
        return self.predicted_power_w / self.simulated_power_w - 1.0


def compare_cluster(seed: int, part_name: str = USUAL_PART) -> ClusterComparison:
    """A cluster of 1 to 3 GPUs and 2 to 5 models, put down at random, at random clocks."""
    part = load_part(part_name)
    rng = np.random.default_rng([seed, 1])
    slots = tuple(
        Slot(name=f"node0/gpu{n}", node="node0", index=n, part=part, virtual=True)
        for n in range(rng.integers(1, 4))
    )
    demands = tuple(_demand(f"model{n}", part.name, rng) for n in range(rng.integers(2, 6)))
    assignment: dict[StageKey, int] = {
        (m, s): int(rng.integers(len(slots)))
        for m, demand in enumerate(demands)
        for s in range(len(demand.stages))
    }
    clocks_mhz = [int(rng.choice(part.working_clocks_mhz)) for _ in slots]
    crowd = max(list(assignment.values()).count(gpu) for gpu in set(assignment.values()))
    demands = tuple(replace(d, rate_rps=d.rate_rps * rng.uniform(0.3, 0.8) / crowd) for d in demands)
    point = ClusterModel(demands, slots).point(assignment, clocks_mhz)
    replicas = {
        stage.name: ((slots[assignment[m, s]].name,),)
        for m, demand in enumerate(demands)
        for s, stage in enumerate(demand.stages)
    }
    result = simulate(
        scenario_from_placement(demands, slots, replicas, clocks_mhz, fewest_requests=_REQUESTS, seed=seed)
    )
    return ClusterComparison(
        models=tuple(
            Comparison(
                name=demand.name,
                kind=demand.kind,
                target=demand.attainment_target,
                predicted=predicted,
                simulated=found.attainment,
            )
            for demand, predicted, found in zip(demands, point.attainment, result.models, strict=True)
        ),
        predicted_power_w=point.power_w,
        simulated_power_w=result.power_w,
    )


def compare_plan(seed: int, part_name: str = USUAL_PART) -> ClusterComparison | None:
    """The planner's plan for a drawn spec of catalogue models; None when there is no feasible one.

    Queues are first come, first served, which is what the formulas assume.
    """
    rng = np.random.default_rng([seed, 2])
    cluster = {
        "nodes": [
            {
                "name": "node0",
                "gpus": [{"part": part_name, "count": int(rng.integers(1, 4)), "virtual": True}],
            }
        ]
    }
    models = [
        _spec_model("bert-base", rng, highest_rps=60.0) | {"partitions": int(rng.integers(1, 3))},
        _spec_model("resnet-50", rng, highest_rps=100.0),
        _spec_model("opt-1.3b", rng, highest_rps=3.0) | {"kind": "generative", "attainment": 0.9},
    ]
    spec = parse_spec({"cluster": cluster, "models": models, "seed": seed}, f"drawn spec {seed}")
    try:
        plan = plan_spec(SpecFile(path=Path("drawn.yaml"), spec=spec, sha256="")).plan
    except InfeasiblePlanError:
        return None
    seconds = _REQUESTS / min(model.rate_rps for model in plan.models)
    result = simulate(scenario_from_plan(plan, seconds=seconds, seed=seed, discipline=Discipline.FCFS))
    return ClusterComparison(
        models=tuple(
            Comparison(
                name=model.name,
                kind=model.kind,
                target=model.attainment_target,
                predicted=model.predicted_attainment,
                simulated=found.attainment,
            )
            for model, found in zip(plan.models, result.models, strict=True)
        ),
        predicted_power_w=plan.predicted_power_w,
        simulated_power_w=result.power_w,
    )


def _spec_model(name: str, rng: np.random.Generator, *, highest_rps: float) -> dict[str, object]:
    return {
        "name": name,
        "source": f"catalog:{name}",
        "kind": "single-pass",
        "slo_scale": round(float(rng.uniform(2.0, 8.0)), 2),
        "attainment": float(rng.choice([0.9, 0.95, 0.99])),
        "load": {"rate_rps": round(float(rng.uniform(0.1, 1.0)) * highest_rps, 2), "cv": _cv(rng)},
    }


def _cv(rng: np.random.Generator) -> float:
    return float(rng.choice([1.0, 1.0, 2.0, 3.0]))


def _demand(name: str, part: str, rng: np.random.Generator) -> Demand:
    """A model that would keep one GPU busy at its top clock all by itself."""
    if rng.random() < 0.4:
        return _engine_demand(name, part, rng)
    latencies_ms = [float(np.exp(rng.uniform(1.0, 4.0))) for _ in range(rng.integers(1, 3))]
    return Demand(
        name=name,
        kind=ModelKind.SINGLE_PASS,
        stages=tuple(
            _stage(f"{name}_stage{n}", part, _law(Phase.INFERENCE, latency_ms, rng))
            for n, latency_ms in enumerate(latencies_ms)
        ),
        rate_rps=1000.0 / max(latencies_ms),
        burstiness_cv=_cv(rng),
        slo_ms=sum(latencies_ms) * float(rng.uniform(3.0, 12.0)),
        attainment_target=0.99,
    )


def _engine_demand(name: str, part: str, rng: np.random.Generator) -> Demand:
    prefill_ms, decode_ms = float(rng.uniform(5.0, 40.0)), float(rng.uniform(4.0, 15.0))
    growth_ms, tokens, slots = (
        float(rng.uniform(0.05, 0.5)),
        float(rng.uniform(20, 200)),
        int(rng.integers(4, 17)),
    )
    service_ms = tokens * (decode_ms + growth_ms * (slots - 1)) + slots * prefill_ms
    return Demand(
        name=name,
        kind=ModelKind.GENERATIVE,
        stages=(
            _stage(
                f"{name}_engine",
                part,
                _law(Phase.PREFILL, prefill_ms, rng),
                _law(Phase.DECODE, decode_ms, rng, highest_k=0.3),
            ),
        ),
        rate_rps=1000.0 * slots / service_ms,
        burstiness_cv=_cv(rng),
        slo_ms=(prefill_ms + tokens * decode_ms) * float(rng.uniform(3.0, 12.0)),
        attainment_target=0.9,
        output_tokens=tokens,
        output_cv=float(rng.uniform(0.3, 1.2)),
        slots=slots,
        decode_growth_ms={part: growth_ms},
    )


def _law(phase: Phase, latency_ms: float, rng: np.random.Generator, highest_k: float = 1.0) -> TimeLaw:
    k = float(rng.uniform(0.0, highest_k))
    sensitivity = Sensitivity(value=k, low=k, high=k, basis=Basis.MODELLED)
    return TimeLaw(phase=phase, latency_ms=latency_ms, sensitivity=sensitivity, basis=Basis.MODELLED)


def _stage(name: str, part: str, *laws: TimeLaw) -> Stage:
    return Stage(name=name, memory_bytes=1, transfer_ms=0.1, laws={part: laws})
