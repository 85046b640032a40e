"""Power of our placement and of six baselines, on the models of the mu-Serve paper, by load and burstiness.

All are judged by one model of the cluster and with the same SLOs (5 x the isolated latency, as AlpaServe has
it): predicted power of the whole cluster, idle GPUs included, at the top clocks and at the lowest clocks that
keep every SLO, within the planner's margin. Ratios are to the AlpaServe-like placement at the top clocks, and
to the same at its lowest clocks. A placement that misses SLOs even at the top clocks has no power: the cell
says so.

Every placement is simulated as well, at its lowest clocks where it has any, else at the top ones: power, the
mean over the models of the requests within the SLO, and how many models fall short of their target, that is,
have a confidence interval below it. Everything is predicted or simulated, nothing measured.

With --gap N also how far the search is from the exact optimum in N drawn cases, with --scale how long and how
much memory 1,000 models on 1,000 GPUs take.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import random
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from muplan.baselines import BASELINES, REFERENCE, Chosen, Judged, choose
from muplan.deployment import sharded_demand
from muplan.placement import Placement, group_costs, place
from muplan.placement.exact import exact_search
from muplan.placement.pools import search_cluster, usual_effort
from muplan.simulator.from_placement import scenario_from_placement
from muplan.simulator.run import simulate
from muplan.sources import load_source
from muplan.spec_model import ModelSpec
from muplan.staging import stage_model
from muplan.workload import Demand, Slot, Stage
from muserve.errors import InputError
from muserve.gpu.parts import Part, load_part
from muserve.plan import Basis, ModelKind, Phase, Sensitivity, TimeLaw

SINGLE_PASS = ("resnet-50", "bert-base", "bert-large", "roberta-base", "roberta-large")
GENERATIVE = (
    *("opt-1.3b", "opt-2.7b", "gpt2-large", "gpt2-xl", "codegen-350m", "codegen-2b", "bloom-1b1", "bloom-3b"),
    *("switch-base-16", "switch-base-32"),
)
# Erlangs offered by each model: requests per second times isolated latency.
LOADS = {"low": 0.05, "middle": 0.15, "high": 0.3}
BURSTS = (1.0, 2.0, 4.0)
SLO_SCALE = 5.0
PART = "V100-16GB"


def main() -> None:
    """Compare, and print a table or, with --json, a document."""
    options = _options()
    slots = cluster(load_part(PART), options.nodes, 8)
    report: dict[str, Any] = {"setup": _setup(options, slots)}
    models, missing = staged_models(slots)
    report["setup"] |= {"models": [model.name for model in models], "not in the catalogue": missing}
    report["cells"] = []
    for load, cv in itertools.product(LOADS, BURSTS):
        print(f"bench_placement: load {load}, cv {cv:g}", file=sys.stderr)
        report["cells"].append(cell(models, slots, load, cv, options))
    if options.gap:
        report["gap"] = gap(options.gap, options.seed)
    if options.scale:
        report["scale"] = scale(options.seed)
    print(json.dumps(report, indent=2) if options.json else text(report))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--nodes", type=int, default=2, help=f"nodes of eight {PART}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--requests", type=int, default=1000, help="simulated requests of the model with the fewest"
    )
    parser.add_argument(
        "--gap", type=int, default=0, metavar="N", help="compare N drawn cases to the optimum"
    )
    parser.add_argument("--scale", action="store_true", help="plan 1,000 models on 1,000 GPUs")
    parser.add_argument("--json", action="store_true", help="print a document")
    return parser.parse_args()


def cluster(part: Part, nodes: int, per_node: int) -> tuple[Slot, ...]:
    """``nodes`` equal nodes."""
    return tuple(
        Slot(name=f"node{n}/gpu{i}", node=f"node{n}", index=i, part=part, virtual=True)
        for n in range(nodes)
        for i in range(per_node)
    )


def staged_models(slots: Sequence[Slot]) -> tuple[list[Demand], list[str]]:
    """The models of the paper that the catalogue has, profiled, and the names of the others."""
    parts = {slot.part.name: slot.part for slot in slots}
    models, missing = [], []
    for name in (*SINGLE_PASS, *GENERATIVE):
        generative = name in GENERATIVE
        try:
            source = load_source(f"catalog:{name}", Path())
        except InputError as error:
            print(f"bench_placement: without {name}: {str(error).split(':')[0]}", file=sys.stderr)
            missing.append(name)
            continue
        document: dict[str, Any] = {
            "name": name,
            "source": f"catalog:{name}",
            "kind": source.kind.value,
            "slo_scale": SLO_SCALE,
            "attainment": 0.95 if generative else 0.99,
            "load": {"rate_rps": 1.0},
        }
        if source.kind is ModelKind.GENERATIVE:
            document["tokens"] = {"prompt": 128, "output": 192, "output_cv": 0.9}
        spec = ModelSpec.model_validate_json(json.dumps(document))
        models.append(stage_model(spec, source, parts, 12.0).demand)
    return models, missing


def loaded(models: Sequence[Demand], erlangs: float, cv: float) -> list[Demand]:
    """The models, each offering ``erlangs`` with gaps of this coefficient of variation."""
    return [
        replace(m, rate_rps=1000.0 * erlangs / m.isolated_latency_ms(PART), burstiness_cv=cv) for m in models
    ]


def cell(
    models: Sequence[Demand], slots: Sequence[Slot], load: str, cv: float, options: argparse.Namespace
) -> dict[str, Any]:
    """Every placement at one load and burstiness, baseline first, ours last."""
    demands = loaded(models, LOADS[load], cv)
    chosen = {name: choose(name, demands, slots, seed=options.seed) for name in BASELINES}
    arms = {name: choice.judged() for name, choice in chosen.items()}
    runs: dict[str, dict[str, float]] = {}
    simulated = {name: simulated_arm(choice, runs, options) for name, choice in chosen.items()}
    reference = arms[REFERENCE]
    reference_top = simulated_arm(chosen[REFERENCE], runs, options, at_top_clocks=True)
    return {
        "load": load,
        "erlangs_per_model": LOADS[load],
        "cv": cv,
        "arms": {name: asdict(arm) for name, arm in arms.items()},
        "ratios": {name: ratios(arm, reference) for name, arm in arms.items()},
        "simulated": {
            name: run
            | {
                "power_to_top_clocks": run["power_w"] / reference_top["power_w"],
                "power_to_lowest_clocks": run["power_w"] / simulated[REFERENCE]["power_w"],
            }
            for name, run in simulated.items()
        },
    }


def simulated_arm(
    chosen: Chosen,
    runs: dict[str, dict[str, float]],
    options: argparse.Namespace,
    *,
    at_top_clocks: bool = False,
) -> dict[str, float]:
    """Power and attainment of a placement by simulation; ``runs`` remembers those of equal placements."""
    placement = chosen.placement(at_top_clocks=at_top_clocks)
    clocks_mhz = [gpu.clock_mhz for gpu in placement.point.gpus]
    key = repr((placement.replicas, clocks_mhz))
    if key not in runs:
        runs[key] = _simulated(placement, chosen.slots, clocks_mhz, options)
    return runs[key]


def _simulated(
    placement: Placement, slots: Sequence[Slot], clocks_mhz: Sequence[int], options: argparse.Namespace
) -> dict[str, float]:
    demands = [
        sharded_demand(demand, deployment.degree)
        for demand, deployment in zip(placement.demands, placement.deployments, strict=True)
    ]
    scenario = scenario_from_placement(
        demands, slots, placement.replicas, clocks_mhz, fewest_requests=options.requests, seed=options.seed
    )
    result = simulate(scenario)
    met = [model.attainment for model in result.models]
    return {
        "power_w": result.power_w,
        "attainment": sum(estimate.value for estimate in met) / len(met),
        "models_short": sum(
            estimate.high < demand.attainment_target for estimate, demand in zip(met, demands, strict=True)
        ),
    }


def ratios(arm: Judged, reference: Judged) -> dict[str, float | None]:
    """The arm's power at its lowest clocks over that of AlpaServe-like at its top and its lowest clocks."""
    if not reference.feasible or arm.lowest_clock_power_w is None or reference.lowest_clock_power_w is None:
        return {"to_top_clocks": None, "to_lowest_clocks": None}
    return {
        "to_top_clocks": arm.lowest_clock_power_w / reference.top_clock_power_w,
        "to_lowest_clocks": arm.lowest_clock_power_w / reference.lowest_clock_power_w,
    }


