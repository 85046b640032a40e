"""The busy curves of the catalogue, made again by the method that each part's ``sources`` states.

Curves of measured parts come from the published rows, those of modelled parts from other parts of the
catalogue (or, for the T4, from the rows of its larger sibling).
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from statistics import median

import pytest

from muserve.gpu.parts import load_part
from muserve.physics import busy_power_w, slowdown

DATA = Path(__file__).parents[4] / "shared/data/dvfs"
needs_data = pytest.mark.skipif(
    not DATA.exists(), reason="the published measurements are not on this machine"
)

# One workload over the clock: MHz -> (run time in any unit, board power in W).
Sweep = dict[int, tuple[float, float]]


def rows(file: str) -> Iterable[dict[str, str]]:
    with (DATA / file).open(encoding="utf-8", newline="") as lines:
        yield from (row for row in csv.DictReader(lines) if "SUSPECT" not in row["notes"])


def sweeps(
    published: Iterable[dict[str, str]], name: Callable[[dict[str, str]], str] = lambda row: row["workload"]
) -> dict[str, Sweep]:
    """The rows by workload; a row without a run time gives the speed relative to the top clock."""
    found: dict[str, Sweep] = defaultdict(dict)
    for row in published:
        time = float(row["latency_ms"] or 0) or 1 / float(row["throughput"])
        found[name(row)][int(float(row["sm_clock_mhz"]))] = (time, float(row["power_w"]))
    return found


def busy_kernels(file: str, gpu: str, top_mhz: int) -> dict[str, Sweep]:
    """Kernels of one GPU, those that keep it at least half busy at the top clock."""
    of_gpu = [row for row in rows(file) if row["gpu"] == gpu]
    busy = {
        row["workload"]
        for row in of_gpu
        if float(row["sm_clock_mhz"]) == top_mhz and float(row["util"]) >= 0.5
    }
    return sweeps(row for row in of_gpu if row["workload"] in busy)


def sensitivity(sweep: Sweep, top_mhz: int, knee_mhz: int) -> float:
    top_time = sweep[top_mhz][0]
    terms = [(top_mhz / clock - 1, sweep[clock][0] / top_time - 1) for clock in sweep if clock >= knee_mhz]
    return sum(x * y for x, y in terms) / sum(x * x for x, _ in terms)


def by_sensitivity(
    found: Mapping[str, Sweep], top_mhz: int, knee_mhz: int, *borders: float
) -> list[list[Sweep]]:
    """The classes between the ``borders``, least sensitive first."""
    edges = [-1.0, *borders, 2.0]
    return [
        [sweep for sweep in found.values() if low <= sensitivity(sweep, top_mhz, knee_mhz) < high]
        for low, high in pairwise(edges)
    ]


def assert_medians(
    name: str, classes: list[list[Sweep]], *, top_mhz: int, knee_mhz: int, power_scale: float = 1.0
) -> None:
    """The part's curves are the medians of ``classes``, at the same shares of the top clock."""
    part = load_part(name)
    for curve, group in zip(part.busy_curves, classes, strict=True):
        expected = max(0.0, median(sensitivity(sweep, top_mhz, knee_mhz) for sweep in group))
        assert curve.sensitivity == pytest.approx(expected, abs=6e-4)
        for point in curve.points:
            published = min(group[0], key=lambda c: abs(c / top_mhz - point.clock_mhz / part.top_clock_mhz))
            assert published / top_mhz == pytest.approx(point.clock_mhz / part.top_clock_mhz, abs=0.01)
            time_ratio = median(sweep[published][0] / sweep[top_mhz][0] for sweep in group)
            assert point.time_ratio == pytest.approx(time_ratio, abs=6e-4)
            power_w = power_scale * median(sweep[published][1] for sweep in group)
            assert point.power_w == pytest.approx(power_w, abs=0.06)


@pytest.mark.shared_data
@needs_data
def test_v100_16gb_from_published_kernels() -> None:
    kernels = busy_kernels("v100_rtx8000_kernels.csv", "V100-PCIe", 1380)
    every_row = (DATA / "v100_rtx8000_kernels.csv").open(encoding="utf-8", newline="")
    with every_row:
        # This part alone keeps the points below 600 MHz that the publisher marks, and says so.
        everything = sweeps(
            row
            for row in csv.DictReader(every_row)
            if row["gpu"] == "V100-PCIe" and row["workload"] in kernels
        )
    classes = by_sensitivity(everything, 1380, 945, 0.15, 0.8)
    assert [len(group) for group in classes] == [3, 4, 5]
    assert_medians("V100-16GB", classes, top_mhz=1380, knee_mhz=945)


@pytest.mark.shared_data
@needs_data
def test_v100_32gb_from_published_workloads() -> None:
    classes = by_sensitivity(sweeps(rows("v100_33workloads.csv")), 1530, 952, 0.15, 0.6)
    assert [len(group) for group in classes] == [9, 11, 2]
    assert_medians("V100-32GB", classes, top_mhz=1530, knee_mhz=952)


