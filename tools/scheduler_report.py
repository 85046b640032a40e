"""What ``tools/bench_scheduler.py`` measured, as a table and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def table(cell: dict[str, Any]) -> str:
    """One cell for people."""
    place = cell["cell"]
    lines = [
        f"\n{place['slots']} slots, load {place['load']:g}, {place['arrivals']}, rounds 1-{place['rounds']}",
        f"  {'':14}{'mean s':>8}{'p50':>8}{'p99':>8}{'captured':>16}{'p99/FCFS':>10}{'wait/FCFS':>11}"
        f"{'pace':>7}",
    ]
    for name, arm in cell["arms"].items():
        jct, captured = arm["jct_s"], arm["captured"]
        share = f"{captured['mean']:.2f} ±{captured['spread']:.2f}" if captured else "no gain"
        lines.append(
            f"  {name:14}{jct['mean']:8.2f}{jct['p50']:8.2f}{jct['p99']:8.2f}"
            f"{share:>16}{arm['p99_ratio']['mean']:10.2f}"
            f"{arm['longest_wait_ratio']['mean']:11.2f}{arm['service_pace']:7.2f}"
        )
    return "\n".join([*lines, *(f"  {name}: {value:.2f}" for name, value in cell["ratios"].items())])


def plot(report: dict[str, Any], file: Path) -> None:
    """Captured share against the p99 ratio, one picture a cell."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cells = report["cells"]
    figure, axes = pyplot.subplots(1, len(cells), figsize=(4.2 * len(cells), 3.8), squeeze=False)
    for axis, cell in zip(axes[0], cells, strict=True):
        for name, arm in cell["arms"].items():
            if arm["captured"] is None:
                continue
            axis.errorbar(
                arm["p99_ratio"]["mean"],
                arm["captured"]["mean"],
                xerr=arm["p99_ratio"]["spread"],
                yerr=arm["captured"]["spread"],
                fmt="o",
                label=name,
            )
        place = cell["cell"]
        axis.set_title(f"{place['slots']} slots, load {place['load']:g}\n{place['arrivals']}", fontsize=9)
        axis.set_xlabel("p99 completion time / FCFS")
        axis.axvline(1.1, color="grey", linewidth=0.6)
    axes[0][0].set_ylabel("captured share of the oracle's gain")
    axes[0][-1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(file)