def drawn_models(count: int, seed: int) -> list[Demand]:
    """Made-up single-pass models: light and busy, lax and tight, small and large."""
    draw = random.Random(seed)
    models = []
    for number in range(count):
        latency_ms, k, cv = draw.uniform(2.0, 40.0), draw.random(), draw.choice([1.0, 1.0, 3.0])
        sensitivity = Sensitivity(value=k, low=k, high=k, basis=Basis.MODELLED)
        law = TimeLaw(
            phase=Phase.INFERENCE, latency_ms=latency_ms, sensitivity=sensitivity, basis=Basis.MODELLED
        )
        stage = Stage(
            name=f"m{number}",
            memory_bytes=draw.randint(1, 6) * 10**9,
            transfer_ms=0.0,
            laws={PART: (law,)},
        )
        models.append(
            Demand(
                name=f"m{number:04}",
                kind=ModelKind.SINGLE_PASS,
                stages=(stage,),
                rate_rps=draw.uniform(20.0, 300.0) / latency_ms,
                burstiness_cv=cv,
                slo_ms=draw.uniform(8.0, 40.0) * latency_ms,
                attainment_target=0.99,
                replica_counts=(1, 2, 3, 4) if count > 10 else (1, 2),
            )
        )
    return models


def gap(cases: int, seed: int) -> dict[str, Any]:
    """How much more power the search needs than the optimum: 3 to 7 drawn models on 2 to 4 GPUs."""
    gaps = []
    for number in range(cases):
        draw = random.Random(f"{seed} {number}")
        costs = group_costs(
            drawn_models(draw.randint(3, 7), draw.randrange(10**9)),
            cluster(load_part(PART), 1, draw.randint(2, 4)),
        )
        least = exact_search(costs)
        if least is None:
            continue
        found = search_cluster(costs, usual_effort(len(costs.units.models)), seed)
        parked_w = sum(slot.part.idle_w for slot in costs.model.slots)
        gaps.append((found.cost[2] * 1e-6 + parked_w) / (least.cost[2] * 1e-6 + parked_w) - 1.0)
    return {"feasible_cases": len(gaps), "mean": sum(gaps) / len(gaps), "worst": max(gaps)}