@pytest.mark.shared_data
@needs_data
def test_a100_40gb_from_the_dcgm_sweep() -> None:
    found = busy_kernels("a100_v100_dcgm_sweeps.csv", "A100-SXM(GA100)", 1410)
    classes = by_sensitivity(found, 1410, 1005, 0.15, 0.4, 0.7)
    assert [len(group) for group in classes] == [1, 2, 5, 3]
    assert max(sweep[1410][1] for sweep in classes[-1]) > load_part("A100-40GB").limit_w
    assert_medians("A100-40GB", classes, top_mhz=1410, knee_mhz=1005)


@pytest.mark.shared_data
@needs_data
def test_a100_80gb_from_the_runs_without_a_lower_cap() -> None:
    uncapped = sweeps(
        row
        for row in rows("a100_rtxpro6000_freq_x_cap.csv")
        if row["gpu"].startswith("A100") and float(row["power_limit_w"]) == 300 and row["power_w"]
    )
    classes = [[uncapped["BabelStream"]], [uncapped["pi-solver"]]]
    assert_medians("A100-80GB", classes, top_mhz=1410, knee_mhz=1005)


@pytest.mark.shared_data
@needs_data
def test_l20_from_llm_serving() -> None:
    def name(row: dict[str, str]) -> str:
        campaign = "settled" if "settled" in row["notes"] else "first"
        return f"{row['phase']} {row['batch']} {row['notes'].split(';')[0]} {campaign}"

    served = [row for row in rows("l20_vllm_qwen7b.csv") if row["phase"] in ("prefill", "decode")]
    found = sweeps(served, name)
    classes = [
        [found["decode 16.0 ctx~1220 settled"]],
        [found[f"decode {batch} ctx={context} first"] for batch in (128.0, 256.0) for context in (256, 1024)],
        [found[f"prefill 1.0 in={tokens} first"] for tokens in (1024, 2048, 7168)],
    ]
    assert_medians("L20", classes, top_mhz=2520, knee_mhz=1500)


@pytest.mark.shared_data
@needs_data
def test_t4_from_its_larger_sibling() -> None:
    kernels = busy_kernels("v100_rtx8000_kernels.csv", "RTX8000", 1710)
    classes = by_sensitivity(kernels, 1710, 1110, 0.15, 0.8)
    assert [len(group) for group in classes] == [2, 4, 6]
    assert_medians("T4", classes, top_mhz=1710, knee_mhz=1110, power_scale=70 / 260)


@pytest.mark.shared_data
@needs_data
def test_h100_levels_are_those_of_served_llms() -> None:
    served = [
        (float(row["batch"]), float(row["power_w"]), row["workload"])
        for row in rows("h100_b200_llm_batch_power.csv")
        if row["gpu"] == "H100" and row["phase"] != "diffusion"
    ]
    small = median(power_w for batch, power_w, _ in served if batch <= 12)
    large = median(power_w for batch, power_w, _ in served if 96 <= batch <= 192)
    _, largest, _ = max(row for row in served if row[2].startswith("Llama-3.1-8B"))
    for name in ("H100", "H200"):
        levels = [curve.points[-1].power_w for curve in load_part(name).busy_curves]
        assert levels == pytest.approx([small, large, largest], rel=0.01)


@pytest.mark.parametrize(
    ("name", "neighbours"),
    [
        ("H100", ["A100-40GB"]),
        ("H200", ["A100-40GB"]),
        ("A10G", ["A100-40GB", "L20"]),
        ("A40", ["A100-40GB", "L20"]),
        ("L4", ["L20"]),
        ("L40S", ["L20"]),
    ],
)
def test_modelled_curves_have_their_neighbours_shape(name: str, neighbours: list[str]) -> None:
    part, near = load_part(name), [load_part(neighbour) for neighbour in neighbours]
    share = max(other.knee_mhz / other.top_clock_mhz for other in near)
    assert 0 <= part.knee_mhz - share * part.top_clock_mhz < 15, "the next clock up, the cautious side"
    for curve in part.busy_curves:
        k, top_w = curve.sensitivity, curve.points[-1].power_w
        for point in curve.points:
            at = [point.clock_mhz / part.top_clock_mhz * other.top_clock_mhz for other in near]
            pairs = list(zip(near, at, strict=True))
            if name in ("H100", "H200"):
                relative = [busy_power_w(o, k, c) / busy_power_w(o, k, o.top_clock_mhz) for o, c in pairs]
                scale_w = top_w
            else:
                relative = [busy_power_w(o, k, c) / o.limit_w for o, c in pairs]
                scale_w = part.limit_w
            assert point.power_w == pytest.approx(scale_w * sum(relative) / len(relative), abs=0.06)
            if point.clock_mhz < part.knee_mhz:
                knee_share = part.knee_mhz / part.top_clock_mhz
                factors = [slowdown(o, k, c) / slowdown(o, k, knee_share * o.top_clock_mhz) for o, c in pairs]
                at_knee = 1 - k + k * part.top_clock_mhz / part.knee_mhz
                assert point.time_ratio == pytest.approx(at_knee * sum(factors) / len(factors), abs=6e-4)
