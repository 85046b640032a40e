"""How well few calibration clocks predict the others, on published clock sweeps.

The folder holds the published measurements as CSV files (default: ../shared/data/dvfs beside the checkout).
Each sweep is fitted at three clocks (the top, about half of it, and the one between them) and tested at all
of its other clocks within that range; "beyond the range" are clocks below it, where
the laws refuse to answer.

Left out: rows that the data's README marks SUSPECT, sweeps of fewer than five clocks, V100 rows below
850 MHz, where those boards ran slower than the clock they were asked for, and RTX 5090 rows with the
memory clock at 405 or 810 MHz. Repeated runs of one operating point are averaged first.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from muserve.errors import InputError
from muserve.fitting import calibration_clocks, non_negative_least_squares
from muserve.gpu.parts import load_part
from muserve.power_fit import FittedPower, fit_power
from muserve.time_fit import FittedTime, fit_time

DEFAULT_FOLDER = Path(__file__).resolve().parents[2] / "shared/data/dvfs"
FILES = (
    "a100_rtxpro6000_freq_x_cap.csv",
    "a100_v100_dcgm_sweeps.csv",
    "dnn_older_gpus.csv",
    "geforce_kernels.csv",
    "l20_vllm_qwen7b.csv",
    "laptop_dl_ops.csv",
    "rtx3090_4090_5090_llm.csv",
    "v100_33workloads.csv",
    "v100_rtx8000_kernels.csv",
    "v100_rtx8000_microbench.csv",
    "v100_vllm_mistral7b.csv",
)
PARTS = {
    "A100(300W PCIe)": "A100-80GB",
    "A100-SXM(GA100)": "A100-40GB",
    "L20": "L20",
    "V100(300W)": "V100-32GB",
    "V100-PCIe": "V100-16GB",
    "V100-SXM2-32GB": "V100-32GB",
}
LEAST_CLOCKS = 5
BAR = {"time": (0.03, 0.08), "power": (0.04, 0.08)}

# Latency and power of one run at one clock, as far as published.
Run = tuple[float | None, float | None]
Samples = Mapping[float, float]
Predict = Callable[[float], float]
# Makes a predictor from samples at the calibration clocks.
Fit = Callable[[Samples], Predict]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """One workload on one GPU: latency and power by clock in MHz."""

    file: str
    gpu: str
    latency: dict[float, float] = field(default_factory=dict)
    power: dict[float, float] = field(default_factory=dict)

    def samples(self, what: str) -> dict[float, float]:
        return self.latency if what == "time" else self.power

    @property
    def knee_mhz(self) -> float:
        """The knee of the GPU's part; 0 when the catalogue has no such part."""
        return float(load_part(PARTS[self.gpu]).knee_mhz) if self.gpu in PARTS else 0.0


def read_sweeps(folder: Path) -> list[Sweep]:
    """Every sweep of ``folder``; InputError when one of its files is missing."""
    sweeps = []
    for file in FILES:
        try:
            text = (folder / file).read_text(encoding="utf-8")
        except OSError as error:
            raise InputError(f"{folder / file}: expected the published sweeps: {error.strerror}") from error
        runs: dict[tuple[str, ...], dict[float, list[Run]]] = defaultdict(lambda: defaultdict(list))
        for row in csv.DictReader(text.splitlines()):
            if _usable(row):
                runs[_series(row)][float(row["sm_clock_mhz"])].append(
                    (_latency(row), _number(row["power_w"]))
                )
        for series, by_clock in runs.items():
            latency, power = (_averaged(by_clock, position) for position in (0, 1))
            sweeps.append(Sweep(file=file, gpu=series[1], latency=latency, power=power))
    return sweeps


def _usable(row: dict[str, str]) -> bool:
    if not row["sm_clock_mhz"] or "SUSPECT" in row["notes"] or row["phase"] == "idle":
        return False
    if row["gpu"] == "RTX5090" and row["mem_clock_mhz"] in ("405.0", "810.0"):
        return False
    return "V100" not in row["gpu"] or float(row["sm_clock_mhz"]) >= 850


def _series(row: dict[str, str]) -> tuple[str, ...]:
    """What must be equal for two rows to be of one sweep."""
    # A power limit tells sweeps apart only where clock and limit were both set, else it set the clock.
    limit = row["power_limit_w"] if row["source"] == "giordano" else ""
    variant = re.findall(r"(?:in=|ctx|optimizer)[^;]*|settled", row["notes"])
    keys = ("source", "gpu", "workload", "phase", "batch", "mem_clock_mhz")
    return (*(row[key] for key in keys), limit, *variant)


def _latency(row: dict[str, str]) -> float | None:
    """In any unit: one source gives only the speed relative to the top clock."""
    if row["source"] == "zyj":
        return 1 / float(row["throughput"])
    return _number(row["latency_ms"])


def _number(text: str) -> float | None:
    return float(text) if text else None


def _averaged(by_clock: Mapping[float, list[Run]], position: int) -> dict[float, float]:
    """The mean of the runs at each clock, without the clocks at which nothing is known."""
    known = {clock: [run[position] for run in runs] for clock, runs in by_clock.items()}
    return {clock: fmean(filter(None, values)) for clock, values in known.items() if any(values)}


def _beyond_time(law: FittedTime) -> Predict:
    return replace(law, lowest_mhz=0.0).latency_ms


def _beyond_power(law: FittedPower) -> Predict:
    return replace(law, lowest_mhz=0.0).power_w


def _ends(samples: Samples) -> Samples:
    return {clock: samples[clock] for clock in (min(samples), max(samples))}