def scale(seed: int) -> dict[str, Any]:
    """Time and peak memory of planning 1,000 models on 125 nodes of eight GPUs."""
    models, slots = drawn_models(1000, seed), cluster(load_part(PART), 125, 8)
    start = time.perf_counter()
    placement = place(models, slots, seed=seed)
    return {
        "wall_s": time.perf_counter() - start,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "feasible": placement.score.feasible,
        "gpus_in_use": sum(gpu.memory_used_bytes > 0 for gpu in placement.point.gpus),
        "power_w": placement.point.power_w,
    }


def _setup(options: argparse.Namespace, slots: Sequence[Slot]) -> dict[str, Any]:
    return {
        "seed": options.seed,
        "python": platform.python_version(),
        "gpus": f"{len(slots)} x {PART} in {options.nodes} nodes",
        "slo_scale": SLO_SCALE,
        "virtual": True,
        "basis": "predicted, and simulated",
        "simulated_requests_of_the_rarest": options.requests,
    }


def text(report: dict[str, Any]) -> str:
    """The report as tables."""
    setup = report["setup"]
    lines = [
        f"{len(setup['models'])} models on {setup['gpus']}, SLO {SLO_SCALE:g} x latency; nothing is measured"
    ]
    if setup["not in the catalogue"]:
        lines.append(f"without {', '.join(setup['not in the catalogue'])}: not in the catalogue")
    for found in report["cells"]:
        lines.append(
            f"\nload {found['load']} ({found['erlangs_per_model']:g} erlang a model), cv {found['cv']:g}"
        )
        lines.append(f"  {'':30}{'':5}{'predicted':>19}{'':18}  simulated")
        lines.append(
            f"  {'':30}{'GPUs':>5}{'top W':>8}{'lowest W':>9}{'/AS top':>9}{'/AS low':>9}"
            f"{'W':>7}{'/AS top':>9}{'/AS low':>9}{'met':>8}{'short':>7}"
        )
        for name, arm in found["arms"].items():
            ratio = found["ratios"][name]
            low = arm["lowest_clock_power_w"]
            power = f"{low:9.0f}" if low is not None else f"{'misses':>9}"
            shown = "".join(f"{value:9.2f}" if value is not None else f"{'':9}" for value in ratio.values())
            run = found["simulated"][name]
            lines.append(
                f"  {name:30}{arm['gpus_in_use']:5}{arm['top_clock_power_w']:8.0f}{power}{shown}"
                f"{run['power_w']:7.0f}{run['power_to_top_clocks']:9.2f}{run['power_to_lowest_clocks']:9.2f}"
                f"{run['attainment']:8.2%}{run['models_short']:7.0f}"
            )
    if "gap" in report:
        g = report["gap"]
        lines.append(
            f"\n{g['feasible_cases']} cases: {g['mean']:.3%} above the optimum, worst {g['worst']:.2%}"
        )
    if "scale" in report:
        s = report["scale"]
        lines.append(
            f"\n1,000 models on 1,000 GPUs: {s['wall_s']:.1f} s, {s['peak_memory_bytes'] / 1e6:.0f} MB, "
            f"{s['gpus_in_use']} GPUs in use, {s['power_w']:.0f} W"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
