"""What a request says about how it wants to be served, beside what it wants to be answered.

The keys stand in the same JSON object as the sampling parameters (or among Triton's request parameters):
``traffic_class`` (interactive, standard or batch), ``timeout_ms`` (from arrival; waiting or running, the
request ends then) and, for experiments, ``oracle_tokens`` (the true length of the answer).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mubackend.failure import invalid
from mubackend.sampling import parse_object, shown
from muserve.queue_order import TrafficClass

_LONGEST_TIMEOUT_MS = 30 * 24 * 3600 * 1000
_MOST_TOKENS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """``timeout_ms`` is None for no limit, ``oracle_tokens`` None for a length that nobody told."""

    traffic_class: TrafficClass = TrafficClass.STANDARD
    timeout_ms: float | None = None
    oracle_tokens: float | None = None


def parse_terms(sampling_parameters: str, triton_timeout_us: int = 0) -> Terms:
    """Read the terms; ``triton_timeout_us`` is Triton's own request timeout, 0 for none.

    The shorter of the two timeouts counts. Raises RequestError (INVALID_ARGUMENT) naming the key.
    """
    values = parse_object(sampling_parameters)
    name = values.get("traffic_class", TrafficClass.STANDARD)
    if name not in tuple(TrafficClass):
        raise invalid(
            f"sampling_parameters: traffic_class: expected one of {', '.join(TrafficClass)}, "
            f"got {shown(name)}"
        )
    timeouts_ms = [
        *([triton_timeout_us / 1000] if triton_timeout_us else []),
        *([_number(values, "timeout_ms", _LONGEST_TIMEOUT_MS)] if "timeout_ms" in values else []),
    ]
    return Terms(
        traffic_class=TrafficClass(name),
        timeout_ms=min(timeouts_ms, default=None),
        oracle_tokens=(_number(values, "oracle_tokens", _MOST_TOKENS) if "oracle_tokens" in values else None),
    )


def _number(values: dict[str, Any], key: str, highest: float) -> float:
    value = values[key]
    try:
        number = (
            float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else -1.0
        )
    except (ValueError, OverflowError):
        number = -1.0
    if not 0.0 < number <= highest:
        raise invalid(
            f"sampling_parameters: {key}: expected a number above 0 and at most {highest:g}, "
            f"got {shown(value)}"
        )
    return number
