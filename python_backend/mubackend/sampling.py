"""``sampling_parameters``: the part of vLLM's SamplingParams that decides how long an answer gets.

Same JSON object as Triton's vLLM backend takes, as a tensor or as request parameters. Numbers may be
given as strings, because that backend's own example client does so. Parameters that only choose between
tokens (temperature, top_p, seed, ...) are accepted and have no effect here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mubackend.failure import invalid

DEFAULT_MAX_TOKENS = 1024
"""Longest answer when a request sets no ``max_tokens``. (vLLM's own default is 16.)"""

_LONGEST = 1_000_000
_OBJECT = "sampling_parameters: expected a JSON object"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Length limits of one answer, in tokens, and the strings that end it."""

    max_tokens: int = DEFAULT_MAX_TOKENS
    min_tokens: int = 0
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()

    def clip(self, tokens: float) -> float:
        """An expected answer length brought within the limits; ``ignore_eos`` always runs to the end."""
        least = self.max_tokens if self.ignore_eos else self.min_tokens
        return float(min(max(tokens, least), self.max_tokens))


def parse_sampling(text: str) -> Sampling:
    """Read the JSON object in ``text``; an empty text means all defaults.

    Raises RequestError (INVALID_ARGUMENT) naming the key and what was expected.
    """
    return _sampling(parse_object(text))


def parse_object(text: str) -> dict[str, Any]:
    """The keys of the JSON object in ``text`` that are not null; none for an empty text.

    Raises RequestError (INVALID_ARGUMENT) for anything else.
    """
    if not text.strip():
        return {}
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise invalid(f"{_OBJECT}, got text that is not JSON") from error
    if not isinstance(values, dict):
        raise invalid(f"{_OBJECT}, got {shown(values)}")
    return {key: value for key, value in values.items() if value is not None}


def _sampling(values: Mapping[str, Any]) -> Sampling:
    most = _integer(values, "max_tokens", DEFAULT_MAX_TOKENS, lowest=1)
    least = _integer(values, "min_tokens", 0, lowest=0)
    if least > most:
        raise invalid(f"sampling_parameters: min_tokens: expected at most max_tokens ({most}), got {least}")
    answers = _integer(values, "n", 1, lowest=1)
    if answers != 1:
        raise invalid(f"sampling_parameters: n: expected 1 answer for each request, got {answers}")
    return Sampling(
        max_tokens=most, min_tokens=least, ignore_eos=_boolean(values, "ignore_eos"), stop=_stop(values)
    )


def _integer(values: Mapping[str, Any], key: str, default: int, *, lowest: int) -> int:
    value = values.get(key, default)
    if isinstance(value, str) and value.strip().isdecimal():
        value = value.strip()
        value = int(value) if len(value) < 10 else _LONGEST + 1
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= _LONGEST:
        raise invalid(
            f"sampling_parameters: {key}: expected a whole number from {lowest} to {_LONGEST}, "
            f"got {shown(value)}"
        )
    return value


def _boolean(values: Mapping[str, Any], key: str) -> bool:
    value = values.get(key, False)
    if isinstance(value, str) and value.lower() in ("true", "false"):
        value = value.lower() == "true"
    if not isinstance(value, bool):
        raise invalid(f"sampling_parameters: {key}: expected true or false, got {shown(value)}")
    return value


def _stop(values: Mapping[str, Any]) -> tuple[str, ...]:
    value = values.get("stop", ())
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) and text for text in texts):
        raise invalid(f"sampling_parameters: stop: expected a text or a list of texts, got {shown(value)}")
    return tuple(texts)


def shown(value: Any) -> str:
    """A value in an error message, cut where it is long."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
