"""How fast the simulator is, how much memory it takes, and how far it and the planner's formulas are apart.

Speed and memory are measured: 16 single-pass models on 8 GPUs without batching, on one core, with the
compiled loop already loaded. Theory is exact queueing theory beside the simulation of the same queue. The
last two tables are modelled on both sides: the planner's queueing formulas against the simulator, on
drawn clusters at drawn clocks and on the planner's own plans for drawn specs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Iterator
from typing import Any

import numba
import numpy as np

from muplan.load.arrivals import ArrivalLaw
from muplan.simulator.run import simulate
from muplan.simulator.scenario import (
    Discipline,
    Routing,
    Scenario,
    SimulatedGpu,
    SimulatedModel,
    SimulatedStage,
)
from muplan.simulator.validation import (
    ClusterComparison,
    Comparison,
    compare_cluster,
    compare_plan,
)
from muplan.slot_queue import slot_queue
from muserve.gpu.parts import load_part
from muserve.plan import Basis, ModelKind, Phase, Sensitivity, TimeLaw

PART = load_part("V100-16GB")
DRAWN_PARTS = ("V100-16GB", "A100-40GB", "L20")
MODELS, GPUS, SERVICE_MS, LOAD = 16, 8, 10.0, 0.7
RATE_RPS = LOAD * GPUS / MODELS / SERVICE_MS * 1000


def main() -> None:
    """Measure, and print a table or, with --json, the report."""
    options = _options()
    simulate(multi_model(requests=10_000))  # compiles or loads the event loop
    report = {
        "speed": measure_speed(options.requests, options.rounds),
        "memory": measure_memory(options.memory_requests),
        "theory": list(compare_theory(options.requests)),
        "formulas": {part: compare_formulas(options.clusters, part) for part in DRAWN_PARTS},
        "plans": {part: confirm_plans(options.specs, part) for part in DRAWN_PARTS},
        "setup": {
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "numba": numba.__version__,
            "numpy": np.__version__,
            "part": PART.name,
        },
    }
    print(json.dumps(report, indent=2) if options.json else table(report))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--requests", type=int, default=2_000_000, help="of each speed and theory run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory-requests", type=int, default=10_000_000)
    parser.add_argument("--clusters", type=int, default=36, help="drawn for the formulas, on each part")
    parser.add_argument("--specs", type=int, default=36, help="drawn for the plans, on each part")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args()


def measure_speed(requests: int, rounds: int) -> dict[str, Any]:
    """Simulated requests in a second of wall time, drawing them included; the median over the rounds."""
    scenario = multi_model(requests=requests)
    rates = []
    for _ in range(rounds):
        begun_s = time.perf_counter()
        result = simulate(scenario)
        rates.append(result.requests / (time.perf_counter() - begun_s))
    return {
        "requests": result.requests,
        "rounds": rounds,
        "requests_per_second": statistics.median(rates),
        "slowest_round": min(rates),
        "fastest_round": max(rates),
    }


def measure_memory(requests: int) -> dict[str, Any]:
    """Peak resident memory of the process after a run of a tenth, and after the whole."""
    simulate(multi_model(requests=requests // 10))
    tenth_mb = _peak_mb()
    simulate(multi_model(requests=requests))
    return {"requests": requests, "peak_mb_after_a_tenth": tenth_mb, "peak_mb_after_all": _peak_mb()}


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def multi_model(requests: int) -> Scenario:
    """16 models on 8 GPUs at load 0.7: exponential times, two models time-share each GPU, no batching."""
    horizon_s = requests / (MODELS * RATE_RPS)
    models = tuple(_queue(f"model{n}", RATE_RPS, on=(n % GPUS,)) for n in range(MODELS))
    return _scenario(models, GPUS, horizon_s)


def compare_theory(requests: int) -> Iterator[dict[str, Any]]:
    """Mean times of queues that theory knows exactly."""
    wait_ms = SERVICE_MS * LOAD / (1 - LOAD)
    rate = LOAD / SERVICE_MS * 1000
    shortest = {"discipline": Discipline.SJF}
    c = 4
    several = slot_queue(LOAD * c / SERVICE_MS, np.arange(1, c + 1) / SERVICE_MS, 1.0, 1.0)
    assert several is not None, "the load is below 1"
    cases = (
        ("M/M/1", _queue("a", rate), 1, SERVICE_MS + wait_ms),
        ("M/D/1", _queue("a", rate, service_cv=0.0), 1, SERVICE_MS + wait_ms / 2),
        ("M/G/1 (cv 2)", _queue("a", rate, service_cv=2.0), 1, SERVICE_MS + wait_ms * 2.5),
        ("M/M/1-SJF", _queue("a", rate, **shortest), 1, SERVICE_MS + _shortest_first_wait_ms()),
        ("M/G/1-PS (cv 2)", _queue("a", rate, service_cv=2.0, slots=512), 1, SERVICE_MS / (1 - LOAD)),
        (
            "M/M/4",
            _queue("a", c * rate, on=range(c), routing=Routing.SHARED_QUEUE),
            c,
            SERVICE_MS + several.waits / several.decay,
        ),
    )
    for name, model, gpus, theory_ms in cases:
        (found,) = simulate(_scenario((model,), gpus, requests / model.load.rate_rps)).models
        yield {
            "queue": name,
            "load": LOAD,
            "theory_ms": theory_ms,
            "simulated_ms": found.jct_ms.value,
            "margin_ms": found.jct_ms.margin,
        }


def _shortest_first_wait_ms() -> float:
    """M/M/1 with the shortest job next (Kleinrock, Queueing Systems vol. 2, section 3.6)."""
    size = np.linspace(0.0, 40.0, 400_001)[1:]
    density, step = np.exp(-size), 1e-4
    shorter = LOAD * np.cumsum(size * density) * step
    return float((density * LOAD * SERVICE_MS / (1 - shorter) ** 2).sum() * step)


def compare_formulas(clusters: int, part: str) -> dict[str, Any]:
    """Errors of the planner's formulas on drawn clusters."""
    found = [compare_cluster(seed, part) for seed in range(clusters)]
    models = [model for cluster in found for model in cluster.models]
    report: dict[str, Any] = {"clusters": clusters, "power": _power_errors(found)}
    for kind in ModelKind:
        report[kind.value] = _errors([model for model in models if model.kind is kind])
    return report


