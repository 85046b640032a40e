"""``report.html`` of a plan: what it predicts, who sits where, and why. Nothing in it is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from muplan.explain import explain_plan
from muplan.explanation import Explanation, GpuExplanation, ModelExplanation, Resident
from muplan.report.plan_plots import power_plot, sensitivity_plot
from muplan.report.template import Tile, render
from muplan.staging import StagedModel
from muserve.plan import Basis, Plan

REPORT_FILE = "report.html"

_TEMPLATE = "plan.html.j2"
_NEEDED = ("jinja2", "matplotlib")

# Of a large plan the page shows so many models and GPUs; `muplan explain` shows them all.
_MOST_MODELS = 24
_MOST_GPUS = 48

# The ends of the colour scale for k: indifferent to the clock, and bound by it.
_CALM, _BOUND = (61, 111, 182), (217, 131, 36)

_NOTES = (
    "Power is the average of all GPUs over the spec's load, idle time and parked GPUs included.",
    "Headroom is the share of the SLO beyond the shortest limit that the plan's clocks would still keep.",
    "The price of sharing is what a GPU pays because its residents share one clock, set by the one that "
    "bears least.",
)


def missing_packages() -> tuple[str, ...]:
    """What the page needs and this installation lacks."""
    return tuple(name for name in _NEEDED if find_spec(name) is None)


def plan_page(
    plan: Plan,
    staged: Sequence[StagedModel],
    baselines_w: Mapping[str, float | None],
    parts_dir: Path | None = None,
) -> bytes:
    """The page of ``plan``, self-contained; its bytes depend on the arguments and the drawing library alone.

    ``baselines_w`` is the predicted power of other placements of the same load at the top clocks, None for
    one that misses an SLO; ``parts_dir`` as in ``explain_plan``.
    """
    explanation = explain_plan(plan, parts_dir)
    gpus = sorted(explanation.gpus, key=lambda gpu: gpu.parked)[:_MOST_GPUS]
    page = render(
        _TEMPLATE,
        title=f"Plan of {_count(len(plan.models), 'model')} on {_count(len(plan.gpus), 'GPU')}",
        tiles=_tiles(explanation),
        power=power_plot(plan, baselines_w),
        gpus=[_card(gpu) for gpu in gpus],
        more_gpus=len(plan.gpus) - len(gpus),
        models=[_model_row(model) for model in explanation.models],
        cuts=[(model.name, cut) for model in explanation.models for cut in model.cuts],
        strips=[sensitivity_plot(model) for model in staged[:_MOST_MODELS]],
        more_strips=max(0, len(staged) - _MOST_MODELS),
        notes=[_origin(plan), *_NOTES],
        setup=_setup(plan),
    )
    return page.encode()


def _origin(plan: Plan) -> str:
    """Where the predictions come from."""
    measured = [
        partition.name
        for model in plan.models
        for partition in model.partitions
        if any(law.basis is Basis.MEASURED for law in partition.laws)
    ]
    profiles = f"; those of {', '.join(measured)} from measured profiles" if measured else ""
    return (
        f"Times come from a roofline of every operator{profiles}, power from the part's curves, waiting from "
        "queueing formulas."
    )


def _tiles(explanation: Explanation) -> list[Tile]:
    saved_w = explanation.default_clock_power_w - explanation.power_w
    parked = sum(gpu.parked for gpu in explanation.gpus)
    tightest = min(explanation.models, key=lambda model: -1.0 if model.headroom is None else model.headroom)
    return [
        Tile(
            figure=f"{-100 * saved_w / explanation.default_clock_power_w:+.0f} %".replace(
                "-", "\N{MINUS SIGN}"
            ),
            label="power against default clocks",
            detail=f"{explanation.default_clock_power_w:.0f} to {explanation.power_w:.0f} W, predicted",
        ),
        Tile(
            figure=f"{len(explanation.gpus) - parked} of {len(explanation.gpus)}",
            label="GPUs work",
            detail=f"{parked} parked at the lowest clock",
        ),
        Tile(
            figure=_headroom(tightest),
            label="least SLO headroom",
            detail=f"{tightest.name}: {tightest.attainment:.1%} met, target {tightest.attainment_target:.1%}",
        ),
        Tile(
            figure=f"{explanation.mixing_price_w:.1f} W",
            label="price of sharing clocks",
            detail="by partitions that would do with less",
        ),
    ]


def _card(gpu: GpuExplanation) -> dict[str, object]:
    top_mhz = gpu.default_clock_mhz
    return {
        "name": gpu.name,
        "part": f"{gpu.part} (virtual)" if gpu.virtual else gpu.part,
        "parked": gpu.parked,
        "reason": gpu.clock_reason,
        "power": f"{gpu.power_w:.0f} W",
        "default_power": f"{gpu.default_clock_power_w:.0f} W at the default clock",
        "bars": [
            ("clock", gpu.clock_mhz / top_mhz, f"{gpu.clock_mhz} of {top_mhz} MHz", gpu.knee_mhz / top_mhz),
            ("busy", gpu.busy_share, f"{gpu.busy_share:.0%}", None),
            (
                "memory",
                gpu.memory_used_bytes / gpu.memory_bytes,
                f"{gpu.memory_used_bytes / 1e9:.1f} of {gpu.memory_bytes / 1e9:.1f} GB",
                None,
            ),
        ],
        "residents": [_resident_row(resident, gpu) for resident in gpu.residents],
    }


def _resident_row(resident: Resident, gpu: GpuExplanation) -> dict[str, object]:
    return {
        "name": resident.partition,
        "binds": resident.model == gpu.binding_model,
        "chips": [
            (
                f"{law.phase.value if len(resident.laws) > 1 else 'k'} {law.sensitivity.value:.2f}",
                _colour(law.sensitivity.value),
            )
            for law in resident.laws
        ],
        "busy": f"{resident.busy_share:.1%}",
        "power": f"{resident.power_w:.1f} W",
        "needs": f"{resident.own_clock_mhz} MHz",
    }


def _model_row(model: ModelExplanation) -> dict[str, str]:
    needed = model.needed_slo_ms
    return {
        "name": model.name,
        "slo": f"{model.slo_ms:,g} ms",
        "target": f"{model.attainment_target:.1%}",
        "met": f"{model.attainment:.1%}",
        "default_met": f"{model.default_clock_attainment:.1%}",
        "needs": "overloaded" if needed is None else f"{needed:,.{0 if needed >= 100 else 1}f} ms",
        "headroom": _headroom(model),
        "gpus": ", ".join(model.gpus),
    }


def _headroom(model: ModelExplanation) -> str:
    return "none" if model.headroom is None else f"{100 * model.headroom:.0f} %"


def _colour(sensitivity: float) -> str:
    mixed = [round(calm + sensitivity * (bound - calm)) for calm, bound in zip(_CALM, _BOUND, strict=True)]
    return "#" + "".join(f"{value:02x}" for value in mixed)


def _setup(plan: Plan) -> list[tuple[str, str]]:
    profiles = "; ".join(f"{name} {digest[:12]}" for name, digest in plan.profile_fingerprints.items())
    return [
        ("objective", plan.objective),
        ("target", plan.target),
        ("link", f"{plan.link_gbs:g} GB/s"),
        ("seed", str(plan.seed)),
        ("spec", plan.spec_sha256[:12]),
        ("models", profiles),
        ("muServe", plan.muserve_version),
    ]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
