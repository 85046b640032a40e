"""``report.json``: the shape that every measuring command prints."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from muplan.report.arm import ArmFigures, ArmRun, arm_figures
from muplan.report.bootstrap import Interval, mean_ratio

_CPU_BOUND_SHARE = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratios:
    """The last arm over the first, below 1 where the last needs less.

    ``jct_mean`` is over requests that both arms completed, ``jct_mean_by_model`` likewise. Energy comes from
    one run an arm and has no interval.
    """

    energy_j: float
    average_power_w: float
    joules_per_good_request: float | None
    jct_mean: Interval | None
    jct_mean_by_model: dict[str, Interval | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A comparison of arms under the same load, the baseline first and ours last.

    ``setup`` must hold what a reader needs to run it again, and ``virtual``; ``notes`` say what the
    figures do not show. ``slo_ms`` is keyed by model, in the order to show them.
    """

    title: str
    runs: tuple[ArmRun, ...]
    slo_ms: Mapping[str, float]
    setup: Mapping[str, Any]
    notes: tuple[str, ...]

    def figures(self) -> dict[str, ArmFigures]:
        """The figures of each arm, by its name."""
        return {run.name: arm_figures(run, self.slo_ms) for run in self.runs}

    def ratios(self) -> Ratios:
        """The last arm against the first."""
        base_run, ours_run = self.runs[0], self.runs[-1]
        base, ours = arm_figures(base_run, self.slo_ms), arm_figures(ours_run, self.slo_ms)
        per_good = (ours.joules_per_good_request, base.joules_per_good_request)
        return Ratios(
            energy_j=ours.energy_j / base.energy_j,
            average_power_w=ours.average_power_w / base.average_power_w,
            joules_per_good_request=per_good[0] / per_good[1] if per_good[0] and per_good[1] else None,
            jct_mean=_jct_ratio(ours_run, base_run, None),
            jct_mean_by_model={m: _jct_ratio(ours_run, base_run, m) for m in self.slo_ms},
        )

    def cpu_bound(self) -> dict[str, float]:
        """Models whose JCT was made in good part by the CPU of this machine, and its share in the worst arm.

        Their JCT and attainment say more about the machine than about the arms.
        """
        shares = {model: max(run.cpu_share(model) for run in self.runs) for model in self.slo_ms}
        return {model: share for model, share in shares.items() if share >= _CPU_BOUND_SHARE}

    def all_notes(self) -> tuple[str, ...]:
        """What a reader must know, the warnings that follow from the figures first."""
        warnings = tuple(
            f"{model}: up to {share:.0%} of its JCT is the CPU of this machine computing the real answers, "
            "slower than the virtual GPU. A change in its JCT or attainment is not the scheduler's "
            "or the clocks' doing."
            for model, share in self.cpu_bound().items()
        )
        return warnings + self.notes

    def document(self) -> dict[str, Any]:
        """The report as JSON types."""
        return {
            "title": self.title,
            "arms": {name: asdict(figures) for name, figures in self.figures().items()},
            "ratios": asdict(self.ratios()),
            "slo_ms": dict(self.slo_ms),
            "setup": dict(self.setup),
            "cpu_bound": self.cpu_bound(),
            "notes": list(self.all_notes()),
        }

    def json_text(self) -> str:
        """The report as indented JSON with a final newline; arms keep their order."""
        return json.dumps(self.document(), indent=2, allow_nan=False) + "\n"


def _jct_ratio(ours: ArmRun, base: ArmRun, model: str | None) -> Interval | None:
    ours_s, base_s = _paired(ours, base, model)
    return mean_ratio(ours_s, base_s) if len(ours_s) else None


def _paired(
    ours: ArmRun, base: ArmRun, model: str | None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """JCTs of the requests that both arms completed; both lists hold the same requests in order."""
    pairs: Sequence[tuple[float, float]] = [
        (mine.jct_s, theirs.jct_s)
        for mine, theirs in zip(ours.outcomes, base.outcomes, strict=True)
        if mine.jct_s is not None and theirs.jct_s is not None and model in (None, mine.request.model)
    ]
    array = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return array[:, 0], array[:, 1]
