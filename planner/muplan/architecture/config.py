"""Read a Hugging Face ``config.json`` of a generative model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from muplan.architecture.decoder import DecoderArchitecture
from muplan.architecture.encoder_decoder import EncoderDecoderArchitecture
from muplan.architecture.fused_projection_families import Bloom, CodeGen
from muplan.architecture.learned_position_families import Gpt2, Opt
from muplan.architecture.llama_families import Llama, Mixtral, Qwen3Moe
from muplan.architecture.switch_family import Switch
from muserve.errors import InputError, input_error

_FAMILIES: dict[str, type[Bloom | CodeGen | Gpt2 | Llama | Mixtral | Opt | Qwen3Moe | Switch]] = {
    "bloom": Bloom,
    "codegen": CodeGen,
    "gpt2": Gpt2,
    "llama": Llama,
    "mistral": Llama,
    "mixtral": Mixtral,
    "opt": Opt,
    "qwen2": Llama,
    "qwen3": Llama,
    "qwen3_moe": Qwen3Moe,
    "switch_transformers": Switch,
}

GENERATIVE_TYPES = tuple(_FAMILIES)
"""Values of ``model_type`` that ``parse_generative`` knows."""


def read_config(file: Path) -> dict[str, Any]:
    """The JSON object in ``file``; InputError when there is none."""
    try:
        document = json.loads(file.read_bytes())
    except OSError as error:
        raise InputError(f"{file}: expected a readable config.json: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{file}: not valid JSON: {error}") from error
    if not isinstance(document, dict) or not isinstance(document.get("model_type"), str):
        raise InputError(f"{file}: expected a Hugging Face config with a model_type")
    return document


def parse_generative(
    config: dict[str, Any], source: Path | str
) -> DecoderArchitecture | EncoderDecoderArchitecture:
    """The network that ``config`` describes; InputError, naming ``source``, when it is not one we know.

    Quantised weights are refused: unpacking them is compute, so that their decode steps follow the clock
    (k about .7 with 3 and 4 bits where fp16 has .04), by how much depends on the kernel, not on the network.
    """
    model_type = config.get("model_type")
    family = _FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        known = ", ".join(GENERATIVE_TYPES)
        raise InputError(f"{source}: model_type: expected one of {known}, got {model_type!r}")
    if config.get("quantization_config"):
        raise InputError(
            f"{source}: quantization_config: expected 16 bit weights, for how much quantised ones follow the "
            "clock is not modelled"
        )
    try:
        return family.model_validate(config).architecture()
    except ValidationError as error:
        raise input_error(source, error) from error
