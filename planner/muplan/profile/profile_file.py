"""A profile: what one model costs on one GPU part, per phase and bucket, as a value and as a file.

A file holds either what the roofline says (``modelled``) or what a device did (``measured``). Which of the
two is said once for each group of columns, in ``bases``, so that no column can mix them. Modelled files
depend only on the model, the part and this version of muServe, and are the same bytes everywhere; only
measured ones carry a time. Rows are stored as lines of plain values under a header line, for there are many.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from muserve.errors import InputError, input_error
from muserve.plan import Basis, ModelKind, Phase

PROFILE_VERSION = 1

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bases:
    """How each group of columns was obtained: ``latency_ms``; ``k`` with its range; watts."""

    __pydantic_config__ = _STRICT

    latency: Basis
    sensitivity: Basis
    power: Basis


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeVersion:
    """What ran the model, or the model of it: ``roofline``, ``onnxruntime-cuda``, ``virtual``."""

    __pydantic_config__ = _STRICT

    name: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """The GPU that was timed. A ``virtual`` one only imitates its part: its figures stay modelled."""

    __pydantic_config__ = _STRICT

    name: str
    uuid: str
    driver: str
    virtual: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Figures of the operators at positions ``first`` to ``last``: one operator, a partition, the model.

    ``latency_ms`` is at the top clock; ``launch_ms``, ``memory_ms`` and ``compute_ms`` add up to it and are
    null where only the whole was timed. ``k`` with ``k_low`` and ``k_high`` holds for clocks from
    ``from_mhz`` to ``to_mhz``: of a modelled row the range spans plausible runtimes, of a measured
    one it is the 95 % confidence interval. Board power is ``busy_top_w`` at the top clock,
    ``busy_knee_w`` at the knee, and ``static_w + linear_w x + steep_w x^steep_exponent`` at the share
    ``x`` of the top clock (``muserve.power_fit``); null where too few clocks were measured.
    ``activation_bytes`` is the most that is live at a time.
    """

    __pydantic_config__ = _STRICT

    name: str
    op_type: str
    first: int
    last: int
    latency_ms: float
    launch_ms: float | None
    memory_ms: float | None
    compute_ms: float | None
    k: float
    k_low: float
    k_high: float
    from_mhz: int
    to_mhz: int
    busy_top_w: float | None
    busy_knee_w: float | None
    static_w: float | None
    linear_w: float | None
    steep_w: float | None
    steep_exponent: int | None
    flops: float
    bytes_read: int
    bytes_written: int
    weight_bytes: int
    activation_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One operating point of the row that starts at ``first`` and ends at ``last``, as it was measured.

    ``latency_ms`` is the median over repetitions and ``spread_ms`` their interquartile range.
    ``energy_j`` is the board's per run, idle share included; null where the device does not count energy.
    ``throttled`` are the driver's reasons for a clock below the one asked for; such a point is in no fit.
    """

    __pydantic_config__ = _STRICT

    first: int
    last: int
    clock_mhz: int
    latency_ms: float
    spread_ms: float
    repetitions: int
    runs: int
    power_w: float | None
    energy_j: float | None
    throttled: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """One size of work. ``tokens`` is the prompt's length of a prefill, the context of a decode step, else 0.

    ``partitions`` are the pieces between neighbouring places to cut, in order; ``operators`` is empty
    and ``points`` filled where a device was timed.
    """

    __pydantic_config__ = _STRICT

    phase: Phase
    batch: int
    tokens: int
    whole: Row
    partitions: tuple[Row, ...]
    operators: tuple[Row, ...]
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """All figures of ``model`` (a source as in a spec) on ``part``; ``dims`` are its other dynamic sizes.

    ``device`` and ``measured_at`` (UTC, ISO 8601) are null when nothing ran.
    """

    __pydantic_config__ = _STRICT

    version: int
    muserve_version: str
    model: str
    kind: ModelKind
    model_fingerprint: str
    dtype: str
    dims: dict[str, int]
    part: str
    bases: Bases
    runtime: RuntimeVersion
    device: Device | None
    measured_at: str | None
    buckets: tuple[Bucket, ...]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the whole profile: model, runtime, driver, GPU and every figure."""
        return hashlib.sha256(profile_bytes(self)).hexdigest()

    def of_phase(self, phase: Phase) -> tuple[Bucket, ...]:
        """The buckets of one phase, in order of batch and tokens."""
        return tuple(bucket for bucket in self.buckets if bucket.phase is phase)


_ADAPTER: TypeAdapter[Profile] = TypeAdapter(Profile)
_TABLES: dict[str, tuple[str, ...]] = {
    "operators": tuple(field.name for field in fields(Row)),
    "partitions": tuple(field.name for field in fields(Row)),
    "points": tuple(field.name for field in fields(Point)),
}


def profile_bytes(profile: Profile) -> bytes:
    """The file's stable bytes: sorted keys, tables as one line a row."""
    document = _ADAPTER.dump_python(profile, mode="json")
    for bucket in document["buckets"]:
        for table, columns in _TABLES.items():
            rows = [[row[column] for column in columns] for row in bucket[table]]
            bucket[table] = {"columns": list(columns), "rows": rows}
    return (_laid_out(document, "") + "\n").encode()