def _terms(*exponents: int) -> Fit:
    """A constant plus the given powers of the clock, coefficients non-negative."""

    def fit(samples: Samples) -> Predict:
        top = max(samples)

        def row(clock: float) -> list[float]:
            return [1.0, *((clock / top) ** exponent for exponent in exponents)]

        relative = np.array([row(clock) for clock in samples]) / np.array(list(samples.values()))[:, None]
        coefficients = non_negative_least_squares(relative, np.ones(len(samples)))
        return lambda clock: float(np.array(row(clock)) @ coefficients)

    return fit


OURS = "muserve"
FORMS: dict[str, dict[str, Fit]] = {
    "time": {
        OURS: lambda s: _beyond_time(fit_time(s)),
        "a + b/f only": _terms(-1),
        "a + b/f at two clocks": lambda s: _beyond_time(fit_time(_ends(s))),
        "no clock: all 1/f": lambda s: lambda clock: s[max(s)] * max(s) / clock,
    },
    "power": {
        OURS: lambda s: _beyond_power(fit_power(s)),
        "P0 + c1 x + c3 x^3 only": _terms(1, 3),
        "P0 + c3 x^3": _terms(3),
        "P0 + c1 x": _terms(1),
        "P0 + c3 x^3 at two clocks": lambda s: _terms(3)(_ends(s)),
    },
}


def errors(
    sweep: Sweep, what: str, fit: Fit, *, knee: bool = False, within: bool = True, beyond: bool = False
) -> tuple[float, float] | None:
    """Mean and worst relative error at the clocks held out within the range and beyond it; None without any.

    With ``knee`` the calibration clocks lie at or above the knee that the catalogue knows.
    """
    samples = sweep.samples(what)
    try:
        chosen = calibration_clocks(list(samples), sweep.knee_mhz if knee else 0.0)
    except ValueError:
        return None
    held_out = [c for c in samples if c not in chosen and (beyond if c < chosen[0] else within)]
    if len(samples) < LEAST_CLOCKS or not held_out:
        return None
    predict = fit({clock: samples[clock] for clock in chosen})
    misses = [abs(predict(clock) / samples[clock] - 1) for clock in held_out]
    return fmean(misses), max(misses)


def distribution(found: list[tuple[float, float]]) -> dict[str, Any]:
    """Quartiles over the sweeps of their mean and worst errors."""
    columns = np.array(found).reshape(-1, 2).T
    return {"series": len(found)} | {
        name: {label: round(float(np.quantile(column, at)), 5) for label, at in QUANTILES.items()}
        for name, column in zip(("mean", "worst"), columns, strict=True)
        if len(found)
    }


QUANTILES = {"median": 0.5, "p75": 0.75, "p90": 0.9}


def measure(sweeps: list[Sweep], what: str) -> dict[str, Any]:
    """Distributions of one quantity, by form, by subset and by source."""

    def over(chosen: list[Sweep], fit: Fit = FORMS[what][OURS], **options: bool) -> dict[str, Any]:
        found = [errors(sweep, what, fit, **options) for sweep in chosen]
        return distribution([each for each in found if each is not None])

    def spans(sweep: Sweep) -> float:
        return max(sweep.samples(what), default=1.0) / min(sweep.samples(what), default=1.0)

    kernels = [sweep for sweep in sweeps if "microbench" not in sweep.file]
    groups = sorted({(sweep.file, sweep.gpu) for sweep in sweeps})
    sources = {
        f"{file.removesuffix('.csv')} {gpu}": over([s for s in sweeps if (s.file, s.gpu) == (file, gpu)])
        for file, gpu in groups
    }
    return {
        "forms": {name: over(sweeps, fit) for name, fit in FORMS[what].items()},
        "subsets": {
            "without microbenchmarks": over(kernels),
            "top clock at least 1.6 x lowest, no microbenchmarks": over(
                [s for s in kernels if spans(s) >= 1.6]
            ),
            "calibrated above the catalogue's knee": over([s for s in sweeps if s.knee_mhz], knee=True),
            "all other clocks, within the range or not": over(sweeps, beyond=True),
            "beyond the range, where the law refuses": over(sweeps, within=False, beyond=True),
        },
        "sources": {name: found for name, found in sources.items() if found["series"]},
        "bar": {"mean": BAR[what][0], "worst": BAR[what][1]},
    }


def table(what: str, measured: dict[str, Any]) -> Table:
    result = Table(title=f"{what}: error in % at held-out clocks, over series", title_justify="left")
    result.add_column("fit or group")
    result.add_column("series", justify="right")
    for name in ("mean", "worst"):
        for label in QUANTILES:
            result.add_column(f"{name} {label}", justify="right")
    for section in ("forms", "subsets", "sources"):
        for name, found in measured[section].items():
            cells = [f"{100 * found[n][q]:.2f}" for n in ("mean", "worst") for q in QUANTILES]
            result.add_row(name, str(found["series"]), *cells)
        result.add_section()
    return result


def main() -> None:
    """Measure, and print tables or, with --json, the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=DEFAULT_FOLDER)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args()
    try:
        sweeps = read_sweeps(options.folder)
    except InputError as error:
        print(f"bench_physics: {error}", file=sys.stderr)
        sys.exit(2)
    report = {what: measure(sweeps, what) for what in FORMS}
    if options.json:
        print(json.dumps(report, indent=2))
        return
    console = Console(width=150)
    for what, measured in report.items():
        console.print(table(what, measured))
        bar = measured["bar"]
        print(f"bar, median over series: mean {100 * bar['mean']:g} %, worst {100 * bar['worst']:g} %\n")


if __name__ == "__main__":
    main()
