"""``sampling_parameters``: vLLM's SamplingParams, as far as our engines heed them.

Same JSON object as Triton's vLLM backend takes, as a tensor or as request parameters. Numbers may be
given as strings, because that backend's own example client does so. ``max_tokens``, ``min_tokens``,
``ignore_eos`` and the stop strings decide how long an answer gets, on every engine. ``temperature``,
``top_p``, ``top_k`` and ``seed`` choose between tokens, where the engine has a choice. Everything else is
for vLLM alone.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mubackend.failure import invalid

DEFAULT_MAX_TOKENS = 1024
"""Longest answer when a request sets no ``max_tokens``. (vLLM's own default is 16.)"""

_LONGEST = 1_000_000
_HIGHEST_SEED = 2**63 - 1
_HOTTEST = 100.0
_INTEGER = re.compile(r"-?[0-9]{1,19}")
_OURS = frozenset(
    {"max_tokens", "min_tokens", "ignore_eos", "n", "stop", "include_stop_str_in_output"}
    | {"temperature", "top_p", "top_k", "seed"}
)
_OBJECT = "sampling_parameters: expected a JSON object"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Length limits of one answer, in tokens, the strings that end it, and how its tokens are chosen.

    ``temperature`` 0 takes the likeliest token; ``top_k`` 0 and ``top_p`` 1 leave all tokens. ``others`` are
    the parameters without a meaning here, as they came.
    """

    max_tokens: int = DEFAULT_MAX_TOKENS
    min_tokens: int = 0
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    include_stop: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    others: Mapping[str, Any] = field(default_factory=dict)

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
    top_p = _number(values, "top_p", 1.0, highest=1.0)
    if top_p == 0.0:
        raise invalid("sampling_parameters: top_p: expected a number above 0, got 0")
    return Sampling(
        max_tokens=most,
        min_tokens=least,
        ignore_eos=_boolean(values, "ignore_eos"),
        stop=_stop(values),
        include_stop=_boolean(values, "include_stop_str_in_output"),
        temperature=_number(values, "temperature", 1.0, highest=_HOTTEST),
        top_p=top_p,
        top_k=max(0, _integer(values, "top_k", 0, lowest=-1)),
        seed=_integer(values, "seed", 0, lowest=0, highest=_HIGHEST_SEED) if "seed" in values else None,
        others={key: value for key, value in values.items() if key not in _OURS},
    )


def _number(values: Mapping[str, Any], key: str, default: float, *, highest: float) -> float:
    value = values.get(key, default)
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0.0 <= number <= highest:
        raise invalid(
            f"sampling_parameters: {key}: expected a number from 0 to {highest:g}, got {shown(value)}"
        )
    return number


def _integer(
    values: Mapping[str, Any], key: str, default: int, *, lowest: int, highest: int = _LONGEST
) -> int:
    value = values.get(key, default)
    if isinstance(value, str) and _INTEGER.fullmatch(value.strip()):
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
        raise invalid(
            f"sampling_parameters: {key}: expected a whole number from {lowest} to {highest}, "
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