def parse_profile(text: str | bytes, source: Path | str) -> Profile:
    """Parse and check a profile; ``source`` names it in the InputError raised when it is bad."""
    try:
        document: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source}: not valid JSON: {error}") from error
    found = document.get("version") if isinstance(document, dict) else None
    if found != PROFILE_VERSION:
        raise InputError(f"{source}: version: expected profile version {PROFILE_VERSION}, got {found!r}")
    buckets = document.get("buckets")
    for position, bucket in enumerate(buckets if isinstance(buckets, list) else ()):
        for table, columns in _TABLES.items():
            if isinstance(bucket, dict) and table in bucket:
                bucket[table] = _rows(bucket[table], columns, f"{source}: buckets[{position}].{table}")
    try:
        profile = _ADAPTER.validate_python(document)
    except ValidationError as error:
        raise input_error(source, error) from error
    complaint = _complaint(profile)
    if complaint:
        raise InputError(f"{source}: {complaint}")
    return profile


def read_profile(file: Path) -> Profile:
    """Read the profile in ``file``; InputError when it is missing or bad."""
    try:
        text = file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: expected a readable profile: {error.strerror}") from error
    return parse_profile(text, file)


def _rows(table: Any, columns: tuple[str, ...], place: str) -> list[dict[str, Any]]:
    """Lines under a header as one mapping a row."""
    if not isinstance(table, dict) or set(table) != {"columns", "rows"} or table["columns"] != [*columns]:
        raise InputError(f"{place}: expected the columns {', '.join(columns)} and their rows")
    for index, row in enumerate(table["rows"]):
        if not isinstance(row, list) or len(row) != len(columns):
            raise InputError(f"{place}.rows[{index}]: expected {len(columns)} values")
    return [dict(zip(columns, row, strict=True)) for row in table["rows"]]


def _complaint(profile: Profile) -> str | None:
    """The first thing that no profile can be, or None."""
    generative = profile.kind is ModelKind.GENERATIVE
    expected = {Phase.PREFILL, Phase.DECODE} if generative else {Phase.INFERENCE}
    phases = {bucket.phase for bucket in profile.buckets}
    if phases != expected:
        names = " and ".join(sorted(phase.value for phase in expected))
        return f"buckets: expected {names} of a {profile.kind.value} model"
    met = set()
    for position, bucket in enumerate(profile.buckets):
        key = (bucket.phase, bucket.batch, bucket.tokens)
        if key in met or bucket.batch < 1 or bucket.tokens < 0:
            return f"buckets[{position}]: expected each batch and tokens once, both in their range"
        met.add(key)
        if bucket.whole.latency_ms <= 0:
            return (
                f"buckets[{position}].whole.latency_ms: expected more than 0, got {bucket.whole.latency_ms:g}"
            )
        rows = {"whole": (bucket.whole,), "partitions": bucket.partitions, "operators": bucket.operators}
        for table, entries in rows.items():
            for index, row in enumerate(entries):
                complaint = _row_complaint(row)
                if complaint:
                    return f"buckets[{position}].{table}[{index}].{complaint}"
        if not _covers(bucket):
            return f"buckets[{position}].partitions: expected pieces from operator 0 to {bucket.whole.last}"
    return None


def _row_complaint(row: Row) -> str | None:
    if row.latency_ms < 0:
        return f"latency_ms: expected 0 or more, got {row.latency_ms:g}"
    if not 0 <= row.k <= 1:
        return f"k: expected a clock sensitivity in [0, 1], got {row.k:g}"
    if not 0 <= row.k_low <= row.k <= row.k_high <= 1:
        return (
            f"k_low, k_high: expected a range in [0, 1] around {row.k:g}, got {row.k_low:g} to {row.k_high:g}"
        )
    if not 0 < row.from_mhz <= row.to_mhz:
        return f"from_mhz: expected a clock up to to_mhz, got {row.from_mhz}"
    return None


def _covers(bucket: Bucket) -> bool:
    """Whether the partitions are contiguous and together the whole."""
    place = 0
    for row in bucket.partitions:
        if row.first != place or row.last < row.first:
            return False
        place = row.last + 1
    return bucket.whole.first == 0 and place == bucket.whole.last + 1


def _laid_out(value: Any, indent: str) -> str:
    """JSON with sorted keys, one line for each key, item of a list of mappings, and row of a table."""
    inner = indent + "  "
    if isinstance(value, dict) and value:
        items = [f"{inner}{json.dumps(key)}: {_laid_out(value[key], inner)}" for key in sorted(value)]
        return "{\n" + ",\n".join(items) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        rows = [_laid_out(i, inner) if isinstance(i, dict) else json.dumps(i) for i in value]
        return "[\n" + ",\n".join(inner + row for row in rows) + f"\n{indent}]"
    return json.dumps(value)
