"""What ``muplan explain`` knows of a plan: GPUs with residents, models with headroom. Plain data."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from muserve.errors import InputError
from muserve.plan import CutPlan, TimeLaw

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
    knee_mhz: int
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


def _check_names(what: str, names: Iterable[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            shown = ", ".join(known[:_MOST_NAMES]) + (", ..." if len(known) > _MOST_NAMES else "")
            raise InputError(f"the plan has no {what} {name!r}: expected one of {shown}")
