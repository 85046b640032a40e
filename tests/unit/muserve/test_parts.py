"""The part catalogue and its check of part files."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import pytest

from muserve.errors import InputError
from muserve.gpu.parts import FigureBasis, Part, load_part, parse_part, part_names
from muserve.plan import Basis

V100 = resources.files("muserve.gpu.parts").joinpath("V100-16GB.json").read_text(encoding="utf-8")
MEASURED = {"A100-40GB", "A100-80GB", "L20", "V100-16GB", "V100-32GB"}


def changed(**fields: Any) -> str:
    return json.dumps(json.loads(V100) | fields)


def test_every_part_of_the_catalogue_loads_and_names_its_sources() -> None:
    for name in part_names():
        part = load_part(name)
        assert part.name == name
        described = set(Part.__dataclass_fields__) - {"name", "sources"}
        assert set(part.sources) == described
        assert all(source.text and source.basis in FigureBasis for source in part.sources.values())


def test_the_catalogue_holds_twelve_parts_and_says_which_are_modelled() -> None:
    assert set(part_names()) == MEASURED | {"A10G", "A40", "H100", "H200", "L4", "L40S", "T4"}
    for name in part_names():
        part = load_part(name)
        assert part.response_basis is (Basis.MEASURED if name in MEASURED else Basis.MODELLED)
        if name not in MEASURED:
            assert part.sources["busy_curves"].text.startswith("Modelled, no ")
            assert part.sources["knee_mhz"].text.startswith("Modelled: ")


@pytest.mark.parametrize("name", part_names())
def test_peaks_are_ordered_as_hardware_orders_them(name: str) -> None:
    """Narrower numbers are never slower, and the link to the host is slower than memory."""
    part = load_part(name)
    order = [("fp32", "tf32"), ("tf32", "fp16"), ("fp32", "fp16"), ("fp16", "int8"), ("fp16", "fp8")]
    for wide, narrow in order:
        if {wide, narrow} <= set(part.peak_tflops):
            assert part.peak_tflops[wide] <= part.peak_tflops[narrow]
    assert part.peak_tflops.get("bf16", part.peak_tflops["fp16"]) == part.peak_tflops["fp16"]
    assert part.host_link_gbs < part.bandwidth_gbs


def test_the_v100_lists_the_clocks_that_nvml_reports() -> None:
    part = load_part("V100-16GB")
    assert len(part.clocks_mhz) == 167
    assert part.clocks_mhz[:3] == (135, 142, 150)
    assert part.clocks_mhz[-3:] == (1365, 1372, 1380)
    assert part.top_clock_mhz == 1380
    assert part.lowest_measured_mhz == 405


def test_an_unknown_part_is_one_sentence_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"unknown GPU part 'V1000': expected one of A100-40GB, .*V100-32GB"):
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
        (changed(clocks_mhz=[200, 100]), "clocks_mhz: expected clocks in ascending order"),
        (changed(knee_mhz=946), "knee_mhz: expected one of clocks_mhz, got 946"),
        (changed(idle_w=50.0), "idle_w <= idle_default_w"),
        (changed(limit_min_w=300.0), "expected idle_w < limit_min_w <= limit_w"),
        (changed(clocks_mhz=[0, 945]), "clocks_mhz[0]: input should be greater than 0, got 0"),
        (changed(host_link_gbs=0.0), "host_link_gbs: input should be greater than 0, got 0.0"),
        (changed(bandwidth_gbs=9e11), "bandwidth_gbs: input should be less than or equal to 1000000, got"),
        (changed(memory_bytes=True), "memory_bytes: input should be a valid integer, got True"),
        (changed(idle_w="33"), "idle_w: input should be a valid number, got '33'"),
        (changed(switch_call_ms=-1), "switch_call_ms: input should be greater than or equal to 0, got -1"),
        (changed(limit_w=float("nan")), "limit_w: input should be a finite number, got nan"),
        ("[" * 100_000, "not valid JSON: recursion limit exceeded"),
        ("null", "(top level): input should be an object, got None"),
        (changed(peak_tflops={}), "peak_tflops: expected a peak for"),
        (changed(sources={}), "sources: expected an entry for busy_curves"),
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
