"""``muplan simulate``: what a plan would do under its load, by simulation."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from muplan.interruption import interruptible
from muplan.load.trace import Trace, read_trace
from muplan.simulator.from_plan import DEFAULT_ALPHA, SHIPPED_PREDICTION_TAU, scenario_from_plan
from muplan.simulator.law_control import LawControl
from muplan.simulator.result import Estimate, SimulationResult
from muplan.simulator.run import simulate
from muplan.simulator.scenario import Discipline
from mupower.control import LAW_NAMES, law_named
from muserve.console import table_console
from muserve.errors import InputError
from muserve.gpu.parts import PARTS_DIR
from muserve.plan import Plan, read_plan

if TYPE_CHECKING:
    from muplan.fitted_table import FittedTable

_PIPED_COLUMNS = 160


@click.command("simulate")
@click.argument("plan_path", metavar="PLAN", type=click.Path(path_type=Path))
@click.option(
    "--seconds",
    type=click.FloatRange(min=1, max=1e9),
    default=3600.0,
    show_default=True,
    help="Simulated time; its first tenth is not measured.",
)
@click.option("--seed", type=click.IntRange(min=0, max=2**32 - 1), default=0, show_default=True)
@click.option(
    "--discipline",
    type=click.Choice([discipline.value for discipline in Discipline]),
    default=Discipline.PRIORITY.value,
    show_default=True,
    help="Order of the token engines' queues.",
)
@click.option(
    "--alpha",
    type=click.FloatRange(min=0),
    default=DEFAULT_ALPHA,
    show_default=True,
    help="Aging of the priority: arrival + alpha x predicted service.",
)
@click.option(
    "--prediction-tau",
    type=click.FloatRange(min=0, max=1),
    default=SHIPPED_PREDICTION_TAU,
    show_default=True,
    help="Rank correlation (Kendall) of predicted and true answer lengths.",
)
@click.option(
    "--law",
    type=click.Choice(LAW_NAMES),
    help="Control law that moves the clocks; without one they stay where the plan puts them.",
)
@click.option("--trace", "traces", multiple=True, metavar="MODEL=FILE", help="Recorded arrivals of a model.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def command(
    plan_path: Path,
    seconds: float,
    seed: int,
    discipline: str,
    alpha: float,
    prediction_tau: float,
    law: str | None,
    traces: tuple[str, ...],
    as_json: bool,
) -> None:
    """Simulate PLAN (the file, or the directory that generate wrote) and compare with its prediction."""
    plan = read_plan(plan_path)
    scenario = scenario_from_plan(
        plan,
        seconds=seconds,
        seed=seed,
        discipline=Discipline(discipline),
        alpha=alpha,
        prediction_tau=prediction_tau,
        traces=dict(_named_trace(text) for text in traces),
        parts_dir=(plan_path if plan_path.is_dir() else plan_path.parent) / PARTS_DIR,
    )
    targets = {model.name: model.attainment_target for model in plan.models}
    control = LawControl(law_named(law), scenario, targets) if law else None
    with interruptible("no result, for a simulation runs to its end"):
        result = simulate(scenario, control)
    if as_json:
        setup = {"seconds": seconds, "seed": seed, "discipline": discipline, "alpha": alpha, "law": law}
        setup |= {"prediction_tau": prediction_tau, "simulated": True}
        click.echo(json.dumps(_finite(_document(plan, result) | {"setup": setup}), indent=2))
        return
    _show(plan, result)


def _named_trace(text: str) -> tuple[str, Trace]:
    name, separator, file = text.partition("=")
    if not (name and separator and file):
        raise InputError(f"--trace: expected MODEL=FILE, got {text!r}")
    return name, read_trace(Path(file))


def _document(plan: Plan, result: SimulationResult) -> dict[str, Any]:
    return {
        "models": [
            asdict(found)
            | {
                "slo_ms": model.slo_ms,
                "attainment_target": model.attainment_target,
                "predicted_attainment": model.predicted_attainment,
            }
            for model, found in zip(plan.models, result.models, strict=True)
        ],
        "gpus": [
            asdict(found) | {"predicted_power_w": gpu.predicted_power_w}
            for gpu, found in zip(plan.gpus, result.gpus, strict=True)
        ],
        "power_w": result.power_w,
        "predicted_power_w": plan.predicted_power_w,
        "throughput_rps": result.throughput_rps,
        "requests": result.requests,
    }


def _finite(value: Any) -> Any:
    """NaN, which JSON does not have, as null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _show(plan: Plan, result: SimulationResult) -> None:
    console = table_console(_PIPED_COLUMNS)
    console.print(_models_table(plan, result), _gpus_table(plan, result))
    console.print(
        f"Power {result.power_w:.1f} W SIMULATED, {plan.predicted_power_w:.1f} W predicted by the plan."
    )


def _models_table(plan: Plan, result: SimulationResult) -> FittedTable:
    from muplan.fitted_table import FittedTable

    table = FittedTable(title="Models", title_justify="left", caption_justify="left")
    table.caption = "plan: the planner's queueing formulas. SIMULATED: with its 95 % confidence interval."
    table.add_column("model")
    for name in ("SLO", "target", "plan", "SIMULATED", "requests", "dropped", "mean", "p50", "p99"):
        table.add_column(name, justify="right")
    for model, found in zip(plan.models, result.models, strict=True):
        table.add_row(
            model.name,
            f"{model.slo_ms:g} ms",
            f"{model.attainment_target:.1%}",
            f"{model.predicted_attainment:.2%}",
            _share(found.attainment),
            f"{found.arrived:,}",
            f"{found.dropped:,}",
            *(_ms(value) for value in (found.jct_ms.value, found.jct_p50_ms, found.jct_p99_ms)),
        )
    return table


def _gpus_table(plan: Plan, result: SimulationResult) -> FittedTable:
    from muplan.fitted_table import FittedTable

    table = FittedTable(title="GPUs", title_justify="left")
    table.add_column("GPU")
    for name in ("mean clock", "plan: busy", "SIMULATED: busy", "plan: power", "SIMULATED: power"):
        table.add_column(name, justify="right")
    for gpu, found in zip(plan.gpus, result.gpus, strict=True):
        table.add_row(
            gpu.name,
            f"{found.clock_mhz:.0f} MHz",
            f"{gpu.predicted_utilisation:.1%}",
            f"{found.busy_share:.1%}",
            f"{gpu.predicted_power_w:.1f} W",
            f"{found.average_power_w:.1f} W",
        )
    return table


def _share(estimate: Estimate) -> str:
    if math.isnan(estimate.margin):
        return "-" if math.isnan(estimate.value) else f"{estimate.value:.2%}"
    return f"{estimate.value:.2%} ± {estimate.margin:.2%}"


def _ms(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:,.1f} ms"
