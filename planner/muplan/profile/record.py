"""A profile as a value: what one model costs on one GPU part, per phase and bucket.

It holds either what the roofline says (``modelled``) or what a device did (``measured``). Which of the two
is said once for each group of columns, in ``bases``, so that no column can mix them.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ConfigDict

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

    ``partitions`` are the pieces between neighbouring places to cut, in order. ``operators`` are those that
    compute, move or own anything, for the others are free. It is empty and ``points`` filled where a
    device was timed.
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

    def of_phase(self, phase: Phase) -> tuple[Bucket, ...]:
        """The buckets of one phase, in order of batch and tokens."""
        return tuple(bucket for bucket in self.buckets if bucket.phase is phase)
