"""What ``muplan explain`` shows people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from muplan.explanation import Explanation, GpuExplanation, ModelExplanation
from muplan.fitted_table import FittedTable
from muserve.plan import TimeLaw


def explanation_tables(explanation: Explanation) -> RenderableType:
    """GPUs, who sits on them, models, cuts and the whole cluster's power."""
    working = [gpu for gpu in explanation.gpus if not gpu.parked]
    cut = [model for model in explanation.models if model.cuts]
    tables = [_gpus_table(explanation.gpus)]
    if working:
        tables.append(_residents_table(working))
    if explanation.models:
        tables.append(_models_table(explanation.models))
    if cut:
        tables.append(_cuts_table(cut))
    return Group(*tables, _closing(explanation))


def _gpus_table(gpus: Sequence[GpuExplanation]) -> FittedTable:
    table = _table(
        "GPUs",
        left=("GPU",),
        right=("clock", "power", "default", "busy", "mixing", "tightest SLO"),
        last="why this clock",
        caption="Power at the plan's clock and at the driver's default one. Mixing: what sharing one clock "
        "costs. Tightest SLO: the model with the least headroom.",
    )
    for gpu in gpus:
        table.add_row(
            f"{gpu.name}\n{gpu.part}" + (" (virtual)" if gpu.virtual else ""),
            f"{gpu.clock_mhz} MHz",
            f"{gpu.power_w:.0f} W",
            f"{gpu.default_clock_power_w:.0f} W",
            f"{gpu.busy_share:.0%}",
            "" if gpu.parked else f"{gpu.mixing_price_w:.1f} W",
            "" if gpu.parked else f"{gpu.tightest_model}\n{_share(gpu.least_headroom)} left",
            gpu.clock_reason,
        )
    return table


def _residents_table(gpus: Sequence[GpuExplanation]) -> FittedTable:
    table = _table(
        "Who sits where",
        left=("GPU", "partition"),
        right=("k", "range", "basis", "busy", "power", "memory", "would do with"),
        caption="k: share of the time that follows the clock. Would do with: the lowest clock, from the knee "
        "up, that keeps the model's SLO. * sets the clock.",
    )
    for gpu in gpus:
        for number, resident in enumerate(gpu.residents):
            table.add_row(
                gpu.name if number == 0 else "",
                resident.partition,
                "\n".join(
                    _phase(law, resident.laws) + f"{law.sensitivity.value:.2f}" for law in resident.laws
                ),
                "\n".join(f"{law.sensitivity.low:.2f}-{law.sensitivity.high:.2f}" for law in resident.laws),
                "\n".join(law.sensitivity.basis.value for law in resident.laws),
                f"{resident.busy_share:.1%}",
                f"{resident.power_w:.1f} W",
                f"{resident.memory_bytes / 1e9:.1f} GB",
                f"{resident.own_clock_mhz} MHz{'*' if resident.model == gpu.binding_model else ''}",
            )
        table.add_section()
    return table


def _models_table(models: Sequence[ModelExplanation]) -> FittedTable:
    table = _table(
        "Models",
        left=("model",),
        right=("SLO", "target", "met", "at default", "needs", "headroom"),
        last="GPUs",
        caption="At default: at the driver's default clocks. Needs: the shortest limit that the plan's "
        "clocks keep.",
    )
    for model in models:
        needed, headroom = model.needed_slo_ms, model.headroom
        table.add_row(
            model.name,
            f"{model.slo_ms:,g} ms",
            f"{model.attainment_target:.1%}",
            f"{model.attainment:.1%}",
            f"{model.default_clock_attainment:.1%}",
            "overloaded" if needed is None else f"{needed:,.{0 if needed >= 100 else 1}f} ms",
            _share(headroom),
            ", ".join(model.gpus),
        )
    return table


def _cuts_table(models: Sequence[ModelExplanation]) -> FittedTable:
    table = _table(
        "Cuts",
        left=("model", "after"),
        right=("sends", "takes", "unlikeness", "imbalance", "transfer", "cut", "gain"),
        caption="What the cut removes (unlikeness of k, imbalance) and adds (transfer, the cut itself), as "
        "shares of the model's time or variance. A negative gain: the spec or the memory of a GPU demanded "
        "the cut.",
    )
    for model in models:
        for number, cut in enumerate(model.cuts):
            gain = cut.unlikeness_removed + cut.imbalance_removed - cut.transfer_cost - cut.cut_cost
            table.add_row(
                model.name if number == 0 else "",
                cut.after_operator,
                f"{cut.transfer_bytes / 1e6:.2f} MB",
                f"{cut.transfer_ms:.2f} ms",
                *map(_signed, (cut.unlikeness_removed, cut.imbalance_removed, -cut.transfer_cost)),
                *map(_signed, (-cut.cut_cost, gain)),
            )
    return table


def _closing(explanation: Explanation) -> Text:
    saved = 1 - explanation.power_w / explanation.default_clock_power_w
    return Text(
        f"Predicted power of all GPUs {explanation.power_w:.1f} W, at default clocks "
        f"{explanation.default_clock_power_w:.1f} W ({saved:.0%} less). Sharing clocks costs "
        f"{explanation.mixing_price_w:.1f} W.\n"
        "Everything here is predicted from the plan, nothing was observed in service."
    )


def _table(
    title: str, *, left: Sequence[str], right: Sequence[str], last: str | None = None, caption: str
) -> FittedTable:
    table = FittedTable(title=title, title_justify="left", caption=caption, caption_justify="left")
    for heading in left:
        table.add_column(heading, overflow="fold")
    for heading in right:
        table.add_column(heading, justify="right", no_wrap=True)
    if last is not None:
        table.add_column(last, overflow="fold")
    return table


def _share(headroom: float | None) -> str:
    return "nothing" if headroom is None else f"{headroom:.0%}"


def _signed(value: float) -> str:
    return f"{round(value, 4) + 0.0:+.4f}"


def _phase(law: TimeLaw, laws: Sequence[TimeLaw]) -> str:
    return f"{law.phase.value} " if len(laws) > 1 else ""
