"""The part catalogue and its check of part files."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from muserve.errors import InputError
from muserve.gpu.parts import Part, load_part, parse_part, part_names
from muserve.plan import Basis

V100 = resources.files("muserve.gpu.parts").joinpath("V100-16GB.json").read_text(encoding="utf-8")
SWEEP = Path(__file__).parents[4] / "shared/data/dvfs/v100_rtx8000_kernels.csv"


def changed(**fields: Any) -> str:
    return json.dumps(json.loads(V100) | fields)


def test_every_part_of_the_catalogue_loads_and_names_its_sources() -> None:
    for name in part_names():
        part = load_part(name)
        assert part.name == name
        described = set(Part.__dataclass_fields__) - {"name", "sources"}
        assert set(part.sources) == described
        assert all(source.text and source.basis in Basis for source in part.sources.values())


def test_the_v100_lists_the_clocks_that_nvml_reports() -> None:
    part = load_part("V100-16GB")
    assert len(part.clocks_mhz) == 167
    assert part.clocks_mhz[:3] == (135, 142, 150)
    assert part.clocks_mhz[-3:] == (1365, 1372, 1380)
    assert part.top_clock_mhz == 1380
    assert part.lowest_measured_mhz == 405


def test_an_unknown_part_is_one_sentence_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"unknown GPU part 'V1000': expected one of V100-16GB"):
        load_part("V1000")


def with_point(curve: int, point: int, **fields: float) -> str:
    document = json.loads(V100)
    document["busy_curves"][curve]["points"][point] |= fields
    return json.dumps(document)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "not valid JSON"),
        (changed(colour="green"), "colour: unknown key"),
        (changed(clocks_mhz=[200, 100]), "clocks_mhz: expected positive clocks in ascending order"),
        (changed(knee_mhz=946), "knee_mhz: expected one of clocks_mhz, got 946"),
        (changed(idle_w=50.0), "idle_w <= idle_default_w"),
        (changed(busy_curves=[]), "expected at least one curve"),
        (with_point(1, 3, clock_mhz=700), "middle: expected the clocks of the first curve"),
        (with_point(2, 0, time_ratio=1.0), "sensitive: expected time_ratio to fall"),
        (with_point(0, 4, power_w=500.0), "insensitive: expected power_w to rise"),
        (with_point(0, 9, power_w=251.0), "insensitive: expected power_w above idle_w and up to limit_w"),
        (with_point(2, 0, power_w=33.0), "sensitive: expected power_w above idle_w and up to limit_w"),
    ],
)
def test_a_bad_part_is_one_sentence(text: str, complaint: str) -> None:
    with pytest.raises(InputError, match=r"^mine\.json: ") as caught:
        parse_part(text, "mine.json")
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.shared_data
@pytest.mark.skipif(not SWEEP.exists(), reason="the published clock sweep is not on this machine")
def test_the_busy_curves_are_the_medians_of_the_published_sweep() -> None:
    """The method that the part's ``sources`` states, done again from the rows."""
    import csv
    from collections import defaultdict
    from statistics import median

    kernels: dict[str, dict[int, dict[str, str]]] = defaultdict(dict)
    with SWEEP.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["gpu"] == "V100-PCIe":
                kernels[row["workload"]][int(float(row["sm_clock_mhz"]))] = row

    def ratio(kernel: dict[int, dict[str, str]], clock_mhz: int) -> float:
        return float(kernel[clock_mhz]["latency_ms"]) / float(kernel[1380]["latency_ms"])

    def sensitivity(kernel: dict[int, dict[str, str]]) -> float:
        terms = [(1380 / clock - 1, ratio(kernel, clock) - 1) for clock in kernel if clock >= 945]
        return sum(x * y for x, y in terms) / sum(x * x for x, _ in terms)

    busy = [kernel for kernel in kernels.values() if float(kernel[1380]["util"]) >= 0.5]
    for curve, (low, high) in zip(
        load_part("V100-16GB").busy_curves, [(-1, 0.15), (0.15, 0.8), (0.8, 2)], strict=True
    ):
        group = [kernel for kernel in busy if low <= sensitivity(kernel) < high]
        assert curve.sensitivity == pytest.approx(median(map(sensitivity, group)), abs=6e-4)
        for point in curve.points:
            clock = point.clock_mhz
            assert point.time_ratio == pytest.approx(median(ratio(k, clock) for k in group), abs=6e-4)
            assert point.power_w == pytest.approx(median(float(k[clock]["power_w"]) for k in group), abs=0.06)
