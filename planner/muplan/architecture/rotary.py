"""Rotary frequencies from a Hugging Face config, old and new spelling."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class RopeParameters(BaseModel):
    """``rope_parameters`` (transformers 5) or ``rope_scaling`` (before) of a config."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    rope_type: Literal["default", "linear", "llama3"] = "default"
    rope_theta: Positive | None = None
    factor: Positive = 1.0
    low_freq_factor: Positive = 1.0
    high_freq_factor: Positive = 4.0
    original_max_position_embeddings: Annotated[int, Field(gt=0)] = 8192


def inverse_frequencies(size: int, theta: float, scaling: RopeParameters) -> tuple[float, ...]:
    """Radians per position of the ``size / 2`` pairs: theta^(-2i/size), scaled for long contexts.

    ``linear`` divides all by ``factor`` (Chen et al. 2023, arXiv 2306.15595). ``llama3`` divides those whose
    wavelength exceeds the original context over ``low_freq_factor``, keeps those below it over
    ``high_freq_factor`` and blends in between (Llama 3.1's reference code).
    """
    plain = [theta ** (-2 * pair / size) for pair in range(size // 2)]
    if scaling.rope_type == "default":
        return tuple(plain)
    if scaling.rope_type == "linear":
        return tuple(frequency / scaling.factor for frequency in plain)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    scaled = []
    for frequency in plain:
        turns = scaling.original_max_position_embeddings * frequency / (2 * math.pi)
        kept = min(max((turns - low) / (high - low), 0.0), 1.0)
        scaled.append(frequency * (kept + (1 - kept) / scaling.factor))
    return tuple(scaled)