def confirm_plans(specs: int, part: str) -> dict[str, Any]:
    """How many of the planner's plans for drawn specs the simulation confirms."""
    plans = {seed: plan for seed in range(specs) if (plan := compare_plan(seed, part))}
    refuted = [
        {"seed": seed, "model": m.name, "target": m.target, "simulated": m.simulated.value}
        for seed, plan in plans.items()
        for m in plan.models
        if not m.confirmed
    ]
    return {
        "specs": specs,
        "feasible": len(plans),
        "confirmed": len(plans) - len({entry["seed"] for entry in refuted}),
        "refuted": refuted,
        "attainment": _errors([model for plan in plans.values() for model in plan.models]),
        "power": _power_errors(list(plans.values())),
    }


def _errors(models: list[Comparison]) -> dict[str, float]:
    errors = [model.error for model in models]
    return {
        "models": len(errors),
        "bias": statistics.fmean(errors),
        "worst_too_high": max(errors),
        "worst_too_low": min(errors),
    }


def _power_errors(found: list[ClusterComparison]) -> dict[str, float]:
    errors = [cluster.power_error for cluster in found]
    return {"bias": statistics.fmean(errors), "worst": max(errors, key=abs)}


def _queue(
    name: str,
    rate_rps: float,
    *,
    on: Any = (0,),
    service_cv: float = 1.0,
    slots: int = 1,
    routing: Routing = Routing.LEAST_BACKLOG,
    discipline: Discipline = Discipline.FCFS,
) -> SimulatedModel:
    k = Sensitivity(value=0.5, low=0.5, high=0.5, basis=Basis.MODELLED)
    law = TimeLaw(phase=Phase.INFERENCE, latency_ms=SERVICE_MS, sensitivity=k, basis=Basis.MODELLED)
    replicas = tuple((f"gpu{gpu}",) for gpu in on)
    return SimulatedModel(
        name=name,
        kind=ModelKind.SINGLE_PASS,
        stages=(SimulatedStage(name=name, laws={PART.name: (law,)}, replicas=replicas, routing=routing),),
        load=ArrivalLaw(rate_rps=rate_rps),
        slo_ms=10 * SERVICE_MS,
        service_cv=service_cv,
        slots=slots,
        discipline=discipline,
    )


def _scenario(models: tuple[SimulatedModel, ...], gpus: int, horizon_s: float) -> Scenario:
    return Scenario(
        gpus=tuple(
            SimulatedGpu(name=f"gpu{n}", part=PART, clock_mhz=PART.top_clock_mhz) for n in range(gpus)
        ),
        models=models,
        horizon_s=horizon_s,
        warm_up_s=horizon_s / 50,
    )


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    speed, memory = report["speed"], report["memory"]
    lines = [
        f"speed   {speed['requests_per_second']:,.0f} requests/s on one core "
        f"({speed['slowest_round']:,.0f} to {speed['fastest_round']:,.0f} in {speed['rounds']} rounds "
        f"of {speed['requests']:,})",
        f"memory  peak {memory['peak_mb_after_all']:.0f} MB after {memory['requests']:,} requests, "
        f"{memory['peak_mb_after_a_tenth']:.0f} MB after a tenth of them",
        "",
        f"{'queue at load 0.7':18}{'theory':>10}{'SIMULATED':>22}",
    ]
    lines += [
        f"{row['queue']:18}{row['theory_ms']:7.2f} ms{row['simulated_ms']:12.2f} ± {row['margin_ms']:.2f} ms"
        for row in report["theory"]
    ]
    lines += ["", "planner's formulas less SIMULATED, share of requests within the SLO"]
    for part, formulas in report["formulas"].items():
        lines += [f" {part}", *_comparison_lines(formulas, report["plans"][part])]
    return "\n".join(lines)


def _comparison_lines(formulas: dict[str, Any], plans: dict[str, Any]) -> list[str]:
    """What was found on one part."""
    lines = [_error_line(f"{kind.value}, drawn clusters", formulas[kind.value]) for kind in ModelKind]
    lines.append(_error_line("plans", plans["attainment"]))
    for name, power in (("power, drawn clusters", formulas["power"]), ("power, plans", plans["power"])):
        lines.append(f"  {name:30} bias {power['bias']:+.1%}, worst {power['worst']:+.1%}")
    lines.append(
        f"  {plans['confirmed']} of {plans['feasible']} feasible plans confirmed, "
        f"{plans['specs']} specs drawn"
    )
    lines += [
        f"  refuted: spec {entry['seed']}, {entry['model']}: {entry['simulated']:.2%} SIMULATED "
        f"of {entry['target']:.1%} promised"
        for entry in plans["refuted"]
    ]
    return lines


def _error_line(name: str, errors: dict[str, float]) -> str:
    return (
        f"  {name:30} bias {errors['bias']:+.3f}, worst {errors['worst_too_high']:+.3f} / "
        f"{errors['worst_too_low']:+.3f} ({errors['models']} models)"
    )


if __name__ == "__main__":
    main()
