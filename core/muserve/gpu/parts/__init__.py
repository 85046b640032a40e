"""The part catalogue: what is known about each GPU product, every figure with its source.

A part is one JSON file beside this module, or a profile file that a user wrote in the same form. ``basis``
of a source says whether a figure was measured (by its publisher), stands in NVIDIA's data sheet, or is
modelled (by us, from measured neighbours).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from muserve.errors import InputError, input_error
from muserve.plan import Basis

PARTS_DIR = "parts"
"""Where a plan directory keeps the parts that the catalogue does not have."""

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


# Beyond these a figure is a slip: of a unit, or of the keyboard.
_Clock = Annotated[int, Field(gt=0, le=100_000)]
_Figure = Annotated[float, Field(gt=0, le=1e6)]
_Delay = Annotated[float, Field(ge=0, le=60_000)]


class FigureBasis(StrEnum):
    """How a figure of a part was obtained."""

    MEASURED = "measured"
    DATA_SHEET = "data sheet"
    MODELLED = "modelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class BusyPoint:
    """One operating point: run time relative to the top clock, and board power."""

    __pydantic_config__ = _STRICT

    clock_mhz: int
    time_ratio: float
    power_w: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BusyCurve:
    """How one class of work behaves over the clock. ``sensitivity`` is the class's compute share ``k``."""

    __pydantic_config__ = _STRICT

    name: str
    sensitivity: Annotated[float, Field(ge=0, le=1)]
    points: tuple[BusyPoint, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a figure of a part comes from, and how it was obtained."""

    __pydantic_config__ = _STRICT

    text: str
    basis: FigureBasis


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One GPU product, called ``product`` by NVML.

    ``clocks_mhz`` are the SM clocks as NVML lists them, ascending. ``idle_w`` and ``idle_default_w``
    are board power with a context loaded and no work, at the lowest and at the default (top) clock.
    ``limit_w`` is the default power limit, ``limit_min_w`` the lowest that NVML accepts.
    ``bandwidth_gbs`` is that of the GPU's own memory, ``host_link_gbs`` that of the link to the host in one
    direction. ``peak_tflops`` maps a dtype to its dense peak: ``fp32`` outside of the tensor cores, all
    others with them; a dtype without an entry has no such peak in the data sheet.
    ``busy_curves`` ascend in sensitivity and share their clocks, which ascend up to the top clock.
    ``switch_call_ms`` is how long the lock call blocks, ``switch_settle_ms`` how much later the new
    clock is in force. ``sources`` is keyed by field name.
    """

    __pydantic_config__ = _STRICT

    name: str
    product: str
    clocks_mhz: tuple[_Clock, ...]
    knee_mhz: int
    memory_bytes: Annotated[int, Field(gt=0, le=10**15)]
    bandwidth_gbs: _Figure
    host_link_gbs: _Figure
    peak_tflops: dict[str, _Figure]
    limit_w: _Figure
    limit_min_w: float
    idle_w: float
    idle_default_w: float
    switch_call_ms: _Delay
    switch_settle_ms: _Delay
    busy_curves: tuple[BusyCurve, ...]
    sources: dict[str, Source]

    @property
    def working_clocks_mhz(self) -> tuple[int, ...]:
        """Clocks worth working at, ascending: below the knee work slows down and no energy is saved."""
        return tuple(clock for clock in self.clocks_mhz if clock >= self.knee_mhz)

    @property
    def top_clock_mhz(self) -> int:
        """The highest supported clock, which is also the driver's default under load."""
        return self.clocks_mhz[-1]

    @property
    def lowest_measured_mhz(self) -> int:
        """The lowest clock of the busy curves; work below it is modelled in any case."""
        return self.busy_curves[0].points[0].clock_mhz

    @property
    def response_basis(self) -> Basis:
        """Whether the busy curves, the part's response to its clock, are measured or modelled."""
        measured = self.sources["busy_curves"].basis is FigureBasis.MEASURED
        return Basis.MEASURED if measured else Basis.MODELLED


_ADAPTER: TypeAdapter[Part] = TypeAdapter(Part)


def part_names() -> tuple[str, ...]:
    """Names of the parts in the catalogue, sorted."""
    files = resources.files(__name__).iterdir()
    return tuple(sorted(f.name.removesuffix(".json") for f in files if f.name.endswith(".json")))


def load_part(name: str, directory: Path | None = None) -> Part:
    """The catalogue's part called ``name``, else the one that ``directory`` keeps under that name.

    InputError naming the known parts when there is none.
    """
    known = part_names()
    if name in known:
        return parse_part(resources.files(__name__).joinpath(f"{name}.json").read_bytes(), f"{name}.json")
    if directory is not None and _NAME.fullmatch(name) and (directory / f"{name}.json").exists():
        return read_part(directory / f"{name}.json")
    raise InputError(f"unknown GPU part {name!r}: expected one of {', '.join(known)}")


def read_part(path: Path) -> Part:
    """The part of a profile file; InputError when it is unreadable, wrong, or named like a catalogue part."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: expected a readable part: {error.strerror}") from error
    part = parse_part(text, str(path))
    if part.name in part_names():
        raise InputError(f"{path}: name: expected a name that the catalogue does not have, got {part.name!r}")
    return part


def part_bytes(part: Part) -> bytes:
    """A part as the stable bytes of a profile file."""
    return (json.dumps(_ADAPTER.dump_python(part, mode="json"), indent=2, sort_keys=True) + "\n").encode()


def parse_part(text: str | bytes, source: str) -> Part:
    """Parse and check a part's JSON; ``source`` names it in the InputError raised when it is bad."""
    try:
        part = _ADAPTER.validate_json(text)
    except ValidationError as error:
        raise input_error(source, error) from error
    complaint = _complaint(part)
    if complaint:
        raise InputError(f"{source}: {complaint}")
    return part


def _complaint(part: Part) -> str | None:
    """The first physical law that ``part`` breaks, or None."""
    clocks = part.clocks_mhz
    if not _NAME.fullmatch(part.name):
        return f"name: expected up to 64 letters, digits, '_', '.' or '-', got {part.name!r}"
    if not clocks or not _ascends(clocks):
        return "clocks_mhz: expected clocks in ascending order"
    if part.knee_mhz not in clocks:
        return f"knee_mhz: expected one of clocks_mhz, got {part.knee_mhz}"
    if not 0 < part.idle_w <= part.idle_default_w < part.limit_w:
        return "expected 0 < idle_w <= idle_default_w < limit_w"
    if not part.idle_w < part.limit_min_w <= part.limit_w:
        return "expected idle_w < limit_min_w <= limit_w"
    if not part.peak_tflops:
        return "peak_tflops: expected a peak for at least one dtype"
    if "busy_curves" not in part.sources:
        return "sources: expected an entry for busy_curves"
    if not part.busy_curves or not _ascends([curve.sensitivity for curve in part.busy_curves]):
        return "busy_curves: expected at least one curve, in ascending order of sensitivity"
    for curve in part.busy_curves:
        complaint = _curve_complaint(part, curve)
        if complaint:
            return f"busy_curves: {curve.name}: {complaint}"
    return None


def _curve_complaint(part: Part, curve: BusyCurve) -> str | None:
    measured = [point.clock_mhz for point in curve.points]
    if measured != [point.clock_mhz for point in part.busy_curves[0].points]:
        return "expected the clocks of the first curve"
    if not _ascends(measured) or not set(measured) >= {part.knee_mhz, part.top_clock_mhz}:
        return "expected ascending clocks that include the knee and the top clock"
    if not measured[0] >= part.clocks_mhz[0]:
        return "expected no point below the lowest clock"
    below_knee = [point.time_ratio for point in curve.points if point.clock_mhz <= part.knee_mhz]
    if not _ascends(below_knee[::-1]) or curve.points[-1].time_ratio != 1:
        return "expected time_ratio to fall with the clock up to the knee and to be 1 at the top"
    if not _ascends([point.power_w for point in curve.points]):
        return "expected power_w to rise with the clock"
    if curve.points[0].power_w <= part.idle_w or curve.points[-1].power_w > part.limit_w:
        return "expected power_w above idle_w and up to limit_w"
    return None


def _ascends(values: list[int] | list[float] | tuple[int, ...]) -> bool:
    return all(left < right for left, right in pairwise(values))
